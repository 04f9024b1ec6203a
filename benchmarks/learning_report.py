"""What came of the runs of the learning proof: a table and curves."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning_runs import PANELS, RUNS, Proof

METRIC = "reward/exact"
SHOWN = 5  # rounds: the first and the last ones in the table, and the window of the curves
HEAD = "| run | seeds | rounds | training, start | end | seeds | held out, untrained | trained | seeds |"


def read_curve(job: Proof) -> list[float]:
    """The metric of each round; where a run was resumed, rounds that came after the checkpoint count as done again."""
    found: dict[int, float] = {}
    for part in job.parts:
        file = part / "metrics.csv"
        rows = list(csv.DictReader(file.read_text().splitlines())) if file.is_file() else []
        mine = {int(row["step"]): float(row[METRIC]) for row in rows if row.get(METRIC)}
        if mine:
            found = {step: value for step, value in found.items() if step < min(mine)} | mine
    return [found[step] for step in sorted(found)]


def heldout(jobs: Sequence[Proof], untrained: bool) -> list[float]:
    """Share of exact answers to held-out prompts, of the jobs that have been measured."""
    files = [job.measured(untrained) for job in jobs]
    return [json.loads(file.read_text())["means"]["exact"] for file in files if file.is_file()]


def report(jobs: Sequence[Proof], out: Path) -> str:
    """A Markdown table of the jobs that have begun; the numbers also go to results.json, the curves to curves.png."""
    curves = {job: curve for job in jobs if len(curve := read_curve(job)) >= SHOWN}
    lines, rows = [HEAD, "|---" * 9 + "|"], []
    for name in dict.fromkeys(job.name for job in curves):
        mine = [job for job in curves if job.name == name]
        row = {
            "run": name,
            "rounds": [len(curves[job]) for job in mine],
            "minutes": [round(job.seconds / 60, 1) for job in mine],
            "start": [mean(curves[job][:SHOWN]) for job in mine],
            "end": [mean(curves[job][-SHOWN:]) for job in mine],
            "heldout_untrained": heldout(mine, True),
            "heldout": heldout(mine, False),
        }
        rows.append(row)
        cells = [RUNS[name].title, f"{len(mine)}", f"{min(row['rounds'])} to {max(row['rounds'])}"]
        cells += [shown(row["start"]), shown(row["end"]), spread(row["end"])]
        cells += [shown(row["heldout_untrained"]), shown(row["heldout"]), spread(row["heldout"])]
        lines.append(f"| {' | '.join(cells)} |")
    named = {f"{job.name}/{job.seed}": curve for job, curve in curves.items()}
    (out / "results.json").write_text(json.dumps({"table": rows, "curves": named}, indent=1))
    (out / "table.md").write_text("\n".join(lines) + "\n")
    plot(curves, out / "curves.png")
    return "\n".join(lines)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def shown(values: Sequence[float]) -> str:
    """Their mean."""
    return f"{mean(values):.2f}" if values else ""


def spread(values: Sequence[float]) -> str:
    """The smallest and the largest."""
    return f"{min(values):.2f} to {max(values):.2f}" if values else ""


def smooth(curve: Sequence[float]) -> list[float]:
    """The mean of each round and those just before it."""
    return [mean(curve[max(0, i + 1 - SHOWN) : i + 1]) for i in range(len(curve))]


def plot(curves: dict[Proof, list[float]], picture: Path) -> None:
    """A thin line a seed, a thick one for their mean as far as all seeds go."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    begun = {job.name for job in curves}
    panels = {title: names for title, names in PANELS.items() if begun.intersection(names)}
    if not panels:
        return
    size = {"figsize": (5 * len(panels), 3.8), "layout": "constrained"}
    figure, ((*axes,),) = pyplot.subplots(1, len(panels), sharey=True, squeeze=False, **size)
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for color, name in enumerate(names):
            mine = [smooth(curve) for job, curve in curves.items() if job.name == name]
            for curve in mine:
                axis.plot(curve, color=f"C{color}", alpha=0.3, linewidth=1)
            if mine:
                middle = [mean(values) for values in zip(*mine, strict=False)]
                label = f"{RUNS[name].title.removeprefix(f'{title}, ')} ({len(mine)})"
                axis.plot(middle, color=f"C{color}", linewidth=2.5, label=label)
        axis.set(title=title, xlabel="rounds", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(title="mean (seeds)")
    axes[0].set_ylabel(f"exact answers in training (mean of {SHOWN} rounds)")
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
