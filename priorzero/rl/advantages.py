"""Advantages: how much better a step went than expected, and how they are scaled before a policy loss sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Normalisation = Literal["raw", "batch", "running"]


def world_model_advantages(target: Tensor, value: Tensor, length: Tensor) -> Tensor:
    """``A_t = y_t - v(s_t)``, both from the target network (PriorZero, arXiv 2605.12289).

    Args:
        target: [B, T] n-step TD targets, as ``td_targets`` gives them.
        value: [B, >= T] values of the states, in points.
        length: [B] int64, real steps.

    Returns:
        [B, T], 0 where ``t >= length``.
    """
    unroll = target.shape[1]
    padded = torch.arange(unroll, device=target.device) >= length[:, None]
    return (target - value[:, :unroll]).masked_fill(padded, 0.0)


class AdvantageNormaliser:
    """Brings advantages to mean 0 and deviation 1: not at all, over the batch, or over a running average.

    ``running`` starts with the moments of its first batch, then follows them: ``m <- decay m + (1 - decay) m_batch``
    for the mean and for the mean square. The batch is included before it is scaled.

    Args:
        mode: ``raw``, ``batch`` or ``running``.
        decay: of the running moments, in [0, 1); not read by the other modes.
        reduce: sums the vector (count, sum, sum of squares) over all ranks, so that every rank scales alike. None for
            a single process. Every rank must then call the normaliser equally often.
        epsilon: floor of the deviation; equal advantages become 0 and not infinite.

    Raises:
        ValueError: unknown mode, or decay out of range.
    """

    def __init__(
        self,
        mode: Normalisation,
        *,
        decay: float,
        reduce: Callable[[Tensor], Tensor] | None = None,
        epsilon: float = 1e-6,
    ) -> None:
        if mode not in get_args(Normalisation):
            raise ValueError(f"unknown advantage normalisation {mode!r}: choose one of {get_args(Normalisation)}")
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"the decay of the running moments must lie in [0, 1), got {decay}")
        self.mode = mode
        self.decay = decay
        self.epsilon = epsilon
        self._reduce = reduce
        self._moments: Tensor | None = None  # [2] float64: mean and mean square

    def __call__(self, advantage: Tensor) -> Tensor:
        """Scale advantages [n] float; in mode ``running`` the running moments move first."""
        if self.mode == "raw":
            return advantage
        x = advantage.double()
        sums = torch.stack([torch.tensor(float(x.numel()), dtype=x.dtype), x.sum().cpu(), x.square().sum().cpu()])
        if self._reduce is not None:
            sums = self._reduce(sums)
        moments = sums[1:] / sums[0].clamp(min=1.0)
        if self.mode == "running":
            old = moments if self._moments is None else self._moments
            moments = self._moments = self.decay * old + (1.0 - self.decay) * moments
        mean, square = moments.tolist()
        deviation = max(square - mean**2, 0.0) ** 0.5
        return ((x - mean) / max(deviation, self.epsilon)).to(advantage.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """Running moments, empty before the first batch."""
        return {} if self._moments is None else {"moments": self._moments.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the moments of ``state_dict`` back."""
        self._moments = state["moments"].clone() if "moments" in state else None


class ReturnBaseline:
    """Running mean of the returns of each game, the baseline of REINFORCE (Williams 1992).

    Points differ from game to game, so each game has its own mean. A batch is compared with the mean of the batches
    before it (its own mean where the game is new) and then moves the mean.

    Args:
        decay: of the mean, in [0, 1).

    Raises:
        ValueError: decay out of range.
    """

    def __init__(self, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"the decay of the return baseline must lie in [0, 1), got {decay}")
        self.decay = decay
        self._mean: dict[str, float] = {}

    def advantages(self, games: Sequence[str], returns: np.ndarray) -> np.ndarray:
        """Returns [n] of steps in these games, less the baseline: [n] float32."""
        names = np.asarray(games)
        advantage = np.asarray(returns, np.float64).copy()
        for game in dict.fromkeys(games):
            rows = names == game
            batch_mean = float(advantage[rows].mean())
            baseline = self._mean.get(game, batch_mean)
            advantage[rows] -= baseline
            self._mean[game] = self.decay * baseline + (1.0 - self.decay) * batch_mean
        return advantage.astype(np.float32)

    def state_dict(self) -> dict[str, float]:
        """Mean return of each game."""
        return dict(self._mean)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take the means of ``state_dict`` back."""
        self._mean = dict(state)
