"""Tells how the rounds go, and ends a run at a round's end when the user asks for it."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any

import lightning
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from priorzero.callbacks.collector import Collector

log = logging.getLogger(__name__)


class StopNow(BaseException):
    """The user asked twice to stop. No `KeyboardInterrupt`, which Lightning would turn into an exit of its own."""


STOPPING = "stopping after this round with a checkpoint; press Ctrl-C again to stop now without one"


class GracefulStop(lightning.Callback):
    """Ctrl-C (or SIGTERM) once: finish the round, write a checkpoint, end. Twice: end now."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Take over Ctrl-C and SIGTERM."""
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def uninstall(self) -> None:
        """Give them back; safe to call twice."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Lightning's own handler of SIGTERM would leave the round half done."""
        if self._before:
            signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise StopNow
        self.requested = True
        # in a thread: the signal may have interrupted a line of the log, in which this one must not begin another
        threading.Thread(target=log.warning, args=[STOPPING], name="stopping").start()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.requested:
            trainer.fit_loop.max_epochs = trainer.current_epoch + 1


class RoundReport(lightning.Callback):
    """One line a round in the log, a live bar on a terminal, and where the time of the round went: ``time/...``.

    ``time/play_s`` lasts from the start of the round to its first batch: an inline collector plays, and a stream of
    generated samples writes them. Evaluation follows the last batch. A batch that is fetched later counts as training.
    """

    def __init__(self, collector: Collector, name: str, progress: LiveProgress | None) -> None:
        self.collector, self.name, self.progress = collector, name, progress
        self._start = self._first_batch = self._last_batch = 0.0
        self._env_step = 0

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._start, self._env_step = time.perf_counter(), self.collector.actor.env_steps

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self._first_batch = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._last_batch = time.perf_counter()
        if self.progress:
            self.progress.update(self.name, batch_idx + 1, int(trainer.num_training_batches), self._facts(trainer))

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        now = time.perf_counter()
        played = self.collector.actor.env_steps - self._env_step
        prefix = "policy" if self.name == "policy" else "wm"
        play, train = self._first_batch - self._start, self._last_batch - self._first_batch
        evaluate = now - self._last_batch
        times = {
            "time/play_s": play,
            f"time/{prefix}_train_s": train,
            "time/evaluate_s": evaluate,
            f"time/{prefix}_updates_per_s": self._updates_per_s(trainer),
        }
        if played:
            times["time/env_steps_per_s"] = played / (now - self._start)
        module.log_dict(times, batch_size=1)
        facts = " | ".join(f"{key} {value}" for key, value in self._facts(trainer).items())
        split = f"play {play:.1f}, train {train:.1f}, evaluate {evaluate:.1f}"
        log.info("%s round %d | %s | %.1f s: %s", self.name, trainer.current_epoch, facts, now - self._start, split)

    def _updates_per_s(self, trainer: lightning.Trainer) -> float:
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed // trainer.accumulate_grad_batches
        return done / max(self._last_batch - self._first_batch, 1e-9)

    def _facts(self, trainer: lightning.Trainer) -> dict[str, str]:
        facts = {"env_step": str(self.collector.actor.env_steps)}
        results = list(self.collector.actor.results)
        if results:
            facts["return"] = f"{sum(r.score for r in results) / len(results):.2f}"
        key = "policy/loss" if self.name == "policy" else "wm/loss"
        if key in trainer.callback_metrics:
            facts["loss"] = f"{trainer.callback_metrics[key]:.3f}"
        facts["updates/s"] = f"{self._updates_per_s(trainer):.1f}"
        return facts


class LiveProgress:
    """A bar for the rounds of the run, shared by both trainers."""

    def __init__(self, rounds: int) -> None:
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[facts]}"),
            console=Console(stderr=True),
        )
        self._rounds = self._bar.add_task("rounds", total=rounds, facts="")
        self._updates = self._bar.add_task("updates", total=None, facts="")

    def start(self) -> None:
        """Show it."""
        self._bar.start()

    def stop(self) -> None:
        """Leave it as it is."""
        self._bar.stop()

    def update(self, name: str, done: int, total: int, facts: dict[str, str]) -> None:
        """Where the present round is."""
        text = " ".join(f"{key} {value}" for key, value in facts.items())
        self._bar.update(self._updates, description=name, completed=done, total=total, facts=text)

    def rounds_done(self, done: int) -> None:
        """Where the run is."""
        self._bar.update(self._rounds, completed=done)
