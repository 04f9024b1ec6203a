"""Trainings in slices of time: each goes on from its last checkpoint, several at once on cores of their own.

What `benchmarks.learning_proof` and `benchmarks.games` share. A run's folder holds a ``part_00`` for its first slice,
``part_01`` for the next one, and so on; each knows how long it took.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
CORES = 2  # of a run, unless told otherwise
ENDED = (0, 130, -signal.SIGINT)  # exit status of train.py: done, interrupted, interrupted before it began
GRACE_S = 900  # a round and its checkpoint may take so long after the time is up


@dataclass(frozen=True)
class Job(ABC):
    """One run of one seed, below the folder ``out``."""

    name: str
    seed: int
    out: Path

    @property
    def folder(self) -> Path:
        """Where everything of the run lies."""
        return self.out / self.name / str(self.seed)

    @abstractmethod
    def train(self, part: Path, more: Sequence[str]) -> list[str]:
        """The command that trains into the folder ``part``, from the last checkpoint on if there is one."""

    @abstractmethod
    def measurements(self, saved: Path) -> dict[Path, list[str]]:
        """What to measure of the run's folder ``saved`` and what to write: commands by the files that they make."""

    @property
    def outdated(self) -> list[Path]:
        """Files of ``measurements`` that say nothing any more once training has gone on."""
        return []

    @property
    def parts(self) -> list[Path]:
        """The folders of the times that it was started, in order."""
        return sorted(self.folder.glob("part_*"))

    @property
    def saved(self) -> Path | None:
        """The last part that has a checkpoint."""
        return next((p for p in reversed(self.parts) if any(p.glob("checkpoints/[0-9]*[0-9]/run.pt"))), None)

    @property
    def resume(self) -> list[str]:
        """The override that goes on from there."""
        return [f"ckpt_path={self.saved}"] if self.saved else []

    @property
    def seconds(self) -> float:
        """How long it has trained so far."""
        return sum(float(file.read_text()) for part in self.parts for file in part.glob("seconds.txt"))


@dataclass(frozen=True)
class Conditions:
    """What all runs share."""

    minutes: float  # of training, all slices together
    overrides: Sequence[str]
    cores: int  # of a run; 0: all runs share all of them
    stop: threading.Event


def run(job: Job, cores: Sequence[int], conditions: Conditions) -> None:
    """Train until the time is up, then measure.

    Raises:
        RuntimeError: with the end of the log, where training or measuring failed.
    """
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores and shutil.which("taskset") else []
    left = 60 * conditions.minutes - job.seconds
    if left > 0 and not conditions.stop.is_set():
        part = job.folder / f"part_{len(job.parts):02d}"
        words = job.train(part, conditions.overrides)
        print(f"{job.name} seed {job.seed}: {left / 60:.0f} minutes, in {part}", flush=True)
        part.mkdir(parents=True)
        for file in job.outdated:
            file.unlink(missing_ok=True)
        _watched([*pinned, *words], part, left, conditions.stop)
    if conditions.stop.is_set() or job.saved is None:
        return
    for file, words in job.measurements(job.saved).items():
        if not file.is_file():
            _checked([*pinned, *words], job.saved / "measure.txt")


def _watched(words: Sequence[str], part: Path, limit: float, stop: threading.Event) -> None:
    """Run it, ask for its end once the time is up, and write down how long it took."""
    log = part / "output.txt"
    with log.open("w") as output:
        process = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
    begin, asked = time.monotonic(), 0.0
    while process.poll() is None:
        time.sleep(0.5)
        passed = time.monotonic() - begin
        (part / "seconds.txt").write_text(f"{passed:.1f}")
        if not asked and (passed >= limit or stop.is_set()):
            process.send_signal(signal.SIGINT)
            asked = passed
        elif asked and passed > asked + GRACE_S:
            process.kill()
    if process.returncode not in ENDED:
        raise RuntimeError(f"{part} ended with status {process.returncode}:\n{_end(log)}")


def _checked(words: Sequence[str], log: Path) -> None:
    with log.open("a") as output:
        done = subprocess.run(words, cwd=ROOT, stdout=output, stderr=output, start_new_session=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with status {done.returncode}:\n{_end(log)}")


def _end(log: Path) -> str:
    return "\n".join(log.read_text().splitlines()[-8:])


def run_all(jobs: Sequence[Job], parallel: int, conditions: Conditions) -> list[str]:
    """Run them, ``parallel`` at once; returns what went wrong. SIGTERM stops them as Ctrl-C does."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a background job of a shell ignores the first
        signal.signal(number, signal.default_int_handler)
    slots: SimpleQueue[tuple[int, ...]] = SimpleQueue()
    for cores in core_sets(sorted(os.sched_getaffinity(0)), parallel, conditions.cores):
        slots.put(cores)

    def in_slot(job: Job) -> None:
        cores = slots.get()
        try:
            run(job, cores, conditions)
        finally:
            slots.put(cores)

    with ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(in_slot, job) for job in jobs]
        try:
            wait(futures)
        except KeyboardInterrupt:
            print("stopping the runs with a checkpoint", flush=True)
            conditions.stop.set()
            wait(futures)
    return [str(error) for future in futures if (error := future.exception()) is not None]


def core_sets(cores: Sequence[int], parallel: int, each: int) -> list[tuple[int, ...]]:
    """``each`` cores for each of the runs that go on at once; an empty set where there is nothing to choose from."""
    if not each:
        return [()] * parallel
    if parallel > 1 and len(cores) < each * parallel:
        raise SystemExit(
            f"--parallel {parallel} needs {each * parallel} cores, and there are {len(cores)}; --cores 0: share them"
        )
    if len(cores) <= each:
        return [()]
    return [tuple(cores[i * each : (i + 1) * each]) for i in range(parallel)]
