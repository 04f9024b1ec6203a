"""Where places lie, and what was carried there.

What one can do in a place depends on what one has in hand, so a place is known only by what was brought there. The map
is that of the episodes: some action led from one place to the other, which may be shut now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

_T = TypeVar("_T")


class Atlas:
    """The map of each game, and how often each thing was carried to each of its places."""

    def __init__(self) -> None:
        self._exits: dict[str, dict[str, dict[str, str]]] = {}  # by game and place: next places, and how to go
        self._met: dict[str, dict[str, dict[str, int]]] = {}  # by game, place and thing

    def walk(self, game: str, before: str, action: str, after: str) -> None:
        """An action led from one place to another, or left who did it where he was."""
        if before != after:
            self._exits.setdefault(game, {}).setdefault(before, {})[after] = action

    def meet(self, game: str, place: str, things: Sequence[str]) -> None:
        """These things were carried there, or somebody was sent there with them."""
        met = self._met.setdefault(game, {}).setdefault(place, {})
        for thing in things:
            met[thing] = met.get(thing, 0) + 1

    def routes(self, game: str, place: str, valid: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Every other place that the map leads to: the first action, one of ``valid``, and how many it takes."""
        exits = self._exits.get(game, {})
        routes = {other: (action, 1) for other, action in exits.get(place, {}).items() if action in valid}
        waiting = deque(routes)
        while waiting:
            here = waiting.popleft()
            action, length = routes[here]
            for other in exits.get(here, {}):
                if other != place and other not in routes:
                    routes[other] = (action, length + 1)
                    waiting.append(other)
        return routes

    def errand(
        self, game: str, things: Sequence[str], routes: dict[str, tuple[str, int]], rng: np.random.Generator
    ) -> str | None:
        """Where to carry these things, which counts as if they had been there; None where there is nothing or nowhere.

        A place is drawn proportional to the sum of 1 / (1 + how often it was met) over the things, divided by the
        square of the actions that lead there: what is near is brought first.
        """
        if not things or not routes:
            return None
        met = self._met.get(game, {})
        rarity = [sum(1 / (1 + met.get(place, {}).get(thing, 0)) for thing in things) for place in routes]
        weight = np.array(rarity) / [length**2 for _, length in routes.values()]
        place = list(routes)[int(rng.choice(len(routes), p=weight / weight.sum()))]
        self.meet(game, place, things)
        return place

    def state_dict(self) -> dict[str, Any]:
        """Everything, as texts and numbers."""
        return {"exits": _copied(self._exits), "met": _copied(self._met)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What ``state_dict`` gave."""
        self._exits, self._met = _copied(state["exits"]), _copied(state["met"])


def _copied(tables: dict[str, dict[str, dict[str, _T]]]) -> dict[str, dict[str, dict[str, _T]]]:
    return {game: {place: dict(row) for place, row in table.items()} for game, table in tables.items()}
