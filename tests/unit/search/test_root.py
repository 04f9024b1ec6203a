"""Priors, noise and choice at the root, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priorzero.search.root import add_noise, choose, entropy_weight, llm_weights, masked_softmax, mix_priors

LEGAL = np.array([[True, True, True], [True, False, True]])


def test_mix_priors_by_hand() -> None:
    wm = np.array([[0.2, 0.8], [1.0, 0.0]], np.float32)
    llm = np.array([[0.6, 0.4], [0.0, 1.0]], np.float32)
    np.testing.assert_allclose(mix_priors(wm, llm, 0.25), [[0.3, 0.7], [0.75, 0.25]], rtol=1e-6)
    np.testing.assert_allclose(mix_priors(wm, llm, np.array([0.0, 1.0])), [[0.2, 0.8], [0.0, 1.0]], rtol=1e-6)
    assert mix_priors(wm, llm, 0.5).dtype == np.float32


@pytest.mark.parametrize(
    ("wm", "llm", "weight", "message"),
    [
        ([[np.nan, 1]], [[0.5, 0.5]], 0.5, "row 0: wm_probs hold a NaN"),
        ([[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5], [np.inf, 0]], 0.5, "row 1: llm_probs hold a NaN, an infinity"),
        ([[0.5, 0.5]], [[1.5, -0.5]], 0.5, "negative"),
        ([[0.5, 0.5]], [[1.0]], 0.5, "one shape"),
        ([[0.5, 0.5]], [[0.5, 0.5]], 1.5, "llm_weight must lie in 0..1"),
        ([[0.5, 0.5]], [[0.5, 0.5]], np.nan, "llm_weight must lie in 0..1"),
        ([[0.5, 0.5]], [[0.5, 0.5]], np.zeros(2), r"llm_weight must be a number or \[1\]"),
    ],
)
def test_mix_priors_refuses(wm: list, llm: list, weight: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mix_priors(np.array(wm), np.array(llm), weight)


def test_llm_weights_by_hand() -> None:
    legal = np.array([[True, True, False], [True, True, False]])
    probs = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])  # no opinion, and certain
    annealing = {"start": 0.8, "end": 0.4, "done": 0.25}  # 0.8 - 0.25 * 0.4
    np.testing.assert_allclose(llm_weights(probs, legal, **annealing, unsure=None), [0.7, 0.7], rtol=1e-6)
    np.testing.assert_allclose(llm_weights(probs, legal, **annealing, unsure=0.1), [0.1, 0.7], rtol=1e-6)
    np.testing.assert_allclose(llm_weights(probs, legal, **annealing, unsure=0.9), [0.7, 0.7], rtol=1e-6)


def test_masked_softmax_by_hand() -> None:
    logits = np.log([[1.0, 2.0, 5.0], [1.0, 7.0, 3.0]])
    logits[1, 1] = np.nan  # not legal: may hold anything
    np.testing.assert_allclose(masked_softmax(logits, LEGAL), [[0.125, 0.25, 0.625], [0.25, 0, 0.75]], rtol=1e-6)
    # Temperature 0.5 squares the weights: 1, 4, 25 of 30 and 1, 9 of 10.
    np.testing.assert_allclose(
        masked_softmax(logits, LEGAL, 0.5), [[1 / 30, 4 / 30, 25 / 30], [0.1, 0, 0.9]], rtol=1e-6
    )


def test_masked_softmax_of_large_logits() -> None:
    np.testing.assert_array_equal(masked_softmax(np.array([[1e6, 0.0]]), np.array([[True, True]])), [[1.0, 0.0]])


@pytest.mark.parametrize(
    ("logits", "legal", "temperature", "message"),
    [
        ([[0.0, np.nan]], [[True, True]], 1.0, "row 0: logits of a legal action are NaN or infinite"),
        ([[0.0, -np.inf]], [[True, True]], 1.0, "NaN or infinite"),
        ([[0.0, 0.0], [0.0, 0.0]], [[True, True], [False, False]], 1.0, "row 1: no legal action"),
        ([[0.0, 0.0]], [[True, True]], 0.0, "temperature must be above 0"),
        ([[0.0, 0.0]], [[1, 1]], 1.0, "legal must be bool"),
    ],
)
def test_masked_softmax_refuses(logits: list, legal: list, temperature: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masked_softmax(np.array(logits), np.array(legal), temperature)


def test_noise_touches_legal_actions_only_and_keeps_the_sum() -> None:
    probs = np.array([[0.2, 0.3, 0.5], [0.4, 0.0, 0.6]], np.float32)
    noisy = add_noise(probs, LEGAL, alpha=0.3, fraction=0.25, rng=np.random.default_rng(0))
    np.testing.assert_allclose(noisy.sum(-1), 1.0, rtol=1e-6)
    assert noisy[1, 1] == 0
    assert (noisy >= 0.75 * probs - 1e-7).all()
    assert not np.array_equal(noisy, probs)
    np.testing.assert_array_equal(add_noise(probs, LEGAL, 0.3, 0.0, np.random.default_rng(0)), probs)


@pytest.mark.parametrize("alpha", [0.3, 5.0])
def test_noise_is_dirichlet(alpha: float) -> None:
    # Of 4 actions the mean is 1/4 and the variance (1/4)(3/4)/(4 alpha + 1).
    legal = np.ones((40_000, 4), bool)
    noise = add_noise(np.zeros((40_000, 4)), legal, alpha, 1.0, np.random.default_rng(1))
    np.testing.assert_allclose(noise.mean(0), 0.25, atol=0.006)
    np.testing.assert_allclose(noise.var(0), 0.1875 / (4 * alpha + 1), rtol=0.04)


def test_noise_of_tiny_alpha_is_finite() -> None:
    noise = add_noise(np.zeros((500, 3)), np.ones((500, 3), bool), 1e-4, 1.0, np.random.default_rng(2))
    np.testing.assert_allclose(noise.sum(-1), 1.0, rtol=1e-6)


def test_noise_does_not_depend_on_padding() -> None:
    probs = np.array([[0.5, 0.5], [0.25, 0.75]])
    narrow = add_noise(probs, probs > 0, 0.3, 0.25, np.random.default_rng(3))
    padded = np.pad(probs, ((0, 0), (0, 5)))
    wide = add_noise(padded, padded > 0, 0.3, 0.25, np.random.default_rng(3))
    np.testing.assert_array_equal(wide[:, :2], narrow)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"fraction": 1.5}, "fraction"),
        ({"probs": np.full((2, 3), np.nan)}, "row 0: probs hold a NaN"),
        ({"legal": np.zeros((2, 3), bool)}, "row 0: no legal action"),
    ],
)
def test_noise_refuses(changes: dict, message: str) -> None:
    good = {"probs": np.full((2, 3), 1 / 3), "legal": LEGAL, "alpha": 0.3, "fraction": 0.25}
    with pytest.raises(ValueError, match=message):
        add_noise(**(good | changes), rng=np.random.default_rng(0))


def test_choose_greedy_and_its_ties() -> None:
    visits = np.array([[1, 5, 2, 0], [4, 4, 4, 0], [3, 0, 3, 3]])
    probs = np.array([[0.9, 0.0, 0.1, 0.0], [0.1, 0.6, 0.3, 0.0], [0.2, 0.6, 0.2, 0.0]])
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    np.testing.assert_array_equal(choose(visits, np.ones((3, 4), bool), 0.0, rng, probs), [1, 1, 0])
    assert rng.bit_generator.state == before


def test_choose_samples_powers_of_the_visits() -> None:
    # T = 0.5: weights 1, 4, 16 of 21; the action without visits is never taken.
    rows = 30_000
    visits = np.tile([1, 0, 2, 4], (rows, 1))
    legal = np.ones_like(visits, bool)
    chosen = choose(visits, legal, 0.5, np.random.default_rng(0), np.full(visits.shape, 0.25))
    frequency = np.bincount(chosen, minlength=4) / rows
    np.testing.assert_allclose(frequency, [1 / 21, 0, 4 / 21, 16 / 21], atol=0.008)
    assert frequency[1] == 0


def test_choose_at_a_very_low_temperature_is_greedy() -> None:
    visits = np.array([[3, 20, 19]])
    chosen = choose(visits, np.ones((1, 3), bool), 1e-3, np.random.default_rng(0), np.full((1, 3), 1 / 3))
    np.testing.assert_array_equal(chosen, [1])


@settings(max_examples=100)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=9).filter(any),
    st.integers(0, 10**6),
    st.sampled_from([0, 0.25, 1]),
)
def test_choose_takes_a_visited_action(visits: list[int], seed: int, temperature: float) -> None:
    row = np.array([visits])
    chosen = choose(row, np.ones_like(row, bool), temperature, np.random.default_rng(seed), np.ones(row.shape))
    assert visits[chosen[0]] > 0


@pytest.mark.parametrize(
    ("visits", "temperature", "message"),
    [
        ([[1, 1, 1], [1, 1, 1]], 1.0, "row 1: visits on an action that is not legal"),
        ([[1, 1, 1], [0, 0, 0]], 1.0, "row 1: no visits"),
        ([[1, 1, -1], [1, 0, 1]], 1.0, "row 0: visits are negative"),
        ([[1, 1, np.nan], [1, 0, 1]], 1.0, "row 0: visits are negative, NaN"),
        ([[1, 1, 1], [1, 0, 1]], -1.0, "temperature"),
    ],
)
def test_choose_refuses(visits: list, temperature: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(np.array(visits), LEGAL, temperature, np.random.default_rng(0), np.zeros((2, 3)))


def test_entropy_weight_by_hand() -> None:
    # Uniform: low. Certain: high. Half and half of 4 legal actions: H/log n = log 2/log 4 = 1/2, so the middle.
    # A single legal action is certain. Padding does not count: uniform over 2 legal of 4 is uniform.
    probs = np.array([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.5, 0.5, 0, 0]])
    legal = np.array([[True] * 4, [True] * 4, [True] * 4, [True, False, False, False], [True, True, False, False]])
    weight = entropy_weight(probs, legal, low=0.2, high=0.8)
    np.testing.assert_allclose(weight, [0.2, 0.8, 0.5, 0.8, 0.2], atol=1e-6)
    assert weight.dtype == np.float32


def test_entropy_weight_of_three() -> None:
    # H(0.5, 0.25, 0.25) = 1.5 log 2; over log 3 that is 0.9463946.
    weight = entropy_weight(np.array([[0.5, 0.25, 0.25]]), np.ones((1, 3), bool), 0.0, 1.0)
    assert math.isclose(weight[0], 1 - 0.9463946, abs_tol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.8, 0.2), (-0.1, 0.5), (0.0, 1.1)])
def test_entropy_weight_refuses(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        entropy_weight(np.full((2, 3), 1 / 3), LEGAL, low, high)
