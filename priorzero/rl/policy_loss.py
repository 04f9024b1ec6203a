"""Losses of a policy over the listed actions of a state; pure functions, one number a sample before ``weighted_mean``.

Shapes: ``sums`` and ``counts`` [B, A] are what ``policy.logprobs.answer_logprobs`` returns (-inf and 0 where padded),
``action_logprobs`` [B, A] is a log-distribution over the candidates (-inf where padded). "Log pi(a|s)" is always the
log-probability among the listed actions, so the policy is an exact categorical distribution and nothing is sampled.
"""

from __future__ import annotations

import torch
from torch import Tensor


def action_logprobs(sums: Tensor, counts: Tensor, temperature: float, normalise_length: bool) -> Tensor:
    """The policy: log-softmax over the candidates of their log-likelihoods.

    Args:
        sums: [B, A] log-likelihood of each candidate, -inf where padded.
        counts: [B, A] tokens of each candidate, 0 where padded.
        temperature: divides the scores; above 1 flattens.
        normalise_length: score by the mean instead of the sum over the tokens.

    Returns:
        [B, A], -inf where padded.
    """
    scores = sums / counts.clamp(min=1) if normalise_length else sums
    return (scores / temperature).log_softmax(-1)


def sft_text(sums: Tensor, counts: Tensor, visit_probs: Tensor, per_token: bool) -> Tensor:
    """Supervised fine-tuning on the text of the visited actions: -sum_j visits_j log p(text_j), [B].

    Args:
        sums: [B, A] log-likelihoods.
        counts: [B, A] tokens.
        visit_probs: [B, A] visit distribution of the search.
        per_token: divide each candidate's log-likelihood by its number of tokens.
    """
    scores = sums / counts.clamp(min=1) if per_token else sums
    return _cross_entropy(visit_probs, scores)


def sft_listwise(action_logprobs: Tensor, visit_probs: Tensor) -> Tensor:
    """Cross-entropy between the visit distribution and the policy over the same candidates, [B]."""
    return _cross_entropy(visit_probs, action_logprobs)


def reinforce(logprobs: Tensor, advantage: Tensor, importance: Tensor | None = None) -> Tensor:
    """Williams 1992: -A log pi(a|s), [B].

    Args:
        logprobs: [B] of the played action.
        advantage: [B].
        importance: [B] weights against the policy that played (``truncated_importance``); None for none.
    """
    loss = -advantage * logprobs
    return loss if importance is None else importance * loss


def truncated_importance(logprobs: Tensor, behaviour_logprobs: Tensor, cap: float) -> Tensor:
    """min(pi / behaviour, cap), [B], without gradient (V-trace's rho, Espeholt et al. 2018, arXiv:1802.01561)."""
    return _ratio(logprobs.detach(), behaviour_logprobs).clamp(max=cap)


def ppo_clip(
    logprobs: Tensor, behaviour_logprobs: Tensor, advantage: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """Clipped surrogate of PPO (Schulman et al. 2017, arXiv:1707.06347, equation 7), [B].

    max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)) with r = pi / behaviour; ``clip_high`` above ``clip_low`` is the
    clip-higher of DAPO (arXiv:2503.14476).
    """
    ratio = _ratio(logprobs, behaviour_logprobs)
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip_low, 1 + clip_high))


def categorical_kl(action_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Exact KL(policy || reference) over the candidates, [B]; both arguments [B, A] with the same padding."""
    legal = _legal(action_logprobs)
    difference = action_logprobs.masked_fill(~legal, 0) - ref_logprobs.masked_fill(~legal, 0)
    return (action_logprobs.exp() * difference).sum(-1)


def entropy(action_logprobs: Tensor) -> Tensor:
    """Entropy of the policy over the candidates in nats, [B]."""
    return _cross_entropy(action_logprobs.exp(), action_logprobs)


def pick(action_logprobs: Tensor, action: Tensor) -> Tensor:
    """The entry of each row that ``action`` [B] names, [B]."""
    return action_logprobs.gather(-1, action[:, None]).squeeze(-1)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over the samples with their weights; 0 where all weights are 0, still with a gradient path."""
    return (values * weight).sum() / weight.sum().clamp(min=1e-8)


def _cross_entropy(probs: Tensor, logprobs: Tensor) -> Tensor:
    # filled before the product: 0 * -inf is nan, in the value and in the gradient
    return -(probs * logprobs.masked_fill(~_legal(logprobs), 0)).sum(-1)


def _legal(logprobs: Tensor) -> Tensor:
    return ~torch.isneginf(logprobs)


def _ratio(logprobs: Tensor, behaviour_logprobs: Tensor) -> Tensor:
    return (logprobs - behaviour_logprobs).clamp(-20.0, 20.0).exp()
