"""Measures the memory of a training run with the background collector: does it grow with the steps played?

Run from the root of the repository: ``python -m benchmarks.memory``, with further overrides of the configuration behind
it. Starts ``train.py`` with small replay and caches, so that these are full after the first rows and what grows later
is a leak. Prints a table: environment steps, resident memory of the training process and of its game workers (MB).
Linux only.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20
OVERRIDES = (
    "experiment=quick_test",
    "collector=thread",
    "collector.num_envs=4",
    "collector.segment_steps=10",
    "data.capacity_steps=400",
    "data.samples_per_insert=8",
    "data.tolerance=400",
    "data.policy_updates_per_round=1",
    "encoder.cache_size=500",
    "prior.cache_size=200",
    "prompt.max_tokens=1024",
    "evaluation.at_start=false",
    "evaluation.every_n_rounds=1000000",
    "evaluation.final_episodes=0",
    "trainer.max_rounds=1000000",
    "trainer.checkpoint_every_n_rounds=40",
)


def children(pid: int) -> list[int]:
    """All processes below ``pid``."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


def resident_mb(pid: int) -> float:
    """Resident memory of one process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_MB


def measure(steps: int, every: int, overrides: list[str], folder: str) -> list[tuple[int, float, list[float]]]:
    """Rows of environment steps, MB of the training process, MB of each process below it."""
    command = [sys.executable, "train.py", *OVERRIDES, f"hydra.run.dir={folder}", *overrides]
    rows: list[tuple[int, float, list[float]]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        lines = []
        for line in run.stdout or ():
            lines.append(line)
            found = re.search(r"round \d+ \| env_step (\d+)", line)
            if not found or int(found[1]) < (len(rows) + 1) * every:
                continue
            rows.append((int(found[1]), resident_mb(run.pid), sorted(map(resident_mb, children(run.pid)))))
            print(f"| {rows[-1][0]} | {rows[-1][1]:.0f} | {' '.join(f'{mb:.0f}' for mb in rows[-1][2])} |", flush=True)
            if rows[-1][0] >= steps:
                run.send_signal(signal.SIGINT)  # it ends its round and saves
                break
        run.communicate()
    if not rows or rows[-1][0] < steps:
        sys.exit(f"the run ended early:\n{''.join(lines[-20:])}")
    return rows


def main() -> None:
    """Prints the table and the growth over its second half."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500, help="environment steps to play")
    parser.add_argument("--every", type=int, default=250, help="environment steps between two rows")
    parser.add_argument("overrides", nargs="*", help="of the configuration, like llm=none")
    arguments = parser.parse_args()
    print("| env steps | training process, MB | processes below it, MB |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments.steps, arguments.every, arguments.overrides, folder)
    half = rows[len(rows) // 2 :]
    played = half[-1][0] - half[0][0]
    grown, below = half[-1][1] - half[0][1], sum(half[-1][2]) - sum(half[0][2])
    print(f"second half, {played} steps: {grown:+.1f} MB in the training process, {below:+.1f} MB below it")


if __name__ == "__main__":
    main()
