import pytest
import torch

from priorzero.rl.group_advantages import dr_grpo, reinforce_pp_baseline
from priorzero.rl.token_advantages import AdvantageEstimator, AdvantageInputs, NoExperienceError, index_of, whiten

NAN = torch.nan
close = torch.testing.assert_close


def test_whiten_by_hand_with_a_gap():
    x, mask = torch.tensor([1.0, NAN, 2.0, 3.0]), torch.tensor([True, False, True, True])
    close(whiten(x, mask), torch.tensor([-1.0, 0.0, 0.0, 1.0]))  # mean 2, unbiased variance 1


def test_whiten_of_equal_entries_is_zero():
    assert not whiten(torch.full((4,), 0.1), torch.ones(4, dtype=torch.bool)).any()


def test_whiten_over_ranks_is_whiten_of_all():
    x, mask = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), torch.ones(5, 7, dtype=torch.bool)
    mask[1, 2:] = mask[4] = False
    split = [(x[:2], mask[:2]), (x[2:], mask[2:])]
    sums = []
    for part, keep in split:  # what each rank gives to the reduction
        whiten(part, keep, lambda vector: sums.append(vector) or vector)
    parts = [whiten(part, keep, lambda _: sums[0] + sums[1]) for part, keep in split]
    close(torch.cat(parts), whiten(x, mask))
    close(whiten(x, mask)[mask].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    close(whiten(x, mask)[mask].var(), torch.tensor(1.0))


@pytest.mark.parametrize("kept", [0, 1])
def test_whiten_needs_two_tokens(kept):
    with pytest.raises(NoExperienceError, match=f"{kept} trained tokens are too few"):
        whiten(torch.zeros(3), torch.arange(3) < kept)


def test_an_estimator_whitens_what_is_usable():
    inputs = AdvantageInputs(
        rewards=torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 9.0]]),
        mask=torch.tensor([[True, True], [False, True], [True, True]]),
        group=torch.tensor([4, 4, 7]),  # the third sample is alone
    )
    plain = AdvantageEstimator(estimate=dr_grpo, whiten=False)(inputs)
    close(plain.advantages, torch.tensor([[-1.0, -1.0], [0.0, 1.0], [0.0, 0.0]]))
    result = AdvantageEstimator(estimate=reinforce_pp_baseline, whiten=True)(inputs)
    deviation = (4 / 3) ** 0.5  # of -1, -1, 1: mean -1/3, squares 4/9 + 4/9 + 16/9, over 2
    low, high = (-1 + 1 / 3) / deviation, (1 + 1 / 3) / deviation
    close(result.advantages, torch.tensor([[low, low], [0.0, high], [0.0, 0.0]]))
    assert result.usable.tolist() == [True, True, False]


def test_scores_count_masked_rewards_only():
    inputs = AdvantageInputs(
        rewards=torch.tensor([[1.0, 0.0, 2.0], [5.0, 5.0, 5.0]]),
        mask=torch.tensor([[True, False, True], [False, False, False]]),  # the second sample takes part in nothing
    )
    assert inputs.scores.tolist() == [3.0, 0.0]
    assert inputs.trained.tolist() == [True, False]


def test_a_reward_that_would_be_lost_is_an_error():
    with pytest.raises(ValueError, match="sample 1 has a reward on token 2"):
        AdvantageInputs(
            rewards=torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
            mask=torch.tensor([[True, True, False], [True, True, False]]),
        )


def test_shapes_are_checked():
    rewards, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="bool mask of the same shape"):
        AdvantageInputs(rewards=rewards, mask=mask.float())
    with pytest.raises(ValueError, match="values has shape"):
        AdvantageInputs(rewards=rewards, mask=mask, values=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="group has shape"):
        AdvantageInputs(rewards=rewards, mask=mask, group=torch.zeros(3, dtype=torch.int64))


def test_inputs_move_as_one():
    inputs = AdvantageInputs(rewards=torch.zeros(1, 1), mask=torch.ones(1, 1, dtype=torch.bool)).to("cpu")
    assert inputs.values is None


def test_index_of_names():
    assert index_of(["b", "a", "b"], "group_id").tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="sample 1 has no state_id"):
        index_of(["b", "", "b"], "state_id")
