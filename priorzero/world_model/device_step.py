"""One imagined step in every tree, in plain tensor operations: the reference of `fused_step`.

Every node adds two tokens to its tree, one for the action that leads there and one for the state. Their keys and
values lie in two neighbouring slots of the tree's pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from priorzero.world_model.device_tree import Imagined
from priorzero.world_model.frozen import Attend, FrozenNet
from priorzero.world_model.graphs import Sizes
from priorzero.world_model.transformer import Rotary, rotate


@dataclass(frozen=True)
class Vocabulary:
    """The known actions, padded; both tensors are rewritten in place."""

    tokens: Tensor  # [V, D]
    keys: Tensor  # [V, D]


class Memory:
    """Keys and values of one size of batch, and which of them each node may see.

    Args:
        net: the network.
        attention: its (heads, window, rotary).
        sizes: of a search.
        rows: trees.
        device: where the tensors lie.
    """

    def __init__(
        self, net: FrozenNet, attention: tuple[int, int, Rotary], sizes: Sizes, rows: int, device: torch.device
    ) -> None:
        self.heads, self.window, self.rotary = attention
        self.rows, self.sizes, integer = rows, sizes, torch.int64
        nodes, slots, dim = sizes.simulations + 1, sizes.slots, net.width // self.heads
        self.pool = torch.zeros((net.layers, 2, rows, self.heads, slots, dim), dtype=net.dtype, device=device)
        self.seen = torch.zeros(rows, nodes, slots, dtype=torch.bool, device=device)
        self.position = torch.zeros(rows, nodes, dtype=integer, device=device)  # of a node's state
        self.slot_position = torch.zeros(rows, slots, dtype=integer, device=device)
        self.slot = torch.arange(slots, device=device)
        self.row = torch.arange(rows, device=device)

    def rotation(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """See `transformer.Rotary`, in the precision of the pool."""
        cos, sin = self.rotary(position)
        return cos.to(self.pool.dtype), sin.to(self.pool.dtype)


class Step(Protocol):
    """What `device.Session` needs of a step."""

    def __call__(self, parent: Tensor, action: Tensor, node: Tensor) -> Imagined:
        """Take ``action`` [B] (ids) in node ``parent`` [B], and keep what is reached as ``node`` [B], all equal."""
        ...


class PlainStep:
    """Plain tensor operations. Slots that a node does not see must hold finite numbers.

    Args:
        net: the network.
        memory: of the batch.
        vocabulary: the known actions.
        known: [B, V] bool, those that a tree may offer.
    """

    def __init__(self, net: FrozenNet, memory: Memory, vocabulary: Vocabulary, known: Tensor) -> None:
        self.net, self.memory, self.vocabulary, self.known = net, memory, vocabulary, known

    def __call__(self, parent: Tensor, action: Tensor, node: Tensor) -> Imagined:
        """See `Step`."""
        memory, node = self.memory, node[:1]
        position = memory.position.gather(1, parent.unsqueeze(1)) + 1  # [B, 1]
        slot = memory.sizes.root_tokens + 2 * (node - 1)
        memory.slot_position.index_copy_(1, slot, position)
        memory.slot_position.index_copy_(1, slot + 1, position + 1)
        seen = memory.seen[memory.row, parent] | (memory.slot == slot)
        attend = self._attend(slot, position, seen)
        token = self.vocabulary.tokens[action.clamp(min=0)]
        reward_logits, latent = self.net.read_step(self.net.token(token, attend))
        seen = seen | (memory.slot == slot + 1)
        attend = self._attend(slot + 1, position + 1, seen)
        value_logits, query = self.net.read_state(self.net.token(latent, attend))
        memory.seen.index_copy_(1, node, seen.unsqueeze(1))
        memory.position.index_copy_(1, node, position + 1)
        reward, value = self.net.support.decode(torch.stack((reward_logits, value_logits))).unbind(0)
        logits = (query @ self.vocabulary.keys.T).float().masked_fill(~self.known, -torch.inf)
        best, ids = logits.topk(memory.sizes.top_k, dim=1)
        padded = best == -torch.inf  # a NaN must stay one
        return Imagined(reward, value, ids.masked_fill(padded, -1), best.softmax(1).masked_fill(padded, 0.0))

    def _attend(self, slot: Tensor, position: Tensor, seen: Tensor) -> Attend:
        memory = self.memory
        visible = seen & (position - memory.slot_position < memory.window)
        bias = torch.where(visible, 0.0, -torch.inf).to(self.net.dtype)[:, None, None]  # [B, 1, 1, slots]
        rotation = memory.rotation(position[:, 0])

        def attend(layer: int, qkv: Tensor) -> Tensor:
            qkv = qkv.unflatten(-1, (3, memory.heads, -1))
            q, k = rotate(qkv[:, :2], rotation).unbind(1)
            keys, values = memory.pool[layer, 0], memory.pool[layer, 1]
            keys.index_copy_(2, slot, k.unsqueeze(2))
            values.index_copy_(2, slot, qkv[:, 2].unsqueeze(2))
            return F.scaled_dot_product_attention(q.unsqueeze(2), keys, values, attn_mask=bias).flatten(1)

        return attend
