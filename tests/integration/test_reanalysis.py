"""Runs that search stored states again, and that compile: what reaches the models and the log."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from toy_runs import config

from priorzero.app.build import build_run
from priorzero.app.train import train
from priorzero.world_model.planner import DevicePlanner

SHORT = ["mode=world_model", "logger=csv", "trainer.max_rounds=2", "evaluation.final_episodes=0"]


def logged(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_states_are_searched_again_beside_a_playing_thread(tmp_path: Path, tiny_encoder: Path):
    """Inline, and that it goes on to the bit: test_resume.py."""
    train(
        config(tmp_path, tiny_encoder, [*SHORT, "collector=thread", "data.reanalysis_ratio=0.5", "data.tolerance=500"])
    )
    counts, seconds = logged(tmp_path, "replay/reanalysed"), logged(tmp_path, "time/reanalyse_s")
    assert all(loss > 0 for loss in logged(tmp_path, "wm/loss"))
    # 2 rounds of 2 updates, 2 of 4 windows in each, of at most 3 trained steps
    assert len(counts) == 2
    assert 0 < counts[0] <= 12
    assert counts[0] < counts[1] <= 24
    assert seconds[1] > seconds[0] > 0


def test_options_reach_all_planners(tmp_path: Path, tiny_encoder: Path):
    more = ["data.reanalysis_ratio=1", "world_model.planner.tree=device"]
    run = build_run(config(tmp_path, tiny_encoder, [*SHORT, *more]))
    try:
        learner = run.learners["world_model"]
        played, searched = run.collector.actor.player.planner, learner.data.stream._fresh._search.planner
        assert isinstance(played, DevicePlanner)
        assert isinstance(searched, DevicePlanner)
        assert searched is not played
        assert run.evaluation.player.planner is played
    finally:
        run.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
@pytest.mark.parametrize("asked", [False, True])
def test_the_network_is_compiled_where_asked(asked: bool, tmp_path: Path, tiny_encoder: Path):
    run = build_run(config(tmp_path, tiny_encoder, [*SHORT, f"world_model.compile={asked}"]))
    run.close()
    learner = run.learners["world_model"]
    assert (learner.module.model._compiled_call_impl is not None) == asked
    assert learner.data.stream._fresh is None  # by default nothing is searched again
