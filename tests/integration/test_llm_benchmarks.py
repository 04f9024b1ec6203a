"""The benchmarks of the language-model side run: all ways agree, and the table has its rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.table import read

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, file: Path, *options: str, source: str | Path = "tiny-random") -> dict:
    command = [sys.executable, "-m", f"benchmarks.{name}", f"--source={source}", f"--json={file}", *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)  # 1 where the ways disagree
    return read(file)


@pytest.mark.slow
def test_prior_scoring(tmp_path: Path):
    options = ("--tokens=300", "--actions=5", "--samples=1", "--threads=1", "--batches", "1", "3")
    report = run("prior_scoring", tmp_path / "report.json", *options)
    assert [r["B"] for r in report["rows"]] == [1] * 5 + [3] * 5
    assert 0 < report["float32_difference"] < 1e-4
    assert all(r["x"] > 0 and r["states_per_s"] > 0 for r in report["rows"])


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--full", "--micro-batches=1")])
def test_policy_update(more: tuple[str, ...], tmp_path: Path):
    options = ("--prompts=2", "--answers=3", "--tokens", "300", "330", "--samples=1", "--threads=1", *more)
    report = run("policy_update", tmp_path / "report.json", *options)
    assert [r["what"] for r in report["rows"]] == ["packed", "naive rows, answer logits", "naive rows, all logits"]
    assert report["loss_difference"] < 1e-5
    assert 0 < report["gradient_difference"] < 1e-4


@pytest.mark.slow
def test_generation_says_what_it_left_out(tmp_path: Path, llm_path: Path):
    options = ("--prompts=2", "--samples=2", "--max-tokens=4", "--repeats=1")
    report = run("generation", tmp_path / "report.json", *options, source=llm_path)
    assert {"transformers generate", "rollout=transformers"} <= report["results"].keys()
    assert ("rollout=vllm" in report["left_out"]) != ("rollout=vllm" in report["results"])
