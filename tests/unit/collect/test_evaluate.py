import numpy as np
import pytest
from toy_games import CorridorSpec

from priorzero.collect.evaluate import Task, evaluate, interval, tasks

GAMES = (CorridorSpec(3), CorridorSpec(4), CorridorSpec(5))


def test_games_take_turns_with_a_seed_for_each_turn():
    assert [(t.spec.length, t.seed) for t in tasks(GAMES, 7, 100)] == [
        (3, 100), (4, 100), (5, 100), (3, 101), (4, 101), (5, 101), (3, 102),
    ]  # fmt: skip


@pytest.mark.parametrize("policy", ["random", "prior", "wm", "wm_prior"])
def test_results_come_in_the_order_of_the_tasks(policy, envs, make_player):
    todo = tasks(GAMES, 7, 100)
    results = evaluate(make_player(), envs, todo, policy, history_steps=2)
    assert [(r.game, r.seed) for r in results] == [(t.spec.name, t.seed) for t in todo]
    assert {r.policy for r in results} == {policy}
    for result in results:
        assert result.max_score == 2
        assert result.terminated == (result.score == 2)
        assert 0 < result.steps <= 8
        assert result.terminated or result.steps == 8


def test_how_many_play_at_a_time_does_not_matter(envs, make_player):
    todo = tasks(GAMES, 5, 1)
    together = evaluate(make_player(), envs, todo, "wm", history_steps=0)
    alone = [evaluate(make_player(), envs, [task], "wm", history_steps=0)[0] for task in todo]
    assert together == alone


def test_nothing_to_do(envs, make_player):
    assert evaluate(make_player(), envs, [], "random", history_steps=0) == []
    assert evaluate(make_player(), envs, [Task(GAMES[0], 1)], "random", history_steps=0)[0].game == "corridor-3"


def test_the_interval_of_a_mean():
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)
    mean, low, high = interval([0.0] * 50 + [1.0] * 50)
    assert mean == 0.5
    half = 1.96 * 0.5 / np.sqrt(100)  # the normal approximation
    np.testing.assert_allclose([low, high], [0.5 - half, 0.5 + half], atol=0.015)
    assert interval([0, 1, 5], seed=3) == interval([0, 1, 5], seed=3)
