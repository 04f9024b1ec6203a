"""Returns: what a step was worth, from the rewards that followed and a value where the rewards stop."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def td_targets(
    reward: Tensor, value: Tensor, length: Tensor, terminated: Tensor, *, gamma: float, n: int, unroll: int
) -> Tensor:
    """n-step TD targets of the first ``unroll`` steps (Sutton and Barto 7.1; MuZero, arXiv 1911.08265, eq. in app. G).

    With ``k = min(n, length - t)``: ``y_t = sum_{i<k} gamma^i r_{t+i} + gamma^k v_{t+k}``, where ``v_length`` counts as
    0 if the game ended there. At a time limit, or where a window was cut, it is bootstrapped.

    Args:
        reward: [B, S] of the steps; whatever stands at or after ``length`` is not read.
        value: [B, S + 1] of the states, in points; whatever stands after ``length`` is not read.
        length: [B] int64, 1..S, real steps.
        terminated: [B] bool, step ``length - 1`` ended the game.
        gamma: discount.
        n: steps of reward before the bootstrap, at least 1.
        unroll: T, at most S.

    Returns:
        [B, T] targets, 0 where ``t >= length``.

    Raises:
        ValueError: the shapes do not fit, or n or unroll is out of range.
    """
    steps = reward.shape[1]
    if value.shape[1] != steps + 1:
        raise ValueError(f"value needs one column more than reward ({steps}), it has {value.shape[1]}")
    if n < 1 or not 1 <= unroll <= steps:
        raise ValueError(f"need n >= 1 and 1 <= unroll <= {steps}, got n={n}, unroll={unroll}")
    t = torch.arange(unroll, device=reward.device)  # [T]
    last = length[:, None]  # [B, 1]
    end = torch.minimum(t + n, last)  # [B, T]: the state that is bootstrapped
    target = torch.zeros(reward.shape[0], unroll, dtype=reward.dtype, device=reward.device)
    for i in range(n):
        column = (t + i).clamp(max=steps - 1)
        target = target + torch.where(t + i < end, gamma**i * reward[:, column], 0.0)
    worthless = terminated[:, None] & (end == last)
    tail = value.gather(1, end).to(target.dtype).masked_fill(worthless, 0.0)
    target = target + gamma ** (end - t).clamp(min=0).to(target.dtype) * tail
    return target.masked_fill(t >= last, 0.0)


def discounted_returns(rewards: np.ndarray, gamma: float, bootstrap: float = 0.0) -> np.ndarray:
    """Returns of every step to the end: ``G_t = r_t + gamma G_{t+1}`` with ``G_T = bootstrap`` (Sutton and Barto 3.9).

    Args:
        rewards: [T] of consecutive steps.
        gamma: discount.
        bootstrap: worth of the state after the last step; 0 where the game ended.

    Returns:
        [T] float32.
    """
    returns = np.empty(len(rewards), np.float64)
    following = float(bootstrap)
    for t in range(len(rewards) - 1, -1, -1):
        following = float(rewards[t]) + gamma * following
        returns[t] = following
    return returns.astype(np.float32)
