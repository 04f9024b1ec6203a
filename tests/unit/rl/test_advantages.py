import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from priorzero.rl.advantages import AdvantageNormaliser, ReturnBaseline, world_model_advantages


def test_world_model_advantages_are_zero_past_the_end():
    target = torch.tensor([[5.0, 6.0, 7.0], [1.0, 0.0, 0.0]])
    value = torch.tensor([[1.0, 8.0, 3.0, 9.0], [4.0, 5.0, 6.0, 7.0]])
    advantage = world_model_advantages(target, value, torch.tensor([3, 1]))
    assert advantage.tolist() == [[4.0, -2.0, 4.0], [-3.0, 0.0, 0.0]]


def test_raw_changes_nothing():
    advantage = torch.tensor([3.0, -1.0])
    assert AdvantageNormaliser("raw", decay=0.9)(advantage) is advantage


def test_batch_has_mean_0_and_deviation_1():
    # mean 2, deviation 1
    assert AdvantageNormaliser("batch", decay=0.0)(torch.tensor([1.0, 3.0])).tolist() == [-1.0, 1.0]


def test_equal_advantages_become_zero():
    assert AdvantageNormaliser("batch", decay=0.0)(torch.tensor([7.0, 7.0])).tolist() == [0.0, 0.0]
    assert AdvantageNormaliser("batch", decay=0.0)(torch.tensor([7.0])).tolist() == [0.0]


def test_running_moments_follow_the_batches():
    normalise = AdvantageNormaliser("running", decay=0.5)
    assert normalise(torch.tensor([1.0, 3.0])).tolist() == [-1.0, 1.0]  # mean 2, mean square 5
    # batch: mean 4, mean square 20; running: mean 3, mean square 12.5, deviation sqrt(3.5)
    scaled = normalise(torch.tensor([2.0, 6.0]))
    torch.testing.assert_close(scaled, torch.tensor([-1.0, 3.0]) / 3.5**0.5)


def test_running_continues_from_its_state():
    first, second = AdvantageNormaliser("running", decay=0.9), AdvantageNormaliser("running", decay=0.9)
    first(torch.tensor([1.0, 3.0]))
    second.load_state_dict(first.state_dict())
    batch = torch.tensor([5.0, -2.0, 8.0])
    assert torch.equal(first(batch), second(batch))
    assert AdvantageNormaliser("running", decay=0.9).state_dict() == {}


@pytest.mark.parametrize("mode", ["batch", "running"])
def test_ranks_scale_alike_through_reduce(mode):
    batches = [torch.tensor([1.0, 2.0, 6.0]), torch.tensor([3.0])]
    sums = []
    for batch in batches:
        AdvantageNormaliser(mode, decay=0.9, reduce=lambda x: sums.append(x) or x)(batch)
    whole = AdvantageNormaliser(mode, decay=0.9)(torch.cat(batches))
    parts = [AdvantageNormaliser(mode, decay=0.9, reduce=lambda _: sum(sums))(batch) for batch in batches]
    torch.testing.assert_close(torch.cat(parts), whole)


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=20))
def test_batch_equals_numpy(values):
    x = np.array(values, np.float32)
    expected = (x - x.mean(dtype=np.float64)) / max(x.std(dtype=np.float64), 1e-6)
    scaled = AdvantageNormaliser("batch", decay=0.0)(torch.from_numpy(x))
    if x.std() > 0.01:
        np.testing.assert_allclose(scaled.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(scaled).all()


def test_unknown_modes_and_decays_are_refused():
    with pytest.raises(ValueError, match="choose one of"):
        AdvantageNormaliser("phase", decay=0.9)
    with pytest.raises(ValueError, match="decay"):
        AdvantageNormaliser("running", decay=1.0)
    with pytest.raises(ValueError, match="decay"):
        ReturnBaseline(-0.1)


def test_return_baseline_is_that_of_earlier_batches_of_the_game():
    baseline = ReturnBaseline(0.5)
    first = baseline.advantages(["a", "b", "a"], np.array([1.0, 10.0, 3.0]))
    assert first.tolist() == [-1.0, 0.0, 1.0]  # own means: 2 and 10
    second = baseline.advantages(["a", "b"], np.array([6.0, 4.0]))
    assert second.tolist() == [4.0, -6.0]
    assert baseline.state_dict() == {"a": 4.0, "b": 7.0}
    restored = ReturnBaseline(0.5)
    restored.load_state_dict(baseline.state_dict())
    assert restored.advantages(["b"], np.array([8.0])).tolist() == [1.0]
