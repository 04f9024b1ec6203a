import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from priorzero.rl import token_loss as tl
from priorzero.rl.aggregation import UpdateSize, aggregate

NAN = torch.nan
close = torch.testing.assert_close
MASK = torch.tensor([[True, False, True, True], [True, True, False, False]])


def inputs(ratio, advantages, mask=MASK):
    """Tokens whose ratio is given: the new log-probability is log ratio - 1, the old one -1."""
    logprobs = torch.as_tensor(ratio).log() - 1
    old = torch.full_like(logprobs, -1.0).masked_fill(~mask, NAN)
    return tl.LossInputs(
        logprobs=logprobs.requires_grad_(), old_logprobs=old, advantages=torch.as_tensor(advantages), mask=mask
    )


def test_ppo_by_hand():
    batch = inputs([[1.5, NAN, 0.5, 1.1], [0.5, 5.0, 7.0, NAN]], [[1.0, NAN, 1.0, 2.0], [-1.0, -1.0, NAN, 1.0]])
    result = tl.ppo(batch, clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    close(result.loss, torch.tensor([[-1.28, 0.0, -0.5, -2.2], [0.8, 3.0, 0.0, 0.0]]))
    metrics = {name: value.item() for name, value in result.metrics.items()}
    assert metrics["clip_fraction"] == pytest.approx(2 / 5)
    assert metrics["dual_clip_fraction"] == pytest.approx(1 / 5)
    assert metrics["ratio_mean"] == pytest.approx((1.5 + 0.5 + 1.1 + 0.5 + 5.0) / 5)
    assert (metrics["ratio_max"], metrics["ratio_min"]) == (pytest.approx(5.0), pytest.approx(0.5))
    kl = sum(r - 1 - math.log(r) for r in (1.5, 0.5, 1.1, 0.5, 5.0)) / 5
    assert metrics["approx_kl"] == pytest.approx(kl, rel=1e-5)
    result.loss.sum().backward()
    close(batch.logprobs.grad, torch.tensor([[0.0, 0.0, -0.5, -2.2], [0.0, 0.0, 0.0, 0.0]]))


def test_ppo_without_dual_clip():
    batch = inputs([[5.0]], [[-1.0]], torch.tensor([[True]]))
    result = tl.ppo(batch, clip_low=0.2, clip_high=0.2, dual_clip=None)
    close(result.loss, torch.tensor([[5.0]]))
    assert "dual_clip_fraction" not in result.metrics
    with pytest.raises(ValueError, match="above 1"):
        tl.ppo(batch, clip_low=0.2, clip_high=0.2, dual_clip=1.0)


def test_the_first_step_of_ppo_is_reinforce():
    batch = inputs([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]], torch.arange(8.0).view(2, 4))
    tl.ppo(batch, clip_low=0.2, clip_high=0.28, dual_clip=3.0).loss.sum().backward()
    first = batch.logprobs.grad.clone()
    batch.logprobs.grad = None
    tl.reinforce(batch).loss.sum().backward()
    close(batch.logprobs.grad, first)
    close(first, -batch.advantages * MASK)


def test_gspo_has_one_ratio_a_sequence():
    batch = inputs(
        [[math.exp(0.1), NAN, math.exp(0.3), math.exp(0.2)], [math.exp(-0.2), 1.0, NAN, NAN]],
        [[1.0, NAN, 1.0, 1.0], [2.0, 2.0, NAN, NAN]],
    )
    result = tl.gspo(batch, clip_low=0.5, clip_high=0.1)
    s = math.exp(-0.1)  # of the second sequence, inside the clips; the first has e^0.2 > 1.1
    close(result.loss, torch.tensor([[-1.1, 0.0, -1.1, -1.1], [-2 * s, -2 * s, 0.0, 0.0]]))
    assert result.metrics["clip_fraction"].item() == pytest.approx(3 / 5)
    assert result.metrics["ratio_max"].item() == pytest.approx(math.exp(0.2))
    result.loss.sum().backward()
    close(batch.logprobs.grad, torch.tensor([[0.0, 0.0, 0.0, 0.0], [-2 * s, -2 * s, 0.0, 0.0]]))


def test_cispo_keeps_the_gradient_of_clipped_tokens():
    batch = inputs([[1.5, NAN, 0.5, 1.1], [1.0, 0.9, NAN, NAN]], [[1.0, NAN, -1.0, 2.0], [0.0, 3.0, NAN, NAN]])
    result = tl.cispo(batch, clip_low=0.2, clip_high=0.2)
    weight = torch.tensor([[1.2, 0.0, 0.8, 1.1], [1.0, 0.9, 0.0, 0.0]])
    advantages = batch.advantages.nan_to_num()
    close(result.loss, -weight * advantages * batch.logprobs.detach().nan_to_num())
    assert result.metrics["clip_fraction"].item() == pytest.approx(2 / 5)
    result.loss.sum().backward()
    close(batch.logprobs.grad, -weight * advantages)
    free = tl.cispo(batch, clip_low=1.0, clip_high=0.2).loss[0, 2]
    close(free, 0.5 * batch.logprobs[0, 2])  # a lower clip of 1 is none


def test_reinforce():
    batch = inputs([[1.0, NAN, 2.0, 1.0], [1.0, 1.0, NAN, NAN]], [[0.0, NAN, 2.0, -1.0], [3.0, 0.0, NAN, NAN]])
    result = tl.reinforce(batch)
    close(result.loss, torch.tensor([[0.0, 0.0, -2 * (math.log(2) - 1), -1.0], [3.0, 0.0, 0.0, 0.0]]))
    assert result.metrics["ratio_mean"].item() == pytest.approx(6 / 5)


def test_far_ratios_stay_finite():
    batch = tl.LossInputs(
        logprobs=torch.tensor([[0.0, -1e4]], requires_grad=True),
        old_logprobs=torch.tensor([[-1e4, 0.0]]),
        advantages=torch.tensor([[-1.0, 1.0]]),
        mask=torch.tensor([[True, True]]),
    )
    for loss in (
        partial(tl.ppo, clip_low=0.2, clip_high=0.2, dual_clip=3.0),
        partial(tl.gspo, clip_low=1, clip_high=1),
    ):
        batch.logprobs.grad = None
        loss(batch).loss.sum().backward()
        assert torch.isfinite(batch.logprobs.grad).all()


def test_shapes_are_checked():
    batch = tl.LossInputs(
        logprobs=torch.zeros(1, 2), old_logprobs=torch.zeros(1, 1), advantages=torch.zeros(1, 2), mask=MASK[:1, :2]
    )
    with pytest.raises(ValueError, match="one shape"):
        tl.reinforce(batch)


def test_rollout_weight_by_hand():
    old = torch.tensor([[math.log(0.6), NAN, math.log(0.2), -1.0]], requires_grad=True)
    rollout = torch.tensor([[math.log(0.2), 0.5, math.log(0.4), -1.0]])
    weight, metrics = tl.rollout_weight(old, rollout, MASK[:1], cap=2.0)
    close(weight, torch.tensor([[2.0, 0.0, 0.5, 1.0]]))
    assert not weight.requires_grad
    assert metrics["rollout_weight"].item() == pytest.approx(3.5 / 3)
    assert metrics["rollout_capped"].item() == pytest.approx(1 / 3)
    assert metrics["rollout_prob_gap"].item() == pytest.approx((0.4 + 0.2) / 3)
    assert metrics["rollout_kl"].item() == pytest.approx((3 - 1 - math.log(3) + 0.5 - 1 + math.log(2)) / 3, rel=1e-5)


def test_value_loss_by_hand():
    values = torch.tensor([[1.0, NAN, 0.3, 3.0]], requires_grad=True)
    old, returns = torch.tensor([[0.2, 0.0, 0.2, 1.0]]), torch.tensor([[2.0, 0.0, 1.3, 0.0]])
    # clipped to 0.7, 0.3, 1.5: squares 1.69 against 1; 1 and 1; 2.25 against 9
    result = tl.value_loss(values, old, returns, MASK[:1], clip=0.5)
    close(result.loss, torch.tensor([[0.845, 0.0, 0.5, 4.5]]))
    assert result.metrics["value_clip_fraction"].item() == pytest.approx(1 / 3)
    plain = tl.value_loss(values, old, returns, MASK[:1], clip=None)
    close(plain.loss, torch.tensor([[0.5, 0.0, 0.5, 4.5]]))
    plain.loss.sum().backward()
    close(values.grad, torch.tensor([[-1.0, 0.0, -1.0, 3.0]]))


def test_entropy_by_hand():
    logits = torch.tensor([[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, -torch.inf, -torch.inf]], requires_grad=True)
    entropy = tl.token_entropy(logits)
    close(entropy, torch.tensor([math.log(4), math.log(2)]))
    entropy.sum().backward()
    close(logits.grad, torch.zeros(2, 4), atol=1e-6, rtol=0)  # both are as flat as they can be


LOSSES = [
    partial(tl.ppo, clip_low=0.2, clip_high=0.28, dual_clip=3.0),
    partial(tl.gspo, clip_low=0.1, clip_high=0.1),
    partial(tl.cispo, clip_low=0.2, clip_high=0.2),
    tl.reinforce,
]
number = st.sampled_from([NAN, torch.inf, -torch.inf, 1e30, -3.0])


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(LOSSES), number, number, number)
def test_what_stands_outside_the_mask_changes_nothing(seed, policy_loss, a, b, c):
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, 5, generator=random) < 0.5
    mask[0, 0] = True
    tensors = [torch.randn(3, 5, generator=random) for _ in range(3)]
    size = UpdateSize(tokens=int(mask.sum()), sequences=int(mask.any(-1).sum()), world_size=1)

    def run(logprobs, old, advantages):
        logprobs = logprobs.clone().requires_grad_()
        batch = tl.LossInputs(logprobs=logprobs, old_logprobs=old, advantages=advantages, mask=mask)
        result = policy_loss(batch)
        aggregate(result.loss, mask, mode="token-mean", size=size).backward()
        return result.loss.detach(), logprobs.grad, result.metrics

    clean = run(*tensors)
    noisy = run(*(x.masked_fill(~mask, noise) for x, noise in zip(tensors, (a, b, c), strict=True)))
    assert torch.equal(clean[0], noisy[0])
    assert torch.equal(clean[1], noisy[1])
    assert clean[2] == noisy[2]
    assert not clean[0][~mask].any()
    assert not clean[1][~mask].any()
