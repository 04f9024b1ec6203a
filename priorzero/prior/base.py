"""What the collector asks of a prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from priorzero.types import PriorResult, Situation


class Prior(Protocol):
    """Scores the valid actions of situations."""

    version: int  # policy version of the weights that score

    def score(self, situations: Sequence[Situation]) -> PriorResult:
        """Log-probabilities over the valid actions of each situation.

        Raises:
            ValueError: a situation has no valid action.
        """


def check_situations(situations: Sequence[Situation]) -> None:
    """Raises a ``ValueError`` where there is nothing to choose from."""
    for i, situation in enumerate(situations):
        if not situation.valid_actions:
            raise ValueError(f"situation {i} has no valid actions: is its episode over?")
