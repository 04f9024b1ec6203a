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
    the things in hand that it was made with and the point was not; half of the time it is made already, and the state
    has one of the things that the point was made with and the other was not. Where there is no such thing, any will do.
    The point itself is still to be made, and the state has all that was in hand when the way came by.

    Args:
        cells: all that is known of a game, by their states.
        rng: draws the points, the thing, a step of the way where there are such states, and a rare one of them.

    Returns:
        The state, and the rest of the way; None where no such state is known, or one way made all known points.
    """
    drawn = pair(cells.values(), rng)
    if drawn is None:
        return None
    goal, other = drawn
    behind, states = rng.random() < 0.5, set(goal.walk.states)
    takes, else_takes = _in_hand(cells, goal), _in_hand(cells, other)
    things = sorted(takes - else_takes if behind else else_takes - takes)
    needed = {_any(things, rng)} if things else set()
    passed: dict[str, list[tuple[int, set[str]]]] = {}  # each place of the way: when, and with what in hand
    for t, state in enumerate(goal.walk.states[:-1]):
        if state in cells:
            passed.setdefault(cells[state].place, []).append((t, needed.union(cells[state].things)))
    found: dict[int, list[Cell]] = {}
    for state, cell in cells.items():
        if state in states or goal.point in cell.made or (behind and other.point not in cell.made):
            continue
        for t, hand in passed.get(cell.place, ()):
            if hand.issubset(cell.things):
                found.setdefault(t, []).append(cell)
    if not found:
        return None
    t = _any(sorted(found), rng)
    return rare(found[t], rng), goal.walk.actions[t:]


def pair(cells: Iterable[Cell], rng: np.random.Generator) -> tuple[Cell, Cell] | None:
    """States right behind two points, the first of which nobody made with all that were made with the second.

    Of the sets of points that ways made together, see `together`, one is drawn, that with the n-th highest score
    proportional to 1 / n. The first point is not in it; the second is, and the way to the first did not make it. Of the
    ways to a point that with the n-th fewest actions is drawn proportional to 1 / n. None where one way made them all.
    """
    cells = list(cells)
    known: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.point is not None:
            known.setdefault(cell.point, []).append(cell)
    sets = [points for points in together(cells) if not known.keys() <= points]
    if not sets:
        return None
    points = sets[ranked(len(sets), rng)]
    first = short(known[_any([point for point in known if point not in points], rng)], rng)
    others = [point for point in known if point in points and point not in first.made]
    return (first, short(known[_any(others, rng)], rng)) if others else None


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


def _in_hand(cells: Mapping[int, Cell], cell: Cell) -> set[str]:
    """What the point was made with: the things that were carried one action before."""
    before = cells.get(cell.walk.states[-2])
    return set() if before is None else set(before.things)


def _any(things: Sequence[_T], rng: np.random.Generator) -> _T:
    return things[int(rng.integers(len(things)))]
