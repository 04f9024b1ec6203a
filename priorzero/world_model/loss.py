"""The world model's loss as a pure function of outputs and targets (UniZero, arXiv 2406.10667, eq. 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """How much each part counts in the total."""

    latent: float
    reward: float
    value: float
    policy: float
    entropy: float  # subtracted: keeps the policy head from collapsing


@dataclass(frozen=True)
class Targets:
    """What ``T`` trained steps should have given. None of them carries a gradient."""

    latent: Tensor  # [B, T, D] target network's encoding of the next observations
    reward: Tensor  # [B, T, bins]
    value: Tensor  # [B, T, bins]
    policy: Tensor  # [B, T, U]
    legal: Tensor  # [B, T, U] bool
    known: Tensor  # [B, U] bool
    real: Tensor  # [B, T] steps that were played: they have a policy target
    modelled: Tensor  # [B, T] these and the absorbing steps after a true end: they have all other targets
    weight: Tensor  # [B]


@dataclass(frozen=True)
class Predictions:
    """The same of the network in training."""

    latent: Tensor  # [B, T, D] predicted next latents
    reward_logits: Tensor  # [B, T, bins]
    value_logits: Tensor  # [B, T, bins]
    policy_logits: Tensor  # [B, T, U]


def cross_entropy(logits: Tensor, target_probs: Tensor) -> Tensor:
    """-sum_i p_i log softmax(logits)_i over the last dimension; -inf logits carry no target mass, NaN targets show."""
    logprobs = logits.float().log_softmax(-1)
    return -torch.where(target_probs != 0, target_probs * logprobs, 0.0).sum(-1)


def entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Entropy of softmax(logits) restricted to ``mask``, over the last dimension; 0 where nothing is allowed."""
    logprobs = logits.float().masked_fill(~mask, -1e9).log_softmax(-1)
    return -torch.where(mask, logprobs.exp() * logprobs, 0.0).sum(-1)


def masked_mean(x: Tensor, real: Tensor, weight: Tensor) -> Tensor:
    """Mean of ``x`` [B, T] over the real steps, rows weighted by ``weight`` [B]."""
    return (x * real * weight.unsqueeze(1)).sum() / real.sum().clamp(min=1)


def world_model_loss(p: Predictions, t: Targets, weights: LossWeights) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss (scalar) and its unweighted parts (detached scalars).

    10 MSE(latent) + CE(reward) + 0.5 CE(value) + CE(policy) - 0.05 H(policy) with the published weights. The policy's
    cross-entropy runs over all known actions of the game, so that the head also learns which are valid: search needs
    that in imagined states. Its entropy runs over the valid ones.

    Steps after a true end count as absorbing (MuZero, arXiv 1911.08265, appendix G): nothing changes, nothing is paid,
    the value is 0. Without them the value of an ended game is whatever the network makes of it, and search walks into
    losing moves.
    """
    known = t.known.unsqueeze(1) | t.legal
    parts = {
        "latent": (p.latent.float() - t.latent.float()).square().mean(-1),
        "reward": cross_entropy(p.reward_logits, t.reward),
        "value": cross_entropy(p.value_logits, t.value),
        "policy": cross_entropy(p.policy_logits.float().masked_fill(~known, -1e9), t.policy),
        "entropy": entropy(p.policy_logits, t.legal),
    }
    masks = {"policy": t.real, "entropy": t.real}
    means = {name: masked_mean(x, masks.get(name, t.modelled), t.weight) for name, x in parts.items()}
    total = (
        weights.latent * means["latent"]
        + weights.reward * means["reward"]
        + weights.value * means["value"]
        + weights.policy * means["policy"]
        - weights.entropy * means["entropy"]
    )
    return total, {name: x.detach() for name, x in means.items()}
