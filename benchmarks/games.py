"""Real games: trains each for a fixed time, in slices, then plays 20 episodes; a table and curves.

python -m benchmarks.games --minutes 9 trainer=gpu                 every game, one after the other
python -m benchmarks.games --minutes 18 trainer=gpu                goes on from where the last call stopped
python -m benchmarks.games --games detective --ablations none,no_prior --seeds 0,1 --parallel 4 --cores 4 trainer=gpu
python -m benchmarks.games --report                                the table and the curves of what there is

Run it from the root of the repository; the story files lie in games/, or where $PRIORZERO_GAMES says. Interrupted
(Ctrl-C), it stops the runs with a checkpoint. Everything is below --out (logs/games): GAME-ABLATION/SEED/part_NN/, one
part for every slice, results.json with every episode of the evaluation, table.md, curves.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.slices import CORES, Conditions, Job, run_all
from priorzero.app.compare import plot_runs
from priorzero.app.report import GAME_SETS
from priorzero.collect.evaluate import interval

GAMES = ("detective", "acorncourt", "omniquest", "pentari", "zork1")  # names of experiments
EPISODES = 20
ALWAYS = (
    *("evaluation.at_start=false", "evaluation.final_episodes=0", "trainer.max_rounds=100000", "logger=csv"),
    *("trainer.checkpoint_every_n_rounds=50", "trainer.checkpoints_kept=1", "trainer.progress_bar=false"),
)


@dataclass(frozen=True)
class Game(Job):
    """One game with one ablation and one seed."""

    @property
    def experiment(self) -> str:
        return self.name.split("-")[0]

    @property
    def ablation(self) -> str:
        return self.name.split("-")[1]

    def train(self, part: Path, more: Sequence[str]) -> list[str]:
        """See `Job`."""
        what = [f"experiment={self.experiment}", f"ablation={self.ablation}", f"seed={self.seed}"]
        return [sys.executable, "train.py", *what, *ALWAYS, f"hydra.run.dir={part}", *self.resume, *more]

    def measurements(self, saved: Path) -> dict[Path, list[str]]:
        """Play the best checkpoint by the evaluations of the training, or the last one if there were none."""
        policies = "random,wm" if self.ablation == "no_prior" else "random,prior,wm,wm_prior"
        best = saved / "checkpoints" / "best"
        what = [
            f"ckpt={best if best.is_dir() else saved}",
            f"policies=[{policies}]",
            "games=[train]",
            f"episodes={EPISODES}",
        ]
        return {self.results: [sys.executable, "eval.py", *what, f"output={self.results}"]}

    @property
    def results(self) -> Path:
        return self.folder / "results.json"

    @property
    def outdated(self) -> list[Path]:
        return [self.results]


def report(jobs: Sequence[Game], out: Path) -> str:
    """A Markdown table of the runs that were evaluated; the curves of all that began go to curves.png."""
    lines = [
        "| run | seed | steps of the best checkpoint | minutes | policy | score [95 % interval] | maximum |",
        "|---" * 7 + "|",
    ]
    for job in jobs:
        if not job.results.is_file():
            continue
        found: dict[str, Any] = json.loads(job.results.read_text())
        for policy, episodes in found["results"][GAME_SETS["train"]].items():
            mean, low, high = interval([e["score"] for e in episodes])
            cells = [job.name, str(job.seed), f"{found['env_step']:,}", f"{job.seconds / 60:.1f}", f"`{policy}`"]
            cells += [f"{mean:.1f} [{low:.1f}, {high:.1f}]", f"{episodes[0]['max_score']:g}"]
            lines.append(f"| {' | '.join(cells)} |")
    if any(out.rglob("evaluations.jsonl")):
        plot_runs(out, out / "curves.png", None)
    (out / "table.md").write_text("\n".join(lines) + "\n")
    return "\n".join(lines)


def main() -> None:
    """Trains, measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("logs/games"))
    parser.add_argument("--minutes", type=float, default=9, help="of training, in all slices (default %(default)s)")
    parser.add_argument("--games", default=",".join(GAMES), help="experiments, with commas (default: %(default)s)")
    parser.add_argument("--ablations", default="none", help="with commas (default: %(default)s)")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--parallel", type=int, default=1, help="runs at once (default %(default)s)")
    parser.add_argument("--cores", type=int, default=CORES, help="of a run; 0: share all (default %(default)s)")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("overrides", nargs="*", help="of every run's configuration, for example trainer=gpu")
    settings = parser.parse_intermixed_args()
    if unknown := set(settings.games.split(",")) - set(GAMES):
        raise SystemExit(f"unknown games {sorted(unknown)}: choose from {', '.join(GAMES)}")
    kinds = itertools.product(settings.seeds.split(","), settings.games.split(","), settings.ablations.split(","))
    out: Path = settings.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    jobs = [Game(f"{game}-{ablation}", int(seed), out) for seed, game, ablation in kinds]
    problems: list[str] = []
    if not settings.report:
        conditions = Conditions(settings.minutes, settings.overrides, settings.cores, threading.Event())
        problems = run_all(jobs, settings.parallel, conditions)
    print(report(jobs, out))
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
