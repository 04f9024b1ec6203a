"""The prior that knows nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from priorzero.prior.base import check_situations
from priorzero.types import PriorResult, Situation


class UniformPrior:
    """Gives every valid action the same probability."""

    version = 0  # there are no weights, so it never changes

    def score(self, situations: Sequence[Situation]) -> PriorResult:
        """See ``Prior.score``."""
        check_situations(situations)
        counts = [len(s.valid_actions) for s in situations]
        return PriorResult(tuple(np.full(n, -np.log(n), np.float32) for n in counts), version=self.version)

    def load_weights(self, state: Mapping[str, Tensor], version: int) -> None:
        """See ``Prior.load_weights``.

        Raises:
            ValueError: always, there is nothing to load.
        """
        raise ValueError("a uniform prior has no weights")

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take over."""
