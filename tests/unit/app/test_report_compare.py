"""Comparing runs, and intervals that draw whole games."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from priorzero.app.report import compare
from priorzero.collect.evaluate import interval


def write_run(folder: Path, name: str, seed: int, scores: list[float]) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(f"name: {name}\nseed: {seed}\ncollector: {{policy: wm}}\n")
    rows = [
        {"env_step": 100 * i, "policy": "wm", "results": [{"score": score, "max_score": 4, "game": "g"}]}
        for i, score in enumerate(scores)
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_steps_to_reach_by_name_and_seed(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "a", 0, [0, 2, 4])
    write_run(tmp_path / "1", "a", 1, [0, 3.2, 1])
    write_run(tmp_path / "2", "b", 0, [0, 1, 2])
    lines = compare(tmp_path, 0.8).splitlines()
    assert lines[2:] == ["| a | 200, 100 | 150 |", "| b | never | not reached by all |"]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no evaluations\.jsonl below"):
        compare(tmp_path, 0.8)


def test_repeats_of_a_game_are_no_evidence() -> None:
    scores, games = [0.0] * 50 + [4.0] * 50, ["a"] * 50 + ["b"] * 50
    assert interval(scores, games) == (2.0, 0.0, 4.0)  # two games: either may be drawn twice
    mean, low, high = interval(scores)
    assert (mean, low > 1.5, high < 2.5) == (2.0, True, True)
