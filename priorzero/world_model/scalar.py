"""Scalars as categorical distributions over a transformed range (MuZero, arXiv 1911.08265, appendix F)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def transform(x: Tensor) -> Tensor:
    """h(x) = sign(x)(sqrt(|x| + 1) - 1) + 0.001 x (Pohlen et al., 2018, arXiv 1805.11593)."""
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + 0.001 * x


def inverse_transform(y: Tensor) -> Tensor:
    """The exact inverse of `transform`."""
    shifted = y.abs() + 1 + 0.001
    # (sqrt(1 + 4 e s) - 1) / (2 e), written without the difference, which loses digits in single precision
    root = 2 * shifted / ((1 + 4 * 0.001 * shifted).sqrt() + 1)
    return y.sign() * (root.square() - 1)


class Support(nn.Module):
    """Turns scalars into two-hot targets over ``2 * limit + 1`` bins, and logits over the bins back into scalars."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("bins", torch.arange(-limit, limit + 1).float(), persistent=False)

    @property
    def size(self) -> int:
        """Number of bins."""
        return 2 * self.limit + 1

    def encode(self, x: Tensor) -> Tensor:
        """Scalars [...] to probabilities [..., size]: the two bins nearest to h(x) share the mass linearly."""
        y = transform(x.float()).clamp(-self.limit, self.limit) + self.limit
        low = y.floor().long().clamp(0, self.size - 2)  # after long(): a NaN must reach the loss, not index out of it
        high_mass = y - low
        target = torch.zeros(*x.shape, self.size, device=x.device)
        target.scatter_(-1, low.unsqueeze(-1), (1 - high_mass).unsqueeze(-1))
        return target.scatter_(-1, low.unsqueeze(-1) + 1, high_mass.unsqueeze(-1))

    def decode(self, logits: Tensor) -> Tensor:
        """Logits [..., size] to scalars [...]: the mean bin, transformed back."""
        return inverse_transform((logits.float().softmax(-1) * self.bins).sum(-1))
