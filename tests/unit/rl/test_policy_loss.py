import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from priorzero.rl import policy_loss as pl

INF = -torch.inf
# the second row has a gap in the middle: masks need not be a prefix
SUMS = torch.tensor([[-2.0, -4.0, -6.0], [-3.0, INF, -1.0]])
COUNTS = torch.tensor([[2, 2, 3], [3, 0, 1]])


def test_action_logprobs_by_hand():
    z = 1 + math.exp(-2) + math.exp(-4)
    two = math.log1p(math.exp(-2))
    want = [[-math.log(z), -2 - math.log(z), -4 - math.log(z)], [-2 - two, INF, -two]]
    torch.testing.assert_close(pl.action_logprobs(SUMS, COUNTS, 1.0, False), torch.tensor(want))


def test_action_logprobs_with_temperature_and_mean():
    mean = pl.action_logprobs(SUMS, COUNTS, 1.0, True)  # means -1, -2, -2 and -1, -, -1
    z = 1 + 2 * math.exp(-1)
    torch.testing.assert_close(mean[0], torch.tensor([-math.log(z), -1 - math.log(z), -1 - math.log(z)]))
    torch.testing.assert_close(mean[1], torch.tensor([math.log(0.5), INF, math.log(0.5)]))
    hot = pl.action_logprobs(SUMS, COUNTS, 2.0, False)[1]
    torch.testing.assert_close(hot[2] - hot[0], torch.tensor(1.0))


def test_sft_text_by_hand():
    visits = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]])
    torch.testing.assert_close(pl.sft_text(SUMS, COUNTS, visits, per_token=False), torch.tensor([3.0, 1.5]))
    torch.testing.assert_close(pl.sft_text(SUMS, COUNTS, visits, per_token=True), torch.tensor([1.5, 1.0]))


def test_sft_listwise_is_smallest_at_the_visits_and_its_gradient_vanishes():
    visits = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.0, 0.6]])
    sums = visits.log().masked_fill(COUNTS == 0, INF).requires_grad_()
    policy = pl.action_logprobs(sums, COUNTS, 1.0, False)
    loss = pl.sft_listwise(policy, visits)
    first = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    second = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    torch.testing.assert_close(loss, torch.tensor([first, second]))
    loss.sum().backward()
    torch.testing.assert_close(sums.grad, torch.zeros(2, 3), atol=1e-6, rtol=0)


def test_sft_listwise_gradient_is_policy_minus_visits():
    visits = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    sums = SUMS.clone().requires_grad_()
    policy = pl.action_logprobs(sums, COUNTS, 2.0, False)
    pl.sft_listwise(policy, visits).sum().backward()
    torch.testing.assert_close(sums.grad, (policy.detach().exp() - visits) / 2.0)


def test_reinforce():
    logprobs = torch.tensor([-1.0, -2.0])
    advantage = torch.tensor([2.0, -0.5])
    torch.testing.assert_close(pl.reinforce(logprobs, advantage), torch.tensor([2.0, -1.0]))
    weighted = pl.reinforce(logprobs, advantage, importance=torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(weighted, torch.tensor([1.0, -2.0]))


def test_truncated_importance_has_no_gradient():
    logprobs = torch.tensor([math.log(0.6), math.log(0.1)], requires_grad=True)
    weight = pl.truncated_importance(logprobs, torch.tensor([math.log(0.2), math.log(0.2)]), cap=2.0)
    torch.testing.assert_close(weight, torch.tensor([2.0, 0.5]))
    assert not weight.requires_grad


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 1.0, -1.0, -1.0),
        (1.5, 1.0, -1.28, 0.0),  # good action, already much likelier: clipped
        (1.5, -1.0, 1.5, 1.5),  # bad action, likelier: not clipped
        (0.5, -1.0, 0.8, 0.0),  # bad action, already much rarer: clipped
        (0.5, 1.0, -0.5, -0.5),
    ],
)
def test_ppo_clip(ratio, advantage, loss, gradient):
    behaviour = torch.tensor([-2.0])
    logprobs = (behaviour + math.log(ratio)).requires_grad_()
    value = pl.ppo_clip(logprobs, behaviour, torch.tensor([advantage]), clip_low=0.2, clip_high=0.28)
    value.sum().backward()
    torch.testing.assert_close(value.detach(), torch.tensor([loss]))
    torch.testing.assert_close(logprobs.grad, torch.tensor([gradient]))


def test_categorical_kl_and_entropy_by_hand():
    policy = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]]).log()
    ref = torch.tensor([[0.25, 0.75, 0.0], [0.25, 0.0, 0.75]]).log()
    want = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    torch.testing.assert_close(pl.categorical_kl(policy, ref), torch.tensor([want, 0.0]))
    h = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(pl.entropy(policy), torch.tensor([math.log(2), h]))


def test_gradients_stay_finite_with_gaps():
    sums = SUMS.clone().requires_grad_()
    policy = pl.action_logprobs(sums, COUNTS, 1.0, True)
    ref = pl.action_logprobs(SUMS * 0.5, COUNTS, 1.0, True)
    (pl.categorical_kl(policy, ref) + pl.entropy(policy)).sum().backward()
    assert torch.isfinite(sums.grad).all()
    assert sums.grad[1, 1] == 0


def test_pick_and_weighted_mean():
    torch.testing.assert_close(pl.pick(SUMS, torch.tensor([2, 0])), torch.tensor([-6.0, -3.0]))
    values = torch.tensor([1.0, 5.0, 100.0], requires_grad=True)
    assert pl.weighted_mean(values, torch.tensor([1.0, 3.0, 0.0])).item() == pytest.approx(4.0)
    nothing = pl.weighted_mean(values, torch.zeros(3))
    nothing.backward()
    assert nothing.item() == 0
    assert values.grad.tolist() == [0, 0, 0]


@settings(max_examples=50)
@given(st.lists(st.floats(-30, 0), min_size=1, max_size=6), st.floats(0.1, 5), st.booleans())
def test_padding_changes_nothing(scores, temperature, normalise):
    sums, counts = torch.tensor([scores]), torch.arange(1, len(scores) + 1)[None]
    padded = torch.cat([sums[:, :1], torch.full((1, 2), INF), sums[:, 1:]], -1)
    padded_counts = torch.cat([counts[:, :1], torch.zeros(1, 2, dtype=torch.long), counts[:, 1:]], -1)
    policy = pl.action_logprobs(sums, counts, temperature, normalise)
    with_gap = pl.action_logprobs(padded, padded_counts, temperature, normalise)
    torch.testing.assert_close(with_gap.exp().sum(-1), torch.ones(1))
    torch.testing.assert_close(pl.entropy(with_gap), pl.entropy(policy))
    torch.testing.assert_close(pl.categorical_kl(with_gap, with_gap * 1), torch.zeros(1))
