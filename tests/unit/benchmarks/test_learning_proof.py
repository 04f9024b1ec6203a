"""What the learning proof makes of runs that are there: commands, curves over resumed parts, the table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from benchmarks.learning_report import METRIC, read_curve, report
from benchmarks.learning_runs import RUNS, Places, Proof
from benchmarks.slices import core_sets

ROOT = Path(__file__).resolve().parents[3]
PLACES = Places(Path("data"), "http://127.0.0.1:1/retrieve")


def part(job: Proof, number: int, rows: dict[int, float], *, minutes: float = 1.0, saved: bool = True) -> Path:
    folder = job.folder / f"part_{number:02d}"
    (folder / "checkpoints" / "000010").mkdir(parents=True)
    (folder / "seconds.txt").write_text(str(60 * minutes))
    if saved:
        (folder / "checkpoints" / "000010" / "run.pt").touch()
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", METRIC, "loss"])
        writer.writeheader()
        for step, value in rows.items():
            writer.writerows([{"step": step, METRIC: value}, {"step": step, "loss": 1.0}])
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_every_run_composes(name: str, tmp_path: Path):
    _, script, *overrides = Proof(name, 3, tmp_path, PLACES).train(tmp_path / "part_00", ["llm=tiny"])
    assert script == "train.py"
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", [word for word in overrides if not word.startswith("hydra.")])
    assert cfg.seed == 3
    assert cfg.experience.prompt_file.startswith("data/")
    assert bool(cfg.tool) == (name in ("search", "search_unmasked"))
    assert cfg.agent.loop.max_turns == (1 if cfg.tool else 0)
    assert cfg.experience.mask_given == (name != "search_unmasked")


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path: Path):
    job = Proof("coin_grpo", 0, tmp_path, PLACES)
    assert not [word for word in job.train(tmp_path, []) if word.startswith("ckpt_path")]
    first = part(job, 0, {1: 0.0})
    part(job, 1, {2: 0.0}, minutes=0.5, saved=False)
    assert f"ckpt_path={first}" in job.train(tmp_path, [])
    assert job.seconds == 90


def test_rounds_after_the_checkpoint_are_replaced_by_those_of_the_resumed_run(tmp_path: Path):
    job = Proof("search", 0, tmp_path)
    part(job, 0, {1: 0.1, 2: 0.2, 3: 0.9})
    part(job, 1, {3: 0.3, 4: 0.4})
    assert read_curve(job) == [0.1, 0.2, 0.3, 0.4]


def test_the_table_compares_start_and_end_over_the_seeds(tmp_path: Path):
    jobs = [Proof("search", seed, tmp_path) for seed in (0, 1, 2)]
    part(jobs[0], 0, dict(enumerate([0.1] * 5 + [0.9] * 5)))
    part(jobs[1], 0, dict(enumerate([0.2] * 5 + [0.7] * 6)))
    for untrained, exact in ((True, 0.25), (False, 0.75)):
        jobs[1].measured(untrained).write_text(json.dumps({"means": {"exact": exact}}))
    (line,) = [line for line in report(jobs, tmp_path).splitlines() if "search" in line]
    assert line == "| questions, with search | 2 | 10 to 11 | 0.15 | 0.80 | 0.70 to 0.90 | 0.25 | 0.75 | 0.75 to 0.75 |"
    assert json.loads((tmp_path / "results.json").read_text())["table"][0]["minutes"] == [1, 1]
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_every_run_gets_cores_of_its_own():
    assert core_sets([0, 1, 2, 3, 4], 2, 2) == [(0, 1), (2, 3)]
    assert core_sets([0, 1], 1, 2) == core_sets([0], 1, 2) == [()]
    assert core_sets([0, 1], 3, 0) == [(), (), ()]  # shared
    with pytest.raises(SystemExit, match="needs 4 cores, and there are 3"):
        core_sets([0, 1, 2], 2, 2)


def test_held_out_prompts_are_asked_with_the_service_of_now(tmp_path: Path):
    untrained, trained = Proof("search", 0, tmp_path, PLACES).measurements(tmp_path / "part_00").values()
    assert untrained[-2:] == ["--untrained", "tool.search.url=http://127.0.0.1:1/retrieve"]
    assert "data/questions/heldout.jsonl" in untrained
    assert trained[-2].endswith("heldout.json")
    assert all(word[-1].startswith("--") or word[-1].endswith("json") for word in [untrained[:-1], trained[:-1]])
    job = Proof("search_none", 0, tmp_path, PLACES)
    assert job.measurements(tmp_path / "part_00")[job.measured(untrained=False)][-1].endswith("heldout.json")
    assert job.outdated == [job.measured(untrained=False)]
