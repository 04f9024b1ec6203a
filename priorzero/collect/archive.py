"""Where episodes have been, and how they got there.

For "first return, then explore" (Ecoffet et al. 2021, arXiv 2004.12919). A state that took many right actions to
reach is lost again when its episode ends, and a policy that has seen it once does not find it a second time. So the way
to every state is kept, and some episodes begin by walking one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Way:
    """How a state was reached, or may be: in a game that starts from ``seed``, by these actions."""

    seed: int
    actions: tuple[str, ...]
    tried: bool = True  # whether somebody went it, and it led there


@dataclass(slots=True)
class Trail:
    """What an episode did so far, and where it was. Empty where nobody asks."""

    seed: int
    states: list[int] = field(default_factory=list)  # numbers that stand for them, the present one last
    actions: list[str] = field(default_factory=list)
    paid: list[bool] = field(default_factory=list)  # whether the action made a point

    @property
    def scored(self) -> int:
        """Actions until the last point was made."""
        return next((n for n in range(len(self.paid), 0, -1) if self.paid[n - 1]), 0)


@dataclass(frozen=True, slots=True)
class _Best:
    """The way to a game's highest score, up to its last point."""

    way: Way
    score: float
    states: tuple[int, ...]  # one more than actions
    paid: tuple[bool, ...]
    solves: bool  # the game: it has no more points than these


@dataclass(slots=True)
class _Cell:
    way: Way
    score: float  # in the state
    place: str
    shorter: tuple[str, ...] | None  # the way without its detours, until it was tried
    visits: int = 0  # episodes that came by, or were sent there


def _better(score: float, actions: int, than: _Best | _Cell) -> bool:
    """More points, or as many by fewer actions."""
    return (score, -actions) > (than.score, -len(than.way.actions))


class Archive:
    """The best way to every state: with the highest score, and among these the shortest."""

    def __init__(self) -> None:
        self._cells: dict[str, dict[int, _Cell]] = {}  # by game and state
        self._best: dict[str, _Best] = {}  # by game

    def __len__(self) -> int:
        """States of all games."""
        return sum(map(len, self._cells.values()))

    def enter(self, game: str, place: str, trail: Trail, score: float, *, first: bool, solves: bool = False) -> None:
        """An episode came to a state on its own.

        Args:
            game: its name.
            place: where the state is; a place has many states.
            trail: how the episode came there; kept if it is better than what is known.
            score: in the state.
            first: whether the episode had not been there before; else the visit does not count.
            solves: whether the game has no more points than ``score``.
        """
        cells = self._cells.setdefault(game, {})
        cell = cells.get(trail.states[-1])
        if cell is None or _better(score, len(trail.actions), cell):
            way, visits = Way(trail.seed, tuple(trail.actions)), 0 if cell is None else cell.visits
            detours = _detours(trail.states, trail.paid)
            shorter = tuple(trail.actions[t] for t in _without(detours, len(trail.actions))) if detours else None
            cell = cells[trail.states[-1]] = _Cell(way, score, place, shorter, visits)
        cell.visits += first
        self._compare(game, trail, score, solves)

    def finish(self, game: str, trail: Trail, score: float, *, solves: bool = False) -> None:
        """An episode is over: nothing can be explored behind it, but it may have been the best one."""
        self._compare(game, trail, score, solves)

    def _compare(self, game: str, trail: Trail, score: float, solves: bool) -> None:
        best, n = self._best.get(game), trail.scored
        if n and (best is None or _better(score, n, best)):
            way = Way(trail.seed, tuple(trail.actions[:n]))
            self._best[game] = _Best(way, score, tuple(trail.states[: n + 1]), tuple(trail.paid[:n]), solves)

    def best(self, game: str) -> Way | None:
        """The way to the highest score that any episode had, with the fewest actions; None where none made a point."""
        return self._best[game].way if game in self._best else None

    def solved(self, game: str) -> bool:
        """Whether the best way makes every point that the game has."""
        return game in self._best and self._best[game].solves

    @property
    def highest_score(self) -> float | None:
        """Of any game; None where none made a point."""
        return max((best.score for best in self._best.values()), default=None)

    def shortened(self, game: str, rng: np.random.Generator) -> Way | None:
        """The best way without some of its actions, to be tried: it may lead elsewhere. None where each made a point.

        Half of the time detours are left out, if there are any: one that is drawn, and a share of the others, from none
        to all. A detour leads back to the same state without a point, as late as can be. Else a few actions in a row
        that made no point: they may have changed something, and not what mattered.
        """
        best = self._best.get(game)
        if best is None or all(best.paid):
            return None
        detours = _detours(best.states, best.paid)
        if detours and rng.random() < 0.5:
            kept = _without_some(detours, len(best.paid), rng)
        else:
            start = int(rng.choice([t for t, paid in enumerate(best.paid) if not paid]))
            end = min(start + int(rng.geometric(0.5)), best.paid.index(True, start))
            kept = [*range(start), *range(end, len(best.paid))]
        return Way(best.way.seed, tuple(best.way.actions[t] for t in kept), tried=False)

    def crossed(self, game: str, rng: np.random.Generator) -> Way | None:
        """To a place on the best way, but to another of its states, and on from there as the best way goes.

        So what lies behind the points is met with other things in hand, or after other things were done. None where no
        place on the best way has another state. One of the way's steps is drawn, then one of the states of its place,
        proportional to 1 / sqrt(visits), which counts as a visit.
        """
        best, cells = self._best.get(game), self._cells.get(game, {})
        if best is None:
            return None
        others: dict[str, list[_Cell]] = {}  # by place
        on_the_way = set(best.states[:-1])
        for state, cell in cells.items():
            if state not in on_the_way:
                others.setdefault(cell.place, []).append(cell)
        steps = [t for t, s in enumerate(best.states[:-1]) if s in cells and cells[s].place in others]
        if not steps:
            return None
        t = int(rng.choice(steps))
        there = others[cells[best.states[t]].place]
        rarity = _rarity(there)
        cell = there[int(rng.choice(len(there), p=rarity / rarity.sum()))]
        cell.visits += 1
        return Way(cell.way.seed, cell.way.actions + best.way.actions[t:], tried=False)

    def draw(self, game: str, rng: np.random.Generator) -> Way | None:
        """A way to go, which counts as a visit; None where the game was never played.

        The first time that a way with detours is drawn, it is given without them (not ``tried``): an episode has so
        many steps, and that one may lead there too.

        Each state has a weight of 1 / sqrt(visits), a place with a score the mean of its states', and a score the mean
        of its places', where a place counts for the square root of its states: a room where many things can be dropped
        is not all there is, and one with a puzzle is more than one step on a way. First a score is drawn, the n-th best
        proportional to its weight / n: most episodes begin where the points are, unless all is known there. Then one of
        its places and one of that place's states, in the same proportions.
        """
        cells = list(self._cells.get(game, {}).values())
        if not cells:
            return None
        scores, level = np.unique([-cell.score for cell in cells], return_inverse=True)  # the best one first
        _, place = np.unique([cell.place for cell in cells], return_inverse=True)
        pairs, pair, states = np.unique(place * len(scores) + level, return_inverse=True, return_counts=True)
        root = states**0.5  # of the states of each place with a score
        places = np.bincount(pairs % len(scores), root)  # of each score
        rarity = _rarity(cells)
        weight = rarity / root[pair] / places[level] / (1 + level)
        cell = cells[int(rng.choice(len(cells), p=weight / weight.sum()))]
        cell.visits += 1
        if cell.shorter is None:
            return cell.way
        shorter, cell.shorter = cell.shorter, None
        return Way(cell.way.seed, shorter, tried=False)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and one list of texts."""
        rows = [(game, state, cell) for game, cells in self._cells.items() for state, cell in cells.items()]
        texts = chain.from_iterable((game, cell.place, *cell.way.actions) for game, _, cell in rows)
        number = {text: n for n, text in enumerate(dict.fromkeys(texts))}
        actions = [number[action] for *_, cell in rows for action in (*cell.way.actions, *(cell.shorter or ()))]
        lengths = [(len(c.way.actions), -1 if c.shorter is None else len(c.shorter)) for *_, c in rows]
        return {
            "texts": list(number),
            "cells": torch.tensor(
                [(number[g], number[c.place], state, c.visits, c.way.seed) for g, state, c in rows], dtype=torch.int64
            ).reshape(-1, 5),
            "lengths": torch.tensor(lengths, dtype=torch.int32).reshape(-1, 2),
            "scores": torch.tensor([cell.score for *_, cell in rows], dtype=torch.float64),
            "actions": torch.tensor(actions, dtype=torch.int32),
            "best": {
                game: [b.way.seed, list(b.way.actions), b.score, list(b.states), list(b.paid), b.solves]
                for game, b in self._best.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What ``state_dict`` gave."""
        self._cells = {}
        texts, actions = state["texts"], iter(state["actions"].tolist())
        rows = (state[name].tolist() for name in ("cells", "scores", "lengths"))
        for (game, place, number, visits, seed), score, lengths in zip(*rows, strict=True):
            long, short = (tuple(texts[next(actions)] for _ in range(length)) for length in lengths)
            cell = _Cell(Way(seed, long), score, texts[place], short if lengths[1] >= 0 else None, visits)
            self._cells.setdefault(texts[game], {})[number] = cell
        self._best = {
            game: _Best(Way(seed, tuple(way)), score, tuple(states), tuple(paid), solves)
            for game, (seed, way, score, states, paid, solves) in state["best"].items()
        }


def _rarity(cells: Sequence[_Cell]) -> np.ndarray:
    """1 / sqrt(visits) of each [n]."""
    return np.array([max(cell.visits, 1) for cell in cells]) ** -0.5


def _detours(states: Sequence[int], paid: Sequence[bool]) -> dict[int, int]:
    """From start to end, the actions that could be left out: the state before and behind them is the same.

    Args:
        states: of a trail, one more than actions.
        paid: whether an action made a point; a detour makes none, and ends as late as can be.
    """
    found, last = {}, {}
    for t in range(len(paid), -1, -1):
        if t < len(paid) and paid[t]:
            last.clear()
        if last.setdefault(states[t], t) > t:
            found[t] = last[states[t]]
    return found


def _without(detours: dict[int, int], steps: int) -> list[int]:
    """The steps that are left without any detour, in order."""
    kept, at = [], 0
    while at < steps:
        if at in detours:
            at = detours[at]
        else:
            kept.append(at)
            at += 1
    return kept


def _without_some(detours: dict[int, int], steps: int, rng: np.random.Generator) -> list[int]:
    """The steps that are left without one of the detours and a share of the others, in order."""
    sure, share = int(rng.choice(list(detours))), rng.random()
    left_out = {start: end for start, end in detours.items() if start == sure or rng.random() < share}
    # which must not leave out the step where the sure one begins
    return _without({start: end for start, end in left_out.items() if not start < sure < end}, steps)
