"""Which model trains in which round. Pure: a schedule is a list, and resuming is an index into it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Model = Literal["world_model", "policy"]


@dataclass(frozen=True, slots=True)
class Round:
    """One Lightning epoch of one model's trainer."""

    model: Model
    collect: bool  # whether an inline collector plays before it


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How many rounds, and whose."""

    mode: str  # parallel | sequential | alternating | world_model | llm
    rounds: int  # rounds that collect
    policy_rounds: int  # sequential: rounds of the language model after those of the world model
    phase_rounds: int  # alternating: world-model rounds in a phase
    wm_llm_ratio: float  # alternating: world-model updates for each update of the language model
    world_model_updates: int  # updates in a round
    policy_updates: int


def rounds(config: ScheduleConfig) -> list[Round]:
    """The whole run.

    Raises:
        ValueError: the mode is unknown, or its numbers leave a model without a round.
    """
    if config.rounds < 1:
        raise ValueError(f"a run needs at least one round, not {config.rounds}: raise trainer.max_rounds")
    train_wm, train_llm = Round("world_model", True), Round("policy", False)
    if config.mode == "world_model":
        return [train_wm] * config.rounds
    if config.mode == "llm":
        return [Round("policy", True)] * config.rounds
    if config.mode == "parallel":
        return [train_wm, train_llm] * config.rounds
    if config.mode == "sequential":
        if config.policy_rounds < 1:
            raise ValueError(
                "mode=sequential trains the language model for schedule.policy_rounds: set it to 1 or more"
            )
        return [train_wm] * config.rounds + [train_llm] * config.policy_rounds
    if config.mode == "alternating":
        return _alternating(config, train_wm, train_llm)
    raise ValueError(f"unknown mode {config.mode!r}: use parallel, sequential, alternating, world_model or llm")


def _alternating(config: ScheduleConfig, train_wm: Round, train_llm: Round) -> list[Round]:
    updates = config.phase_rounds * config.world_model_updates / config.wm_llm_ratio
    llm_rounds = round(updates / config.policy_updates)
    if llm_rounds < 1:
        raise ValueError(
            f"mode=alternating: {config.phase_rounds} rounds of {config.world_model_updates} world-model updates at "
            f"wm_llm_ratio {config.wm_llm_ratio:g} leave the language model {updates:.2f} updates a phase, less than "
            f"half a round of {config.policy_updates}: raise schedule.phase_rounds, or lower schedule.wm_llm_ratio or "
            "data.policy_updates_per_round"
        )
    schedule: list[Round] = []
    left = config.rounds
    while left > 0:
        schedule += [train_wm] * min(config.phase_rounds, left) + [train_llm] * llm_rounds
        left -= config.phase_rounds
    return schedule


def phases(schedule: Sequence[Round], start: int, longest: int) -> Iterator[list[Round]]:
    """From index ``start`` on, runs of equal rounds, cut after ``longest``: each is one call of ``fit``."""
    for _, group in itertools.groupby(schedule[start:]):
        same = list(group)
        for i in range(0, len(same), longest):
            yield same[i : i + longest]
