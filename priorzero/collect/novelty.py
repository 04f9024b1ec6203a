"""A reward for states that were rarely seen: count-based exploration, as collection adds it to the game's own points.

For games whose points lie many right actions apart (Bellemare et al. 2016, arXiv 1606.01868; restricted to the first
visit of an episode as by Raileanu and Rocktaeschel 2020, arXiv 2002.12292). A state is what `NoveltyConfig.of` shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from priorzero.types import Observation, Step


@dataclass(frozen=True, kw_only=True)
class NoveltyConfig:
    """What is new, and what it is worth.

    Raises:
        ValueError: a negative weight, or nothing to tell states by.
    """

    weight: float  # points for a state that was never seen; 0: none
    of: Sequence[str]  # parts of the observation that tell states apart

    def __post_init__(self) -> None:
        parts = Observation._fields
        if self.weight < 0 or not self.of or not set(self.of) <= set(parts):
            raise ValueError(
                f"collector.novelty is {self}: the weight must not be negative, and `of` names one or more of "
                f"{', '.join(parts)}"
            )


class Novelty:
    """How often each state was entered, over all episodes that ``visit`` was called in."""

    def __init__(self, config: NoveltyConfig) -> None:
        self.config = config
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def visit(self, step: Step, seen: set[int]) -> float:
        """Weight / sqrt(n) where the state behind ``step`` is entered for the n-th time, else 0.

        Args:
            step: where the action led to.
            seen: the states of the running episode; the state is added, and is paid for once.
        """
        state = self.mark(step, seen)
        if state is None:
            return 0.0
        self._counts[state] = self._counts.get(state, 0) + 1
        return self.config.weight / self._counts[state] ** 0.5

    def mark(self, step: Step, seen: set[int]) -> int | None:
        """Add the state to those of the episode; None where it is among them or where there is no reward for any."""
        if not self.config.weight:
            return None
        shown = "\0".join((step.game, *(getattr(step.observation, part) for part in self.config.of)))
        state = int.from_bytes(hashlib.blake2b(shown.encode(), digest_size=8).digest(), "little", signed=True)
        if state in seen:
            return None
        seen.add(state)
        return state

    def state_dict(self) -> dict[str, Any]:
        """The counts, as tensors: few bytes in a checkpoint."""
        counts = torch.tensor(list(self._counts.values()), dtype=torch.int32)
        return {"states": torch.tensor(list(self._counts), dtype=torch.int64), "counts": counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counts of ``state_dict``."""
        self._counts = dict(zip(state["states"].tolist(), state["counts"].tolist(), strict=True))
