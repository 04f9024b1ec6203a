"""One imagined step in every tree on a GPU: 23 matrix products and 21 small kernels, with two layers.

`device_step.PlainStep`, with what lies between two products fused into one kernel. Needs Triton, which comes with torch
for CUDA: imported only where it is asked for.
"""

from __future__ import annotations

import torch
import triton  # ty: ignore[import-not-found]
from torch import Tensor

from priorzero.world_model import step_kernels as kernels
from priorzero.world_model.device_step import Memory, Vocabulary
from priorzero.world_model.device_tree import Imagined
from priorzero.world_model.frozen import FrozenNet, FrozenNorm

SLOTS_AT_ONCE = 64  # keys that an attention kernel holds in registers


class FusedStep:
    """See `device_step.PlainStep`. Its answers are overwritten by its next call.

    Args:
        net: the network.
        memory: of the batch.
        vocabulary: the known actions.
        known: [B, V] bool, those that a tree may offer.
    """

    def __init__(self, net: FrozenNet, memory: Memory, vocabulary: Vocabulary, known: Tensor) -> None:
        self.net, self.memory, self.vocabulary = net, memory, vocabulary
        self._known, self._seen = known.view(torch.uint8), memory.seen.view(torch.uint8)
        rows, top_k, device = memory.rows, memory.sizes.top_k, memory.pool.device
        self._x, self._normed, self._attended = (
            torch.zeros(rows, net.width, dtype=net.dtype, device=device) for _ in range(3)
        )
        self._said = Imagined(
            torch.zeros(rows, device=device),
            torch.zeros(rows, device=device),
            torch.zeros(rows, top_k, dtype=torch.int64, device=device),
            torch.zeros(rows, top_k, device=device),
        )
        slots, dim = memory.sizes.slots, net.width // memory.heads
        self._nodes = {"root_tokens": memory.sizes.root_tokens, "nodes": memory.sizes.simulations + 1, "slots": slots}
        self._norm_sizes = {"width": net.width, "eps": net.norm.eps}
        self._block = triton.next_power_of_2(net.width)
        self._attend_sizes = {
            **self._nodes,
            "heads": memory.heads,
            "dim": dim,
            "scale": dim**-0.5,
            "block_slots": min(SLOTS_AT_ONCE, triton.next_power_of_2(slots)),
            "block": triton.next_power_of_2(dim),
        }

    def __call__(self, parent: Tensor, action: Tensor, node: Tensor) -> Imagined:
        """See `device_step.Step`."""
        memory, norm = self.memory, self.net.blocks[0][0]
        kernels.enter[(memory.rows,)](
            *(
                parent.contiguous(),
                action.contiguous(),
                node,
                self._seen,
                memory.position,
                memory.slot_position,
                self.vocabulary.tokens,
            ),
            *(norm.weight, norm.bias, self._x, self._normed, node.stride(0)),
            **self._nodes,
            **self._norm_sizes,
            block_slots=triton.next_power_of_2(memory.sizes.slots),
            block=self._block,
        )
        reward_logits, following = self.net.read_step_raw(self._token(node, 0))
        self._reach(following.contiguous(), norm)
        value_logits, query = self.net.read_state(self._token(node, 1))
        return self._say(reward_logits, value_logits, query @ self.vocabulary.keys.T)

    def _token(self, node: Tensor, state: int) -> Tensor:
        """Runs the token in ``self._x``, whose first layer norm is done."""
        net, memory = self.net, self.memory
        for layer, (_, norm_mlp, qkv, out, up, down) in enumerate(net.blocks):
            kernels.attend[(memory.rows, memory.heads)](
                *(qkv(self._normed), memory.pool[layer, 0], memory.pool[layer, 1], self._attended),
                *(memory.rotary.cos, memory.rotary.sin, node, self._seen, memory.position, memory.slot_position),
                *(node.stride(0), memory.window),
                state=state,
                **self._attend_sizes,
            )
            self._add(out(self._attended), norm_mlp)
            last = layer + 1 == net.layers
            self._add(down(up.gelu(self._normed)), net.norm if last else net.blocks[layer + 1][0])
        return self._normed

    def _add(self, delta: Tensor, norm: FrozenNorm) -> None:
        kernels.add_and_norm[(self.memory.rows,)](
            self._x, delta, norm.weight, norm.bias, self._normed, **self._norm_sizes, block=self._block
        )

    def _reach(self, following: Tensor, norm: FrozenNorm) -> None:
        latent = self.net.latent_norm
        given = latent if isinstance(latent, FrozenNorm) else norm  # any weights: SimNorm has none
        kernels.reach[(self.memory.rows,)](
            *(following, given.weight, given.bias, norm.weight, norm.bias, self._x, self._normed),
            simnorm=not isinstance(latent, FrozenNorm),
            **self._norm_sizes,
            block=max(1, self._block // 8),
        )

    def _say(self, reward_logits: Tensor, value_logits: Tensor, logits: Tensor) -> Imagined:
        size, limit = logits.shape[1], self.net.support.limit
        block = triton.next_power_of_2(size)
        kernels.say[(self.memory.rows,)](
            *(reward_logits, value_logits, logits, self._known, *self._said),
            bins=self.net.support.size,
            limit=limit,
            vocabulary=size,
            top_k=self.memory.sizes.top_k,
            block_bins=triton.next_power_of_2(self.net.support.size),
            block_vocabulary=block,
            block_k=triton.next_power_of_2(self.memory.sizes.top_k),
            num_warps=1 if block <= 512 else 4 if block <= 2048 else 8 if block <= 8192 else 16,
        )
        return self._said
