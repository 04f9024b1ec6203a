"""Runs a snapshot of the world model inside a search: contexts in, root predictions and expansions out.

Each decision encodes the last few steps afresh. Inside a tree every node adds two tokens (its action, its predicted
state) whose keys and values lie in one pool, preallocated and indexed by node; a node remembers which slots of the
pool are its last ``window`` tokens. So nothing is copied between nodes and nothing outlives a search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from priorzero.types import Context, Expansion
from priorzero.world_model.model import UniZero, interleave

HIDDEN = -1e9  # added to the attention score of what must not be seen


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """Sizes of a search."""

    context_steps: int  # C: how many steps, the current one included, the root is encoded from
    top_k: int  # K: how many known actions an imagined state offers to the search
    simulations: int  # the most nodes a search may add


@dataclass(frozen=True, slots=True)
class RootPrediction:
    """What the network says of the states to decide in."""

    value: np.ndarray  # [B] float32
    logits: np.ndarray  # [B, A] float32 of the given actions, -inf where padded


class Planner:
    """A `priorzero.search.Model` over a UniZero network. One search at a time; not shared between threads."""

    def __init__(self, model: UniZero, config: PlannerConfig, *, device: str = "cpu") -> None:
        longest = 2 * config.context_steps - 1 + 2 * config.simulations
        if model.config.max_positions < longest:
            raise ValueError(
                f"world_model.max_positions is {model.config.max_positions}, but a context of {config.context_steps} "
                f"steps and {config.simulations} simulations need {longest}: raise it, or lower one of them"
            )
        self.config, self.device = config, torch.device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.root_tokens = 2 * config.context_steps - 1
        self.window = model.transformer.window
        self._vectors = torch.zeros(0, model.config.action_width, device=self.device)
        self._embed_actions()

    # ------------------------------------------------------------------------------------------------- the world

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Take over new weights (a ``state_dict`` of `UniZero`)."""
        self.model.load_state_dict(state)
        self._embed_actions()

    @torch.inference_mode()
    def set_actions(self, vectors: np.ndarray) -> None:
        """Tell the vectors [V, E] of all known actions; the row is the id. Vocabularies only grow."""
        if len(vectors) > len(self._vectors):
            new = torch.tensor(vectors[len(self._vectors) :], dtype=torch.float32, device=self.device)
            self._vectors = torch.cat((self._vectors, new))
            self._embed_actions()

    @torch.inference_mode()
    def _embed_actions(self) -> None:
        self._tokens = self.model.action_tokens(self._vectors)  # [V, D]
        self._keys = self.model.action_keys(self._vectors)  # [V, D]

    # -------------------------------------------------------------------------------------------------- the root

    @torch.inference_mode()
    def root(self, context: Context, actions: np.ndarray, known: np.ndarray) -> RootPrediction:
        """Start a search of ``B`` trees.

        Args:
            context: the last steps of each episode.
            actions: [B, A] int32 ids of the valid actions, -1 where padded.
            known: [B, V] bool, the actions that imagined states of each tree may offer.
        """
        rows, length = len(actions), torch.from_numpy(context.length).to(self.device)
        latent = self.model.encode(torch.from_numpy(context.vectors).to(self.device))
        past = torch.from_numpy(context.actions).to(self.device).long().clamp(min=0)
        tokens = interleave(latent, self._tokens[past])
        index = torch.arange(self.root_tokens, device=self.device)
        real = index >= self.root_tokens - (2 * length - 1).unsqueeze(1)  # [B, 2 C - 1]
        out, kept = self.model.transformer(tokens, real)
        self._open_pool(rows, kept, torch.where(real, index, -1))
        self._unknown = ~torch.from_numpy(known).to(self.device)
        value_logits, query = self.model.read_state(out[:, -1])
        ids = torch.from_numpy(actions).to(self.device).long()
        logits = torch.einsum("bd,bad->ba", query, self._keys[ids.clamp(min=0)])
        logits = logits.masked_fill(ids < 0, -torch.inf)
        value = self.model.support.decode(value_logits)
        return RootPrediction(value.float().cpu().numpy(), logits.float().cpu().numpy())

    def _open_pool(self, rows: int, kept: list[tuple[Tensor, Tensor]], slots: Tensor) -> None:
        nodes = self.config.simulations + 1
        size = self.root_tokens + 2 * self.config.simulations
        heads, dim = kept[0][0].shape[2:]
        self._row = torch.arange(rows, device=self.device)
        self._slots = torch.arange(size, device=self.device).expand(rows, -1)
        self._first_slot = self._row.unsqueeze(1) * size  # of each tree, where the pool is seen as one long list
        # keys and values of every token of every tree: [layers, B, slots, 2, heads, dim]
        self._pool = kept[0][0].new_empty(len(kept), rows, size, 2, heads, dim)
        for pool, (k, v) in zip(self._pool, kept, strict=True):
            pool[:, : self.root_tokens, 0], pool[:, : self.root_tokens, 1] = k, v
        # the slots that a child of each node may see, oldest first, -1 where there is none: [B, nodes, window]
        self._visible = torch.full((rows, nodes, self.window), -1, device=self.device)
        width = min(self.window, self.root_tokens)
        self._visible[:, 0, -width:] = slots[:, -width:]
        self._position = torch.full((rows, nodes), self.root_tokens - 1, device=self.device)

    # ------------------------------------------------------------------------------------------------- the nodes

    @torch.inference_mode()
    def expand(self, node: int, parent: np.ndarray, action: np.ndarray) -> Expansion:
        """Take ``action`` [B] (ids) in node ``parent`` [B] of each tree and keep the state reached as ``node``."""
        parent_node = torch.from_numpy(parent).to(self.device).long()
        action_id = torch.from_numpy(action).to(self.device).long()
        position = self._position[self._row, parent_node] + 1
        slot = self.root_tokens + 2 * (node - 1)
        visible = torch.cat((self._visible[self._row, parent_node], self._slots[:, slot : slot + 2]), dim=1)
        bias = torch.where(visible < 0, HIDDEN, 0.0).to(self._tokens.dtype)  # [B, window + 2]
        gather = visible.clamp(min=0) + self._first_slot
        out = self._feed(self._tokens[action_id], position, slot, gather[:, 1:-1], bias[:, 1:-1])
        reward_logits, latent = self.model.read_step(out)
        out = self._feed(latent, position + 1, slot + 1, gather[:, 2:], bias[:, 2:])
        value_logits, query = self.model.read_state(out)
        self._visible[:, node], self._position[:, node] = visible[:, 2:], position + 1
        actions, probs = self._offer(query)
        reward, value = self.model.support.decode(torch.stack((reward_logits, value_logits))).float().cpu().numpy()
        return Expansion(reward, value, actions, probs)

    def _feed(self, token: Tensor, position: Tensor, slot: int, gather: Tensor, bias: Tensor) -> Tensor:
        index = gather.flatten()

        def store(layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            pool = self._pool[layer]
            pool[:, slot, 0], pool[:, slot, 1] = key, value
            seen = pool.flatten(0, 1).index_select(0, index)  # one copy for keys and values: the slowest part here
            return seen.unflatten(0, gather.shape).unbind(2)

        return self.model.transformer.step(token, position, store, bias)

    def _offer(self, query: Tensor) -> tuple[np.ndarray, np.ndarray]:
        logits = (query @ self._keys.T).float().masked_fill(self._unknown, -torch.inf)  # [B, V]
        best, ids = logits.topk(min(self.config.top_k, logits.shape[1]), dim=1)
        padded = best.isneginf()
        probs = best.softmax(-1).masked_fill(padded, 0.0)  # also where a tree knows no action: that softmax is NaN
        return ids.masked_fill(padded, -1).int().cpu().numpy(), probs.cpu().numpy()
