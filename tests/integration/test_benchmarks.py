"""Benchmarks of whole runs run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.table import read

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_end_to_end_plays_and_trains(train: bool, tmp_path: Path, encoder_path: Path):
    file = tmp_path / "report.json"
    command = [
        "--env=coin_collector", "--world-model=tiny", "--num-envs=2", "--simulations=4", "--warm-up=1", "--seconds=2",
        "--slices=1", f"--json={file}", "collector.env_steps_per_round=20", "collector.min_env_steps=20",
        "data.batch_size=4", "data.updates_per_round=5",
    ]  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "benchmarks.end_to_end", *command, *["--train"] * train],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    rows = read(file)["rows"]
    assert [r["groups"] for r in rows] == [1, 2]
    for r in rows:
        assert r["steps/s"] > 0
        assert ("updates/s" in r) == train
        assert 0 < r["search %"] < 100
        assert sum(r[name] for name in r if name.endswith(" %") and name != "text hits %") == pytest.approx(100)
        if train:
            assert r["windows/step"] == pytest.approx(5 * 4 / 20)
