"""The network as search uses it: frozen, fused, and without what search does not ask for.

Same numbers as `UniZero` (up to the chosen precision). Where the keys and values of attention lie is the caller's
business: it passes a function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from priorzero.world_model.linear import freeze
from priorzero.world_model.model import UniZero

# (layer, qkv) -> attended: from queries, keys and values [..., 3 D], side by side and not yet rotated, to [..., D]
Attend = Callable[[int, Tensor], Tensor]


class FrozenNorm:
    """Layer norm with its own copy of the weights."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype, device: torch.device) -> None:
        self.weight, self.bias = (x.detach().to(device, dtype, copy=True) for x in (norm.weight, norm.bias))
        self.shape, self.eps = norm.normalized_shape, norm.eps

    def load(self, norm: nn.LayerNorm) -> None:
        """Take over the weights of the layer."""
        self.weight.copy_(norm.weight)
        self.bias.copy_(norm.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Norm of each row of ``x`` [..., D]."""
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class FrozenNet:
    """A copy of a network's weights in one precision on one device.

    Attributes:
        layers: how many blocks.
        blocks: of each its norms before attention and MLP, and its linear layers (qkv, out, up, down).
        norm: of the transformer's output.
        latent_norm: of latent states.

    Args:
        model: the network.
        precision: see `linear.PRECISIONS`; int8 and float32 compute norms and attention in float32.
        device: where the copy lies.
        in_place: new weights must not move the tensors.
    """

    def __init__(self, model: UniZero, precision: str, device: torch.device, *, in_place: bool) -> None:
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self.width, self.support = model.config.width, model.support
        blocks = model.transformer.blocks
        self._linears = [
            (freeze(parts, precision, device, in_place=in_place), parts)
            for parts in (*_block_parts(blocks), *_other_parts(model))
        ]
        norms = [norm for b in blocks for norm in (b.norm_attention, b.norm_mlp)] + [model.transformer.norm]
        if isinstance(model.latent_norm, nn.LayerNorm):
            norms.append(model.latent_norm)
        self._norms = [(FrozenNorm(norm, self.dtype, device), norm) for norm in norms]
        linears, frozen_norms = [x for x, _ in self._linears], [x for x, _ in self._norms]
        self.layers = len(blocks)
        self.blocks = [(*frozen_norms[2 * i : 2 * i + 2], *linears[4 * i : 4 * i + 4]) for i in range(self.layers)]
        (self._observe_in, self._observe_out, self._step_in, self._reward, self._next, self._state_in, self._value,
         self._query) = linears[4 * self.layers :]  # fmt: skip
        self.norm = frozen_norms[2 * self.layers]
        self.latent_norm = frozen_norms[-1] if len(norms) > 2 * self.layers + 1 else model.latent_norm

    def load(self) -> None:
        """Take over what the weights of the model are now."""
        with torch.no_grad():
            for frozen, parts in self._linears:
                frozen.load(*parts)
            for frozen, norm in self._norms:
                frozen.load(norm)

    def encode(self, observation: Tensor) -> Tensor:
        """Observation vectors [n, O] to latent states [n, D]."""
        return self.latent_norm(self._observe_out(self._observe_in.gelu(observation.to(self.dtype))))

    def sequence(self, x: Tensor, attend: Attend) -> Tensor:
        """Run whole sequences [B, L, D] and return the output at their last token [B, D]."""
        for layer in range(self.layers - 1):
            x = self._block(layer, x, attend)
        return self.norm(self._block(self.layers - 1, x, attend, last=True))

    def token(self, x: Tensor, attend: Attend) -> Tensor:
        """Run one token a row [B, D]; ``attend`` knows what came before."""
        for layer in range(self.layers):
            x = self._block(layer, x, attend)
        return self.norm(x)

    def _block(self, layer: int, x: Tensor, attend: Attend, last: bool = False) -> Tensor:
        norm_attention, norm_mlp, qkv, out, up, down = self.blocks[layer]
        attended = attend(layer, qkv(norm_attention(x)))
        if last:  # of the others only keys and values are needed
            x, attended = x[:, -1].contiguous(), attended[:, -1].contiguous()
        x = out.add(attended, x)
        return down.add(up.gelu(norm_mlp(x)), x)

    def read_step(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs at action tokens [B, D] to (reward logits [B, bins], next latent [B, D])."""
        reward, following = self.read_step_raw(out)
        return reward, self.latent_norm(following)

    def read_step_raw(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """As `read_step`, before the latent's norm."""
        reward, following = self._step_in.gelu(out).split(self.width, dim=-1)
        return self._reward(reward), self._next(following)

    def read_state(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs at observation tokens [B, D] to (value logits [B, bins], policy query [B, D])."""
        value, query = self._state_in.gelu(out).split(self.width, dim=-1)
        return self._value(value), self._query(query)


def _block_parts(blocks: nn.ModuleList) -> list[tuple[Any, ...]]:
    return [part for b in blocks for part in ((b.qkv,), (b.out,), (b.mlp[0],), (b.mlp[2],))]


def _other_parts(model: UniZero) -> list[tuple[Any, ...]]:
    return [
        (model.observe[0],),
        (model.observe[2],),
        (model.reward_head[0], model.next_head[0]),
        (model.reward_head[2],),
        (model.next_head[2],),
        (model.value_head[0], model.policy_head[0]),
        (model.value_head[2],),
        (model.policy_head[2],),
    ]
