"""Fresh policy targets for a share of the drawn windows (MuZero Reanalyse, arXiv 2104.06294).

Values need none of this: their targets are made of rewards and the target network in every update anyhow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from priorzero.data.replay import Draw, Replay
from priorzero.types import Segment

SearchAgain = Callable[[Sequence[Segment], Sequence[int]], list[np.ndarray]]
"""(segments [n], steps [n]) -> n arrays [A_t]: what a search with the newest weights makes of each state."""


@dataclass(frozen=True, kw_only=True)
class ReanalysisConfig:
    """How much is searched again.

    Raises:
        ValueError: the ratio is no share, or a search has no room for a state.
    """

    ratio: float  # share of the drawn windows, 0..1
    states: int  # the most that one search takes

    def __post_init__(self) -> None:
        if not (isinstance(self.ratio, (int, float)) and 0.0 <= self.ratio <= 1.0):
            raise ValueError(
                f"data.reanalysis_ratio={self.ratio}: it is the share of the windows whose targets are searched again, "
                "between 0 and 1"
            )
        if not (isinstance(self.states, int) and self.states >= 1):
            raise ValueError(f"data.reanalysis_states={self.states}: it must be a whole number, 1 or more")


class FreshPolicies:
    """Replaces the visits in some of the drawn windows; what the replay stores stays as it was played.

    The first windows of a draw are as good as any: all are drawn alike. So nothing is random here.

    Args:
        replay: counts the states in its ``reanalysed``.
        search: searches states again.
        ratio: share of the windows; where it is no whole number of a draw, it is over several.
        unroll: T, trained steps of a window.
    """

    def __init__(self, replay: Replay, search: SearchAgain, *, ratio: float, unroll: int) -> None:
        self._replay, self._search, self._ratio, self._unroll = replay, search, ratio, unroll

    def __call__(self, draw: Draw, earlier: int) -> list[Segment]:
        """The segments of ``draw``, the ``earlier``-th of equal size counted from 0, with fresh visits in its share.

        All trained steps with a choice that the share holds are searched at once, each once.
        """
        size = len(draw.ids)
        due = int(self._ratio * size * (earlier + 1)) - int(self._ratio * size * earlier)
        windows = list(zip(draw.ids[:due], draw.segments[:due], strict=True))
        asked = {
            (at.segment, step): segment
            for at, segment in windows
            for step in range(at.step, min(at.step + self._unroll, len(segment)))
            if len(segment.valid_actions[step]) > 1
        }
        if not asked:
            return draw.segments
        found = dict(zip(asked, self._search([*asked.values()], [step for _, step in asked]), strict=True))
        self._replay.reanalysed += len(asked)
        fresh = [
            replace(
                segment,
                visit_probs=tuple(found.get((at.segment, step), old) for step, old in enumerate(segment.visit_probs)),
            )
            for at, segment in windows
        ]
        return fresh + draw.segments[due:]
