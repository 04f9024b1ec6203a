"""Count-based exploration, as collection adds it to what the search decides.

For games whose points lie many right actions apart. A state that was rarely entered is rewarded (Bellemare et al. 2016,
arXiv 1606.01868), once an episode (as in Raileanu and Rocktaeschel 2020, arXiv 2002.12292); a share of the steps takes
the action that was taken least often in that place, whatever the search says; and a share of the episodes first goes
back to a state that was reached before (see `archive`). A state is what `NoveltyConfig.of` shows of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch

from priorzero.collect.archive import Archive
from priorzero.collect.atlas import Atlas
from priorzero.collect.ways import Trail, Way, names, place
from priorzero.types import Observation, Step

TOLD = ("room", "objects")  # what a `Step` tells beside the observation, and the agent does not see
Kind = Literal["return", "imitate", "trial"]
ReturnPolicy = Literal["own", "random", "errands"]


@dataclass(frozen=True, kw_only=True)
class NoveltyConfig:
    """What is new, and what is done about it.

    Raises:
        ValueError: a negative weight, a share that is none, or nothing to tell states by.
    """

    weight: float  # points for a state that was never entered; 0: none
    try_share: float  # of the steps that take the action that was taken least often in their place
    return_share: float  # of the episodes that begin by going back to a state, preferably a rare one with a high score
    return_policy: ReturnPolicy  # who plays on from there: the collector's policy, random actions, or `Novelty.wander`
    return_try_share: float  # ``try_share`` of an episode that went back, once it is there
    imitate_share: float  # of these, go the best way that is known, a policy target, or try to shorten it
    imitate_first: int  # where that way is new all do, then fewer, until so many episodes have and it is imitate_share
    cross_share: float  # of these, go a way from another state of one of its places, see `crossing`
    carry_share: float  # of these, with one thing more in hand; the others to a point
    rare_place_share: float  # of the states to go back to, drawn where fewest were, whatever the score
    count_passing: bool  # as visits, the states that a way leads past that nobody went yet
    of: Sequence[str]  # what tells states apart: parts of the observation, and what is `TOLD`

    def __post_init__(self) -> None:
        parts = (*Observation._fields, *TOLD)
        ways = (self.imitate_share, self.cross_share, round(self.imitate_share + self.cross_share, 9))
        shares = (
            self.try_share,
            self.return_share,
            self.return_try_share,
            self.rare_place_share,
            self.carry_share,
            *ways,
        )
        fits = self.weight >= 0 and self.imitate_first >= 0 and all(0 <= share <= 1 for share in shares)
        fits = fits and self.return_policy in get_args(ReturnPolicy)
        if not fits or not self.of or not set(self.of) <= set(parts):
            raise ValueError(
                f"collector.novelty is {self}: weight and imitate_first must not be negative, try_share, return_share, "
                "return_try_share, rare_place_share, carry_share, imitate_share, cross_share and the sum of the last "
                f"two lie between 0 and 1, return_policy is one of {', '.join(get_args(ReturnPolicy))}, and `of` names "
                f"one or more of {', '.join(parts)}"
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """How an episode begins: by these actions, in a game that starts from ``seed``, or from any where that is None.

    ``return``: to a state, to go on from there. ``imitate``: the best way that is known, a policy target (imitation
    after exploration: Madotto et al. 2020, arXiv 2001.08868). ``trial``: a way that nobody went yet, see
    `Archive.shortened` and `Archive.crossed`: what comes of it is new. The last two leave out actions that are not
    valid.
    """

    seed: int | None
    actions: tuple[str, ...]
    kind: Kind
    imitates: tuple[str, ...] = ()  # the way that is tried once more, in full

    def without_invalid(self, steps: int, valid: Sequence[str]) -> Plan:
        """The plan, where the first ``steps`` actions were played, without those before the next one in ``valid``."""
        later = range(steps, len(self.actions))
        start = next((n for n in later if self.actions[n] in valid), len(self.actions))
        return self if start <= steps else replace(self, actions=self.actions[:steps] + self.actions[start:])


class Novelty:
    """How often each state was entered, each action taken in its place, and how to get there, over all episodes."""

    def __init__(self, config: NoveltyConfig) -> None:
        self.config = config
        self._entered: dict[int, int] = {}  # by state
        self._taken: dict[int, int] = {}  # by place and action; with errands also by each thing in hand
        # these two are empty where no episode goes back
        self.archive = Archive(config.rare_place_share, config.carry_share)
        self.atlas = Atlas()

    def __len__(self) -> int:
        """States that were entered; counted only where they are rewarded or gone back to."""
        return max(len(self._entered), len(self.archive))

    def begin(self, game: str, rng: np.random.Generator) -> Plan | None:
        """How the next episode of the game begins; None where it begins as ever.

        Where a way is known that always makes all of the game's points, all that would go back imitate or shorten it,
        and nearly all where the best way is new.

        Args:
            game: its name.
            rng: not asked where ``return_share`` is 0.
        """
        if not self.config.return_share or rng.random() >= self.config.return_share:
            return None
        share, archive = rng.random(), self.archive
        imitate = self._imitate_share(game)
        kind: Kind = "imitate" if share < imitate else "return"
        way: Way | None = None
        if kind == "imitate":
            archive.ask(game)
            way = archive.shortened(game, rng) if rng.random() < 0.5 else None
            way = way or archive.best(game, rng)
        elif share < imitate + self.config.cross_share:
            way = archive.crossed(game, rng)
        if kind == "return" and way is None:
            way = archive.draw(game, rng)
        if way is None:
            return None
        kind = kind if way.tried else "trial"
        return Plan(way.seed, way.actions, kind, way.actions if kind == "imitate" and way.seed is None else ())

    def _imitate_share(self, game: str) -> float:
        """Now: 1 where the best way was just found or nothing is left to find, else what the configuration says."""
        share, first = self.config.imitate_share, self.config.imitate_first
        if share and self.archive.solved(game):
            return 1.0
        new = self.archive.newness(game, first) if share and first else 0.0
        return share + (1 - share) * new

    def finish(self, game: str, trail: Trail, plan: Plan) -> None:
        """An episode with this plan is over: what was imitated is worth the score that it led to."""
        if plan.imitates:
            self.archive.tested(game, plan.imitates, trail.scores[min(len(plan.actions), len(trail.actions))])

    def choose(self, step: Step, index: int, rng: np.random.Generator, *, went_back: bool = False) -> int:
        """The action to take in ``step``: that of ``index``, or for a share of the steps the rarest of its place.

        Where things can be dropped and taken, nearly every state is new, and all its actions are. In a place that is
        known, what is rare is what could not be done before.

        Args:
            step: where to act.
            index: of its valid actions, what the policy chose.
            rng: decides which steps, and between equally rare actions; not asked where nothing of this is configured.
            went_back: whether the episode began by going back to a state. If it runs errands then, it first takes what
                was never taken in the place, then what never was with one of the things in hand.
        """
        share = self.config.return_try_share if went_back else self.config.try_share
        errands = self.config.return_policy == "errands"
        if not (self.config.try_share or (self.config.return_share and (self.config.return_try_share or errands))):
            return index
        held = [(thing,) for thing in _held(step)] if errands else []
        here = _place(step)
        keys = [[_deed(step.game, here, action, *thing) for thing in ((), *held)] for action in step.valid_actions]
        taken = np.array([[self._taken.get(key, 0) for key in row] for row in keys])
        ever = taken[:, 0]  # with anything in hand, or nothing
        if went_back and errands and not taken.min():
            index = int(rng.choice(np.flatnonzero(ever == 0 if not ever.min() else taken.min(1) == 0)))
        elif rng.random() < share:
            index = int(rng.choice(np.flatnonzero(ever == ever.min())))
        for key in keys[index]:
            self._taken[key] = self._taken.get(key, 0) + 1
        return index

    def wander(self, step: Step, errand: str, rng: np.random.Generator) -> tuple[int, str]:
        """How an episode plays on that went back, and does not ask its policy.

        Args:
            step: where to act.
            errand: the place that it is going to, if any.
            rng: decides.

        Returns:
            Of the valid actions one at random, or the next one on an errand: to carry what one has to a place where it
            rarely was, see `Atlas.errand`; and the errand, empty where there is none.
        """
        valid = step.valid_actions
        if self.config.return_policy == "errands":
            routes = self.atlas.routes(step.game, _place(step), valid)
            target = errand if errand in routes else self.atlas.errand(step.game, _held(step), routes, rng)
            if target is not None:
                return valid.index(routes[target][0]), target
        return int(rng.integers(len(valid))), ""

    def visit(self, step: Step, trail: Trail, action: str, *, passes: bool = False) -> float:
        """Weight / sqrt(n) where the state behind ``step`` is entered for the n-th time, else 0.

        Args:
            step: where the action led to.
            trail: of the running episode; the step is added, and a state is paid for once.
            action: what was done.
            passes: whether it only comes by, on a plan that goes on: then it did not see what can be done there, and
                is no visit unless ``count_passing``.
        """
        first = self.mark(step, trail, action)
        counts = first and (self.config.count_passing or not passes)
        if self.config.return_share:
            solves = 0 < step.max_score <= step.score
            if step.done:
                self.archive.finish(step.game, trail, solves=solves)
            else:
                self.archive.enter(step.game, trail, counts=counts, solves=solves)
                self.atlas.walk(step.game, trail.places[-2], action, trail.places[-1])
                if counts:
                    self.atlas.meet(step.game, trail.places[-1], _held(step))
        if not first or not self.config.weight:
            return 0.0
        state = trail.states[-1]
        self._entered[state] = self._entered.get(state, 0) + 1
        return self.config.weight / self._entered[state] ** 0.5

    def mark(self, step: Step, trail: Trail, action: str | None = None) -> bool:
        """Add the step to the trail; whether the episode had not been in its state. Where nobody asks, nothing is kept.

        Args:
            step: where the episode begins (then there is no action), or where the action led to.
            trail: of the episode.
            action: what was done.
        """
        if not (self.config.weight or self.config.return_share):
            return False
        state = _number(self._shown(step))
        first = state not in trail.states
        trail.states.append(state)
        trail.scores.append(step.score)
        trail.places.append(_place(step))
        trail.things = step.carried
        if action is not None:
            trail.actions.append(action)
        return first

    def _shown(self, step: Step) -> str:
        shown = (getattr(step if part in TOLD else step.observation, part) for part in self.config.of)
        return "\0".join((step.game, *shown))

    def state_dict(self) -> dict[str, Any]:
        """The counts, as tensors: few bytes in a checkpoint."""
        return {
            "entered": _tensors(self._entered),
            "taken": _tensors(self._taken),
            "archive": self.archive.state_dict(),
            "atlas": self.atlas.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counts of ``state_dict``."""
        self._entered, self._taken = (
            dict(zip(keys.tolist(), counts.tolist(), strict=True))
            for keys, counts in (state["entered"], state["taken"])
        )
        self.archive.load_state_dict(state["archive"])
        self.atlas.load_state_dict(state["atlas"])


def _place(step: Step) -> str:
    return place(step.observation.look.partition("\n")[0], step.room)


def _held(step: Step) -> list[str]:
    """What is carried by its names, in any condition, in an order that is the same in every process."""
    return sorted(names(step.carried))


def _number(*texts: str) -> int:
    """64 bits that stand for the texts."""
    return int.from_bytes(hashlib.blake2b("\0\0".join(texts).encode(), digest_size=8).digest(), "little", signed=True)


_deed = lru_cache(maxsize=2**17)(_number)  # asked again and again: of a game, a place, an action and a thing in hand


def _tensors(counts: dict[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(list(counts), dtype=torch.int64), torch.tensor(list(counts.values()), dtype=torch.int32)
