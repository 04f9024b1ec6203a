"""The prior that knows nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from priorzero.prior.base import check_situations
from priorzero.types import PriorResult, Situation


class UniformPrior:
    """Gives every valid action the same probability."""

    version = 0

    def score(self, situations: Sequence[Situation]) -> PriorResult:
        """See ``Prior.score``."""
        check_situations(situations)
        counts = [len(s.valid_actions) for s in situations]
        return PriorResult(tuple(np.full(n, -np.log(n), np.float32) for n in counts), version=self.version)
