import json

import numpy as np
import pytest
from toy_games import CorridorSpec

from priorzero.callbacks.evaluation import Evaluation, EvaluationConfig, summary
from priorzero.collect.evaluate import tasks
from priorzero.envs.vector import VectorEnv
from priorzero.types import EpisodeResult


@pytest.fixture
def evaluation(make_collector, player, tmp_path):
    made = Evaluation(
        player.with_rng(np.random.default_rng(1)),
        lambda: VectorEnv(2, timeout_s=20, reset_timeout_s=30),
        tasks([CorridorSpec(3)], 3, 100),
        EvaluationConfig(policies=("random",), episodes=3, seed=100, best_by="val/random/return"),
        make_collector("thread"),
        history_steps=0,
        folder=tmp_path,
    )
    yield made
    made.close()


def test_every_evaluation_is_a_line_in_the_file(evaluation, tmp_path):
    evaluation.collector.on_train_start(None, None)
    metrics = [play() for play in [*evaluation.plays.values()] * 2]
    rows = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert [(row["policy"], len(row["results"])) for row in rows] == [("random", 3)] * 2
    assert rows[0]["env_step"] <= rows[1]["env_step"]
    assert [r["seed"] for r in rows[0]["results"]] == [100, 101, 102]
    for row, measured in zip(rows, metrics, strict=True):
        assert measured["val/random/return"] == np.mean([r["score"] for r in row["results"]])
    assert evaluation.player.env_steps == rows[1]["env_step"]  # weights that change with them are those of collection


def test_the_best_one_is_noted_when_it_is_reached_and_reached_again(evaluation, monkeypatch):
    noted = []
    evaluation.on_best = lambda: noted.append(evaluation.best)
    scores = iter([3.0, 2.0, 3.0, 4.0, 1.0, 9.0])

    def results(policy, todo):
        return [EpisodeResult("a", 1, policy, next(scores), 9.0, 1, True)]

    monkeypatch.setattr(evaluation, "results", results)
    for _ in range(5):
        evaluation.play("random")
    assert (noted, evaluation.best) == ([3.0, 3.0, 4.0], 4.0)
    evaluation.play("wm")  # best_by names another policy
    assert evaluation.best == 4.0


def test_closing_twice(evaluation):
    evaluation.close()
    evaluation.plays["random"]()
    evaluation.close()
    evaluation.close()


def test_the_summary():
    results = [EpisodeResult("a", 1, "wm", 4.0, 4.0, 10, True), EpisodeResult("b", 1, "wm", 1.0, 2.0, 20, False)]
    assert summary(results) == {"return": 2.5, "score_fraction": 0.75, "solved": 0.5, "steps": 15.0}
