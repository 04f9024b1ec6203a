"""Ways to two points become one way to both.

What makes a point may need things that no way to another point comes by. So a way is gone once more, to a point that
was never made together with the others, with what these take in hand, or behind one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from priorzero.collect.cells import Cell, ranked, rare, short

_T = TypeVar("_T")


def crossing(cells: Mapping[int, Cell], rng: np.random.Generator) -> tuple[Cell, tuple[str, ...]] | None:
    """Where to go, and how to go on from there: as the way to a point does from another state of one of its places.

    The point and another one are drawn by `pair`. Half of the time the other is still to come, and the state has one of
    the things in hand that it takes and the point does not; half of the time it is made already, and the state has one
    of the things that the point takes and the other does not. Where there is no such thing, any will do. A point takes
    what was in hand whenever it was made. The point itself is still to be made, and half of the time the state has all
    that was in hand when the way came by, else what of it the point takes: ways carry more than they need.

    Args:
        cells: all that is known of a game, by their states.
        rng: draws the points, the thing, a step of the way where there are such states, and a rare one of them.

    Returns:
        The state, and the rest of the way; None where no such state is known, or one way made all known points.
    """
    known = right_behind(cells.values())
    drawn = pair(known, together(cells.values()), rng)
    if drawn is None:
        return None
    point, goal, made = drawn
    takes, else_takes = _taken(cells, known[point]), _taken(cells, known[made])
    behind, everything = rng.random(2) < 0.5
    things = sorted(takes - else_takes if behind else else_takes - takes)
    needed = {_any(things, rng)} if things else set()
    passed: dict[str, list[tuple[int, set[str]]]] = {}  # each place of the way: when, and with what in hand
    for t, state in enumerate(goal.walk.states[:-1]):
        if state in cells:
            hand = set(cells[state].things)
            passed.setdefault(cells[state].place, []).append((t, needed | (hand if everything else hand & takes)))
    found: dict[int, list[Cell]] = {}
    states = set(goal.walk.states)
    for state, cell in cells.items():
        if cell.place not in passed or state in states or point in cell.made or (behind and made not in cell.made):
            continue
        for t, hand in passed[cell.place]:
            if hand.issubset(cell.things):
                found.setdefault(t, []).append(cell)
    if not found:
        return None
    t = _any(sorted(found), rng)
    return rare(found[t], rng), goal.walk.actions[t:]


def pair(
    known: Mapping[str, Sequence[Cell]], sets: Sequence[frozenset[str]], rng: np.random.Generator
) -> tuple[str, Cell, str] | None:
    """A point and a state right behind it, and another point, with all of whose set nobody made the first.

    Args:
        known: see `right_behind`.
        sets: of points that ways made, see `together`. One is drawn, the n-th proportional to 1 / n. The first point is
            not in it; the other is, and the way to the first did not make it.
        rng: draws these, and of the ways to the first point that with the n-th fewest actions proportional to 1 / n.

    Returns:
        None where one way made all points.
    """
    sets = [points for points in sets if not known.keys() <= points]
    if not sets:
        return None
    points = sets[ranked(len(sets), rng)]
    first = _any([point for point in known if point not in points], rng)
    goal = short(known[first], rng)
    others = [point for point in known if point in points and point not in goal.made]
    return (first, goal, _any(others, rng)) if others else None


def right_behind(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Of each point, the states that the way to it ends in."""
    known: dict[str, list[Cell]] = {}
    for cell in cells:
        point = cell.point
        if point is not None:
            known.setdefault(point, []).append(cell)
    return known


def together(cells: Iterable[Cell]) -> list[frozenset[str]]:
    """The sets of points that ways made, those that are no part of another one, the highest score first."""
    scores: dict[tuple[str, ...], float] = {}
    for cell in cells:
        scores[cell.made] = max(cell.score, scores.get(cell.made, cell.score))
    best: dict[frozenset[str], float] = {}
    for made, score in scores.items():
        points = frozenset(made)
        best[points] = max(score, best.get(points, score))
    found: list[frozenset[str]] = []
    for points in sorted(best, key=len, reverse=True):
        if not any(points < more for more in found):
            found.append(points)
    return sorted(found, key=best.__getitem__, reverse=True)


def _taken(cells: Mapping[int, Cell], behind: Iterable[Cell]) -> set[str]:
    """What was in hand, one action before, on every way to a point."""
    before = (cells.get(cell.walk.states[-2]) for cell in behind)
    hands = [set(cell.things) for cell in before if cell is not None]
    return set.intersection(*hands) if hands else set()


def _any(things: Sequence[_T], rng: np.random.Generator) -> _T:
    return things[int(rng.integers(len(things)))]
