"""Runs a snapshot of the world model inside a search: contexts in, root predictions and expansions out.

Each decision encodes the last few steps afresh. Inside a tree every node adds two tokens (its action, its predicted
state) whose keys and values lie in one pool, preallocated and indexed by node. So nothing is copied between nodes and
nothing outlives a search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from priorzero.types import Context, Expansion
from priorzero.world_model.host import HostEngine
from priorzero.world_model.model import UniZero


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
    """A `priorzero.search.Model` over a UniZero network. One search at a time; not shared between threads.

    Args:
        model: the network. It is moved to ``device`` and frozen.
        config: sizes.
        device: where it runs.
        precision: see `linear.PRECISIONS`.

    Raises:
        ValueError: the network is too short for the search, or the precision cannot be had on the device.
    """

    def __init__(
        self, model: UniZero, config: PlannerConfig, *, device: str = "cpu", precision: str = "float32"
    ) -> None:
        longest = 2 * config.context_steps - 1 + 2 * config.simulations
        if model.config.max_positions < longest:
            raise ValueError(
                f"world_model.max_positions is {model.config.max_positions}, but a context of {config.context_steps} "
                f"steps and {config.simulations} simulations need {longest}: raise it, or lower one of them"
            )
        self.config, self.device = config, torch.device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        sizes = (2 * config.context_steps - 1, config.simulations, config.top_k)
        self._engine = HostEngine(model, sizes, precision)
        self._vectors = torch.zeros(0, model.config.action_width, device=self.device)

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Take over new weights (a ``state_dict`` of `UniZero`)."""
        self.model.load_state_dict(state)
        self._engine.load()
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
        self._engine.set_actions(self.model.action_tokens(self._vectors), self.model.action_keys(self._vectors))

    @torch.inference_mode()
    def root(self, context: Context, actions: np.ndarray, known: np.ndarray) -> RootPrediction:
        """Start a search of ``B`` trees.

        Args:
            context: the last steps of each episode.
            actions: [B, A] int32 ids of the valid actions, -1 where padded.
            known: [B, V] bool, the actions that imagined states of each tree may offer.
        """
        return RootPrediction(*self._engine.root(context, actions, known))

    @torch.inference_mode()
    def expand(self, node: int, parent: np.ndarray, action: np.ndarray) -> Expansion:
        """Take ``action`` [B] (ids) in node ``parent`` [B] of each tree and keep the state reached as ``node``."""
        return self._engine.expand(node, parent, action)
