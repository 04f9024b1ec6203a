"""Advantages without a critic: a sample is compared with others, mostly with the samples of its own group.

All work on the score of a sample, the sum of its token rewards. Estimators that compare within a group need two samples
of it; where a group has only one left, its advantage is 0 and ``usable`` is False (other implementations let the raw
reward pass). Groups must not be spread over ranks.
"""

from __future__ import annotations

from itertools import compress
from typing import NamedTuple

import torch
from torch import Tensor

from priorzero.rl.token_advantages import AdvantageInputs, Advantages


@torch.no_grad()
def grpo(inputs: AdvantageInputs, *, epsilon: float) -> Advantages:
    """Group-relative: ``(s - mean) / (std + epsilon)`` over the group, std unbiased (Shao et al., arXiv:2402.03300).

    Args:
        inputs: needs ``group``.
        epsilon: keeps groups of equal scores at 0.
    """
    group = _moments(inputs.scores, inputs.need("group", "grpo"), inputs.trained)
    return _per_sample(inputs, (inputs.scores - group.mean) / (group.std + epsilon), group.count >= 2)


@torch.no_grad()
def dr_grpo(inputs: AdvantageInputs) -> Advantages:
    """``s - mean`` over the group, without its deviation (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783).

    Needs ``group``. The paper's loss goes with it: aggregation ``seq-mean-token-sum-norm``.
    """
    group = _moments(inputs.scores, inputs.need("group", "dr_grpo"), inputs.trained)
    return _per_sample(inputs, inputs.scores - group.mean, group.count >= 2)


@torch.no_grad()
def rloo(inputs: AdvantageInputs) -> Advantages:
    """``s`` minus the mean of the others of the group (Ahmadian et al. 2024, arXiv:2402.14740). Needs ``group``."""
    group = _moments(inputs.scores, inputs.need("group", "rloo"), inputs.trained)
    scale = group.count / (group.count - 1).clamp(min=1)
    return _per_sample(inputs, (inputs.scores - group.mean) * scale, group.count >= 2)


@torch.no_grad()
def reinforce_pp(inputs: AdvantageInputs, *, gamma: float) -> Advantages:
    """Discounted rewards to go of each token (REINFORCE++, Hu 2025, arXiv:2501.03262); to be whitened over the batch.

    Tokens outside the mask are skipped and not discounted.
    """
    return Advantages(advantages=_rewards_to_go(inputs, gamma), usable=inputs.trained)


@torch.no_grad()
def reinforce_pp_baseline(inputs: AdvantageInputs) -> Advantages:
    """``s - mean`` over the group, on every token (REINFORCE++-baseline, arXiv:2501.03262); to be whitened.

    Needs ``group``. Unlike in GRPO the scale is that of the whole batch.
    """
    group = _moments(inputs.scores, inputs.need("group", "reinforce_pp_baseline"), inputs.trained)
    return _per_sample(inputs, inputs.scores - group.mean, group.count >= 2)


@torch.no_grad()
def remax(inputs: AdvantageInputs) -> Advantages:
    """Rewards to go minus the score of the greedy answer (ReMax, Li et al. 2023, arXiv:2310.10505).

    Needs ``baseline``. Not discounted.
    """
    baseline = inputs.need("baseline", "remax")[:, None].to(inputs.rewards.dtype)
    advantages = (_rewards_to_go(inputs, 1.0) - baseline).masked_fill(~inputs.mask, 0.0)
    return Advantages(advantages=advantages, usable=inputs.trained)


@torch.no_grad()
def gigpo(inputs: AdvantageInputs, *, gamma: float, step_weight: float, scale: bool, over_steps: bool) -> Advantages:
    """Group-in-group: episodes are compared in their group, and steps taken in the same state (arXiv:2505.10978).

    ``A = A_episode + step_weight A_step``. Each sample is one step of an episode and its score the reward of the step.
    A_episode compares the sum of an episode's rewards with the group. A_step compares the discounted reward from the
    step on with that of the steps of the group in the same state; it is 0 where the state came up once.

    Args:
        inputs: needs ``group``, ``episode``, ``step`` and ``state``. Steps may be missing; they count as reward 0.
        gamma: discount of A_step, a step.
        step_weight: omega of the paper.
        scale: divide both by the deviation; False only centres them.
        over_steps: the group's mean runs over all its steps, so long episodes weigh more (as the authors' code does by
            default); False: over its episodes.

    A sample is usable if its group has two episodes or its state came up twice.

    Raises:
        ValueError: two samples are the same step of an episode.
    """
    group = inputs.need("group", "gigpo")
    episode = _pairs(group, inputs.need("episode", "gigpo"))
    state = _pairs(group, inputs.need("state", "gigpo"))
    scores, trained = inputs.scores, inputs.trained
    totals = torch.zeros_like(scores).index_add(0, episode, scores)[episode]  # [N] of the sample's whole episode
    episodes = _moments(totals, group, _first_of(episode, trained))
    centre = _moments(totals, group, trained) if over_steps else episodes
    later = _step_returns(scores, episode, inputs.need("step", "gigpo"), gamma, trained)
    same_state = _moments(later, state, trained)
    outer = _standard(totals, centre, scale).masked_fill(episodes.count < 2, 0.0)
    inner = _standard(later, same_state, scale).masked_fill(same_state.count < 2, 0.0)
    return _per_sample(inputs, outer + step_weight * inner, (episodes.count >= 2) | (same_state.count >= 2))


class _Moments(NamedTuple):
    """Of the group of each sample, [N] each."""

    count: Tensor
    mean: Tensor
    std: Tensor  # unbiased; 0 for a group of one


def _moments(x: Tensor, group: Tensor, member: Tensor) -> _Moments:
    """Moments of ``x`` [N] float64 over the members [N] bool of every group."""
    group = torch.unique(group, return_inverse=True)[1]
    weight = member.to(x.dtype)

    def total(values: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, group, values * weight)[group]

    count = total(torch.ones_like(x))
    mean = total(x) / count.clamp(min=1)
    variance = total((x - mean).square()) / (count - 1).clamp(min=1)
    return _Moments(count, mean, variance.sqrt())


def _standard(x: Tensor, moments: _Moments, scale: bool) -> Tensor:
    centred = x - moments.mean
    return centred / (moments.std + 1e-6) if scale else centred


def _per_sample(inputs: AdvantageInputs, advantage: Tensor, enough: Tensor) -> Advantages:
    """One advantage [N] a sample, on all its masked tokens."""
    usable = inputs.trained & enough
    spread = advantage.to(inputs.rewards.dtype)[:, None].masked_fill(~(inputs.mask & usable[:, None]), 0.0)
    return Advantages(advantages=spread, usable=usable)


def _rewards_to_go(inputs: AdvantageInputs, gamma: float) -> Tensor:
    """[N, L]: discounted sum of the rewards from each masked token on, 0 outside the mask."""
    result = torch.zeros_like(inputs.rewards)
    following = inputs.rewards.new_zeros(len(inputs.rewards))
    for t in inputs.mask.any(0).nonzero().flatten().tolist()[::-1]:
        mask = inputs.mask[:, t]
        following = torch.where(mask, inputs.rewards[:, t] + gamma * following, following)
        result[:, t] = following.masked_fill(~mask, 0.0)
    return result


def _pairs(first: Tensor, second: Tensor) -> Tensor:
    """[N] int64, equal where both are equal."""
    return torch.unique(torch.stack([first, second], dim=1), dim=0, return_inverse=True)[1]


def _first_of(episode: Tensor, member: Tensor) -> Tensor:
    """[N] bool: one member of each episode."""
    rows = torch.arange(len(episode), device=episode.device)
    first = torch.full_like(rows, len(rows)).scatter_reduce(0, episode, rows.masked_fill(~member, len(rows)), "amin")
    return rows == first[episode]


def _step_returns(scores: Tensor, episode: Tensor, step: Tensor, gamma: float, member: Tensor) -> Tensor:
    """[N] float64: sum over the steps j >= step of the same episode of gamma^(j - step) score_j; 0 for non-members."""
    rows = zip(episode.tolist(), step.tolist(), scores.tolist(), range(len(scores)), strict=True)
    returns = [0.0] * len(scores)
    following, last = 0.0, (-1, 0)
    for e, s, score, row in sorted(compress(rows, member.tolist()), reverse=True):
        if (e, s) == last:
            raise ValueError(f"two samples are step {s} of the same episode: number the steps of an episode")
        following = score + (gamma ** (last[1] - s) * following if e == last[0] else 0.0)
        returns[row], last = following, (e, s)
    return torch.tensor(returns, dtype=scores.dtype, device=scores.device)
