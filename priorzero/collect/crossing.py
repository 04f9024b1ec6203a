"""Ways that were gone apart become one way.

What makes a point may need things that no way to another point comes by, and what can be done in a place may need one
that never was there. So a way is gone once more from another state of one of its places: to a point that was never made
together with the others, with what these take in hand, or behind one of them; or to a place, with a thing that rarely
was there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from priorzero.collect.cells import Cell, ranked, rarely_joined, short
from priorzero.collect.ways import names

_DRAWS = 8  # of a thing, a place and a way there: most find no state to go on from

_T = TypeVar("_T")
Crossing = tuple[Cell, tuple[str, ...]]  # where to go, and how to go on from there: the rest of another way


def crossing(cells: Mapping[int, Cell], carry_share: float, rng: np.random.Generator) -> Crossing | None:
    """For this share `with_a_thing`, else `to_a_point`; the other one where that finds nothing, if it has a share.

    Args:
        cells: all that is known of a game, by their states.
        carry_share: from 0 to 1.
        rng: draws everything.
    """
    ways = ((with_a_thing, carry_share), (to_a_point, 1 - carry_share))
    for way, share in ways if rng.random() < carry_share else ways[::-1]:
        found = way(cells, rng) if share else None
        if found is not None:
            return found
    return None


def to_a_point(cells: Mapping[int, Cell], rng: np.random.Generator) -> Crossing | None:
    """On from another state of one of its places as the way to a point does.

    The point and another one are drawn by `pair`. Half of the time the other is still to come, and the state has one of
    the things in hand that it takes and the point does not; half of the time it is made already, and the state has one
    of the things that the point takes and the other does not. Where there is no such thing, any will do. A point takes
    what was in hand whenever it was made. The point itself is still to be made, and half of the time the state has all
    that was in hand when the way came by, else what of it the point takes: ways carry more than they need.

    Returns:
        None where no such state is known, or one way made all known points.
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
    return _joined(
        cells,
        goal,
        lambda hand: needed | (hand if everything else hand & takes),
        lambda cell: point not in cell.made and (not behind or made in cell.made),
        rng,
    )


def with_a_thing(cells: Mapping[int, Cell], rng: np.random.Generator) -> Crossing | None:
    """On from another state of one of its places as the way to a place does, with one thing more in hand.

    A thing is drawn proportional to 1 / the visits and joined ways of the states with it, a place to 1 / (1 + those of
    its states with that thing), and of the ways there without it that with the n-th fewest actions proportional to
    1 / n. The state has all that was in hand when the way came by, in any condition, and the thing: a match that burns
    is another one.

    Returns:
        None where no such state is known for any of a few draws.
    """
    places: dict[str, list[Cell]] = {}
    carried: dict[str, dict[str, int]] = {}  # by thing and place: visits and joined ways of the states with it
    for cell in cells.values():
        places.setdefault(cell.place, []).append(cell)
        for thing in cell.things:
            count = carried.setdefault(thing, {})
            count[cell.place] = count.get(cell.place, 0) + max(cell.visits + cell.joined, 1)
    if not carried:
        return None
    rarity = {thing: 1 / sum(count.values()) for thing, count in carried.items()}
    for _ in range(_DRAWS):
        thing = _weighted(rarity, rng)
        place = _weighted({place: 1 / (1 + carried[thing].get(place, 0)) for place in places}, rng)
        without = [cell for cell in places[place] if thing not in cell.things]
        if without:
            found = _joined(cells, short(without, rng), {thing}.union, lambda _: True, rng)
            if found is not None:
                return found
    return None


def _joined(
    cells: Mapping[int, Cell],
    goal: Cell,
    needs: Callable[[set[str]], set[str]],
    fits: Callable[[Cell], bool],
    rng: np.random.Generator,
) -> Crossing | None:
    """A state in a place of the way to the goal that is none of its own, and how that way goes on from there.

    Args:
        cells: see `crossing`.
        goal: where the way leads.
        needs: what the state has in hand at least, where that was in hand when the way came by.
        fits: what else is asked of it.
        rng: draws a step of the way where there are such states, and a rare one of them.
    """
    passed: dict[str, list[tuple[int, set[str]]]] = {}  # each place of the way: when, and what is needed in hand
    for t, state in enumerate(goal.walk.states[:-1]):
        if state in cells:
            passed.setdefault(cells[state].place, []).append((t, needs(names(cells[state].things))))
    found: dict[int, list[Cell]] = {}
    states = set(goal.walk.states)
    for state, cell in cells.items():
        if cell.place in passed and state not in states and fits(cell):
            have = names(cell.things).union(cell.things)
            for t, hand in passed[cell.place]:
                if hand <= have:
                    found.setdefault(t, []).append(cell)
    if not found:
        return None
    t = _any(sorted(found), rng)
    return rarely_joined(found[t], rng), goal.walk.actions[t:]


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
    hands = [names(cell.things) for cell in before if cell is not None]
    return set.intersection(*hands) if hands else set()


def _any(things: Sequence[_T], rng: np.random.Generator) -> _T:
    return things[int(rng.integers(len(things)))]


def _weighted(weights: Mapping[_T, float], rng: np.random.Generator) -> _T:
    share = np.array(list(weights.values()))
    return list(weights)[int(rng.choice(len(share), p=share / share.sum()))]
