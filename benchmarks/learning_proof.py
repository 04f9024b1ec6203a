"""Does the language model learn? Several seeds of several trainings, each for a fixed time, a table and curves.

python -m benchmarks.learning_proof --minutes 30                    5 runs x 3 seeds, one after the other
python -m benchmarks.learning_proof --minutes 30 --parallel 4       four at once, each on two cores of its own
python -m benchmarks.learning_proof --minutes 5 --parallel 15 --cores 0 trainer=gpu    all at once on one GPU
python -m benchmarks.learning_proof --only search --seeds 0         one of them
python -m benchmarks.learning_proof --report                        the table and the curves of what there is

Interrupted (Ctrl-C), it stops the runs with a checkpoint; the same command goes on, and a larger --minutes as well.
Everything is below --out (logs/learning_proof): data/, NAME/SEED/, table.md, results.json, curves.png.
Measured is the share of exactly right answers: in training (drawn at temperature 1) in the first and last rounds,
and on held-out prompts (the most likely answer) before and after. A run of the questions sees each of them once before
any comes again.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from benchmarks.learning_report import report
from benchmarks.learning_runs import CORES, RUNS, Job, Places

ROOT = Path(__file__).resolve().parents[1]
ENDED = (0, 130, -signal.SIGINT)  # exit status of train.py: done, interrupted, interrupted before it began
GRACE_S = 900  # a round and its checkpoint may take so long after the time is up


@dataclass(frozen=True)
class Conditions:
    """What all runs share."""

    places: Places
    minutes: float
    overrides: Sequence[str]
    stop: threading.Event
    cores: int  # of a run; 0: all runs share all of them


# --------------------------------------------------------------------------------------------------------------- runs


def run(job: Job, cores: Sequence[int], conditions: Conditions) -> None:
    """Train until the time is up, then measure.

    Raises:
        RuntimeError: with the end of the log, where training or measuring failed.
    """
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores and shutil.which("taskset") else []
    left = 60 * conditions.minutes - job.seconds
    if left > 0 and not conditions.stop.is_set():
        part = job.folder / f"part_{len(job.parts):02d}"
        words = job.train(part, conditions.places, conditions.overrides)
        print(f"{job.name} seed {job.seed}: {left / 60:.0f} minutes, in {part}", flush=True)
        part.mkdir(parents=True)
        job.measured(untrained=False).unlink(missing_ok=True)
        _watched([*pinned, *words], part, left, conditions.stop)
    if conditions.stop.is_set() or job.saved is None:
        return
    for untrained in (True, False):
        if not job.measured(untrained).is_file():
            _checked([*pinned, *job.measure(job.saved, conditions.places, untrained)], job.saved / "measure.txt")


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
    """Run them, ``parallel`` at once; returns what went wrong."""
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


# --------------------------------------------------------------------------------------------------------------- data


def prepare(data: Path) -> None:
    """Make prompts and questions that are not there yet."""
    seeds = ["env.train_seeds=[1,2,3,4,5,6,7,8,9,10,11,12]", "env.heldout_seeds=[101,102,103,104,105,106]"]
    coin = ["game_prompts", "--env", "coin_collector", "--out", str(data / "coin"), *seeds, "prompt.history_steps=1"]
    questions = ["question_set", "--out", str(data / "questions")]
    for (name, *words), made in ((coin, data / "coin"), (questions, data / "questions")):
        if not (made / "heldout.jsonl").is_file():
            subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *words], cwd=ROOT, check=True)


@contextmanager
def retriever(corpus: Path) -> Generator[str]:
    """The search service while the runs go on; gives its url."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "retrieve.py", str(corpus), "--port", str(port)]
    service = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while True:
            time.sleep(0.5)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                if service.poll() is not None:
                    raise SystemExit(f"the search service has ended; this says why: {' '.join(words)}") from None
        yield f"http://127.0.0.1:{port}/retrieve"
    finally:
        service.terminate()
        service.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("logs/learning_proof"))
    parser.add_argument("--minutes", type=float, default=30, help="of a run's training (default %(default)s)")
    parser.add_argument("--parallel", type=int, default=1, help="runs at once (default %(default)s)")
    parser.add_argument("--cores", type=int, default=CORES, help="of a run; 0: share all (default %(default)s)")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default=",".join(RUNS), help="runs, with commas (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("overrides", nargs="*", help="of every run's configuration, for example llm=tiny")
    settings = parser.parse_intermixed_args()
    if unknown := set(settings.only.split(",")) - RUNS.keys():
        raise SystemExit(f"unknown runs {sorted(unknown)}: choose from {', '.join(RUNS)}")
    out: Path = settings.out.absolute()
    seeds = [int(seed) for seed in settings.seeds.split(",")]
    jobs = [Job(name, seed, out) for seed, name in itertools.product(seeds, settings.only.split(","))]
    problems: list[str] = []
    if not settings.report:
        prepare(out / "data")
        with retriever(out / "data" / "questions" / "corpus.jsonl") as url:
            places = Places(out / "data", url)
            stop = threading.Event()
            conditions = Conditions(places, settings.minutes, settings.overrides, stop, settings.cores)
            problems = run_all(jobs, settings.parallel, conditions)
    print(report(jobs, out))
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
