"""Ways through a game: what an episode did, what of it is worth keeping, and how it gets shorter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

_COMPARED = 8  # ways to a game's points


def place(name: str, number: str) -> str:
    """Of a room: what it is called and its number in a story file; where it is dark all are called alike."""
    return f"{name}\n{number}"


def room(place: str) -> str:
    """The same in the dark as by light: its number, or what it is called where it has none."""
    name, _, number = place.partition("\n")
    return number or name


def names(things: Iterable[str]) -> set[str]:
    """Of what is carried, in any condition."""
    return {thing.partition("\n")[0] for thing in things}


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
    things: tuple[str, ...] = ()  # what is carried now, see `Step.carried`

    @property
    def scored(self) -> int:
        """Actions until the last point was made."""
        return next((n for n in range(len(self.actions), 0, -1) if self.scores[n] > self.scores[n - 1]), 0)

    @property
    def made(self) -> tuple[str, ...]:
        """In which room and by what each point was made, in order."""
        steps = zip(self.places, self.actions, pairwise(self.scores), strict=False)
        return tuple(f"{room(at)}: {action}" for at, action, (before, after) in steps if after > before)

    def walk(self, steps: int) -> Walk:
        """Its first steps, to be kept."""
        states, scores = tuple(self.states[: steps + 1]), tuple(self.scores[: steps + 1])
        return Walk(self.seed, tuple(self.actions[:steps]), states, scores)


@dataclass(frozen=True, slots=True)
class Walk:
    """A way that was gone, with what it came by: states and scores, one more than actions."""

    seed: int
    actions: tuple[str, ...]
    states: tuple[int, ...]
    scores: tuple[float, ...]

    @property
    def way(self) -> Way:
        """As an episode is to go it."""
        return Way(self.seed, self.actions)

    @property
    def rank(self) -> tuple[float, int]:
        """More points first, then fewer actions."""
        return self.scores[-1], -len(self.actions)

    @property
    def paid(self) -> list[bool]:
        """Whether each action made a point."""
        return [after > before for before, after in pairwise(self.scores)]

    def only(self, steps: Sequence[int]) -> Walk:
        """These steps alone, as if they led to the same states."""
        return Walk(
            self.seed,
            tuple(self.actions[t] for t in steps),
            (*(self.states[t] for t in steps), self.states[-1]),
            (*(self.scores[t] for t in steps), self.scores[-1]),
        )

    @property
    def detours(self) -> dict[int, int]:
        """From start to end, the steps that could be left out: the state before and behind them is the same.

        A detour makes no point, and ends as late as can be.
        """
        found: dict[int, int] = {}
        last: dict[int, int] = {}
        paid = self.paid
        for t in range(len(paid), -1, -1):
            if t < len(paid) and paid[t]:
                last.clear()
            if last.setdefault(self.states[t], t) > t:
                found[t] = last[self.states[t]]
        return found

    def without(self, detours: dict[int, int]) -> Walk:
        """It leaves out all of these."""
        kept, at = [], 0
        while at < len(self.actions):
            if at in detours:
                at = detours[at]
            else:
                kept.append(at)
                at += 1
        return self.only(kept)

    def without_some(self, detours: dict[int, int], rng: np.random.Generator) -> Walk:
        """It leaves out one of these that is drawn, and a share of the others, from none to all."""
        sure, share = int(rng.choice(list(detours))), rng.random()
        left_out = {start: end for start, end in detours.items() if start == sure or rng.random() < share}
        # which must not leave out the step where the sure one begins
        return self.without({start: end for start, end in left_out.items() if not start < sure < end})

    def without_a_few(self, rng: np.random.Generator) -> Walk:
        """It leaves out a few actions in a row that made no point; there must be one."""
        paid = self.paid
        start = int(rng.choice([t for t, made_a_point in enumerate(paid) if not made_a_point]))
        end = min(start + int(rng.geometric(0.5)), paid.index(True, start))
        return self.only([*range(start), *range(end, len(paid))])


@dataclass(slots=True)
class Attempt:
    """A way to many points, up to its last one, and what it was worth to those who went it later."""

    walk: Walk
    solves: bool  # the game: it has no more points than these
    total: float = 0.0  # of the scores of those who went it later
    tries: int = 0  # how many these were
    asked: int = 0  # episodes that were to go it, or to shorten it, while it was the best

    @property
    def worth(self) -> float:
        """Its mean score, the one it was found with included."""
        return (self.walk.scores[-1] + self.total) / (1 + self.tries)

    @property
    def rank(self) -> tuple[float, int]:
        """More points on average first, then fewer actions."""
        return self.worth, -len(self.walk.actions)


class BestWays:
    """A few ways to a game's points, compared by what they make on average.

    In a fight the shortest way is that of a seed where one blow is enough. So those who go the best way again start
    from seeds of their own, and a way that luck has made short is worth less than it seemed.
    """

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []  # at most one that nobody went again yet
        self.luckiest: Walk | None = None  # with the highest score of any episode, and then the fewest actions

    @property
    def leader(self) -> Attempt | None:
        """The one with the highest score on average, and the fewest actions; None where no point was made."""
        return max(self.attempts, key=lambda attempt: attempt.rank, default=None)

    def compare(self, trail: Trail, *, solves: bool) -> None:
        """Keep the trail's way to its last point if it seems better than all others.

        Args:
            trail: of an episode.
            solves: whether the game has no more points than it made.
        """
        n = trail.scored
        if not n:
            return
        leader, found = self.leader, Attempt(trail.walk(n), solves)
        if self.luckiest is None or found.walk.rank > self.luckiest.rank:
            self.luckiest = found.walk
        if leader is not None and found.rank <= leader.rank:
            return
        if any(attempt.walk.actions == found.walk.actions for attempt in self.attempts):
            return
        untried = next((attempt for attempt in self.attempts if not attempt.tries), None)
        if untried is not None:
            if found.rank <= untried.rank:
                return
            self.attempts.remove(untried)
        self.attempts.append(found)
        if len(self.attempts) > _COMPARED:
            self.attempts.remove(min(self.attempts, key=lambda attempt: attempt.rank))

    def tested(self, actions: tuple[str, ...], score: float) -> None:
        """Somebody went this way once more, and had this score behind it."""
        for attempt in self.attempts:
            if attempt.walk.actions == actions:
                attempt.total += score
                attempt.tries += 1
