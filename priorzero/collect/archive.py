"""Where episodes have been, and how they got there.

For "first return, then explore" (Ecoffet et al. 2021, arXiv 2004.12919). A state that took many right actions to
reach is lost again when its episode ends, and a policy that has seen it once does not find it a second time. So the way
to every state is kept, and some episodes begin by walking one of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any, TypeVar

import numpy as np
import torch

_WAYS = 8  # to a game's points that are compared
_T = TypeVar("_T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Way:
    """How a state was reached, or may be: in a game that starts from ``seed`` (None: from any), by these actions."""

    seed: int | None
    actions: tuple[str, ...]
    tried: bool = True  # whether somebody went it, and it led there

    def then(self, actions: tuple[str, ...]) -> Way:
        """On from there by these actions, which nobody tried."""
        return Way(self.seed, self.actions + actions, tried=False)


@dataclass(slots=True)
class Trail:
    """What an episode did so far, and where it was. Empty where nobody asks."""

    seed: int
    states: list[int] = field(default_factory=list)  # numbers that stand for them, the present one last
    places: list[str] = field(default_factory=list)  # where they are; a place has many states
    scores: list[float] = field(default_factory=list)  # in them
    actions: list[str] = field(default_factory=list)  # one less

    @property
    def paid(self) -> list[bool]:
        """Whether each action made a point."""
        return _paid(self.scores)

    @property
    def scored(self) -> int:
        """Actions until the last point was made."""
        paid = self.paid
        return next((n for n in range(len(paid), 0, -1) if paid[n - 1]), 0)


@dataclass(frozen=True, slots=True)
class _Walk:
    """A way that was gone, with what it came by. All but ``actions`` have one more."""

    seed: int
    actions: tuple[str, ...]
    states: tuple[int, ...]
    scores: tuple[float, ...]

    @property
    def way(self) -> Way:
        return Way(self.seed, self.actions)

    def better(self, than: _Walk) -> bool:
        """More points, or as many by fewer actions."""
        return (self.scores[-1], -len(self.actions)) > (than.scores[-1], -len(than.actions))

    def only(self, steps: Sequence[int]) -> _Walk:
        """These steps alone, as if they led to the same states."""
        return _Walk(
            self.seed,
            tuple(self.actions[t] for t in steps),
            (*(self.states[t] for t in steps), self.states[-1]),
            (*(self.scores[t] for t in steps), self.scores[-1]),
        )


@dataclass(slots=True)
class _Best:
    """A way to many points, up to its last one, and what it was worth to those who went it later, from other seeds."""

    walk: _Walk
    solves: bool  # the game: it has no more points than these
    total: float = 0.0  # of the scores of those who went it later
    tries: int = 0  # how many these were

    @property
    def worth(self) -> float:
        """Its mean score, the one it was found with included."""
        return (self.walk.scores[-1] + self.total) / (1 + self.tries)

    @property
    def rank(self) -> tuple[float, int]:
        """More points on average first, then fewer actions."""
        return self.worth, -len(self.walk.actions)


@dataclass(slots=True)
class _Cell:
    walk: _Walk
    place: str
    attempted: int  # actions of the shortest way that was tried
    visits: int = 0  # episodes that came by, or were sent there

    @property
    def score(self) -> float:
        return self.walk.scores[-1]


class Archive:
    """The best way to every state: with the highest score, and among these the shortest."""

    def __init__(self) -> None:
        self._cells: dict[str, dict[int, _Cell]] = {}  # by game and state
        self._best: dict[str, list[_Best]] = {}  # by game: a few ways, at most one of them not tried again yet
        self._highest: dict[str, float] = {}  # score, by game
        self._exits: dict[str, dict[str, dict[str, str]]] = {}  # by game and place: next places, and how to go

    def __len__(self) -> int:
        """States of all games."""
        return sum(map(len, self._cells.values()))

    def enter(self, game: str, trail: Trail, *, first: bool, solves: bool = False) -> None:
        """An episode came to a state on its own.

        Args:
            game: its name.
            trail: how the episode came there; kept if it is better than what is known.
            first: whether the episode had not been there before; else the visit does not count.
            solves: whether the game has no more points than were made.
        """
        cells, state, walk = self._cells.setdefault(game, {}), trail.states[-1], _walk(trail, len(trail.actions))
        cell = cells.get(state)
        if cell is None or walk.better(cell.walk):
            visits = 0 if cell is None else cell.visits
            cell = cells[state] = _Cell(walk, trail.places[-1], len(walk.actions), visits)
        cell.visits += first
        if trail.actions and trail.places[-1] != trail.places[-2]:
            exits = self._exits.setdefault(game, {}).setdefault(trail.places[-2], {})
            exits[trail.places[-1]] = trail.actions[-1]
        self._compare(game, trail, solves)

    def finish(self, game: str, trail: Trail, *, solves: bool = False) -> None:
        """An episode is over: nothing can be explored behind it, but it may have been the best one."""
        self._compare(game, trail, solves)

    def _compare(self, game: str, trail: Trail, solves: bool) -> None:
        n = trail.scored
        if not n:
            return
        score, best, ways = trail.scores[n], self._leader(game), self._best.setdefault(game, [])
        self._highest[game] = max(score, self._highest.get(game, score))
        if best is not None and (score, -n) <= best.rank:
            return
        found = _Best(_walk(trail, n), solves)
        if any(way.walk.actions == found.walk.actions for way in ways):
            return
        untried = next((way for way in ways if not way.tries), None)
        if untried is not None:
            if found.rank <= untried.rank:
                return
            ways.remove(untried)
        ways.append(found)
        if len(ways) > _WAYS:
            ways.remove(min(ways, key=lambda way: way.rank))

    def _leader(self, game: str) -> _Best | None:
        return max(self._best.get(game, ()), key=lambda way: way.rank, default=None)

    def tested(self, game: str, actions: tuple[str, ...], score: float) -> None:
        """Somebody went the best way once more, from a seed of its own, and had this score behind it.

        A way that luck has made short is worth less than it seemed: then another one leads.
        """
        for way in self._best.get(game, ()):
            if way.walk.actions == actions:
                way.total += score
                way.tries += 1

    def best(self, game: str) -> Way | None:
        """The way with the highest score on average, and the fewest actions; None where none made a point."""
        best = self._leader(game)
        return None if best is None else Way(None, best.walk.actions)

    def solved(self, game: str) -> bool:
        """Whether the best way makes every point that the game has."""
        best = self._leader(game)
        return best is not None and best.solves

    @property
    def highest_score(self) -> float | None:
        """Of any episode; None where none made a point."""
        return max(self._highest.values(), default=None)

    def shortened(self, game: str, rng: np.random.Generator) -> Way | None:
        """The best way without some of its actions, to be tried: it may lead elsewhere. None where each made a point.

        Half of the time detours are left out, if there are any: one that is drawn, and a share of the others, from none
        to all. A detour leads back to the same state without a point, as late as can be; or one of the way's states is
        drawn to which a shorter way is known. Else a few actions in a row that made no point: they may have changed
        something, and not what mattered.
        """
        best = self._leader(game)
        if best is None or all(paid := _paid(best.walk.scores)):
            return None
        walk = best.walk
        detours, joins = _detours(walk.states, paid), self._joins(game, walk)
        if (detours or joins) and rng.random() < 0.5:
            if joins and (not detours or rng.random() < 0.5):
                return Way(None, self._joined(game, walk, int(rng.choice(joins))).actions, tried=False)
            kept = _without_some(detours, len(paid), rng)
        else:
            start = int(rng.choice([t for t, made_a_point in enumerate(paid) if not made_a_point]))
            end = min(start + int(rng.geometric(0.5)), paid.index(True, start))
            kept = [*range(start), *range(end, len(paid))]
        return Way(None, walk.only(kept).actions, tried=False)

    def _joins(self, game: str, walk: _Walk) -> list[int]:
        """After how many actions the walk is in a state to which a shorter way is known, with as many points."""
        cells = self._cells.get(game, {})
        known = ((t, cells.get(state)) for t, state in enumerate(walk.states))
        return [t for t, cell in known if cell and len(cell.walk.actions) < t and cell.score >= walk.scores[t]]

    def _joined(self, game: str, walk: _Walk, t: int) -> Way:
        """The walk, from its ``t``-th state on, behind the best way to that state."""
        return self._cells[game][walk.states[t]].walk.way.then(walk.actions[t:])

    def crossed(self, game: str, rng: np.random.Generator) -> Way | None:
        """To a place on the best way, but to another of its states, and on from there as the best way goes.

        So what lies behind the points is met with other things in hand, or after other things were done. None where no
        place on the best way has another state. One of the way's steps is drawn, then one of the states of its place,
        proportional to 1 / sqrt(visits), which counts as a visit.
        """
        leader = self._leader(game)
        if leader is None:
            return None
        best, cells = leader.walk, self._cells.get(game, {})
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
        return self._way_to(game, cell).then(best.actions[t:])

    def carried(self, game: str, rng: np.random.Generator) -> Way | None:
        """To a state that is drawn, and on from there to any other place, by the shortest way on the map.

        So every place is met with other things in hand. The map has the places that some action led from one to the
        other, which may be shut now. None where the state's place is the end of the known world.
        """
        cell = self._drawn(game, rng)
        if cell is None:
            return None
        paths = self._paths(game, cell.place)
        if not paths:
            return None
        return self._way_to(game, cell).then(paths[int(rng.integers(len(paths)))])

    def _paths(self, game: str, start: str) -> list[tuple[str, ...]]:
        """The shortest way from a place to every other one."""
        exits = self._exits.get(game, {})
        paths: dict[str, tuple[str, ...]] = {start: ()}
        waiting = deque([start])
        while waiting:
            place = waiting.popleft()
            for other, action in exits.get(place, {}).items():
                if other not in paths:
                    paths[other] = (*paths[place], action)
                    waiting.append(other)
        return list(paths.values())[1:]

    def draw(self, game: str, rng: np.random.Generator) -> Way | None:
        """A way to go, which counts as a visit; None where the game was never played.

        A way with detours is given without them (not ``tried``), once: an episode has so many steps, and that one may
        lead there too. It is a detour where the way comes back to the same state without a point, and where a shorter
        way to one of its states became known.

        Each state has a weight of 1 / sqrt(visits), a place with a score the mean of its states', and a score the mean
        of its places', where a place counts for the square root of its states: a room where many things can be dropped
        is not all there is, and one with a puzzle is more than one step on a way. First a score is drawn, the n-th best
        proportional to its weight / n: most episodes begin where the points are, unless all is known there. Then one of
        its places and one of that place's states, in the same proportions.
        """
        cell = self._drawn(game, rng)
        return None if cell is None else self._way_to(game, cell)

    def _way_to(self, game: str, cell: _Cell) -> Way:
        walk = cell.walk.only(_without(_detours(cell.walk.states, _paid(cell.walk.scores)), len(cell.walk.actions)))
        cells, way = self._cells[game], walk.way
        joins = self._joins(game, walk)
        if joins:  # the latest of the best: what comes before was gone
            way = self._joined(game, walk, min(joins, key=lambda t: (len(cells[walk.states[t]].walk.actions) - t, -t)))
        if len(way.actions) >= cell.attempted:
            return cell.walk.way
        cell.attempted = len(way.actions)
        return Way(way.seed, way.actions, tried=False)

    def _drawn(self, game: str, rng: np.random.Generator) -> _Cell | None:
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
        return cell

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and lists of texts and numbers."""
        rows = [(game, cell) for game, cells in self._cells.items() for cell in cells.values()]
        ways = [(game, way) for game, found in self._best.items() for way in found]
        walks = [cell.walk for _, cell in rows] + [way.walk for _, way in ways]
        texts = _numbered(chain.from_iterable((game, cell.place) for game, cell in rows))
        actions = _numbered(chain.from_iterable(walk.actions for walk in walks))
        states = _numbered(chain.from_iterable(walk.states for walk in walks))
        points = _numbered(chain.from_iterable(walk.scores for walk in walks))
        return {
            "texts": list(texts),
            "actions": list(actions),
            "states": torch.tensor(list(states), dtype=torch.int64),
            "points": torch.tensor(list(points), dtype=torch.float64),
            "cells": torch.tensor(
                [(texts[game], texts[cell.place], cell.attempted, cell.visits) for game, cell in rows],
                dtype=torch.int64,
            ).reshape(-1, 4),
            "seeds": torch.tensor([walk.seed for walk in walks], dtype=torch.int64),
            "lengths": torch.tensor([len(walk.actions) for walk in walks], dtype=torch.int64),
            "taken": torch.tensor([actions[a] for walk in walks for a in walk.actions], dtype=torch.int32),
            "passed": torch.tensor([states[s] for walk in walks for s in walk.states], dtype=torch.int32),
            "scores": torch.tensor([points[p] for walk in walks for p in walk.scores], dtype=torch.int32),
            "best": [(game, way.solves, way.total, way.tries) for game, way in ways],
            "highest": dict(self._highest),
            "exits": {game: {a: dict(b) for a, b in exits.items()} for game, exits in self._exits.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What ``state_dict`` gave."""
        texts, actions = state["texts"], state["actions"]
        states, points = state["states"].tolist(), state["points"].tolist()
        taken, passed, scores = (iter(state[name].tolist()) for name in ("taken", "passed", "scores"))
        walks = [
            _Walk(
                seed,
                tuple(actions[next(taken)] for _ in range(length)),
                tuple(states[next(passed)] for _ in range(length + 1)),
                tuple(points[next(scores)] for _ in range(length + 1)),
            )
            for seed, length in zip(state["seeds"].tolist(), state["lengths"].tolist(), strict=True)
        ]
        self._cells = {}
        rows = state["cells"].tolist()
        for (game, place, attempted, visits), walk in zip(rows, walks, strict=False):
            cells = self._cells.setdefault(texts[game], {})
            cells[walk.states[-1]] = _Cell(walk, texts[place], attempted, visits)
        self._best, self._highest = {}, dict(state["highest"])
        for (game, solves, total, tries), walk in zip(state["best"], walks[len(rows) :], strict=True):
            self._best.setdefault(game, []).append(_Best(walk, solves, total, tries))
        self._exits = {game: {a: dict(b) for a, b in exits.items()} for game, exits in state["exits"].items()}


def _walk(trail: Trail, steps: int) -> _Walk:
    """The first steps of an episode."""
    states, scores = trail.states[: steps + 1], trail.scores[: steps + 1]
    return _Walk(trail.seed, tuple(trail.actions[:steps]), tuple(states), tuple(scores))


def _paid(scores: Sequence[float]) -> list[bool]:
    """Whether each action made a point; one less than scores."""
    return [after > before for before, after in pairwise(scores)]


def _numbered(things: Iterable[_T]) -> dict[_T, int]:
    """A number for each different one, from 0 on, in order."""
    return {thing: n for n, thing in enumerate(dict.fromkeys(things))}


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
