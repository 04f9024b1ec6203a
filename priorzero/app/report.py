"""What a run leaves for people: the final table and the learning curves."""

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
