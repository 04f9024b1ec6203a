"""What the benchmark of real games makes of runs that are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from benchmarks.games import GAMES, Game, report

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("ablation", ["none", "no_prior"])
def test_every_game_composes(game: str, ablation: str, tmp_path: Path):
    job = Game(f"{game}-{ablation}", 3, tmp_path)
    _, script, *overrides = job.train(tmp_path / "part_00", ["trainer=gpu"])
    assert script == "train.py"
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", [word for word in overrides if not word.startswith("hydra.")])
    assert (cfg.name, cfg.seed, cfg.trainer.accelerator) == (game, 3, "gpu")
    assert cfg.env.story_file.startswith(game)
    assert (cfg.llm.source is None) == (ablation == "no_prior")
    ((file, words),) = job.measurements(tmp_path / "part_00").items()
    assert (file, words[1], f"output={file}" in words) == (job.results, "eval.py", True)


def test_the_table_has_a_line_for_every_policy(tmp_path: Path):
    jobs = [Game("detective-none", seed, tmp_path) for seed in (0, 1)]  # the second has not been evaluated
    part = jobs[0].folder / "part_00"
    part.mkdir(parents=True)
    (part / "seconds.txt").write_text("540")
    episodes = {
        policy: [{"score": s, "max_score": 360} for s in scores]
        for policy, *scores in [("random", 10, 50), ("wm", 300, 300)]
    }
    jobs[0].results.write_text(json.dumps({"env_step": 12_000, "results": {"training games": episodes}}))
    assert report(jobs, tmp_path).splitlines()[2:] == [
        "| detective-none | 0 | 12,000 | 9.0 | `random` | 30.0 [10.0, 50.0] | 360 |",
        "| detective-none | 0 | 12,000 | 9.0 | `wm` | 300.0 [300.0, 300.0] | 360 |",
    ]
    assert (tmp_path / "table.md").read_text().count("detective-none") == 2
