"""A causal transformer with rotary positions, as it is trained: on whole sequences.

Search runs it one token at a time, against keys and values kept from before: see `frozen.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rotation = tuple[Tensor, Tensor]


class Rotary(nn.Module):
    """Rotary position embedding (Su et al., 2021, arXiv 2104.09864): attention depends on distances only."""

    def __init__(self, dim: int, max_positions: int) -> None:
        super().__init__()
        frequency = 10_000.0 ** (-torch.arange(0, dim, 2).float() / dim)
        angle = torch.outer(torch.arange(max_positions).float(), frequency)  # [positions, dim / 2]
        self.register_buffer("cos", torch.cat((angle.cos(), angle.cos()), dim=-1), persistent=False)
        self.register_buffer("sin", torch.cat((-angle.sin(), angle.sin()), dim=-1), persistent=False)

    def forward(self, position: Tensor) -> Rotation:
        """Cosines and signed sines [..., 1, 1, dim] of ``position`` [...], for `rotate`."""
        return self.cos[position][..., None, None, :], self.sin[position][..., None, None, :]


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate ``x`` [..., n, heads, dim] (queries and keys together), each pair (i, i + dim / 2) by its own angle."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = (r.to(x.dtype) for r in rotation)
    return torch.addcmul(x * cos, torch.cat((b, a), dim=-1), sin)


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [..., D] to rotated queries and keys, and values, each [..., heads, D / heads]."""
        qkv = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1))
        q, k = rotate(qkv[..., :2, :, :], rotation).unbind(-3)
        return q, k, qkv[..., 2, :, :]

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add what attention found [..., D] to ``x`` [..., D], then the MLP."""
        x = x + self.drop(self.out(attended))
        return x + self.drop(self.mlp(self.norm_mlp(x)))


class Transformer(nn.Module):
    """``layers`` blocks over tokens [B, L, D]; a token sees itself and at most ``window - 1`` tokens before it."""

    def __init__(self, *, width: int, layers: int, heads: int, dropout: float, window: int, max_positions: int) -> None:
        super().__init__()
        if width % heads or (width // heads) % 2:
            raise ValueError(f"width {width} must split into {heads} heads of an even size; change heads or width")
        self.heads, self.window, self.max_positions = heads, window, max_positions
        self.rotary = Rotary(width // heads, max_positions)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, real: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Run whole sequences.

        Args:
            x: tokens [B, L, D].
            real: [B, L] bool, False on padding (which nobody attends to); None: all are real.
            every: outputs are wanted at tokens 0, ``every``, 2 ``every``, ... only; the last block spares the others.

        Returns:
            Outputs [B, ceil(L / every), D], and for each block the rotated keys and the values, each
            [B, L, heads, D / heads].

        Raises:
            ValueError: the sequence is longer than ``max_positions``.
        """
        if x.shape[1] > self.max_positions:
            raise ValueError(
                f"a sequence has {x.shape[1]} tokens, but max_positions is {self.max_positions}: "
                "raise world_model.max_positions or shorten the windows"
            )
        position = torch.arange(x.shape[1], device=x.device)
        rotation, mask = self.rotary(position), self.mask(position, real)
        kept = []
        for i, block in enumerate(self.blocks):
            q, k, v = block.project(x, rotation)
            kept.append((k, v))
            dropout = block.dropout if self.training else 0.0
            if every > 1 and i == len(self.blocks) - 1:
                x, q, mask = x[:, ::every], q[:, ::every], mask[..., ::every, :]
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
            x = block.finish(x, attended.transpose(1, 2).flatten(-2))
        return self.norm(x), kept

    def mask(self, position: Tensor, real: Tensor | None) -> Tensor:
        """Who may see whom in whole sequences: [L, L], or [B, 1, L, L] with ``real`` [B, L]; True where seen."""
        distance = position.unsqueeze(1) - position.unsqueeze(0)
        mask = (distance >= 0) & (distance < self.window)  # [L, L]
        if real is None:
            return mask
        mask = mask & real.unsqueeze(1) | (distance == 0)  # [B, L, L]; a padded token sees itself, to stay finite
        return mask.unsqueeze(1)
