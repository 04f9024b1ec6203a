"""Gumbel search against hand-computed cases, against the plain reference, and as a planner."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Imagination, ImaginedModel, State, gumbel, imagine

from priorzero.search.gumbel import GumbelConfig, considered_visits, gumbel_search

imaginations = st.builds(
    Imagination,
    seed=st.integers(0, 10**9),
    root_width=st.integers(1, 12),
    width=st.integers(1, 6),
    holes=st.booleans(),
    equal_probs=st.booleans(),
    no_rewards=st.booleans(),
    coarse=st.booleans(),
)


def config(simulations: int, considered: int = 16, c_visit: float = 50.0, c_scale: float = 0.1) -> GumbelConfig:
    return GumbelConfig(simulations, considered, c_visit, c_scale, gamma=0.997, minmax_floor=0.01)


def noise(legal: np.ndarray, seed: int) -> np.ndarray:
    drawn = np.zeros(legal.shape)
    drawn[legal] = np.random.default_rng(seed).gumbel(size=int(legal.sum()))
    return drawn


def test_schedule_by_hand() -> None:
    table = considered_visits(4, 16)
    # 4 actions, 2 phases: 16 // (2 x 4) = 2 visits for each of 4, then 16 // (2 x 2) = 4 for each of 2.
    assert table[:, 4].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    # 3 actions, 2 phases: 16 // 6 = 2 visits each, then 4 each of 2, then 2 more actions until all is spent.
    assert table[:, 3].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert table[:, 2].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    assert table[:, 1].tolist() == list(range(16))


def test_schedule_of_the_usual_search() -> None:
    # 16 of many actions, 25 simulations, 4 phases: one visit each of 16, one more of 8, the last to the best of 4.
    assert considered_visits(16, 25)[:, 16].tolist() == [0] * 16 + [1] * 8 + [2]


def test_two_simulations_by_hand() -> None:
    # Root: actions 1, 2, 3, priors 0.5, 0.3, 0.2, value 1; no noise, 2 considered, gamma 1, c_visit 50, c_scale 0.1.
    # 1. The highest logit is that of action 1: reward 0, value 0, so Q = 0.
    # 2. The other considered is action 2: reward 2, value 1, so Q = 3.
    # v_mix = (1 + 2 (0.5 x 0 + 0.3 x 3)/0.8) / 3 = (1 + 2.25)/3 = 1.083333 for action 3.
    # Stretched to 0..1: 0, 1, 0.361111; sigma = (50 + 1) x 0.1 = 5.1 times that: 0, 5.1, 1.841667.
    # Weights P exp(sigma): 0.5, 0.3 x 164.0219 = 49.20657, 0.2 x 6.307040 = 1.261408; their sum is 50.96798.
    # Policy: 0.009810, 0.965441, 0.024749. Action: of the two with one visit, the second.
    # Value: the mean of 1, 0, 3.
    table = {
        (): State(0, 1, [1, 2, 3], [0.5, float(np.float32(0.3)), float(np.float32(0.2))]),
        (1,): State(0, 0, [1], [1.0]),
        (2,): State(2, 1, [1], [1.0]),
    }
    model = ImaginedModel([lambda path: table[path]])
    constants = GumbelConfig(2, max_considered=2, c_visit=50.0, c_scale=0.1, gamma=1.0, minmax_floor=0.01)
    result = gumbel_search(model, model.root, constants, None)
    np.testing.assert_array_equal(result.visits, [[1, 1, 0]])
    np.testing.assert_array_equal(result.q, [[0, 3, 0]])
    np.testing.assert_allclose(result.policy, [[0.009810, 0.965441, 0.024749]], atol=2e-6)
    np.testing.assert_allclose(result.value, [4 / 3], rtol=1e-6)
    assert result.action.tolist() == [1]
    assert (result.action.dtype, result.policy.dtype) == (np.int32, np.float32)


def test_interior_visits_follow_the_improved_policy() -> None:
    # One root action, and all values 0: below it pi' is the prior 0.5, 0.25, 0.25, so 8 visits go 4, 2, 2.
    def world(path: tuple[int, ...]) -> State:
        return State(0, 0, [1], [1.0]) if not path else State(0, 0, [1, 2, 3], [0.5, 0.25, 0.25])

    model = ImaginedModel([world])
    gumbel_search(model, model.root, config(9), None)
    below = [path[1] for path in model.paths[0] if len(path) > 1]
    assert [below.count(action) for action in (1, 2, 3)] == [4, 2, 2]


@settings(max_examples=200)
@given(
    hows=st.lists(imaginations, min_size=1, max_size=3),
    simulations=st.integers(1, 50),
    considered=st.integers(1, 16),
    c_scale=st.sampled_from([0.1, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_equals_the_plain_reference(
    hows: list[Imagination], simulations: int, considered: int, c_scale: float, seed: int
) -> None:
    worlds = [imagine(how) for how in hows]
    model = ImaginedModel(worlds)
    root = model.root
    constants = config(simulations, considered, c_scale=c_scale)
    result = gumbel_search(model, root, constants, np.random.default_rng(seed))
    drawn = noise(root.legal, seed)
    for row, (how, world) in enumerate(zip(hows, worlds, strict=True)):
        answer = gumbel(world, drawn[row], simulations, considered, 50.0, c_scale, 0.997, 0.01)
        np.testing.assert_array_equal(result.visits[row, : how.root_width], answer.visits)
        np.testing.assert_allclose(result.q[row, : how.root_width], answer.q, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(result.policy[row, : how.root_width], answer.policy, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(result.value[row], answer.value, rtol=1e-6, atol=1e-6)
        assert result.action[row] == answer.action


@settings(max_examples=60)
@given(hows=st.lists(imaginations, min_size=2, max_size=5), padding=st.integers(0, 9))
def test_rows_are_independent_of_batch_and_padding(hows: list[Imagination], padding: int) -> None:
    together = ImaginedModel([imagine(how) for how in hows], padding)
    batch = gumbel_search(together, together.root, config(25), None)
    for row, how in enumerate(hows):
        alone = ImaginedModel([imagine(how)])
        single = gumbel_search(alone, alone.root, config(25), None)
        assert together.paths[row] == alone.paths[0]
        for field in ("visits", "q", "policy"):
            wide, narrow = getattr(batch, field)[row], getattr(single, field)[0]
            np.testing.assert_allclose(wide[: how.root_width], narrow, rtol=1e-6)
            assert not wide[how.root_width :].any()
        assert (batch.value[row], batch.action[row]) == (single.value[0], single.action[0])


def test_noise_does_not_depend_on_padding() -> None:
    how = Imagination(seed=1, root_width=30, width=5)
    results = []
    for padding in (0, 7):
        model = ImaginedModel([imagine(how)] * 3, padding)
        results.append(gumbel_search(model, model.root, config(25), np.random.default_rng(4)))
    np.testing.assert_array_equal(results[0].visits, results[1].visits[:, :30])


@settings(max_examples=50)
@given(how=imaginations, considered=st.integers(1, 16), seed=st.integers(0, 10**6))
def test_what_always_holds(how: Imagination, considered: int, seed: int) -> None:
    model = ImaginedModel([imagine(how)])
    root = model.root
    result = gumbel_search(model, root, config(25, considered), np.random.default_rng(seed))
    assert result.visits.sum() == 25
    assert (result.visits > 0).sum() == min(considered, root.legal.sum())
    assert not result.visits[~root.legal].any()
    assert not result.policy[~root.legal].any()
    assert math.isclose(result.policy.sum(), 1.0, rel_tol=1e-5)
    assert result.visits[0, result.action[0]] == result.visits.max()


def test_large_scale_does_not_overflow() -> None:
    model = ImaginedModel([imagine(Imagination(seed=2, root_width=8, width=4))])
    result = gumbel_search(model, model.root, config(25, c_scale=1000.0), None)
    assert np.isfinite(result.policy).all()


def test_legal_action_of_prior_zero_may_be_considered() -> None:
    # Two legal actions, both considered; the one that the prior rules out is worth more and gets visits.
    def world(path: tuple[int, ...]) -> State:
        return State(0, 1.0 if path[:1] == (2,) else 0.0, [1, 2], [1.0, 0.0])

    model = ImaginedModel([world])
    result = gumbel_search(model, model.root, config(8), None)
    assert (result.visits > 0).all()
    assert np.isfinite(result.policy).all()


def test_root_choice_follows_the_prior_where_nothing_is_known() -> None:
    # With all values equal the Gumbel trick samples the played action from the prior itself.
    rows = 4000
    model = ImaginedModel([lambda path: State(0, 0, [1, 2, 3], [0.5, 0.25, 0.25])] * rows)
    result = gumbel_search(model, model.root, config(4), np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(result.action, minlength=3) / rows, [0.5, 0.25, 0.25], atol=0.03)
    np.testing.assert_allclose(result.policy, np.tile([0.5, 0.25, 0.25], (rows, 1)), rtol=1e-5)


def test_improves_on_the_prior_on_a_bandit() -> None:
    # 55 actions, uniform prior, Q known after one visit: the policy is worth more than the prior, the paper's promise.
    rng = np.random.default_rng(0)
    worth = rng.normal(size=56).astype(np.float32).tolist()
    actions = list(range(55))

    def world(path: tuple[int, ...]) -> State:
        return State(0, worth[path[0]] if path else 0.0, actions, [float(np.float32(1 / 55))] * 55)

    model = ImaginedModel([world] * 50)
    result = gumbel_search(model, model.root, config(25, c_scale=1.0), np.random.default_rng(1))
    expected = result.policy @ np.array(worth[:55])
    assert (expected > np.mean(worth[:55])).all()
    assert np.array(worth)[result.action].mean() > 1.0  # the best of 16 random ones is near 1.7


def test_finds_the_reward_at_the_end_of_a_corridor() -> None:
    def corridor(path: tuple[int, ...]) -> State:
        return State(10.0 if path == (2, 2, 2) else 0.0, 0.0, [1, 2, 3], [float(np.float32(1 / 3))] * 3)

    model = ImaginedModel([corridor])
    result = gumbel_search(model, model.root, config(120), None)
    assert (2, 2, 2) in model.paths[0]
    assert result.action.tolist() == [1]
    assert result.policy[0, 1] > 0.9


def test_refuses_a_bad_root_by_name() -> None:
    model = ImaginedModel([imagine(Imagination(seed=1, root_width=4, width=4))])
    root = model.root
    root.probs[0, 0] = np.nan
    with pytest.raises(ValueError, match="root, row 0: probs hold a NaN"):
        gumbel_search(model, root, config(4), None)


@pytest.mark.parametrize("change", [{"simulations": 0}, {"max_considered": 0}, {"c_scale": -1.0}, {"gamma": 2.0}])
def test_refuses_bad_constants(change: dict[str, float]) -> None:
    good = {"simulations": 25, "max_considered": 16, "c_visit": 50.0, "c_scale": 0.1, "gamma": 0.997}
    with pytest.raises(ValueError, match=next(iter(change))):
        GumbelConfig(**(good | {"minmax_floor": 0.01} | change))
