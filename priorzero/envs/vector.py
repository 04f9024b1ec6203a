"""Plays many games at once, one process a slot, and survives the loss of any of them.

Interpreters of text games crash, hang and end their process. A worker is therefore a fresh interpreter started with
`subprocess` (not `multiprocessing`: it never imports the caller's main module, works under any caller and may start
compilers of its own), talks over a pipe, and is killed and replaced when it does not answer.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from priorzero.envs.base import EnvError, GameSpec
from priorzero.envs.stories import StoryError
from priorzero.types import Observation, Step

log = logging.getLogger(__name__)

RESET_ATTEMPTS = 3
_LOG_TAIL_BYTES = 2000
_EXIT_GRACE_S = 1.0
_ERRORS = {"EnvError": EnvError, "StoryError": StoryError}
_BOOT = "import sys; sys.path[:] = sys.argv[3:]; from priorzero.envs.worker import main; main(*map(int, sys.argv[1:3]))"


class WorkerLost(Exception):
    """A worker crashed, hung or met a bug. ``kind`` is "crash" or "timeout"."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


class Worker:
    """The parent's handle of one child process.

    Args:
        folder: scratch folder, made here; the child's working directory. Its output goes to ``worker.log`` in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._connection, theirs = Pipe()
        arguments = [str(theirs.fileno()), str(os.getpid()), *map(os.path.abspath, sys.path)]
        with theirs, open(folder / "worker.log", "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def send(self, message: tuple[Any, ...], timeout_s: float) -> None:
        """Sends a request whose answer is due after ``timeout_s`` seconds. A dead child shows at `receive`."""
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        try:
            self._connection.send(message)
        except OSError:
            log.debug("worker %s is gone; receive will say why", self._process.pid)

    def receive(self) -> tuple[Any, ...]:
        """Waits for the answer.

        Returns:
            What `Games.reset` or `Games.step` returned.

        Raises:
            EnvError: (or StoryError) raised by the game for a mistake of the caller.
            WorkerLost: if the child crashed, hung or met a bug; it has been killed.
        """
        try:
            if not self._connection.poll(max(0.0, self._deadline - time.monotonic())):
                self.stop(grace_s=0)
                raise WorkerLost("timeout", f"no answer within {self._timeout_s:g} s")
            kind, payload = self._connection.recv()
        except (EOFError, OSError) as error:
            self.stop(grace_s=_EXIT_GRACE_S)
            raise WorkerLost("crash", _exit_text(self._process.returncode)) from error
        if kind == "crash":
            self.stop(grace_s=0)
            raise WorkerLost("crash", ": ".join(payload))
        if kind == "error":
            name, message = payload
            raise _ERRORS.get(name, EnvError)(message)
        return payload

    def log_tail(self) -> str:
        """The end of what the child printed."""
        with open(self.folder / "worker.log", "rb") as output:
            output.seek(max(0, output.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            return output.read().decode(errors="replace").strip()

    def hang_up(self) -> None:
        """Closes the pipe, at which an idle child ends."""
        self._connection.close()

    def stop(self, grace_s: float) -> None:
        """Hangs up and, after ``grace_s`` seconds, kills the child and all that it started."""
        self.hang_up()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class VectorEnv:
    """Plays one game in each slot. Not thread safe; the games run in parallel.

    Args:
        num_envs: number of slots, one process each.
        timeout_s: how long a step may take.
        reset_timeout_s: how long a reset may take, the start of a process and the generation of a game included.
        scratch_dir: where the workers' scratch folders go; a temporary folder, removed at the end, if None. In a given
            folder the logs of lost workers stay.

    Attributes:
        faults: how many workers were lost, by kind: "crash", "timeout".
    """

    def __init__(
        self, num_envs: int, *, timeout_s: float, reset_timeout_s: float, scratch_dir: Path | None = None
    ) -> None:
        if num_envs < 1 or timeout_s <= 0 or reset_timeout_s <= 0:
            raise EnvError("VectorEnv needs at least one environment and timeouts above zero seconds.")
        self.num_envs, self.timeout_s, self.reset_timeout_s = num_envs, timeout_s, reset_timeout_s
        self.faults: Counter[str] = Counter()
        if scratch_dir is not None:
            Path(scratch_dir).mkdir(parents=True, exist_ok=True)
        self._scratch = Path(tempfile.mkdtemp(prefix="priorzero-games-", dir=scratch_dir)).absolute()
        self._started = 0
        self._workers: list[Worker] = []
        self._closer = weakref.finalize(self, _stop_all, self._workers, self._scratch, keep=scratch_dir is not None)
        self._workers.extend(self._start() for _ in range(num_envs))
        self._last: list[Step | None] = [None] * num_envs
        self._waiting: set[int] = set()

    def reset(self, slots: Sequence[int], specs: Sequence[GameSpec], seeds: Sequence[int | None]) -> list[Step]:
        """Starts an episode in each slot. A lost worker is replaced and asked again, three times in all.

        Args:
            slots: distinct slots, 0 to ``num_envs - 1``.
            specs: the game of each slot.
            seeds: the seed of each episode; None is the game's own (the one of a Jericho walkthrough).

        Raises:
            EnvError: (or StoryError) for a game that cannot be built, at once; or if three workers in a row were lost.
        """
        self._check(slots)
        requests = [("reset", pickle.dumps(spec), seed) for spec, seed in zip(specs, seeds, strict=True)]
        for slot, request in zip(slots, requests, strict=True):
            if slot in self._waiting:  # left over from an interrupted step
                self._replace(slot)
            self._request(slot, request, self.reset_timeout_s)
        return self._settle(slots, [self._receive_reset(*pair) for pair in zip(slots, requests, strict=True)])

    def step(self, slots: Sequence[int], actions: Sequence[str]) -> list[Step]:
        """Plays one action in each slot: `send`, then `receive`."""
        self.send(slots, actions)
        return self.receive(slots)

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
            self._request(slot, ("step", action), self.timeout_s)

    def receive(self, slots: Sequence[int]) -> list[Step]:
        """Waits for the answers to `send`. A lost worker is replaced, and its step is truncated with a ``fault``.

        Raises:
            EnvError: if nothing was sent to a slot.
        """
        self._check(slots)
        idle = [slot for slot in slots if slot not in self._waiting]
        if idle:
            raise EnvError(f"Nothing was sent to the slots {idle}: call send before receive.")
        return self._settle(slots, [self._receive_step(slot) for slot in slots])

    def walkthrough(self, spec: GameSpec) -> list[str] | None:
        """Actions that win the game from ``seed=None``, if known. For tests and tools, never for agents."""
        worker = self._start()
        try:
            worker.send(("reset", pickle.dumps(spec), None), self.reset_timeout_s)
            *_, info = worker.receive()
        except WorkerLost as lost:
            raise EnvError(f"The game {spec.name} could not be opened ({lost}). {worker.log_tail()}") from lost
        finally:
            worker.stop(grace_s=_EXIT_GRACE_S)
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
        self._workers[slot] = self._start()
        self._waiting.discard(slot)

    def _request(self, slot: int, message: tuple[Any, ...], timeout_s: float) -> None:
        self._workers[slot].send(message, timeout_s)
        self._waiting.add(slot)

    def _lose(self, slot: int, lost: WorkerLost) -> None:
        worker = self._workers[slot]
        self.faults[lost.kind] += 1
        log.warning("the game worker of slot %d was lost (%s) and is replaced. %s", slot, lost, worker.log_tail())
        self._replace(slot)

    def _receive_reset(self, slot: int, request: tuple[Any, ...]) -> Step | EnvError:
        self._last[slot] = None
        for attempt in range(1, RESET_ATTEMPTS + 1):
            try:
                return _step(self._workers[slot].receive())
            except EnvError as error:
                return error
            except WorkerLost as lost:
                tail = self._workers[slot].log_tail()
                self._lose(slot, lost)
                reason = f"The game in slot {slot} could not be started in {attempt} attempts ({lost}). {tail}"
            if attempt < RESET_ATTEMPTS:
                self._request(slot, request, self.reset_timeout_s)
        return EnvError(reason)

    def _receive_step(self, slot: int) -> Step | EnvError:
        try:
            return _step(self._workers[slot].receive())
        except EnvError as error:
            return error
        except WorkerLost as lost:
            self._lose(slot, lost)
            last = self._last[slot]
            assert last is not None  # send refuses a slot without an episode
            return replace(last, reward=0.0, terminated=False, truncated=True, valid_actions=(), fault=str(lost))

    def _settle(self, slots: Sequence[int], answers: Sequence[Step | EnvError]) -> list[Step]:
        """Records what every slot answered, then raises the first error if there is one."""
        for slot, answer in zip(slots, answers, strict=True):
            self._waiting.discard(slot)
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
        observation=Observation(*observation),
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        valid_actions=tuple(info["valid_actions"]),
        score=info["score"],
        max_score=info["max_score"],
        game=info["game"],
        goal=info["goal"],
        world_hash=info["world_hash"],
    )


def _exit_text(returncode: int) -> str:
    if returncode < 0:
        return f"the process was killed by {signal.Signals(-returncode).name}"
    return f"the process ended with status {returncode}"


def _stop_all(workers: list[Worker], scratch: Path, keep: bool) -> None:
    for worker in workers:
        worker.hang_up()
    deadline = time.monotonic() + _EXIT_GRACE_S
    for worker in workers:
        worker.stop(max(0.0, deadline - time.monotonic()))
        shutil.rmtree(worker.folder, ignore_errors=True)
    if not keep or not any(scratch.iterdir()):
        shutil.rmtree(scratch, ignore_errors=True)
