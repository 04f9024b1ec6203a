"""Advantages with a critic: generalised advantage estimation over tokens, and over turns and tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from priorzero.rl.token_advantages import AdvantageInputs, Advantages


@torch.no_grad()
def gae(inputs: AdvantageInputs, *, gamma: float, lam: float) -> Advantages:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, equation 16) over written tokens.

    Tokens outside the mask are skipped: the token before a gap bootstraps from the value of the first token after it,
    so neither rewards nor values of observations matter. Nothing is bootstrapped after the last token.

    Args:
        inputs: needs ``values``.
        gamma: discount a token.
        lam: weight of longer returns, 1 for Monte Carlo.
    """
    values = inputs.need("values", "gae")
    advantages = torch.zeros_like(inputs.rewards)
    next_value = next_advantage = inputs.rewards.new_zeros(len(inputs.rewards))
    for t in _columns_backwards(inputs.mask):
        mask, value = inputs.mask[:, t], values[:, t]
        delta = inputs.rewards[:, t] + gamma * next_value - value
        next_advantage = torch.where(mask, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(mask, value, next_value)
        advantages[:, t] = next_advantage
    return _with_returns(inputs, advantages, values)


@torch.no_grad()
def bilevel_gae(inputs: AdvantageInputs, *, gamma: float, lam: float, turn_gamma: float) -> Advantages:
    """GAE over turns, then over the tokens of each turn (VAGEN, arXiv:2510.16907; RAGEN, arXiv:2504.20073).

    With turn ends e_1 .. e_K, V(e_K+1) = 0 and A_K+1 = 0: ``D_k = r(e_k) + turn_gamma V(e_k+1) - V(e_k)`` and
    ``A_k = D_k + turn_gamma lam A_k+1``. The end of turn k then has the reward A_k + V(e_k) in a GAE over the tokens of
    that turn alone. Turn ends are given and not guessed from rewards, so a turn without reward is one, too.

    Args:
        inputs: needs ``values`` and ``turn_ends``.
        gamma: discount a token inside a turn.
        lam: weight of longer returns, in turns and inside a turn.
        turn_gamma: discount a turn.

    Raises:
        ValueError: a turn end lies outside the mask, or tokens after the last turn end belong to no turn.
    """
    values, ends = inputs.need("values", "bilevel_gae"), inputs.need("turn_ends", "bilevel_gae")
    _check_turn_ends(ends, inputs.mask)
    advantages = torch.zeros_like(inputs.rewards)
    zero = inputs.rewards.new_zeros(len(inputs.rewards))
    next_value = next_advantage = turn_value = turn_advantage = zero
    for t in _columns_backwards(inputs.mask):
        mask, end, value, reward = inputs.mask[:, t], ends[:, t], values[:, t], inputs.rewards[:, t]
        turn_delta = reward + turn_gamma * turn_value - value
        turn_advantage = torch.where(end, turn_delta + turn_gamma * lam * turn_advantage, turn_advantage)
        turn_value = torch.where(end, value, turn_value)
        delta = torch.where(end, turn_advantage, reward + gamma * next_value - value)
        carried = torch.where(end, zero, gamma * lam * next_advantage)
        next_advantage = torch.where(mask, delta + carried, next_advantage)
        next_value = torch.where(mask, value, next_value)
        advantages[:, t] = next_advantage
    return _with_returns(inputs, advantages, values)


def _columns_backwards(mask: Tensor) -> list[int]:
    """Token positions at which some sample wrote, last first; the others change nothing."""
    return mask.any(0).nonzero().flatten().tolist()[::-1]


def _with_returns(inputs: AdvantageInputs, advantages: Tensor, values: Tensor) -> Advantages:
    return Advantages(
        advantages=advantages.masked_fill(~inputs.mask, 0.0),
        returns=(advantages + values).masked_fill(~inputs.mask, 0.0),
        usable=inputs.trained,
    )


def _check_turn_ends(ends: Tensor, mask: Tensor) -> None:
    if bool((ends & ~mask).any()):
        raise ValueError("a turn ends on a token that the model did not write: turn_ends must lie inside the mask")
    later = mask & (ends.flip(-1).cumsum(-1).flip(-1) == 0)
    if bool(later.any()):
        n, t = later.nonzero()[0].tolist()
        raise ValueError(f"token {t} of sample {n} comes after the last turn end: mark the last written token, too")
