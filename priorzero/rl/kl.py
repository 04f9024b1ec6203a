"""KL divergence from a reference policy: single-sample estimators and controllers of its weight.

Estimators: Schulman 2020, "Approximating KL divergence" (joschu.net/blog/kl-approx.html), for samples of the policy.
Controllers: Ziegler et al. 2019 (arXiv:1909.08593), section 2.2.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

KLKind = Literal["k1", "k2", "k3"]

_LOG_RATIO_LIMIT = 20.0  # as in verl: clamped before the exp, so that it can not overflow
_K3_LIMIT = 10.0


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KLKind) -> Tensor:
    """Per-sample estimate of KL(policy || reference), any shape.

    With d = logprobs - ref_logprobs: k1 = d, unbiased, of either sign; k2 = d^2 / 2, whose gradient is that of the KL;
    k3 = exp(-d) - 1 + d, unbiased and never negative (d limited to +-20 before the exp, the result to 10).

    Raises:
        ValueError: unknown kind.
    """
    difference = logprobs - ref_logprobs
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        limited = difference.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
        return (torch.expm1(-limited) + limited).clamp(max=_K3_LIMIT)
    raise ValueError(f"unknown KL estimator {kind!r}: choose k1, k2 or k3")


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
