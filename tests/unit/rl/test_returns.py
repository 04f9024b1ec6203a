import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from priorzero.rl.returns import discounted_returns, td_targets

REWARD = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
VALUE = torch.tensor([[10.0, 20.0, 30.0, 40.0, 50.0]])


def targets(length: int, terminated: bool, *, n: int = 2, unroll: int = 4, reward=REWARD, value=VALUE) -> list[float]:
    y = td_targets(reward, value, torch.tensor([length]), torch.tensor([terminated]), gamma=0.5, n=n, unroll=unroll)
    assert y.shape == (1, unroll)
    return y[0].tolist()


def test_full_window_bootstraps_at_its_cut():
    # y0 = 1 + .5*2 + .25*30; y1 = 2 + .5*4 + .25*40; y2 = 4 + .5*8 + .25*50; y3 = 8 + .5*50 (one step left)
    assert targets(4, False) == [9.5, 14.0, 20.5, 33.0]


def test_end_of_the_game_is_worth_nothing():
    assert targets(4, True) == [9.5, 14.0, 8.0, 8.0]


def test_short_windows_stop_at_their_length():
    # length 3, not terminated: y1 = 2 + .5*4 + .25*40, y2 = 4 + .5*40, y3 padded
    assert targets(3, False) == [9.5, 14.0, 24.0, 0.0]
    assert targets(3, True) == [9.5, 4.0, 4.0, 0.0]


def test_n_beyond_the_window_gives_the_whole_return():
    assert targets(4, True, n=9) == [1 + 1 + 1 + 1, 2 + 2 + 2, 4 + 4, 8]
    assert targets(4, False, n=9)[0] == 4 + 50 / 16


def test_only_the_unrolled_steps_are_returned():
    assert targets(4, False, unroll=2) == [9.5, 14.0]


def test_padding_is_never_read():
    reward = torch.tensor([[1.0, 2.0, float("nan"), float("inf")]])
    value = torch.tensor([[1.0, 2.0, 3.0, float("nan"), float("nan")]])
    # y0 = 1 + .5*2 + .25*3, y1 = 2 + .5*3
    assert targets(2, False, reward=reward, value=value) == [2.75, 3.5, 0.0, 0.0]


def test_shapes_and_ranges_are_checked():
    with pytest.raises(ValueError, match="one column more"):
        targets(4, False, value=VALUE[:, :4])
    with pytest.raises(ValueError, match="unroll <= 4"):
        targets(4, False, unroll=5)
    with pytest.raises(ValueError, match="n >= 1"):
        targets(4, False, n=0)


def naive(reward, value, length, terminated, gamma, n, unroll):
    y = np.zeros((len(reward), unroll))
    for b in range(len(reward)):
        for t in range(min(unroll, length[b])):
            k = min(n, length[b] - t)
            for i in range(k):
                y[b, t] += gamma**i * reward[b, t + i]
            if not (t + k == length[b] and terminated[b]):
                y[b, t] += gamma**k * value[b, t + k]
    return y


@given(st.data())
def test_equals_the_naive_loop(data):
    rows, steps = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 7))
    unroll, n = data.draw(st.integers(1, steps)), data.draw(st.integers(1, 9))
    gamma = data.draw(st.floats(0, 1))
    length = data.draw(st.lists(st.integers(1, steps), min_size=rows, max_size=rows))
    terminated = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    reward, value = rng.normal(size=(rows, steps)), rng.normal(size=(rows, steps + 1))
    y = td_targets(
        *map(torch.from_numpy, (reward, value)),
        torch.tensor(length),
        torch.tensor(terminated),
        gamma=gamma,
        n=n,
        unroll=unroll,
    )
    np.testing.assert_allclose(y.numpy(), naive(reward, value, length, terminated, gamma, n, unroll), atol=1e-12)


def test_discounted_returns():
    assert discounted_returns(np.array([1.0, 2.0, 4.0]), 0.5).tolist() == [3.0, 4.0, 4.0]
    assert discounted_returns(np.array([1.0, 2.0, 4.0]), 0.5, bootstrap=8.0).tolist() == [4.0, 6.0, 8.0]
    assert discounted_returns(np.zeros(0), 0.5).shape == (0,)
    assert discounted_returns(np.array([1.0]), 0.5).dtype == np.float32


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=10), st.data())
def test_returns_of_a_part_continue_those_of_the_rest(rewards, data):
    cut = data.draw(st.integers(1, len(rewards) - 1))
    whole = discounted_returns(np.array(rewards), 0.9)
    rest = discounted_returns(np.array(rewards[cut:]), 0.9)
    np.testing.assert_allclose(discounted_returns(np.array(rewards[:cut]), 0.9, rest[0]), whole[:cut], atol=1e-4)
