"""Collects: keeps ``B`` games running and hands out the segments that they fill.

Episodes in flight survive between two calls and in checkpoints. On resume they are played again from their seeds.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from priorzero.collect.episode import Decision, Episode, decision_from_state
from priorzero.collect.player import Player
from priorzero.envs.base import GameSpec
from priorzero.envs.vector import VectorEnv
from priorzero.types import EpisodeResult, Segment, Step

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """How the training games are played."""

    num_envs: int
    policy: str  # random | prior | wm | wm_prior
    segment_steps: int  # a longer episode becomes several segments
    history_steps: int  # past turns that segments keep for prompts
    gamma: float  # of the returns
    seed: int


class Actor:
    """Plays the training games. ``versions`` says which weights are playing: (world model, policy)."""

    def __init__(self, envs: VectorEnv, games: Sequence[GameSpec], player: Player, config: CollectConfig) -> None:
        self.envs, self.games, self.player, self.config = envs, list(games), player, config
        self.versions = (0, 0)
        self.env_steps = 0
        self.started = 0  # episodes
        self.results: deque[EpisodeResult] = deque(maxlen=100)  # the latest finished episodes
        self.finished = 0
        self._episodes: list[Episode] = []

    @property
    def pending(self) -> int:
        """Steps that were played and are in no segment yet."""
        return sum(episode.pending for episode in self._episodes)

    def tick(self) -> list[Segment]:
        """Play one step in every game; the segments that it completes come out."""
        if not self._episodes:
            self._start(range(self.config.num_envs))
        episodes = self._episodes
        self.player.env_steps = self.env_steps
        decisions = self.player.decide(self.config.policy, episodes, explore=True)
        self._step(range(len(episodes)), decisions)
        self.env_steps += len(episodes)
        segments, over = [], []
        for slot, episode in enumerate(episodes):
            if episode.step.done or episode.pending == self.config.segment_steps:
                segments.append(self._cut(episode))
            if episode.step.done:
                over.append(slot)
                self.finished += 1
                self.results.append(episode.result("collect"))
        if over:
            self._start(over)
        return segments

    def _cut(self, episode: Episode) -> Segment:
        world_model, policy = self.versions
        return episode.cut(gamma=self.config.gamma, world_model_version=world_model, policy_version=policy)

    def _start(self, slots: Sequence[int]) -> None:
        """Begin a fresh episode in each of these slots. Games take turns; every episode has its own seed."""
        numbers = range(self.started, self.started + len(slots))
        specs = [self.games[n % len(self.games)] for n in numbers]
        seeds = [self.config.seed * 1_000_003 + n + 1 for n in numbers]
        self.started += len(slots)
        fresh = self._reset(slots, specs, seeds, list(numbers))
        if len(self._episodes) < len(slots):
            self._episodes = fresh
        else:
            for slot, episode in zip(slots, fresh, strict=True):
                self._episodes[slot] = episode

    def _reset(
        self, slots: Sequence[int], specs: Sequence[GameSpec], seeds: Sequence[int], numbers: Sequence[int]
    ) -> list[Episode]:
        start = time.perf_counter()
        steps = self.envs.reset(list(slots), list(specs), list(seeds))
        self.player.seconds["env"] += time.perf_counter() - start
        vectors = self.player.encode([step.observation for step in steps])
        return [
            Episode(spec, seed, number, step, vector, self.config.history_steps)
            for spec, seed, number, step, vector in zip(specs, seeds, numbers, steps, vectors, strict=True)
        ]

    def _step(self, slots: Sequence[int], decisions: Sequence[Decision]) -> list[Step]:
        episodes = [self._episodes[slot] for slot in slots]
        actions = [e.step.valid_actions[d.index] for e, d in zip(episodes, decisions, strict=True)]
        start = time.perf_counter()
        steps = self.envs.step(list(slots), actions)
        self.player.seconds["env"] += time.perf_counter() - start
        vectors = self.player.encode([step.observation for step in steps])
        for e, decision, action, step, vector in zip(episodes, decisions, actions, steps, vectors, strict=True):
            action_id = int(self.player.vocabulary.add(e.step.game, [action])[0])
            e.advance(decision, action_id, step, vector)
        return steps

    # ------------------------------------------------------------------------------------------------------ resume

    def state_dict(self) -> dict[str, Any]:
        """Counters, random numbers and running episodes, as plain containers."""
        return {
            "env_steps": self.env_steps,
            "started": self.started,
            "finished": self.finished,
            "results": [asdict(result) for result in self.results],
            "faults": dict(self.envs.faults),
            "rng": self.player.rng.bit_generator.state,
            "episodes": [episode.state_dict() for episode in self._episodes],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint left off; running episodes are played again from their seeds.

        Raises:
            RuntimeError: a game does not offer the actions any more that were played in it.
        """
        self.env_steps, self.started, self.finished = state["env_steps"], state["started"], state["finished"]
        self.results.extend(EpisodeResult(**result) for result in state["results"])
        self.envs.faults.update(state["faults"])
        self.player.rng.bit_generator.state = state["rng"]
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
        if saved:
            self._replay(saved, by_name)

    def _replay(self, saved: list[dict[str, Any]], by_name: dict[str, GameSpec]) -> None:
        slots = range(len(saved))
        self._episodes = self._reset(
            slots, [by_name[s["game"]] for s in saved], [s["seed"] for s in saved], [s["number"] for s in saved]
        )
        for t in range(max(len(s["actions"]) for s in saved)):
            running = [i for i in slots if t < len(saved[i]["actions"])]
            self._step(running, [self._past_decision(self._episodes[i], saved[i], t) for i in running])
            for i in running:
                if t + 1 == saved[i]["start"]:
                    self._cut(self._episodes[i])
        for episode, s in zip(self._episodes, saved, strict=True):
            if episode.step.observation.feedback != s["feedback"]:
                log.warning(
                    "game %s, seed %d, did not play back to the checkpoint's state: its episode goes on from where the "
                    "same actions lead now", s["game"], s["seed"]
                )  # fmt: skip

    def _past_decision(self, episode: Episode, saved: dict[str, Any], t: int) -> Decision:
        valid, action = episode.step.valid_actions, saved["actions"][t]
        if action not in valid:
            raise RuntimeError(
                f"cannot resume: in game {saved['game']} the action {action!r} of the checkpoint is no longer valid; "
                "the game or the valid-action settings have changed since"
            )
        if t >= saved["start"]:
            return decision_from_state(saved["decisions"][t - saved["start"]])
        return Decision(valid.index(action), np.full(len(valid), 1 / len(valid), np.float32), 0.0)
