"""Where episodes have been, and how they got there.

For "first return, then explore" (Ecoffet et al. 2021, arXiv 2004.12919). A state that took many right actions to
reach is lost again when its episode ends, and a policy that has seen it once does not find it a second time. So the way
to every state is kept, and some episodes begin by walking one of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch

from priorzero.collect.cells import Cell, Index
from priorzero.collect.crossing import crossing
from priorzero.collect.ways import Attempt, BestWays, Trail, Walk, Way

_T = TypeVar("_T", bound=Hashable)


class Archive:
    """The best way to every state: with the highest score, and among these the shortest."""

    def __init__(self, rare_place_share: float = 0.0, carry_share: float = 0.5) -> None:
        """``rare_place_share``: of the states that are drawn, see `draw`; ``carry_share``: see `crossing`."""
        self.rare_place_share, self.carry_share = rare_place_share, carry_share
        self._cells: dict[str, dict[int, Cell]] = {}  # by game and state
        self._best: dict[str, BestWays] = {}  # by game
        self._index: dict[str, Index] = {}  # by game, of what was drawn from

    def __len__(self) -> int:
        """States of all games."""
        return sum(map(len, self._cells.values()))

    def enter(self, game: str, trail: Trail, *, counts: bool, solves: bool = False) -> None:
        """An episode came to a state, on a way that nobody may have gone yet.

        Args:
            game: its name.
            trail: how the episode came there; kept if it is better than what is known.
            counts: whether it is a visit: the episode had not been there before, and decides for itself what it does
                there, or passes by where `NoveltyConfig.count_passing` has that counted.
            solves: whether the game has no more points than were made.
        """
        cells, state, walk = self._cells.setdefault(game, {}), trail.states[-1], trail.walk(len(trail.actions))
        cell = cells.get(state)
        if cell is None or walk.rank > cell.walk.rank:
            visits, joined = (0, 0) if cell is None else (cell.visits, cell.joined)
            if cell is not None and (cell.place, cell.things) != (trail.places[-1], trail.things):
                self._index.pop(game, None)  # where states are told by less than that
            here, steps = trail.places[-1], len(walk.actions)
            cell = cells[state] = Cell(walk, here, trail.things, trail.made, steps, visits, joined)
        cell.visits += counts
        self.finish(game, trail, solves=solves)

    def finish(self, game: str, trail: Trail, *, solves: bool = False) -> None:
        """An episode is over: nothing can be explored behind it, but it may have been the best one."""
        self._best.setdefault(game, BestWays()).compare(trail, solves=solves)

    def tested(self, game: str, actions: tuple[str, ...], score: float) -> None:
        """Somebody went the best way once more, from a seed of its own, and had this score behind it."""
        self._best[game].tested(actions, score)

    def _leader(self, game: str) -> Attempt | None:
        return self._best[game].leader if game in self._best else None

    def best(self, game: str, rng: np.random.Generator) -> Way | None:
        """The way with the highest score on average, and the fewest actions; None where none made a point.

        Half of the time that with the highest score of all, from its own seed, where that is higher: what depends on
        chance has a low mean, and is shown where it happens.
        """
        best = self._model(game, rng)
        return None if best is None else Way(best[0], best[1].actions)

    def ask(self, game: str) -> None:
        """An episode is to go the best way, if there is one, or to shorten it."""
        leader = self._leader(game)
        if leader is not None:
            leader.asked += 1

    def newness(self, game: str, episodes: int) -> float:
        """From 1, where the best way was just found, to 0, where so many episodes asked for it, or there is none."""
        leader = self._leader(game)
        return 0.0 if leader is None else max(1 - leader.asked / episodes, 0.0)

    def _model(self, game: str, rng: np.random.Generator) -> tuple[int | None, Walk] | None:
        """What is imitated or shortened, and the seed that it makes its points in, see `best`."""
        leader = self._leader(game)
        if leader is None:
            return None
        luckiest = self._best[game].luckiest
        if luckiest is not None and luckiest.scores[-1] > leader.worth and rng.random() < 0.5:
            return luckiest.seed, luckiest
        return None, leader.walk

    def solved(self, game: str) -> bool:
        """Whether the best way makes every point that the game has, whenever somebody went it."""
        best = self._leader(game)
        return best is not None and best.solves and best.worth >= best.walk.scores[-1]

    @property
    def highest_score(self) -> float | None:
        """Of any episode; None where none made a point."""
        return max((ways.luckiest.scores[-1] for ways in self._best.values() if ways.luckiest), default=None)

    def shortened(self, game: str, rng: np.random.Generator) -> Way | None:
        """What `best` gives, without some of its actions, to be tried from any seed. None where each made a point.

        Half of the time detours are left out, if there are any: one that is drawn, and a share of the others, from none
        to all. A detour leads back to the same state without a point, as late as can be; or one of the way's states is
        drawn to which a shorter way is known. Else a few actions in a row that made no point: they may have changed
        something, and not what mattered.
        """
        best = self._model(game, rng)
        if best is None or all(best[1].paid):
            return None
        walk = best[1]
        detours, joins = walk.detours, self._joins(game, walk)
        if (detours or joins) and rng.random() < 0.5:
            if joins and (not detours or rng.random() < 0.5):
                return Way(None, self._joined(game, walk, int(rng.choice(joins))).actions, tried=False)
            return Way(None, walk.without_some(detours, rng).actions, tried=False)
        return Way(None, walk.without_a_few(rng).actions, tried=False)

    def _joins(self, game: str, walk: Walk) -> list[int]:
        """After how many actions the walk is in a state to which a shorter way is known, with as many points."""
        cells = self._cells.get(game, {})
        known = ((t, cells.get(state)) for t, state in enumerate(walk.states))
        return [t for t, cell in known if cell and len(cell.walk.actions) < t and cell.score >= walk.scores[t]]

    def _joined(self, game: str, walk: Walk, t: int) -> Way:
        """The walk, from its ``t``-th state on, behind the best way to that state."""
        return self._cells[game][walk.states[t]].walk.way.then(walk.actions[t:])

    def crossed(self, game: str, rng: np.random.Generator) -> Way | None:
        """A way is gone from another state of one of its places, see `crossing`. Counts against joining it there."""
        found = crossing(self._cells.get(game, {}), self.carry_share, rng)
        if found is None:
            return None
        cell, rest = found
        cell.joined += 1
        return self._way_to(game, cell, rng).then(rest)

    def draw(self, game: str, rng: np.random.Generator) -> Way | None:
        """A way to go, which counts as a visit; None where the game was never played.

        A way with detours is given without them (not ``tried``), once, and later half of the time without some of them:
        an episode has so many steps, and that one may lead there too. It is a detour where the way comes back to the
        same state without a point, and where a shorter way to one of its states became known (that is tried once).

        Each state has a weight of 1 / sqrt(visits), a place with a score the mean of its states', and a score the mean
        of its places', where a place counts for the square root of its states: a room where many things can be dropped
        is not all there is, and one with a puzzle is more than one step on a way. First a score is drawn, the n-th best
        proportional to its weight / n: most episodes begin where the points are, unless all is known there. Then one of
        its places and one of that place's states, in the same proportions.

        A share of ``rare_place_share`` is drawn without regard to points: one of the things that were ever carried, or
        none, proportional to 1 / the visits of the states with it, then one of the places where it was, likewise, and
        one of its states there, proportional to 1 / sqrt(visits). So what was found last is soon gone back to, and what
        was brought farthest.
        """
        cell = self._drawn(game, rng)
        return None if cell is None else self._way_to(game, cell, rng)

    def _way_to(self, game: str, cell: Cell, rng: np.random.Generator) -> Way:
        """Its way, or a shorter one that may lead there too: the shortest once, later half of the time another."""
        detours = cell.walk.detours
        walk = cell.walk.without(detours)
        cells, way = self._cells[game], walk.way
        joins = self._joins(game, walk)
        if joins:  # the latest of the best: what comes before was gone
            way = self._joined(game, walk, min(joins, key=lambda t: (len(cells[walk.states[t]].walk.actions) - t, -t)))
        if len(way.actions) >= cell.attempted:
            if detours and rng.random() < 0.5:
                return Way(cell.walk.seed, cell.walk.without_some(detours, rng).actions, tried=False)
            return cell.walk.way
        cell.attempted = len(way.actions)
        return Way(way.seed, way.actions, tried=False)

    def _drawn(self, game: str, rng: np.random.Generator) -> Cell | None:
        """As `draw` says."""
        cells = list(self._cells.get(game, {}).values())
        if not cells:
            return None
        index = self._index.setdefault(game, Index())
        index.extend(cells)
        by_thing = self.rare_place_share and rng.random() < self.rare_place_share
        weight = index.by_thing(cells) if by_thing else index.by_score(cells)
        cell = cells[int(rng.choice(len(cells), p=weight / weight.sum()))]
        cell.visits += 1
        return cell

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and lists of texts and numbers."""
        rows = [(game, cell) for game, cells in self._cells.items() for cell in cells.values()]
        attempts = [(game, attempt) for game, ways in self._best.items() for attempt in ways.attempts]
        luckiest = {game: ways.luckiest for game, ways in self._best.items() if ways.luckiest is not None}
        walks = [cell.walk for _, cell in rows] + [attempt.walk for _, attempt in attempts] + [*luckiest.values()]
        texts = _numbered(chain.from_iterable((game, cell.place) for game, cell in rows))
        things = _numbered(cell.things for _, cell in rows)
        made = _numbered(cell.made for _, cell in rows)
        actions = _numbered(chain.from_iterable(walk.actions for walk in walks))
        states = _numbered(chain.from_iterable(walk.states for walk in walks))
        points = _numbered(chain.from_iterable(walk.scores for walk in walks))
        return {
            "texts": list(texts),
            "things": list(things),
            "made": list(made),
            "actions": list(actions),
            "states": torch.tensor(list(states), dtype=torch.int64),
            "points": torch.tensor(list(points), dtype=torch.float64),
            "cells": torch.tensor(
                [(texts[g], texts[c.place], things[c.things], made[c.made], *c.counts) for g, c in rows],
                dtype=torch.int64,
            ).reshape(-1, 7),
            "seeds": torch.tensor([walk.seed for walk in walks], dtype=torch.int64),
            "lengths": torch.tensor([len(walk.actions) for walk in walks], dtype=torch.int64),
            "taken": torch.tensor([actions[a] for walk in walks for a in walk.actions], dtype=torch.int32),
            "passed": torch.tensor([states[s] for walk in walks for s in walk.states], dtype=torch.int32),
            "scores": torch.tensor([points[p] for walk in walks for p in walk.scores], dtype=torch.int32),
            "attempts": [(game, way.solves, way.total, way.tries, way.asked) for game, way in attempts],
            "luckiest": list(luckiest),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What ``state_dict`` gave."""
        texts, actions = state["texts"], state["actions"]
        states, points = state["states"].tolist(), state["points"].tolist()
        taken, passed, scores = (iter(state[name].tolist()) for name in ("taken", "passed", "scores"))
        walks = [
            Walk(
                seed,
                tuple(actions[next(taken)] for _ in range(length)),
                tuple(states[next(passed)] for _ in range(length + 1)),
                tuple(points[next(scores)] for _ in range(length + 1)),
            )
            for seed, length in zip(state["seeds"].tolist(), state["lengths"].tolist(), strict=True)
        ]
        self._cells, self._index = {}, {}
        rows = state["cells"].tolist()
        for (game, place, carried, made, *counts), walk in zip(rows, walks, strict=False):
            cell = Cell(walk, texts[place], state["things"][carried], state["made"][made], *counts)
            self._cells.setdefault(texts[game], {})[walk.states[-1]] = cell
        best = walks[len(rows) :]
        self._best = {game: BestWays() for game in state["luckiest"]}
        for (game, *counts), walk in zip(state["attempts"], best, strict=False):
            self._best[game].attempts.append(Attempt(walk, *counts))
        for game, walk in zip(state["luckiest"], best[len(state["attempts"]) :], strict=True):
            self._best[game].luckiest = walk


def _numbered(things: Iterable[_T]) -> dict[_T, int]:
    """A number for each different one, from 0 on, in order."""
    return {thing: n for n, thing in enumerate(dict.fromkeys(things))}
