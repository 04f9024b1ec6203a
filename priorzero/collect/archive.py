"""Where episodes have been, and how they got there.

For "first return, then explore" (Ecoffet et al. 2021, arXiv 2004.12919). A state that took many right actions to
reach is lost again when its episode ends, and a policy that has seen it once does not find it a second time. So the way
to every state is kept, and some episodes begin by walking one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Way:
    """How a state was reached: in a game that starts from ``seed``, by these actions."""

    seed: int
    actions: tuple[str, ...]
    score: float  # in the state
    scored: int  # actions until the last point was made

    @property
    def worth(self) -> tuple[float, int, int]:
        """The greater the more to be imitated: more points, or as many after fewer actions."""
        return self.score, -self.scored, -len(self.actions)

    @property
    def rank(self) -> tuple[float, int]:
        """The greater the better: more points, or as many on a shorter way."""
        return self.score, -len(self.actions)


@dataclass(slots=True)
class _Cell:
    way: Way
    visits: int = 0  # episodes that came by, or were sent there


class Archive:
    """The best way to every state: with the highest score, and among these the shortest."""

    def __init__(self) -> None:
        self._cells: dict[str, dict[int, _Cell]] = {}  # by game and state

    def __len__(self) -> int:
        """States of all games."""
        return sum(map(len, self._cells.values()))

    def enter(self, game: str, state: int, way: Way, *, first: bool) -> None:
        """An episode came to the state on its own.

        Args:
            game: its name.
            state: number that stands for it.
            way: how the episode came there; kept if it is better than what is known.
            first: whether the episode had not been there before; else the visit does not count.
        """
        cells = self._cells.setdefault(game, {})
        cell = cells.get(state)
        if cell is None:
            cell = cells[state] = _Cell(way)
        elif way.rank > cell.way.rank:
            cell.way = way
        cell.visits += first

    def best(self, game: str) -> Way | None:
        """The way to the highest score that any episode had, with the fewest actions; None for an unknown game."""
        ways = [cell.way for cell in self._cells.get(game, {}).values()]
        return max(ways, key=lambda way: way.worth) if ways else None

    def draw(self, game: str, rng: np.random.Generator) -> Way | None:
        """A way to go, None where the game was never played.

        First a score is drawn, the n-th best with a probability proportional to 1 / n, so that most episodes begin
        where the points are and none is given up. Then a state of that score, proportional to 1 / sqrt(visits).
        """
        cells = list(self._cells.get(game, {}).values())
        if not cells:
            return None
        scores = np.array([cell.way.score for cell in cells])
        levels = np.unique(scores)[::-1]
        zipf = 1 / np.arange(1, len(levels) + 1)
        level = rng.choice(levels, p=zipf / zipf.sum())
        among = [cell for cell, score in zip(cells, scores, strict=True) if score == level]
        rarity = np.array([max(cell.visits, 1) for cell in among]) ** -0.5
        cell = among[int(rng.choice(len(among), p=rarity / rarity.sum()))]
        cell.visits += 1
        return cell.way

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and one list of texts."""
        rows = [(game, state, cell) for game, cells in self._cells.items() for state, cell in cells.items()]
        number = {text: n for n, text in enumerate(dict.fromkeys(chain.from_iterable(_texts(*row) for row in rows)))}
        actions = [number[action] for *_, cell in rows for action in cell.way.actions]
        return {
            "texts": list(number),
            "cells": torch.tensor(
                [(number[g], state, c.visits, c.way.seed, c.way.scored, len(c.way.actions)) for g, state, c in rows],
                dtype=torch.int64,
            ).reshape(-1, 6),
            "scores": torch.tensor([cell.way.score for *_, cell in rows], dtype=torch.float64),
            "actions": torch.tensor(actions, dtype=torch.int32),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What ``state_dict`` gave."""
        self._cells = {}
        texts, actions = state["texts"], iter(state["actions"].tolist())
        for row, score in zip(state["cells"].tolist(), state["scores"].tolist(), strict=True):
            game, number, visits, seed, scored, length = row
            way = Way(seed, tuple(texts[next(actions)] for _ in range(length)), score, scored)
            self._cells.setdefault(texts[game], {})[number] = _Cell(way, visits)


def _texts(game: str, _: int, cell: _Cell) -> tuple[str, ...]:
    return (game, *cell.way.actions)
