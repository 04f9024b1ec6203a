"""How the runs of a sweep compare: steps until they reach a score, and their learning curves in one picture."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from priorzero.app.report import read_curves, steps_to_reach

_SAME_RUN = ("seed", "experiment", "name", "ckpt_path", "hydra.")  # overrides that do not tell kinds of runs apart
_LETTERS = 80  # of a line below a picture
Curve = list[tuple[int, float, float, float]]  # (environment step, mean, low, high) of the score's fraction


@dataclass(frozen=True)
class _Found:
    folder: Path
    name: str
    seed: int
    overrides: tuple[str, ...]
    curve: Curve
    resumed: bool


def own_curves(folder: Path) -> dict[str, dict[int, Curve]]:
    """Kind of run -> seed -> curve of the policy that it collects with, of all runs below ``folder``.

    A kind is the run's name, with the overrides of the command line that not all runs of that name have. A resumed run,
    which began its curve with that of the run before it, takes that one's place.

    Raises:
        FileNotFoundError: no run below the folder has evaluations.
        ValueError: two runs are of one kind and one seed.
    """
    found = [_read(file) for file in sorted(folder.rglob("evaluations.jsonl"))]
    if not found:
        raise FileNotFoundError(f"there is no evaluations.jsonl below {folder}: name the folder of a sweep or of runs")
    shared = {
        name: set.intersection(*(set(run.overrides) for run in found if run.name == name))
        for name in {run.name for run in found}
    }
    runs: dict[str, dict[int, _Found]] = defaultdict(dict)
    for run in found:
        kind = " ".join((run.name, *(o for o in run.overrides if o not in shared[run.name])))
        before = runs[kind].get(run.seed)
        if before is not None and not run.resumed:
            raise ValueError(
                f"{before.folder} and {run.folder} are both {kind} with seed {run.seed}: move one of them away"
            )
        runs[kind][run.seed] = run
    return {kind: {seed: run.curve for seed, run in sorted(seeds.items())} for kind, seeds in sorted(runs.items())}


def _read(evaluations: Path) -> _Found:
    import yaml

    hydra = evaluations.parent / ".hydra"
    config = yaml.safe_load((hydra / "config.yaml").read_text())
    given = yaml.safe_load((hydra / "overrides.yaml").read_text())
    overrides = tuple(sorted(o for o in given if not o.lstrip("+~").startswith(_SAME_RUN)))
    curve = read_curves(evaluations)[config["collector"]["policy"]]
    resumed = config["ckpt_path"] is not None
    return _Found(evaluations.parent, config["name"], config["seed"], overrides, curve, resumed)


def compare(folder: Path, fraction: float) -> str:
    """A Markdown table of the runs below ``folder``: environment steps until a run's own policy scores ``fraction``."""
    lines = [f"| run | environment steps to {fraction:.0%} of the maximum, by seed | mean |", "|---|---|---|"]
    for kind, seeds in own_curves(folder).items():
        steps = [steps_to_reach(curve, fraction) for curve in seeds.values()]
        known = [n for n in steps if n is not None]
        mean = f"{sum(known) / len(known):.0f}" if len(known) == len(steps) else "not reached by all"
        lines.append(f"| {kind} | {', '.join('never' if n is None else str(n) for n in steps)} | {mean} |")
    return "\n".join(lines)


def mean_curve(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and mean scores of runs that were evaluated at steps of their own, along straight lines between these.

    Args:
        curves: of each run, (environment step, score, ...) of every evaluation, by step.

    Returns:
        Every run's steps that lie between the first and the last of all runs, and the mean score at each.
    """
    starts, ends = zip(*((points[0][0], points[-1][0]) for points in curves), strict=True)
    steps = np.unique([p[0] for points in curves for p in points if max(starts) <= p[0] <= min(ends)])
    lines = [np.interp(steps, [p[0] for p in points], [p[1] for p in points]) for points in curves]
    return steps, np.mean(lines, axis=0)


def plot_runs(folder: Path, picture: Path, env_steps: int | None) -> None:
    """One thin line a run and a thick mean for each kind, up to ``env_steps``.

    Raises:
        FileNotFoundError, ValueError: as `own_curves`; or no run was evaluated so early.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = {
        kind: [[p for p in points if env_steps is None or p[0] <= env_steps] for points in seeds.values()]
        for kind, seeds in own_curves(folder).items()
    }
    kinds = {kind: [points for points in curves if points] for kind, curves in kinds.items() if any(curves)}
    if not kinds:
        raise ValueError(
            f"no run below {folder} was evaluated within {env_steps} environment steps: ask for more of them"
        )
    names = {kind: f"{kind}, {f'mean of {len(c)} seeds' if len(c) > 1 else 'one seed'}" for kind, c in kinds.items()}
    labels = {kind: textwrap.fill(name, _LETTERS) for kind, name in names.items()}
    lines = sum(label.count("\n") + 1 for label in labels.values())
    figure, axis = pyplot.subplots(figsize=(7, 3.3 + 0.24 * lines), layout="constrained")
    for i, (kind, curves) in enumerate(kinds.items()):
        for points in curves:
            axis.plot([p[0] for p in points], [p[1] for p in points], color=f"C{i}", alpha=0.3, linewidth=1)
        steps, means = mean_curve(curves)
        axis.plot(steps, means, color=f"C{i}", linewidth=2.5, label=labels[kind])
    axis.set(xlabel="environment steps", ylabel="score / maximum")
    if axis.get_ylim()[1] > 0.5:  # else the maximum is out of sight
        axis.set_ylim(-0.03, 1.03)
    axis.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside lower center")
    figure.savefig(picture, dpi=90)
    pyplot.close(figure)
