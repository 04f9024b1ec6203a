"""The table finds the figures of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.table import FIGURES, table

SETTINGS = {"env": "cooking", "num_envs": 64, "simulations": 25, "world_model": "unizero", "llm": "none"}


def write(path: Path, report: object) -> Path:
    path.write_text(json.dumps(report))
    return path


def test_the_table_takes_the_best_row_and_the_command_that_was_typed(tmp_path: Path):
    report = {
        "settings": SETTINGS | {"device": "cuda"},
        "command": "python -m benchmarks.end_to_end --device cuda",
        "rows": [{"groups": 1, "steps/s": 700.0}, {"groups": 2, "steps/s": 1234.4}],
    }
    names = ("end_to_end-cooking-cuda-none", "end_to_end-cooking-cuda-none-train")
    lines, used, unread = table([write(tmp_path / f"{name}.json", report) for name in names])
    text = "environment steps/s, cooking, 64 games, 25 simulations, unizero, cuda, llm=none"
    command = "`python -m benchmarks.end_to_end --device cuda`"
    assert lines == [
        f"| {text}, 2 group(s) | ≥ 1,000 | 1,234 | {command} |",
        f"| {text}, with updates, 2 group(s) |  | 1,234 | {command} |",
    ]
    assert (len(used), unread) == (2, [])


def test_the_table_reads_every_form_of_report(tmp_path: Path):
    reports = {
        "valid_actions": [{"game": "zork1", "cold ms": 12.34, "random recall": 0.987}],
        "story_files": {"total": {"steps": 80_000, "crash": 1, "timeout": 2}, "games": []},
        "generation": {"settings": {"source": "x", "device": "cpu"}, "results": {"rollout=vllm": {"tokens_per_s": 5}}},
        "encoder-cpu": {"source": "x", "rows": [{"what": "texts never seen", "texts_per_s": 40.0}]},
        "search-cuda": {
            "simulations": 25,
            "rows": [
                {"what": w, "B": 64, "d": 768, "decisions_per_s": n} for w, n in (("a", 7), ("b", 9), ("floor", 99))
            ],
        },
        "other": {"rows": [{"what": "update"}]},
    }
    paths = [write(tmp_path / f"{name}.json", report) for name, report in reports.items()]
    lines, used, unread = table(paths)
    assert [line.split("|")[3].strip() for line in lines] == ["12.3", "98.7%", "80,000", "3", "5", "40", "9"]
    assert unread == [tmp_path / "other.json"]
    assert set(map(id, used)) < set(map(id, FIGURES))
