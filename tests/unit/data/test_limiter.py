import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from priorzero.data.limiter import RateLimiter

STOP = threading.Event()


def test_nothing_is_sampled_before_min_size():
    limiter = RateLimiter(2.0, min_size=3, tolerance=4.0)
    assert not limiter.can_sample()
    limiter.insert(2)
    assert not limiter.can_sample()
    limiter.insert(1)
    assert limiter.can_sample()


def test_bounds_by_hand():
    limiter = RateLimiter(2.0, min_size=3, tolerance=4.0)
    limiter.insert(3)  # balance 6, bounds 2 and 10
    assert (limiter.lower, limiter.balance, limiter.upper) == (2.0, 6.0, 10.0)
    assert limiter.can_sample(4)
    assert not limiter.can_sample(5)
    assert limiter.can_insert(2)
    assert not limiter.can_insert(3)
    limiter.sample(4)
    assert limiter.balance == 2.0
    assert not limiter.can_sample()
    limiter.insert(1)
    assert limiter.can_sample(2)
    assert not limiter.can_sample(3)


@given(
    st.floats(0.05, 20),
    st.integers(1, 50),
    st.floats(0, 10),
    st.integers(1, 10),
    st.integers(1, 10),
    st.lists(st.booleans(), max_size=200),
)
def test_ratio_holds_whatever_the_interleaving(ratio, min_size, slack, n_insert, n_sample, turns):
    tolerance = (n_insert * ratio + n_sample) / 2 + slack + 1e-6
    limiter = RateLimiter(ratio, min_size, tolerance)
    for insert in turns:
        assert limiter.can_insert(n_insert) or limiter.can_sample(n_sample)  # never a deadlock
        if insert and limiter.can_insert(n_insert):
            limiter.insert(n_insert)
        elif not insert and limiter.can_sample(n_sample):
            limiter.sample(n_sample)
        first = (min_size - 1 + n_insert) * ratio  # the first inserts are free
        assert limiter.balance <= max(limiter.upper, first) + 1e-9
        if limiter.sampled:
            assert limiter.inserted >= min_size
            assert limiter.balance >= limiter.lower - 1e-9


def test_two_threads_finish_within_the_bounds():
    limiter = RateLimiter(4.0, min_size=20, tolerance=40.0)
    balances = []

    def collect():
        for _ in range(100):
            assert limiter.wait_insert(STOP, 5, timeout_s=20)
            limiter.insert(5)

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    for _ in range(120):  # 1920: 500 inserts pay for 2000, between 40 and 120 stay
        assert limiter.wait_sample(STOP, 16, timeout_s=20)
        limiter.sample(16)
        balances.append(limiter.balance)
    thread.join(20)
    assert not thread.is_alive()
    assert (limiter.inserted, limiter.sampled) == (500, 1920)
    assert all(limiter.lower <= b <= limiter.upper for b in balances)


def test_a_stop_event_ends_a_wait():
    limiter = RateLimiter(1.0, min_size=1, tolerance=5.0)
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    assert not limiter.wait_sample(stop)
    assert not limiter.wait_insert(stop)


def test_a_time_out_ends_a_wait():
    limiter = RateLimiter(1.0, min_size=1, tolerance=5.0)
    assert not limiter.wait_sample(STOP, timeout_s=0.01)
    assert not limiter.wait_ready(STOP, timeout_s=0.0)
    limiter.insert(6)
    assert limiter.wait_ready(STOP, timeout_s=0.0)
    assert not limiter.wait_insert(STOP, timeout_s=0.01)


def test_a_failure_reaches_both_sides_with_its_cause():
    limiter = RateLimiter(1.0, min_size=1, tolerance=5.0)
    cause = ValueError("env crashed")
    threading.Timer(0.05, limiter.fail, [cause]).start()
    with pytest.raises(RuntimeError, match="env crashed") as caught:
        limiter.wait_sample(STOP)
    assert caught.value.__cause__ is cause
    limiter.fail(KeyError("later"))
    for call in (lambda: limiter.wait_insert(STOP), lambda: limiter.insert(1), lambda: limiter.sample(1)):
        with pytest.raises(RuntimeError) as caught:
            call()
        assert caught.value.__cause__ is cause


def test_a_tolerance_that_could_lock_up_is_refused():
    limiter = RateLimiter(1.0, min_size=1, tolerance=20.0)
    assert limiter.wait_insert(STOP, 30)
    with pytest.raises(ValueError, match=r"set it to 20\.5"):
        limiter.wait_sample(STOP, 11)


def test_state_goes_on():
    limiter = RateLimiter(2.0, min_size=3, tolerance=4.0)
    limiter.insert(5)
    limiter.sample(3)
    restored = RateLimiter(2.0, min_size=3, tolerance=4.0)
    restored.load_state_dict(limiter.state_dict())
    assert (restored.inserted, restored.sampled, restored.balance) == (5, 3, 7.0)


@pytest.mark.parametrize("arguments", [(0.0, 1, 1.0), (1.0, 0, 1.0), (1.0, 1, 0.0)])
def test_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match="need samples_per_insert > 0"):
        RateLimiter(*arguments)
