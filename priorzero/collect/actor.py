"""Collects: keeps ``B`` games running and hands out the segments that they fill.

The games may form groups that take turns: while one group is decided for, the actions of the others are played. Which
group comes when does not depend on time, so a run is the same again with any number of groups, though not the same as
with another number.

Running episodes survive between two calls and in checkpoints. On resume they are played again from their seeds.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from priorzero.collect.episode import (
    Decision,
    Episode,
    decision_from_state,
    decision_state,
    past_decision,
    past_intrinsic,
    past_plan,
    subtree_from_state,
)
from priorzero.collect.novelty import Novelty, NoveltyConfig, Plan
from priorzero.collect.player import Player
from priorzero.envs.base import GameSpec
from priorzero.envs.vector import VectorEnv
from priorzero.types import EpisodeResult, Segment, Step

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """How the training games are played.

    Raises:
        ValueError: there is no group, or a group has no game.
    """

    num_envs: int
    groups: int  # of games that take turns: all but one of them play while that one is decided for
    policy: str  # random | prior | wm | wm_prior
    segment_steps: int  # a longer episode becomes several segments
    history_steps: int  # past turns that segments keep for prompts
    gamma: float  # of the returns
    seed: int
    novelty: NoveltyConfig

    def __post_init__(self) -> None:
        if not 1 <= self.groups <= self.num_envs:
            raise ValueError(
                f"collector.groups is {self.groups}: it must be 1 (all games at once), 2 (half of them is searched "
                f"while the other half plays) or more, up to collector.num_envs ({self.num_envs})"
            )


@dataclass(frozen=True, slots=True)
class _Start:
    """A fresh episode: where, of which game, from which seed, and its number in the run."""

    slot: int
    spec: GameSpec
    seed: int
    number: int
    plan: Plan | None = None
    lost: bool = False  # the plan, before it was played again


class Actor:
    """Plays the training games. ``versions`` says which weights are playing: (world model, policy)."""

    def __init__(self, envs: VectorEnv, games: Sequence[GameSpec], player: Player, config: CollectConfig) -> None:
        self.envs, self.games, self.player, self.config = envs, list(games), player, config
        self.novelty = Novelty(config.novelty)
        self.versions = (0, 0)
        self.env_steps = 0
        self.started = 0  # episodes
        self.results: deque[EpisodeResult] = deque(maxlen=100)  # the latest finished episodes that began as ever
        self.finished = 0
        self.lost_ways = 0  # episodes that were to go back to a state and could not take a step of the way
        self._episodes: list[Episode] = []
        self._groups = [list(map(int, slots)) for slots in np.array_split(np.arange(config.num_envs), config.groups)]
        self._turn = 0  # the group that is decided for next
        self._sent: dict[int, Decision] = {}  # by slot: actions that are being played

    @property
    def pending(self) -> int:
        """Steps that were played and are in no segment yet."""
        return sum(episode.pending for episode in self._episodes)

    def tick(self) -> list[Segment]:
        """Play one step in the games of one group; the segments that it completes come out.

        One group is decided for, and the answers of the next group are received: of the same one if there is only one.
        """
        if not self._episodes:
            self._episodes = self._begin(self._ask_for_episodes(range(self.config.num_envs)))
        self._decide(self._groups[self._turn])
        self._turn = (self._turn + 1) % len(self._groups)
        return self._land([slot for slot in self._groups[self._turn] if slot in self._sent])

    def _decide(self, slots: Sequence[int]) -> None:
        self.player.env_steps = self.env_steps
        chosen = {slot: d for slot in slots if (d := self._follow(self._episodes[slot])) is not None}
        free = {slot: self._episodes[slot] for slot in slots if slot not in chosen}
        if self.config.novelty.return_policy != "own":
            chosen |= {slot: self._wander(e) for slot, e in free.items() if e.goes_back}
        asked = {slot: e for slot, e in free.items() if slot not in chosen}
        if asked:
            decisions = self.player.decide(self.config.policy, list(asked.values()), explore=True)
            chosen |= dict(zip(asked, decisions, strict=True))
        for slot, e in free.items():
            index = self.novelty.choose(e.step, chosen[slot].index, self.player.rng, went_back=e.goes_back)
            if index != chosen[slot].index:
                chosen[slot] = replace(chosen[slot], index=index, subtree=None)
        self._send(slots, [chosen[slot] for slot in slots])

    def _follow(self, episode: Episode) -> Decision | None:
        """The next step of an episode that goes back to a state; None where it decides for itself."""
        lost, decision = episode.lost, episode.follow()
        self.lost_ways += episode.lost - lost  # valid actions may be missed, and a game may have chances of its own
        return decision

    def _wander(self, episode: Episode) -> Decision:
        index, episode.errand = self.novelty.wander(episode.step, episode.errand, self.player.rng)
        return episode.take(index)

    def _land(self, slots: Sequence[int]) -> list[Segment]:
        """Take in the answers of these slots. Where an episode ends, a fresh one begins."""
        self._receive(slots)
        self.env_steps += len(slots)
        over = [slot for slot in slots if self._episodes[slot].step.done]
        asked = self._ask_for_episodes(over)
        segments = []
        for episode in (self._episodes[slot] for slot in slots):
            if episode.step.done or episode.pending == self.config.segment_steps:
                segments.append(self._cut(episode))
            if episode.step.done:
                self.finished += 1
                if episode.plan is None:
                    self.results.append(episode.result("collect"))
                else:  # its score says nothing of who plays
                    self.novelty.finish(episode.spec.name, episode.trail, episode.plan)
        for slot, episode in zip(over, self._begin(asked), strict=True):
            self._episodes[slot] = episode
        return segments

    def _cut(self, episode: Episode) -> Segment:
        world_model, policy = self.versions
        return episode.cut(gamma=self.config.gamma, world_model_version=world_model, policy_version=policy)

    def _ask_for_episodes(self, slots: Sequence[int]) -> list[_Start]:
        """Let these slots begin a fresh episode. Games take turns; each has a seed of its own, or its way's."""
        numbers = range(self.started, self.started + len(slots))
        self.started += len(slots)
        return self._ask([self._start(slot, n) for slot, n in zip(slots, numbers, strict=True)])

    def _start(self, slot: int, number: int) -> _Start:
        spec = self.games[number % len(self.games)]
        plan = self.novelty.begin(spec.name, self.player.rng)
        fresh = self.config.seed * 1_000_003 + number + 1
        seed = fresh if plan is None or plan.seed is None else plan.seed
        return _Start(slot, spec, seed, number, plan)

    def _ask(self, starts: list[_Start]) -> list[_Start]:
        with self._clock("env"):
            self.envs.send_reset([s.slot for s in starts], [s.spec for s in starts], [s.seed for s in starts])
        return starts

    def _begin(self, starts: Sequence[_Start]) -> list[Episode]:
        """The episodes that were asked for, in that order."""
        if not starts:
            return []
        with self._clock("env"):
            steps = self.envs.receive([s.slot for s in starts])
        vectors = self._read(steps)
        episodes = [
            Episode(
                s.spec,
                s.seed,
                s.number,
                step,
                vector,
                self.config.history_steps,
                plan=s.plan,
                lost=s.lost,
            )
            for s, step, vector in zip(starts, steps, vectors, strict=True)
        ]
        for episode in episodes:
            self.novelty.mark(episode.step, episode.trail)
        return episodes

    def _send(self, slots: Sequence[int], decisions: Sequence[Decision]) -> None:
        valid = [self._episodes[slot].step.valid_actions for slot in slots]
        with self._clock("env"):
            self.envs.send(slots, [actions[d.index] for actions, d in zip(valid, decisions, strict=True)])
        self._sent.update(zip(slots, decisions, strict=True))

    def _receive(self, slots: Sequence[int], intrinsic: Sequence[float] | None = None) -> None:
        """Take in the answers; with their intrinsic rewards where they were played before."""
        if not slots:
            return
        with self._clock("env"):
            steps = self.envs.receive(slots)
        vectors = self._read(steps)
        for i, (slot, step, vector) in enumerate(zip(slots, steps, vectors, strict=True)):
            episode, decision = self._episodes[slot], self._sent.pop(slot)
            text = episode.step.valid_actions[decision.index]
            action = int(self.player.vocabulary.ids([text])[0])
            if intrinsic is None and episode.explores:
                extra = self.novelty.visit(step, episode.trail, text, passes=episode.passes)
            else:
                self.novelty.mark(step, episode.trail, text)
                extra = 0.0 if intrinsic is None else intrinsic[i]
            episode.advance(decision, action, step, vector, extra)

    def _read(self, steps: Sequence[Step]) -> np.ndarray:
        """The vectors of the observations. The actions become known too, for whoever learns from these steps."""
        self.player.learn_actions(steps)
        return self.player.encode([step.observation for step in steps])

    @contextlib.contextmanager
    def _clock(self, name: str) -> Generator[None]:
        start = time.perf_counter()
        yield
        self.player.seconds[name] += time.perf_counter() - start

    # ------------------------------------------------------------------------------------------------------ resume

    def state_dict(self) -> dict[str, Any]:
        """Counters, random numbers and running episodes, as plain containers."""
        return {
            "env_steps": self.env_steps,
            "started": self.started,
            "finished": self.finished,
            "lost_ways": self.lost_ways,
            "results": [asdict(result) for result in self.results],
            "faults": dict(self.envs.faults),
            "counts": dict(self.envs.counts),
            "rng": self.player.rng.bit_generator.state,
            "episodes": [episode.state_dict() for episode in self._episodes],
            "groups": len(self._groups),
            "turn": self._turn,
            "sent": {
                slot: {"valid": list(self._episodes[slot].step.valid_actions), "decision": decision_state(decision)}
                for slot, decision in self._sent.items()
            },
            "novelty": self.novelty.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint left off; running episodes are played again from their seeds.

        An episode whose game does not offer the same actions any more is dropped for a fresh one, with a warning: valid
        actions of story files are searched for, and what was found may differ.
        """
        self.env_steps, self.started, self.finished = state["env_steps"], state["started"], state["finished"]
        self.lost_ways = state["lost_ways"]
        self.results.extend(EpisodeResult(**result) for result in state["results"])
        self.envs.faults.update(state["faults"])
        self.envs.counts.update(state["counts"])
        self.player.rng.bit_generator.state = state["rng"]
        self.novelty.load_state_dict(state["novelty"])
        saved = state["episodes"]
        if len(saved) not in (0, self.config.num_envs):
            log.warning(
                "the checkpoint was written with %d environments and this run has %d: its %d running episodes start "
                "anew (their finished segments are kept)", len(saved), self.config.num_envs, len(saved)
            )  # fmt: skip
            return
        by_name = {spec.name: spec for spec in self.games}
        missing = {s["game"] for s in saved} - by_name.keys()
        if missing:
            log.warning("the checkpoint's running episodes of %s are dropped: not in this run's games", sorted(missing))
            return
        if not saved:
            return
        same = self._replay(saved, by_name)
        if state["groups"] == len(self._groups):
            self._turn = state["turn"]
            sent = {
                slot: decision_from_state(s["decision"])
                for slot, s in state["sent"].items()
                if slot in same and list(self._episodes[slot].step.valid_actions) == s["valid"]
            }  # the others decide anew
            self._send(list(sent), list(sent.values()))

    def _replay(self, saved: list[dict[str, Any]], by_name: dict[str, GameSpec]) -> set[int]:
        """Play the saved episodes again; the slots in which that led to the same state as before."""
        slots = range(len(saved))
        starts = [
            _Start(slot, by_name[s["game"]], s["seed"], s["number"], past_plan(s), s["lost"])
            for slot, s in zip(slots, saved, strict=True)
        ]
        self._episodes = self._begin(self._ask(starts))
        lost: set[int] = set()
        for t in range(max(len(s["actions"]) for s in saved)):
            due = [i for i in slots if i not in lost and t < len(saved[i]["actions"])]
            decisions = {i: past_decision(self._episodes[i], saved[i], t) for i in due}
            lost |= {i for i, decision in decisions.items() if decision is None}
            running = {i: decision for i, decision in decisions.items() if decision is not None}
            self._send(list(running), list(running.values()))
            self._receive(list(running), [past_intrinsic(saved[i], t) for i in running])
            for i in running:
                if t + 1 == saved[i]["start"]:
                    self._cut(self._episodes[i])
        lost |= {i for i in slots if self._episodes[i].step.done}
        for slot, fresh in zip(sorted(lost), self._begin(self._ask_for_episodes(sorted(lost))), strict=True):
            self._episodes[slot] = fresh
        return self._played_back(saved, lost)

    def _played_back(self, saved: Sequence[dict[str, Any]], lost: set[int]) -> set[int]:
        """The slots whose episodes are where they were; of the others the log tells."""
        same = set()
        for slot, (episode, s) in enumerate(zip(self._episodes, saved, strict=True)):
            if slot in lost:
                log.warning(
                    "game %s, seed %d, does not offer the actions any more that were played in it, or ends before: a "
                    "fresh episode begins (finished segments are kept)", s["game"], s["seed"]
                )  # fmt: skip
            elif episode.step.observation.feedback == s["feedback"]:
                same.add(slot)
                episode.subtree, episode.errand = subtree_from_state(s["subtree"]), s["errand"]
            else:
                log.warning(
                    "game %s, seed %d, did not play back to the checkpoint's state: its episode goes on from where the "
                    "same actions lead now", s["game"], s["seed"]
                )  # fmt: skip
        return same
