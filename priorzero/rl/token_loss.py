"""Losses of the tokens that a language model wrote: one number a token, to be brought together by ``aggregate``.

Shapes: ``N`` samples of ``L`` tokens. What stands outside the mask is never read, nan included, and gets neither loss
nor gradient. "Old" is the trainer's model before the update, "rollout" the model (and engine) that sampled the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from priorzero.types import TensorRecord

_LOG_RATIO_LIMIT = 20.0  # as in verl: clamped before the exp, so that it can not overflow
_GSPO_LOG_RATIO_LIMIT = 10.0


@dataclass(frozen=True, kw_only=True)
class LossInputs(TensorRecord):
    """What a policy loss sees of a micro-batch, [N, L] each."""

    logprobs: Tensor  # of the tokens, with gradient
    old_logprobs: Tensor
    advantages: Tensor
    mask: Tensor  # bool

    def masked(self) -> LossInputs:
        """The same with 0 outside the mask.

        Raises:
            ValueError: the shapes differ, or the mask is not bool.
        """
        shapes = {tuple(x.shape) for x in (self.logprobs, self.old_logprobs, self.advantages, self.mask)}
        if len(shapes) > 1 or self.mask.dtype != torch.bool:
            raise ValueError(f"logprobs, advantages and a bool mask need one shape [N, L], got {sorted(shapes)}")
        return replace(
            self,
            logprobs=self.logprobs.masked_fill(~self.mask, 0.0),
            old_logprobs=self.old_logprobs.masked_fill(~self.mask, 0.0),
            advantages=self.advantages.masked_fill(~self.mask, 0.0),
        )


@dataclass(frozen=True)
class TokenLoss:
    """A policy loss and what is logged about it (0-dim tensors without gradient)."""

    loss: Tensor  # [N, L], 0 outside the mask
    metrics: dict[str, Tensor]


def ppo(inputs: LossInputs, *, clip_low: float, clip_high: float, dual_clip: float | None) -> TokenLoss:
    """Clipped surrogate of PPO (Schulman et al. 2017, arXiv:1707.06347, equation 7).

    ``max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))`` with r = pi / pi_old, a token.

    Args:
        inputs: the tokens.
        clip_low: below 1.
        clip_high: above 1; larger than ``clip_low`` is the clip-higher of DAPO (arXiv:2503.14476).
        dual_clip: c > 1: where A < 0 the loss is at most -A c (Ye et al. 2019, arXiv:1912.09729); None for none.

    Raises:
        ValueError: ``dual_clip`` is not above 1.
    """
    inputs = inputs.masked()
    log_ratio = _log_ratio(inputs)
    return _clipped(inputs, log_ratio, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def gspo(inputs: LossInputs, *, clip_low: float, clip_high: float) -> TokenLoss:
    """PPO with one ratio a sequence, the geometric mean of its tokens' (GSPO, arXiv:2507.18071, equations 7 and 14).

    The value is that of the sequence's ratio, the gradient goes through each token. Goes with the aggregation
    ``seq-mean-token-mean``, and with clips about a thousand times smaller than PPO's.
    """
    inputs = inputs.masked()
    per_token = inputs.logprobs - inputs.old_logprobs
    mean = (per_token.sum(-1, keepdim=True) / inputs.mask.sum(-1, keepdim=True).clamp(min=1)).detach()
    log_ratio = mean + inputs.logprobs - inputs.logprobs.detach()
    log_ratio = log_ratio.clamp(max=_GSPO_LOG_RATIO_LIMIT).masked_fill(~inputs.mask, 0.0)
    return _clipped(inputs, log_ratio, clip_low=clip_low, clip_high=clip_high, dual_clip=None)


def cispo(inputs: LossInputs, *, clip_low: float, clip_high: float) -> TokenLoss:
    """``-clip(r) A log pi`` with r clipped and without gradient (CISPO, MiniMax-M1, arXiv:2506.13585, equation 4).

    Unlike in PPO a clipped token still has a gradient. ``clip_low`` of 1 means no lower bound, as in the paper.
    """
    inputs = inputs.masked()
    log_ratio = _log_ratio(inputs).detach()
    ratio = log_ratio.exp()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    metrics = _metrics(log_ratio, inputs.mask) | {"clip_fraction": _mean(ratio != weight, inputs.mask)}
    return TokenLoss(-weight * inputs.advantages * inputs.logprobs, metrics)


def reinforce(inputs: LossInputs) -> TokenLoss:
    """``-A log pi`` (Williams 1992): the ratio to the old policy is reported and not used."""
    inputs = inputs.masked()
    return TokenLoss(-inputs.advantages * inputs.logprobs, _metrics(_log_ratio(inputs).detach(), inputs.mask))


def rollout_weight(
    old_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, cap: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Truncated importance sampling between trainer and rollout: a factor on the loss of each token, without gradient.

    ``min(pi_old / pi_rollout, cap)`` (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"; the rho of V-trace, arXiv:1802.01561). Corrects for an inference engine whose probabilities differ from
    the trainer's. Both must be of the distribution that was sampled from (after temperature, nothing cut off).

    Args:
        old_logprobs: [N, L] of the trainer before the update.
        rollout_logprobs: [N, L] as reported when sampling.
        mask: [N, L] bool.
        cap: largest weight, 2 is usual.

    Returns:
        [N, L] weights, 0 outside the mask; metrics, where ``rollout_kl`` estimates KL(rollout || old).
    """
    difference = (old_logprobs - rollout_logprobs).detach().masked_fill(~mask, 0.0)
    ratio = difference.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT).exp()
    prob_gap = (old_logprobs.detach().exp() - rollout_logprobs.exp()).abs().masked_fill(~mask, 0.0)
    metrics = {
        "rollout_kl": _mean(ratio - 1 - difference, mask),
        "rollout_prob_gap": _mean(prob_gap, mask),
        "rollout_weight": _mean(ratio.clamp(max=cap), mask),
        "rollout_capped": _mean(ratio > cap, mask),
    }
    return ratio.clamp(max=cap).masked_fill(~mask, 0.0), metrics


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None) -> TokenLoss:
    """``max((V - R)^2, (V_clipped - R)^2) / 2`` of a critic, as in OpenAI's PPO; all arguments [N, L].

    Args:
        values: of the critic, with gradient.
        old_values: of the critic before the update.
        returns: targets.
        mask: bool.
        clip: V_clipped lies at most this far from ``old_values``; None: the plain squared error.
    """
    values, old_values, returns = (x.masked_fill(~mask, 0.0) for x in (values, old_values, returns))
    squared = (values - returns).square()
    metrics = {"value_mean": _mean(values.detach(), mask), "return_mean": _mean(returns, mask)}
    if clip is None:
        return TokenLoss(squared / 2, metrics)
    clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    metrics["value_clip_fraction"] = _mean(clipped.detach() > squared.detach(), mask)
    return TokenLoss(torch.maximum(squared, clipped) / 2, metrics)


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the next-token distribution: logits [..., V] of any scale give [...]."""
    normaliser = logits.logsumexp(-1)
    probs = (logits - normaliser[..., None]).exp()
    return normaliser - (probs * logits.masked_fill(torch.isneginf(logits), 0.0)).sum(-1)


def _log_ratio(inputs: LossInputs) -> Tensor:
    return (inputs.logprobs - inputs.old_logprobs).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)


def _clipped(
    inputs: LossInputs, log_ratio: Tensor, *, clip_low: float, clip_high: float, dual_clip: float | None
) -> TokenLoss:
    ratio, advantages = log_ratio.exp(), inputs.advantages
    plain, limited = -advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(plain, limited)
    metrics = _metrics(log_ratio.detach(), inputs.mask) | {"clip_fraction": _mean(limited > plain, inputs.mask)}
    if dual_clip is not None:
        if dual_clip <= 1:
            raise ValueError(f"dual_clip is a bound on the ratio above 1 (3 is usual, null for none), not {dual_clip}")
        bound = -advantages * dual_clip
        capped = (advantages < 0) & (loss > bound)
        loss = torch.where(capped, bound, loss)
        metrics["dual_clip_fraction"] = _mean(capped, inputs.mask)
    return TokenLoss(loss, metrics)


def _metrics(log_ratio: Tensor, mask: Tensor) -> dict[str, Tensor]:
    ratio = log_ratio.exp()
    return {
        "ratio_mean": _mean(ratio, mask),
        "ratio_max": ratio.masked_fill(~mask, -torch.inf).amax(),
        "ratio_min": ratio.masked_fill(~mask, torch.inf).amin(),
        "approx_kl": _mean(ratio - 1 - log_ratio, mask),  # of KL(old || new), never negative
    }


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return x.detach().float().masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)
