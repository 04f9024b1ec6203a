"""The network inside a search on a CPU: compiled loops around a few large products."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from priorzero.types import Context, Expansion
from priorzero.world_model import kernels
from priorzero.world_model.frozen import Attend, FrozenNet
from priorzero.world_model.graphs import Sizes
from priorzero.world_model.model import UniZero, interleave
from priorzero.world_model.transformer import rotate


class HostEngine:
    """Keys and values of all trees in one pool; every node remembers its parent, and so which slots it may see.

    Args:
        model: the network; its weights are copied.
        sizes: of a search.
        precision: float32 or int8.
    """

    def __init__(self, model: UniZero, sizes: Sizes, precision: str) -> None:
        if precision == "bfloat16":
            raise ValueError("a Planner on a CPU computes in float32 or int8, not in bfloat16")
        self.root_tokens, self.simulations, self.top_k = sizes.root_tokens, sizes.simulations, sizes.top_k
        self.model, self.net = model, FrozenNet(model, precision, torch.device("cpu"), in_place=False)
        self.transformer = model.transformer
        self.window, self.heads = model.transformer.window, model.transformer.heads
        rotary = model.transformer.rotary
        self._rotation = torch.stack((rotary.cos, rotary.sin), dim=1).numpy()  # [positions, 2, d]
        self._rows = -1

    def load(self) -> None:
        """Take over what the model's weights are now."""
        self.net.load()

    def set_actions(self, tokens: Tensor, keys: Tensor) -> None:
        """Take over tokens and keys [V, D] of all actions."""
        self._tokens, self._keys = tokens, keys

    def root(self, context: Context, actions: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `planner.Planner.root`: value [B] and logits [B, A]."""
        self._open(len(actions))
        self._known = known
        self._first = self.root_tokens - (2 * context.length - 1)
        vectors = torch.from_numpy(context.vectors)
        latent = self.net.encode(vectors.flatten(0, 1)).unflatten(0, vectors.shape[:2])
        past = torch.from_numpy(context.actions).long().clamp(min=0)
        out = self.net.sequence(interleave(latent, self._tokens[past]), self._attend_root())
        value_logits, query = self.net.read_state(out)
        ids = torch.from_numpy(actions).long()
        logits = (query @ self._keys.T).gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
        return self._decode(value_logits), logits.numpy()

    def expand(self, node: int, parent: np.ndarray, action: np.ndarray) -> Expansion:
        """See `planner.Planner.expand`."""
        self._parents[:, node] = parent
        position = self._position[np.arange(self._rows), parent] + 1
        self._position[:, node] = position + 1
        kernels.trace(self._parents, node, self._first, self.root_tokens, self._slots, self._count)
        token = self._tokens[torch.from_numpy(action).long()]
        reward_logits, latent = self.net.read_step(self.net.token(token, self._attend_node(position, 1)))
        value_logits, query = self.net.read_state(self.net.token(latent, self._attend_node(position + 1, 0)))
        logits = (query @ self._keys.T).numpy()
        width = min(self.top_k, logits.shape[1])
        ids, probs = np.empty((self._rows, width), np.int32), np.empty((self._rows, width), np.float32)
        kernels.best_known(logits, self._known, ids, probs)
        return Expansion(self._decode(reward_logits), self._decode(value_logits), ids, probs)

    def _open(self, rows: int) -> None:
        if rows == self._rows:
            return
        self._rows = rows
        nodes, slots = self.simulations + 1, self.root_tokens + 2 * self.simulations
        per_token = (2, self.heads, self.net.width // self.heads)
        self._pool: np.ndarray = np.empty((self.net.layers, rows, slots, *per_token), np.float32)
        self._parents = np.zeros((rows, nodes), np.int32)
        self._position = np.full((rows, nodes), self.root_tokens - 1, np.int32)
        self._slots = np.empty((rows, self.window + 1), np.int32)  # the action's token sees one more back
        self._count = np.empty(rows, np.int32)

    def _attend_root(self) -> Attend:
        index = torch.arange(self.root_tokens)
        rotation = self.transformer.rotary(index)
        mask = self.transformer.mask(index, index >= torch.from_numpy(self._first).unsqueeze(1))

        def attend(layer: int, qkv: Tensor) -> Tensor:
            q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).unbind(-3)
            q, k = rotate(torch.stack((q, k), dim=-3), rotation).unbind(-3)
            pool = torch.from_numpy(self._pool[layer])
            pool[:, : self.root_tokens, 0], pool[:, : self.root_tokens, 1] = k, v
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2)

        return attend

    def _attend_node(self, position: np.ndarray, begin: int) -> Attend:
        def attend(layer: int, qkv: Tensor) -> Tensor:
            out = torch.empty(self._rows, self.heads, self.net.width // self.heads)
            kernels.attend(
                *(qkv.view(self._rows, 3, *out.shape[1:]).numpy(), self._rotation, position, self._pool[layer]),
                *(self._slots, self._count, begin, self.window, out.numpy()),
            )
            return out.flatten(1)

        return attend

    def _decode(self, logits: Tensor) -> np.ndarray:
        out = np.empty(len(logits), np.float32)
        kernels.decode(logits.numpy(), self.net.support.limit, out)
        return out
