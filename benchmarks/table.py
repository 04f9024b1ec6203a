"""Makes one markdown table of what the benchmarks have written: figure, target, measured, command.

From the root of the repository, after some of ``python -m benchmarks.search`` and its sisters: ``python -m
benchmarks.table``. Reads ``logs/benchmarks/*.json``; what lies elsewhere is named behind it. Files that no figure is
taken from, and figures that no file has, are listed on the error output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path("logs/benchmarks")


@dataclass(frozen=True)
class Figure:
    """One number of a report. ``what`` may name fields of the report and of its row in braces."""

    file: str  # glob of the report's name
    what: str
    row: dict[str, Any]  # fields that choose the row; where several have them, the best
    field: str
    command: str  # where the report does not name its own
    target: float | None = None
    more_is_better: bool = True
    share: bool = False  # the number is a share of 1

    def measured(self, report: dict[str, Any]) -> tuple[str, float] | None:
        """Description and number, None where the report has no such row."""
        rows = [r for r in rows_of(report) if self.row.items() <= r.items() and self._counts(r)]
        if not rows:
            return None
        chosen = (max if self.more_is_better else min)(rows, key=lambda r: r[self.field])
        return self.what.format_map({**report, **chosen}), chosen[self.field]

    def _counts(self, row: dict[str, Any]) -> bool:
        """Whether a row has the number, and is no floor, which nothing can reach."""
        return isinstance(row.get(self.field), int | float) and not str(row.get("what", "")).startswith("floor")

    def text(self, value: float) -> str:
        """A number as the table shows it."""
        if self.share:
            return f"{value:.1%}"
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


STEPS = "environment steps/s, {settings[env]}, {settings[num_envs]} games, {settings[simulations]} simulations, "
STEPS += "{settings[world_model]}, {settings[device]}, llm={settings[llm]}"
GROUPS = ", {groups} group(s)"
END = "python -m benchmarks.end_to_end --env {} --num-envs 64 --simulations 25 --device cuda --llm {}"
SEARCH = "decisions/s, B={B}, d {d}, {simulations} simulations, "
VALID = "python -m benchmarks.valid_actions --games-dir games"

FIGURES = (
    Figure("end_to_end-*-cuda-none.json", STEPS + GROUPS, {}, "steps/s", END.format("detective", "none"), 1000),
    Figure("end_to_end-*-cuda-smollm2_135m.json", STEPS + GROUPS, {}, "steps/s",
           END.format("detective", "smollm2_135m"), 300),
    Figure("end_to_end-*-cpu-*.json", STEPS + GROUPS, {}, "steps/s", "python -m benchmarks.end_to_end"),
    Figure("end_to_end-*-train.json", STEPS + ", with updates" + GROUPS, {}, "steps/s",
           END.format("detective", "none") + " --train"),
    *(
        Figure("search-cuda.json", SEARCH + "one GPU: {what}", {"B": batch}, "decisions_per_s",
               "python -m benchmarks.gpu", target)
        for batch, target in ((8, None), (64, 5500), (256, 14_000))
    ),
    *(
        Figure("search-cpu.json", "ms a search of {B} states, d {d}, {simulations} simulations, one core: {what}",
               {"what": what, "d": width, "B": batch}, "median_ms", "OMP_NUM_THREADS=1 python -m benchmarks.search",
               target, more_is_better=False)
        for what, width, batch, target in (
            ("planner float32", 768, 8, 650), ("planner float32", 768, 32, 1300), ("planner int8", 768, 8, 300),
            ("planner int8", 768, 32, 700), ("planner float32", 48, 32, 40), ("plain", 768, 8, None),
        )
    ),
    Figure("world_model-cuda.json", "updates/s, {windows} windows, d {width}, one GPU: {what}", {}, "updates_per_s",
           "python -m benchmarks.gpu", 60),
    Figure("world_model-cpu.json", "ms an update, {windows} windows, d {width}, one core", {"what": "update"},
           "median_ms", "OMP_NUM_THREADS=1 python -m benchmarks.world_model", 2500, more_is_better=False),
    Figure("encoder-cuda.json", "texts/s never seen, {source}, one GPU", {"what": "texts never seen"}, "texts_per_s",
           "python -m benchmarks.encoder --device cuda"),
    Figure("encoder-cpu.json", "texts/s never seen, {source}, one core", {"what": "texts never seen"}, "texts_per_s",
           "OMP_NUM_THREADS=1 python -m benchmarks.encoder"),
    *(
        Figure("search_tree.json", "us a simulation of {B} trees, tree alone, {actions} actions",
               {"search": "puct", "actions": 20, "B": batch}, "us_min", "python -m benchmarks.search_tree",
               more_is_better=False)
        for batch in (8, 64)
    ),
    *(
        Figure("generation.json", "generated tokens/s, {settings[source]}, {settings[device]}, " + way, {"what": way},
               "tokens_per_s", "python -m benchmarks.generation")
        for way in ("rollout=transformers", "rollout=vllm")
    ),
    *(
        figure
        for device in ("cuda", "cpu")
        for figure in (
            Figure(f"prior_scoring-{device}.json", "states/s of the prior, {settings[device]}, {B} at once: {what}", {},
                   "states_per_s", f"python -m benchmarks.prior_scoring --device {device}"),
            Figure(f"prior_scoring-{device}.json", "x padded rows, prior, {settings[device]}, {B} at once: {what}", {},
                   "x", f"python -m benchmarks.prior_scoring --device {device}"),
            Figure(f"policy_update-{device}.json", "x padded rows, policy update, {settings[device]}",
                   {"what": "packed"}, "x", f"python -m benchmarks.policy_update --device {device}"),
        )
    ),
    Figure("precision.json", "share of decisions in which int8 takes float32's action, {game}, d {width}",
           {"what": "int8 beside float32"}, "same", "python -m benchmarks.precision RUN", 0.95, share=True),
    Figure("reanalysis*.json", "ms a state searched again, d {d}, {simulations} simulations, {states} states: {what}",
           {}, "ms_per_state", "python -m benchmarks.reanalysis", more_is_better=False),
    *(
        figure
        for game, target in (
            ("zork1", 15), ("detective", 30), ("acorncourt", 300), ("omniquest", None), ("pentari", None)
        )
        for figure in (
            Figure("valid_actions.json", "ms a step with valid actions, {game}, nothing cached", {"game": game},
                   "cold ms", VALID, target, more_is_better=False),
            Figure("valid_actions.json", "ms a step with valid actions, {game}, all cached", {"game": game},
                   "warm ms", VALID, 2, more_is_better=False),
            Figure("valid_actions.json", "share of the exact search's effects found, {game}, walkthrough",
                   {"game": game}, "walk recall", VALID, 0.99, share=True),
            Figure("valid_actions.json", "share of the exact search's effects found, {game}, random play",
                   {"game": game}, "random recall", VALID, 0.99, share=True),
        )
    ),
    Figure("valid_actions.json", "share of the exact search's effects found, all games, walkthrough and random play",
           {"game": "all"}, "recall", VALID, 0.99, share=True),
    Figure("story_files.json", "steps of random play in story files", {"what": "total"}, "steps",
           "python -m benchmarks.story_files games"),
    Figure("story_files.json", "of them with a lost worker", {"what": "total"}, "lost",
           "python -m benchmarks.story_files games", more_is_better=False),
)  # fmt: skip


def rows_of(report: Any) -> list[dict[str, Any]]:
    """The rows of a report, whatever its form."""
    if isinstance(report.get("results"), dict):
        return [{"what": name, **found} for name, found in report["results"].items()]
    if "total" in report:
        return [{"what": "total", "lost": report["total"]["crash"] + report["total"]["timeout"], **report["total"]}]
    return report["rows"]


def read(path: Path) -> dict[str, Any]:
    """A report; a bare list becomes its rows."""
    report = json.loads(path.read_text())
    return {"rows": report} if isinstance(report, list) else report


def chosen(path: Path) -> list[Figure]:
    """The figures of a file: those of its own pattern, the training's apart from the others'."""
    found = [figure for figure in FIGURES if path.match(figure.file)]
    training = [figure for figure in found if "train" in figure.file]
    return training or found


def table(paths: Sequence[Path]) -> tuple[list[str], list[Figure], list[Path]]:
    """Lines of markdown, the figures in them, and the files that none was taken from."""
    lines, used, unread = [], [], []
    for path in paths:
        report, before = read(path), len(lines)
        for figure in chosen(path):
            found = figure.measured(report)
            if found is None:
                continue
            what, value = found
            bound = "≥" if figure.more_is_better else "≤"
            target = "" if figure.target is None else f"{bound} {figure.text(figure.target)}"
            command = report.get("command", figure.command)
            lines.append(f"| {what} | {target} | {figure.text(value)} | `{command}` |")
            used.append(figure)
        if len(lines) == before:
            unread.append(path)
    return lines, used, unread


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="*", help="JSON files; default: all in logs/benchmarks")
    paths = parser.parse_args().reports or sorted(FOLDER.glob("*.json"))
    if not paths:
        sys.exit(f"there are no reports in {FOLDER}: run a benchmark first, python -m benchmarks.search for example")
    lines, used, unread = table(paths)
    print("| figure | target | measured | command |\n|---|---|---|---|")
    print("\n".join(lines))
    for path in unread:
        print(f"no figure is taken from {path}", file=sys.stderr)
    for figure in FIGURES:
        if figure not in used:
            print(f"not measured: {figure.file}, {figure.what}", file=sys.stderr)


if __name__ == "__main__":
    main()
