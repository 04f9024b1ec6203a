"""Plays many games at once, one process a slot, and survives the loss of any of them.

Interpreters of text games crash, hang and end their process: a `priorzero.envs.process.Worker` that does not answer is
killed and replaced.
"""

from __future__ import annotations

import logging
import pickle
import shutil
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from priorzero.envs.base import EnvError, GameSpec
from priorzero.envs.process import EXIT_GRACE_S, Worker, WorkerLost
from priorzero.types import Observation, Step

log = logging.getLogger(__name__)

RESET_ATTEMPTS = 3
_Reset = tuple[str, bytes, int | None]  # "reset", the pickled spec, the seed


class VectorEnv:
    """Plays one game in each slot. Not thread safe; the games run in parallel.

    Args:
        num_envs: number of slots, one process each.
        timeout_s: how long a step may take.
        reset_timeout_s: how long a reset may take, the start of a process and the generation of a game included.
        scratch_dir: where the workers' scratch folders go. In a given folder those of lost workers stay, with all that
            they printed; if None, they lie in a temporary folder and nothing stays.

    Attributes:
        faults: how many workers were lost, by kind: "crash", "timeout".
        counts: sums of what the games counted (``info["counts"]``), for the log.
        seconds: processor time of the workers: "step" (of resets and steps), and "valid_actions" in it.
    """

    def __init__(
        self, num_envs: int, *, timeout_s: float, reset_timeout_s: float, scratch_dir: Path | None = None
    ) -> None:
        if num_envs < 1 or timeout_s <= 0 or reset_timeout_s <= 0:
            raise EnvError("VectorEnv needs at least one environment and timeouts above zero seconds.")
        self.num_envs, self.timeout_s, self.reset_timeout_s = num_envs, timeout_s, reset_timeout_s
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.seconds: dict[str, float] = {"step": 0.0, "valid_actions": 0.0}
        if scratch_dir is not None:
            Path(scratch_dir).mkdir(parents=True, exist_ok=True)
        self._scratch = Path(tempfile.mkdtemp(prefix="priorzero-games-", dir=scratch_dir)).absolute()
        self._started = 0
        self._workers: list[Worker] = []
        self._keep = scratch_dir is not None
        self._closer = weakref.finalize(self, _stop_all, self._workers, self._scratch, self._keep)
        self._workers.extend(self._start() for _ in range(num_envs))
        self._last: list[Step | None] = [None] * num_envs
        self._waiting: dict[int, _Reset | None] = {}  # the reset that was asked for; None: a step

    def reset(self, slots: Sequence[int], specs: Sequence[GameSpec], seeds: Sequence[int | None]) -> list[Step]:
        """Starts an episode in each slot: `send_reset`, then `receive`."""
        self.send_reset(slots, specs, seeds)
        return self.receive(slots)

    def step(self, slots: Sequence[int], actions: Sequence[str]) -> list[Step]:
        """Plays one action in each slot: `send`, then `receive`."""
        self.send(slots, actions)
        return self.receive(slots)

    def send_reset(self, slots: Sequence[int], specs: Sequence[GameSpec], seeds: Sequence[int | None]) -> None:
        """Begins to start an episode in each slot.

        Args:
            slots: distinct slots, 0 to ``num_envs - 1``.
            specs: the game of each slot.
            seeds: the seed of each episode; None is the game's own (the one of a Jericho walkthrough).
        """
        self._check(slots)
        for slot, spec, seed in zip(slots, specs, seeds, strict=True):
            if slot in self._waiting:  # left over from an interrupted step
                self._replace(slot)
            self._request_reset(slot, ("reset", pickle.dumps(spec), seed))

    def send(self, slots: Sequence[int], actions: Sequence[str]) -> None:
        """Starts one action in each slot.

        Raises:
            EnvError: if an episode has not begun or is over, or an answer is still waiting.
        """
        self._check(slots)
        for slot in slots:
            last = self._last[slot]
            if slot in self._waiting:
                raise EnvError(f"Slot {slot} has an answer waiting: call receive before send.")
            if last is None or last.done:
                state = "has not begun" if last is None else f"of {last.game} is over"
                raise EnvError(f"The episode in slot {slot} {state}: call reset before step.")
        for slot, action in zip(slots, actions, strict=True):
            self._workers[slot].send(("step", action), self.timeout_s)
            self._waiting[slot] = None

    def receive(self, slots: Sequence[int]) -> list[Step]:
        """Waits for the answers to `send` and `send_reset`.

        A lost worker is replaced. Its step is truncated with a ``fault``; its reset is asked again, three times in all.

        Raises:
            EnvError: if nothing was sent to a slot; (or StoryError) for a game that cannot be built; or if three
                workers in a row were lost in a reset.
        """
        self._check(slots)
        idle = [slot for slot in slots if slot not in self._waiting]
        if idle:
            raise EnvError(f"Nothing was sent to the slots {idle}: call send before receive.")
        return self._settle(slots, [self._receive(slot, self._waiting[slot]) for slot in slots])

    def walkthrough(self, spec: GameSpec) -> list[str] | None:
        """Actions that win the game from ``seed=None``, if known. For tests and tools, never for agents."""
        worker = self._start()
        try:
            worker.send(("reset", pickle.dumps(spec), None), self.reset_timeout_s)
            *_, info = worker.receive()
        except WorkerLost as lost:
            raise EnvError(f"The game {spec.name} could not be opened ({lost}). {worker.log_tail()}") from lost
        finally:
            worker.stop(grace_s=EXIT_GRACE_S)
        return info["walkthrough"]

    def close(self) -> None:
        """Ends all workers; safe to call twice."""
        self._closer()

    def __enter__(self) -> VectorEnv:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()

    def _check(self, slots: Sequence[int]) -> None:
        if not self._closer.alive:
            raise EnvError("This VectorEnv is closed: make a new one.")
        if len(set(slots)) != len(slots) or not all(0 <= slot < self.num_envs for slot in slots):
            raise EnvError(f"slots={list(slots)} is not valid: they must be distinct, from 0 to {self.num_envs - 1}.")

    def _start(self) -> Worker:
        self._started += 1
        return Worker(self._scratch / f"worker-{self._started}")

    def _replace(self, slot: int) -> None:
        self._workers[slot].stop(grace_s=0)
        if not self._keep:
            shutil.rmtree(self._workers[slot].folder, ignore_errors=True)
        self._workers[slot] = self._start()
        self._waiting.pop(slot, None)

    def _request_reset(self, slot: int, request: _Reset) -> None:
        self._workers[slot].send(request, self.reset_timeout_s)
        self._waiting[slot] = request

    def _lose(self, slot: int, lost: WorkerLost) -> None:
        worker = self._workers[slot]
        self.faults[lost.kind] += 1
        log.warning("the game worker of slot %d was lost (%s) and is replaced. %s", slot, lost, worker.log_tail())
        self._replace(slot)

    def _receive(self, slot: int, reset: _Reset | None) -> Step | EnvError:
        return self._receive_step(slot) if reset is None else self._receive_reset(slot, reset)

    def _receive_reset(self, slot: int, request: _Reset) -> Step | EnvError:
        self._last[slot] = None
        for attempt in range(1, RESET_ATTEMPTS + 1):
            try:
                return self._read(slot)
            except EnvError as error:
                return error
            except WorkerLost as lost:
                tail = self._workers[slot].log_tail()
                self._lose(slot, lost)
                reason = f"The game in slot {slot} could not be started in {attempt} attempts ({lost}). {tail}"
            if attempt < RESET_ATTEMPTS:
                self._request_reset(slot, request)
        return EnvError(reason)

    def _receive_step(self, slot: int) -> Step | EnvError:
        try:
            return self._read(slot)
        except EnvError as error:
            return error
        except WorkerLost as lost:
            self._lose(slot, lost)
            last = self._last[slot]
            assert last is not None  # send refuses a slot without an episode
            return replace(last, reward=0.0, terminated=False, truncated=True, valid_actions=(), fault=str(lost))

    def _read(self, slot: int) -> Step:
        payload = self._workers[slot].receive()
        info = payload[-1]
        counts = info.get("counts", {})
        if "file_lost" in counts:
            log.warning(
                "the game worker of slot %d goes on without the file of valid actions, which fails; finding them takes "
                "longer from here. %s", slot, self._workers[slot].log_tail()
            )  # fmt: skip
        self.counts.update(counts)
        for name, seconds in info["seconds"].items():
            self.seconds[name] += seconds
        return _step(payload)

    def _settle(self, slots: Sequence[int], answers: Sequence[Step | EnvError]) -> list[Step]:
        """Records what every slot answered, then raises the first error if there is one."""
        for slot, answer in zip(slots, answers, strict=True):
            self._waiting.pop(slot, None)
            if isinstance(answer, Step):
                self._last[slot] = answer
        steps: list[Step] = []
        for answer in answers:
            if isinstance(answer, EnvError):
                raise answer
            steps.append(answer)
        return steps


def _step(payload: tuple[Any, ...]) -> Step:
    observation, reward, terminated, truncated, info = payload
    return Step(
        observation=Observation(*observation, score=f"Score: {info['score']:g}"),
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        valid_actions=tuple(info["valid_actions"]),
        score=info["score"],
        max_score=info["max_score"],
        game=info["game"],
        goal=info["goal"],
        world_hash=info["world_hash"],
        room=info["room"],
        objects=info["objects"],
        carried=info["carried"],
    )


def _stop_all(workers: list[Worker], scratch: Path, keep: bool) -> None:
    for worker in workers:
        worker.hang_up()
    deadline = time.monotonic() + EXIT_GRACE_S
    for worker in workers:
        worker.stop(max(0.0, deadline - time.monotonic()))
        shutil.rmtree(worker.folder, ignore_errors=True)
    if not keep or not any(scratch.iterdir()):
        shutil.rmtree(scratch, ignore_errors=True)
