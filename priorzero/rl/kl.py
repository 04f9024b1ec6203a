"""KL divergence from a reference policy: single-sample estimators, its place in the reward, controllers of its weight.

Estimators: Schulman 2020, "Approximating KL divergence" (joschu.net/blog/kl-approx.html), for samples of the policy.
As a loss on samples of the policy only k2 and the straight-through k1+ and k3+ have the gradient of the KL; as a
penalty in the reward, k1 is the right one. Controllers: Ziegler et al. 2019 (arXiv:1909.08593), section 2.2.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

KLKind = Literal["k1", "k2", "k3", "k1+", "k3+"]

_LOG_RATIO_LIMIT = 20.0  # as in verl: clamped before the exp, so that it can not overflow
_K3_LIMIT = 10.0


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KLKind) -> Tensor:
    """Per-sample estimate of KL(policy || reference), any shape.

    With d = logprobs - ref_logprobs: k1 = d, unbiased, of either sign; k2 = d^2 / 2, whose gradient is that of the KL;
    k3 = exp(-d) - 1 + d, unbiased and never negative (d limited to +-20 before the exp, the result to 10). k1+ and k3+
    have the value of k1 and k3 and the gradient of k2.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in get_args(KLKind):
        raise ValueError(f"unknown KL estimator {kind!r}: choose k1, k2 or k3, or k1+ or k3+ with the gradient of k2")
    if kind in ("k1+", "k3+"):
        value = kl_estimate(logprobs.detach(), ref_logprobs.detach(), "k1" if kind == "k1+" else "k3")
        slope = kl_estimate(logprobs, ref_logprobs, "k2")
        return value + slope - slope.detach()
    difference = logprobs - ref_logprobs
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    limited = difference.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
    return (torch.expm1(-limited) + limited).clamp(max=_K3_LIMIT)


def token_kl(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kind: KLKind) -> Tensor:
    """``kl_estimate`` of written tokens: [N, L], 0 outside the mask, where neither argument is read."""
    return kl_estimate(logprobs.masked_fill(~mask, 0.0), ref_logprobs.masked_fill(~mask, 0.0), kind)


def mean_kl(kl: Tensor, mask: Tensor) -> float:
    """What a controller is told: the mean over sequences of the mean over their masked tokens of ``kl`` [N, L].

    Sequences without a masked token are left out; 0 if that leaves none.
    """
    tokens = mask.sum(-1)
    means = kl.detach().masked_fill(~mask, 0.0).sum(-1) / tokens.clamp(min=1)
    return float(means.sum() / (tokens > 0).sum().clamp(min=1))


def token_rewards(
    scores: Tensor,
    mask: Tensor,
    *,
    turn_rewards: Tensor | None = None,
    kl: Tensor | None = None,
    kl_weight: float = 0.0,
    limit: float | None = None,
) -> Tensor:
    """Rewards of tokens: the score of a sample on its last masked token, less the KL on every masked token.

    The penalty is that of Ziegler et al. 2019 (arXiv:1909.08593, equation 2).

    Args:
        scores: [N] of whole samples; not read where the mask of the sample is all False.
        mask: [N, L] bool.
        turn_rewards: [N, L] rewards of the environment, on the last masked token of their turns.
        kl: [N, L] estimates, as ``token_kl`` gives them.
        kl_weight: of ``kl``.
        limit: scores are first cut to +-limit; None for none.

    Returns:
        [N, L] float32 without gradient. Turn rewards stay where they are, so ``AdvantageInputs`` finds misplaced ones.

    Raises:
        ValueError: a sample with masked tokens has a score that is not finite.
    """
    trained = mask.any(-1)
    if not bool(torch.isfinite(scores[trained]).all()):
        raise ValueError("a sample that is trained has no finite score: mask samples that could not be scored")
    placed = scores.detach().float().masked_fill(~trained, 0.0)
    if limit is not None:
        placed = placed.clamp(-limit, limit)
    last = mask.shape[1] - 1 - mask.flip(-1).int().argmax(-1, keepdim=True)
    rewards = torch.zeros(mask.shape, device=mask.device).scatter(1, last, placed[:, None])
    if turn_rewards is not None:
        rewards = rewards + turn_rewards
    if kl is not None:
        rewards = rewards - kl_weight * kl.detach().masked_fill(~mask, 0.0)
    return rewards


class KLController(Protocol):
    """Holds the weight of the KL term."""

    coefficient: float

    def update(self, kl: float, samples: int) -> None:
        """Takes notice of the mean ``kl`` of ``samples`` samples."""

    def state_dict(self) -> dict[str, Any]:
        """The state in plain containers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""


class FixedKL:
    """A weight that never changes."""

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient

    def update(self, kl: float, samples: int) -> None:
        """Ignores both."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: the weight comes from the configuration."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignores it."""


class AdaptiveKL:
    """A weight that grows while the KL is above its target and falls while it is below.

    coefficient *= 1 + clip(kl / target - 1, -0.2, 0.2) * samples / horizon

    Args:
        coefficient: the first weight.
        target: the KL to hold, in nats.
        horizon: samples after which a KL 20 % off the target has changed the weight by 20 %.
    """

    def __init__(self, coefficient: float, target: float, horizon: int) -> None:
        self.coefficient = coefficient
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, samples: int) -> None:
        """Moves the weight after a batch of ``samples`` with mean ``kl``."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.coefficient *= 1.0 + error * samples / self.horizon

    def state_dict(self) -> dict[str, Any]:
        """The weight."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved weight."""
        self.coefficient = float(state["coefficient"])
