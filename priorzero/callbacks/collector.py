"""The background collector: plays games beside the training, in a thread or inline.

``inline`` plays a fixed number of steps before every round, so a run is reproducible to the bit. ``thread`` plays all
the time and the rate limiter holds the ratio between steps stored and samples trained.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import lightning

from priorzero.callbacks.weights import Mailbox
from priorzero.collect.actor import Actor
from priorzero.data.limiter import RateLimiter
from priorzero.data.replay import Replay

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CollectorConfig:
    """When games are played."""

    kind: str  # inline | thread
    env_steps_per_round: int  # inline: at least so many
    finish_first: bool  # the first update waits for a finished episode: it learns from returns
    plays: bool  # False: training needs no games, and nothing is collected


class Collector(lightning.Callback):
    """One collector serves both trainers; `close` ends it. Its failures are raised in the training thread.

    Raises:
        ValueError: ``config.kind`` is neither "inline" nor "thread".
    """

    def __init__(
        self, actor: Actor, replay: Replay, limiter: RateLimiter, mailbox: Mailbox, config: CollectorConfig
    ) -> None:
        if config.kind not in ("inline", "thread"):
            raise ValueError(f"collector.kind must be inline or thread, not {config.kind!r}")
        self.actor, self.replay, self.limiter, self.mailbox, self.config = actor, replay, limiter, mailbox, config
        self.collecting = True  # inline: the schedule turns it off for rounds that train on what is there
        self._lock = threading.Lock()  # held while a step is played
        self._turnstile = threading.Lock()  # whoever waits for the lock waits in here, so that no one is passed over
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # ---------------------------------------------------------------------------------------------------- playing

    def play(self, env_steps: int) -> None:
        """Play at least so many steps here and now, and store what came out."""
        goal = self.actor.env_steps + env_steps
        while self.actor.env_steps < goal:
            self._tick()

    def _tick(self) -> None:
        with self.paused():
            for segment in self.actor.tick():
                self.replay.add(segment)
                self.limiter.insert(len(segment))

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if self.limiter.wait_insert(self._stop, self._largest_insert()):
                    self._tick()
        except BaseException as error:
            log.warning("the collector has stopped: %s", error)  # raised in the training thread at its next batch
            self.limiter.fail(error)

    def _largest_insert(self) -> int:
        """The most steps that one more tick can store: every episode may end in it."""
        return self.actor.pending + self.actor.config.num_envs

    @contextlib.contextmanager
    def paused(self) -> Generator[None]:
        """No other thread plays a step inside, and the newest weights are in place.

        For evaluation with the same models, and for checkpoints.
        """
        with self._turnstile:
            self._lock.acquire()
        try:
            self.mailbox.deliver(self.actor)
            yield
        finally:
            self._lock.release()

    # ---------------------------------------------------------------------------------------------------- callback

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if not self.config.plays:
            return
        if self._thread is None and not self._ready():
            log.info("playing until %d environment steps are stored, before the first update", self.limiter.min_size)
            while not self._ready():
                self._tick()
        if self.config.kind == "thread" and self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
            self._thread.start()

    def _ready(self) -> bool:
        finished = self.actor.finished > 0 or not self.config.finish_first
        return finished and self.limiter.inserted >= self.limiter.min_size

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.config.kind == "inline" and self.collecting and self.config.plays:
            self.play(self.config.env_steps_per_round)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(outputs, dict) and "priority" in outputs:
            priority = outputs["priority"].detach().float().cpu().numpy()
            self.replay.update_priorities(outputs["index"].cpu().numpy(), priority)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        module.log_dict(self.metrics(), batch_size=1)

    def metrics(self) -> dict[str, float]:
        """Counters, the latest episodes, and what player and prior count."""
        actor = self.actor
        player = actor.player
        results = list(actor.results)
        metrics = {
            "collect/env_step": float(actor.env_steps),
            "collect/episodes": float(actor.finished),
            "collect/faults": float(sum(actor.envs.faults.values())),
            "collect/world_model_version": float(actor.versions[0]),
            "collect/policy_version": float(actor.versions[1]),
            "collect/vocabulary": float(len(player.vocabulary)),
            "collect/states": float(len(actor.novelty)),
            "collect/lost_ways": float(actor.lost_ways),
            "replay/steps": float(len(self.replay)),
            "replay/reanalysed": float(self.replay.reanalysed),
            "text/encoder_hit_rate": player.encoder.hit_rate,
        }
        metrics |= {f"time/{name}_s": seconds for name, seconds in dict(player.seconds).items()}
        metrics |= valid_action_metrics(dict(actor.envs.counts))
        if (highest := actor.novelty.archive.highest_score) is not None:
            metrics["collect/highest_score"] = highest  # that any episode had
        if results:
            metrics["collect/return"] = sum(r.score for r in results) / len(results)
            metrics["collect/score_fraction"] = sum(r.score / max(r.max_score, 1) for r in results) / len(results)
            metrics["collect/episode_steps"] = sum(r.steps for r in results) / len(results)
        if player.prior is not None:
            metrics |= player.prior.metrics()
        return metrics

    def close(self) -> None:
        """Stop the thread; safe to call twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def valid_action_metrics(counts: Mapping[str, int]) -> dict[str, float]:
    """``valid_actions/...``: what the games counted while they looked for valid actions.

    ``valid_actions/recall`` is the share of the effects found by audits that the fast search would have found too;
    absent as long as there was no audit.

    Args:
        counts: see `priorzero.envs.actions.ActionFinder` and `priorzero.envs.action_cache.ActionCache`; empty for games
            that know their valid actions.
    """
    metrics = {f"valid_actions/{name}": float(count) for name, count in counts.items()}
    if counts.get("audit_effects"):
        metrics["valid_actions/recall"] = counts["audit_found"] / counts["audit_effects"]
    return metrics
