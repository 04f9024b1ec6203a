import math

import pytest
import torch

from priorzero.rl.kl import AdaptiveKL, FixedKL, kl_estimate, mean_kl, token_kl, token_rewards

NAN = torch.nan
MASK = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])


def test_estimators_by_hand():
    logprobs = torch.tensor([math.log(0.5), math.log(0.2)])
    ref = torch.tensor([math.log(0.25), math.log(0.4)])
    d = math.log(2.0)
    torch.testing.assert_close(kl_estimate(logprobs, ref, "k1"), torch.tensor([d, -d]))
    torch.testing.assert_close(kl_estimate(logprobs, ref, "k2"), torch.tensor([d * d / 2, d * d / 2]))
    torch.testing.assert_close(kl_estimate(logprobs, ref, "k3"), torch.tensor([0.5 - 1 + d, 2 - 1 - d]))


def test_k1_and_k3_are_unbiased_over_the_actions():
    policy = torch.randn(6, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    ref = torch.randn(6, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    exact = (policy.exp() * (policy - ref)).sum()
    for kind in ("k1", "k3"):
        torch.testing.assert_close((policy.exp() * kl_estimate(policy, ref, kind)).sum(), exact)


def test_k2_has_the_gradient_of_the_kl():
    logits = torch.tensor([0.3, -0.7, 1.1], requires_grad=True)
    ref = torch.tensor([0.1, 0.2, 0.3]).log_softmax(-1)
    policy = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((policy.exp() * (policy - ref)).sum(), logits, retain_graph=True)
    (k2,) = torch.autograd.grad((policy.exp().detach() * kl_estimate(policy, ref, "k2")).sum(), logits)
    torch.testing.assert_close(k2, exact)


@pytest.mark.parametrize("far", [-1e4, 1e4])
def test_k3_of_far_policies_is_finite(far):
    logprobs = torch.tensor([far], requires_grad=True)
    value = kl_estimate(logprobs, torch.zeros(1), "k3")
    value.sum().backward()
    assert value.item() == pytest.approx(10.0)
    assert torch.isfinite(logprobs.grad).all()


@pytest.mark.parametrize("kind", ["k1+", "k3+"])
def test_straight_through_has_the_value_of_one_and_the_gradient_of_k2(kind):
    logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    ref = torch.tensor([-1.5, -1.0, -0.5])
    value = kl_estimate(logprobs, ref, kind)
    torch.testing.assert_close(value, kl_estimate(logprobs, ref, kind[:2]))
    (slope,) = torch.autograd.grad(value.sum(), logprobs)
    torch.testing.assert_close(slope, torch.tensor([0.5, -1.0, 0.0]))  # d itself


def test_tokens_that_were_not_written_have_no_kl():
    logprobs = torch.tensor([[-1.0, NAN, -2.0], [NAN, -0.5, NAN], [NAN, NAN, NAN]], requires_grad=True)
    ref = torch.tensor([[-1.5, 0.0, -1.0], [NAN, -0.5, 7.0], [-torch.inf, 0.0, 0.0]])
    for kind in ("k1", "k2", "k3", "k1+", "k3+"):
        logprobs.grad = None
        kl = token_kl(logprobs, ref, MASK, kind)
        assert not kl[~MASK].any()
        kl.sum().backward()
        assert torch.isfinite(logprobs.grad).all()
        assert not logprobs.grad[~MASK].any()
    kl = token_kl(logprobs, ref, MASK, "k1")
    torch.testing.assert_close(kl, torch.tensor([[0.5, 0.0, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert mean_kl(kl.masked_fill(~MASK, NAN), MASK) == pytest.approx((-0.25 + 0.0) / 2)
    assert mean_kl(kl, torch.zeros_like(MASK)) == 0.0


def test_token_rewards_by_hand():
    scores = torch.tensor([2.0, -30.0, NAN])  # the third sample could not be scored and is masked
    plain = token_rewards(scores, MASK)
    torch.testing.assert_close(plain, torch.tensor([[0.0, 0.0, 2.0], [0.0, -30.0, 0.0], [0.0, 0.0, 0.0]]))
    kl = torch.tensor([[0.5, NAN, -1.0], [NAN, 2.0, NAN], [NAN, NAN, NAN]], requires_grad=True)
    turns = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    full = token_rewards(scores, MASK, turn_rewards=turns, kl=kl, kl_weight=0.1, limit=10.0)
    torch.testing.assert_close(full, torch.tensor([[0.95, 0.0, 2.1], [0.0, -10.2, 0.0], [0.0, 0.0, 0.0]]))
    assert not full.requires_grad
    with pytest.raises(ValueError, match="no finite score"):
        token_rewards(torch.tensor([NAN, 0.0, 0.0]), MASK)


def test_unknown_estimator():
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


def test_adaptive_controller_golden():
    controller = AdaptiveKL(0.001, target=0.1, horizon=10_000)  # the numbers of verl's controller
    seen = []
    for kl in (0.05, 0.3, 0.1, 0.11):
        controller.update(kl, samples=1024)
        seen.append(controller.coefficient)
    assert seen == pytest.approx([0.00097952, 0.00099958057, 0.00099958057, 0.001009816275])
    again = AdaptiveKL(0.5, target=0.1, horizon=10_000)
    again.load_state_dict(controller.state_dict())
    assert again.coefficient == controller.coefficient


def test_fixed_controller():
    controller = FixedKL(0.01)
    controller.update(100.0, samples=10_000)
    controller.load_state_dict(controller.state_dict())
    assert controller.coefficient == 0.01
