"""Plays whole episodes with one policy, without noise, and says how they went."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from priorzero.collect.episode import Episode
from priorzero.collect.player import Player
from priorzero.envs.base import GameSpec
from priorzero.envs.vector import VectorEnv
from priorzero.types import EpisodeResult


@dataclass(frozen=True)
class Task:
    """One episode to play."""

    spec: GameSpec
    seed: int


def tasks(games: Sequence[GameSpec], episodes: int, seed: int) -> list[Task]:
    """``episodes`` tasks: the games take turns, each round with a seed of its own."""
    return [Task(games[i % len(games)], seed + i // len(games)) for i in range(episodes)]


def evaluate(
    player: Player,
    envs: VectorEnv,
    todo: Sequence[Task],
    policy: str,
    *,
    history_steps: int,
) -> list[EpisodeResult]:
    """Play every task once, as many at a time as there are environments.

    Args:
        player: decides.
        envs: where to play.
        todo: what to play.
        policy: who plays, one of `priorzero.collect.player.POLICIES`.
        history_steps: how many past turns a prompt may show.

    Returns:
        Results in the order of ``todo``.
    """
    waiting = iter(enumerate(todo))
    running: dict[int, tuple[int, Episode]] = {}
    results: dict[int, EpisodeResult] = {}
    free = list(range(envs.num_envs))
    while True:
        fresh = list(itertools.islice(waiting, len(free)))
        if fresh:
            slots = [free.pop() for _ in fresh]
            started = _start(player, envs, slots, [task for _, task in fresh], history_steps)
            running |= {
                slot: (number, episode)
                for slot, (number, _), episode in zip(slots, fresh, started, strict=True)
            }  # fmt: skip
        if not running:
            return [results[i] for i in range(len(todo))]
        _advance(player, envs, {slot: episode for slot, (_, episode) in running.items()}, policy)
        for slot in [slot for slot, (_, episode) in running.items() if episode.step.done]:
            number, episode = running.pop(slot)
            free.append(slot)
            results[number] = episode.result(policy)


def _start(player: Player, envs: VectorEnv, slots: list[int], todo: list[Task], history_steps: int) -> list[Episode]:
    steps = envs.reset(slots, [task.spec for task in todo], [task.seed for task in todo])
    vectors = player.encode([step.observation for step in steps])
    return [
        Episode(task.spec, task.seed, 0, step, vector, history_steps)
        for task, step, vector in zip(todo, steps, vectors, strict=True)
    ]


def _advance(player: Player, envs: VectorEnv, episodes: dict[int, Episode], policy: str) -> None:
    decisions = player.decide(policy, list(episodes.values()), explore=False)
    actions = [e.step.valid_actions[d.index] for e, d in zip(episodes.values(), decisions, strict=True)]
    steps = envs.step(list(episodes), actions)
    vectors = player.encode([step.observation for step in steps])
    for e, decision, action, step, vector in zip(episodes.values(), decisions, actions, steps, vectors, strict=True):
        e.advance(decision, int(player.vocabulary.add(e.step.game, [action])[0]), step, vector)


def interval(values: Sequence[float], games: Sequence[str] | None = None, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval (10,000 resamples, Efron 1979).

    Where there are several games, whole games are drawn and not episodes: a policy without chance plays every episode
    of a game alike, and repeats would pass for evidence.

    Args:
        values: [n] results of the episodes.
        games: [n] the game of each; None: all are one game.
        seed: of the resampling.
    """
    x = np.asarray(values, float)
    units = [x[np.asarray(games) == game].mean() for game in dict.fromkeys(games or [])]
    pool = np.asarray(units) if len(units) > 1 else x
    means = np.random.default_rng(seed).choice(pool, (10_000, len(pool))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(x.mean()), float(low), float(high)
