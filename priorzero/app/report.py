"""What a run leaves for people: the final table and the learning curves; and how runs compare."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from priorzero.collect.evaluate import interval
from priorzero.types import EpisodeResult

GAME_SETS = {"train": "training games", "heldout": "held-out games"}  # as tables call them
Results = Mapping[str, Mapping[str, Sequence[EpisodeResult]]]  # game set -> policy -> episodes


def table(rows: Results) -> str:
    """A Markdown table: game sets x policies, mean score with its 95 % interval, and how many episodes were won."""
    policies = list(dict.fromkeys(policy for results in rows.values() for policy in results))
    lines = ["| games | " + " | ".join(f"`{p}`" for p in policies) + " | maximum |"]
    lines.append("|---" * (len(policies) + 2) + "|")
    for name, results in rows.items():
        some = next(iter(results.values()))
        maximum = sum(r.max_score for r in some) / len(some)
        cells = [_cell(results[p]) if p in results else "" for p in policies]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {maximum:g} |")
    return "\n".join(lines)


def _cell(results: Sequence[EpisodeResult]) -> str:
    mean, low, high = interval([r.score for r in results], [r.game for r in results])
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def save_results(file: Path, rows: Results, about: dict[str, Any]) -> None:
    """Every episode of the table as JSON, with what is needed to make it again."""
    episodes = {name: {p: [asdict(r) for r in rs] for p, rs in results.items()} for name, results in rows.items()}
    file.write_text(json.dumps(about | {"results": episodes}, indent=1))


def carry_over(before: Path, now: Path, env_steps: int) -> None:
    """Begin the evaluations of the folder ``now`` with those of ``before`` up to ``env_steps``: a resumed run's curve.

    Both folders may be the same; what was evaluated after the checkpoint is then forgotten.
    """
    file = before / "evaluations.jsonl"
    if file.is_file():
        lines = [line for line in file.read_text().splitlines() if json.loads(line)["env_step"] <= env_steps]
        (now / file.name).write_text("".join(line + "\n" for line in lines))


def read_curves(evaluations: Path) -> dict[str, list[tuple[int, float, float, float]]]:
    """For each policy: (env_step, mean, low, high) of the score as a fraction of the maximum, in time order."""
    curves: dict[str, list[tuple[int, float, float, float]]] = defaultdict(list)
    for line in evaluations.read_text().splitlines():
        row = json.loads(line)
        fractions = [r["score"] / max(r["max_score"], 1) for r in row["results"]]
        games = [r["game"] for r in row["results"]]
        curves[row["policy"]].append((row["env_step"], *interval(fractions, games)))
    return curves


def plot(evaluations: Path, picture: Path, title: str) -> None:
    """Learning curves of the policies that were evaluated, with 95 % intervals over the episodes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for policy, points in sorted(read_curves(evaluations).items()):
        steps, means, lows, highs = zip(*points, strict=True)
        (line,) = axis.plot(steps, means, marker="o", markersize=3, label=policy)
        axis.fill_between(steps, lows, highs, color=line.get_color(), alpha=0.15, linewidth=0)
    axis.set(xlabel="environment steps", ylabel="score / maximum", title=title, ylim=(min(0, axis.get_ylim()[0]), 1.03))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(picture, dpi=130)
    pyplot.close(figure)


def steps_to_reach(points: Iterable[tuple[int, float, float, float]], fraction: float) -> int | None:
    """The first evaluated environment step from which the mean score is at least ``fraction`` of the maximum."""
    return next((step for step, mean, *_ in points if mean >= fraction), None)


def own_curves(folder: Path) -> dict[str, dict[int, list[tuple[int, float, float, float]]]]:
    """Name -> seed -> curve of the policy that the run collects with, of all runs below ``folder``.

    Raises:
        FileNotFoundError: no run below the folder has evaluations.
    """
    import yaml

    curves: dict[str, dict[int, list[tuple[int, float, float, float]]]] = defaultdict(dict)
    for file in sorted(folder.rglob("evaluations.jsonl")):
        config = yaml.safe_load((file.parent / ".hydra" / "config.yaml").read_text())
        curves[config["name"]][config["seed"]] = read_curves(file)[config["collector"]["policy"]]
    if not curves:
        raise FileNotFoundError(f"there is no evaluations.jsonl below {folder}: name the folder of a sweep or of runs")
    return curves


def compare(folder: Path, fraction: float) -> str:
    """A Markdown table of the runs below ``folder``: environment steps until a run's own policy scores ``fraction``."""
    lines = [f"| run | environment steps to {fraction:.0%} of the maximum, by seed | mean |", "|---|---|---|"]
    for name, seeds in sorted(own_curves(folder).items()):
        steps = [steps_to_reach(seeds[seed], fraction) for seed in sorted(seeds)]
        known = [n for n in steps if n is not None]
        mean = f"{sum(known) / len(known):.0f}" if len(known) == len(steps) else "not reached by all"
        lines.append(f"| {name} | {', '.join('never' if n is None else str(n) for n in steps)} | {mean} |")
    return "\n".join(lines)


def plot_runs(folder: Path, picture: Path, env_steps: int | None) -> None:
    """One thin line a run and a thick mean for each name, up to ``env_steps``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for i, (name, seeds) in enumerate(sorted(own_curves(folder).items())):
        curves = [[p for p in points if env_steps is None or p[0] <= env_steps] for points in seeds.values()]
        for points in curves:
            axis.plot([p[0] for p in points], [p[1] for p in points], color=f"C{i}", alpha=0.3, linewidth=1)
        common = sorted(set.intersection(*({p[0] for p in points} for points in curves)))
        means = [sum(dict((p[0], p[1]) for p in points)[step] for points in curves) / len(curves) for step in common]
        axis.plot(common, means, color=f"C{i}", linewidth=2.5, label=f"{name}, mean of {len(curves)} seeds")
    axis.set(xlabel="environment steps", ylabel="score / maximum", ylim=(-0.03, 1.03))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(picture, dpi=90)
    pyplot.close(figure)
