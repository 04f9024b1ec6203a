"""What the collector asks of a prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from priorzero.types import PriorResult, Situation


class Prior(Protocol):
    """Scores the valid actions of situations."""

    version: int  # policy version of the weights that score

    def score(self, situations: Sequence[Situation]) -> PriorResult:
        """Log-probabilities over the valid actions of each situation.

        Raises:
            ValueError: a situation has no valid action.
        """
        ...

    def load_weights(self, state: Mapping[str, Tensor], version: int) -> None:
        """Score with these weights from now on; they are ``version``."""
        ...

    def metrics(self) -> dict[str, float]:
        """What is worth logging, counted since the last call."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What was scored with the present weights, as tensors and plain containers."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember it again, after the weights were loaded."""
        ...


def check_situations(situations: Sequence[Situation]) -> None:
    """Raises a ``ValueError`` where there is nothing to choose from."""
    for i, situation in enumerate(situations):
        if not situation.valid_actions:
            raise ValueError(f"situation {i} has no valid actions: is its episode over?")
