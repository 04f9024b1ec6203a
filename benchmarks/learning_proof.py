"""Does the language model learn? Several seeds of several trainings, each for a fixed time, a table and curves.

python -m benchmarks.learning_proof --only coin3_grpo,coin3_ppo --minutes 12    small ones, 3 seeds each, for two cores
python -m benchmarks.learning_proof --minutes 30                    all runs x 3 seeds, one after the other
python -m benchmarks.learning_proof --minutes 30 --parallel 4       four at once, each on two cores of its own
python -m benchmarks.learning_proof --minutes 5 --parallel 21 --cores 0 trainer=gpu    all at once on one GPU
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
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from benchmarks.learning_report import report
from benchmarks.learning_runs import RUNS, URL, Places, Proof
from benchmarks.slices import CORES, ROOT, Conditions, run_all

# --------------------------------------------------------------------------------------------------------------- data


def prepare(data: Path) -> None:
    """Make prompts and questions that are not there yet."""
    games = ["env.train_seeds=[1,2,3,4,5,6,7,8,9,10,11,12]", "env.heldout_seeds=[101,102,103,104,105,106]"]
    coin = ["game_prompts", "--env", "coin_collector", "--out", str(data / "coin"), *games, "prompt.history_steps=1"]
    small = ["game_prompts", "--env", "coin_collector", "--out", str(data / "coin3"), *games]
    small += ["env.options.level=3", "prompt.history_steps=0", "prompt.show=[look]"]
    questions = ["question_set", "--out", str(data / "questions")]
    for (name, *words), made in ((coin, data / "coin"), (small, data / "coin3"), (questions, data / "questions")):
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
    kinds = list(itertools.product(seeds, settings.only.split(",")))
    problems: list[str] = []
    if not settings.report:
        prepare(out / "data")
        corpus = out / "data" / "questions" / "corpus.jsonl"
        searches = any(URL in RUNS[name].overrides for _, name in kinds)
        with retriever(corpus) if searches else nullcontext("nobody searches") as url:
            places = Places(out / "data", url)
            conditions = Conditions(settings.minutes, settings.overrides, settings.cores, threading.Event())
            problems = run_all([Proof(name, seed, out, places) for seed, name in kinds], settings.parallel, conditions)
    print(report([Proof(name, seed, out) for seed, name in kinds], out))
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
