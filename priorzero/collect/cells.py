"""What is known of a state that episodes have been in, and which of many is rare.

`Archive.draw` says in words what the shares here are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from priorzero.collect.ways import Walk


@dataclass(slots=True)
class Cell:
    """A state, and the best way to it."""

    walk: Walk
    place: str
    things: tuple[str, ...]  # what is carried there, as in `Step.carried`: in another condition it is another thing
    made: tuple[str, ...]  # its points, see `Trail.made`
    attempted: int  # actions of the shortest way that was tried
    visits: int = 0  # episodes that decided there for themselves, were sent there, or, where that counts, passed by
    joined: int = 0  # ways that were gone on from there as another way does, see `Archive.crossed`

    @property
    def counts(self) -> tuple[int, int, int]:
        """Its last three, for a checkpoint."""
        return self.attempted, self.visits, self.joined

    @property
    def score(self) -> float:
        """In points of the game."""
        return self.walk.scores[-1]

    @property
    def point(self) -> str | None:
        """What was made by the last action of the way; None where that made no point."""
        scores = self.walk.scores
        return self.made[-1] if len(scores) > 1 and scores[-1] > scores[-2] else None


def rarities(cells: Sequence[Cell]) -> np.ndarray:
    """1 / sqrt(visits) of each [n]."""
    return np.array([max(cell.visits, 1) for cell in cells]) ** -0.5


def rarely_joined(cells: Sequence[Cell], rng: np.random.Generator) -> Cell:
    """One of them, proportional to 1 / sqrt(visits and joined ways)."""
    rarity = np.array([max(cell.visits + cell.joined, 1) for cell in cells]) ** -0.5
    return cells[int(rng.choice(len(cells), p=rarity / rarity.sum()))]


def ranked(n: int, rng: np.random.Generator) -> int:
    """One of 0 to ``n`` - 1, proportional to 1, 1 / 2, 1 / 3 and so on."""
    share = 1 / np.arange(1, n + 1)
    return int(rng.choice(n, p=share / share.sum()))


def short(cells: Sequence[Cell], rng: np.random.Generator) -> Cell:
    """One of them, that with the n-th shortest way proportional to 1 / n."""
    return sorted(cells, key=lambda cell: len(cell.walk.actions))[ranked(len(cells), rng)]


class Index:
    """The places and things of the states of one game, as numbers; a thing "" stands for none."""

    def __init__(self) -> None:
        self.place = np.empty(0, np.int64)  # [n] of each state
        self.state = np.empty(0, np.int64)  # [m] of each state with each of its things, and with none
        self.pair = np.empty(0, np.int64)  # [m] the place with that thing
        self.thing = np.empty(0, np.int64)  # of each pair
        self._places: dict[str, int] = {}
        self._things: dict[str, int] = {}
        self._pairs: dict[tuple[int, int], int] = {}

    def extend(self, cells: Sequence[Cell]) -> None:
        """Add those behind the states that it has."""
        start = len(self.place)
        place = [self._places.setdefault(cell.place, len(self._places)) for cell in cells[start:]]
        rows = []
        for n, (at, cell) in enumerate(zip(place, cells[start:], strict=True), start):
            for name in ("", *cell.things):
                thing = self._things.setdefault(name, len(self._things))
                rows.append((n, self._pairs.setdefault((at, thing), len(self._pairs))))
        state, pair = np.array(rows, np.int64).reshape(-1, 2).T
        self.place = np.append(self.place, np.array(place, np.int64))
        self.state, self.pair = np.append(self.state, state), np.append(self.pair, pair)
        self.thing = np.array([thing for _, thing in self._pairs], np.int64)

    def by_thing(self, cells: Sequence[Cell]) -> np.ndarray:
        """The share of each state [n] where a thing is drawn first, then a place, then a state, rare ones more often.

        Args:
            cells: the states that it was extended by, in that order, as are those of `by_score`.
        """
        rarity = rarities(cells)
        state, pair, thing = self.state, self.pair, self.thing
        visits = np.bincount(pair, rarity[state] ** -2)
        weight = 1 / visits / np.bincount(thing, 1 / visits)[thing] / np.bincount(thing, visits)[thing]
        shares = (weight / np.bincount(pair, rarity[state]))[pair] * rarity[state]
        return np.bincount(state, shares)

    def by_score(self, cells: Sequence[Cell]) -> np.ndarray:
        """The share of each state [n], in proportion, where a score is drawn first, then a place, then a state."""
        scores, level = np.unique([-cell.score for cell in cells], return_inverse=True)  # the best one first
        pairs, pair, states = np.unique(self.place * len(scores) + level, return_inverse=True, return_counts=True)
        root = states**0.5  # of the states of each place with a score
        places = np.bincount(pairs % len(scores), root)  # of each score
        return rarities(cells) / root[pair] / places[level] / (1 + level)
