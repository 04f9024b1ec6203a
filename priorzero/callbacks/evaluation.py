"""Plays the evaluation episodes of the validation loop and keeps their history."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from priorzero.callbacks.collector import Collector
from priorzero.collect.evaluate import Task, evaluate
from priorzero.collect.player import Player
from priorzero.envs.vector import VectorEnv
from priorzero.types import EpisodeResult

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is played in each evaluation."""

    policies: tuple[str, ...]
    episodes: int
    seed: int
    best_by: str  # the metric whose highest value so far is noted: ``val/<policy>/...``


class Evaluation:
    """``plays`` are what the validation data loaders call: each plays one policy and returns metrics to log.

    Attributes:
        best: the highest value of ``config.best_by``; minus infinity before it was measured.
        on_best: called when that was reached, or reached again.
    """

    def __init__(
        self,
        player: Player,
        make_envs: Callable[[], VectorEnv],
        todo: Sequence[Task],
        config: EvaluationConfig,
        collector: Collector,
        *,
        history_steps: int,
        folder: Path,
    ) -> None:
        self.player, self.todo, self.config, self.collector = player, list(todo), config, collector
        self.history_steps, self.file = history_steps, folder / "evaluations.jsonl"
        self.best = -math.inf
        self.on_best: Callable[[], object] = lambda: None
        self._make_envs = make_envs
        self._envs: VectorEnv | None = None  # made when first needed

    @property
    def plays(self) -> dict[str, Callable[[], dict[str, float]]]:
        """By policy: plays its episodes and returns the metrics."""
        return {policy: functools.partial(self.play, policy) for policy in self.config.policies}

    def play(self, policy: str) -> dict[str, float]:
        """``val/<policy>/...`` metrics of one round of evaluation episodes."""
        with self.collector.paused():
            actor = self.collector.actor
            self.player.env_steps = actor.env_steps
            results = self.results(policy, self.todo)
            row = {
                "env_step": actor.env_steps,
                "versions": list(actor.versions),
                "policy": policy,
                "results": [asdict(r) for r in results],
            }
            with self.file.open("a") as file:
                file.write(json.dumps(row) + "\n")
            metrics = summary(results)
            named = {f"val/{policy}/{name}": value for name, value in metrics.items()}
            if (value := named.get(self.config.best_by)) is not None and value >= self.best:
                self.best = value
                self.on_best()
        log.info(
            "env_step %d: %s scores %.2f of %.2f (%.0f %% won) over %d episodes", row["env_step"], policy,
            metrics["return"], np.mean([r.max_score for r in results]), 100 * metrics["solved"], len(results)
        )  # fmt: skip
        return named

    def results(self, policy: str, todo: Sequence[Task]) -> list[EpisodeResult]:
        """Play ``todo`` with ``policy``; nobody else may use the models meanwhile."""
        if self._envs is None:
            self._envs = self._make_envs()
        return evaluate(self.player, self._envs, todo, policy, history_steps=self.history_steps)

    def close(self) -> None:
        """End the worker processes; safe to call twice."""
        if self._envs is not None:
            self._envs.close()
            self._envs = None


def summary(results: Sequence[EpisodeResult]) -> dict[str, float]:
    """Mean score in points, as a fraction of the maximum, steps, and how many episodes reached the maximum."""
    return {
        "return": float(np.mean([r.score for r in results])),
        "score_fraction": float(np.mean([r.score / max(r.max_score, 1) for r in results])),
        "solved": float(np.mean([r.score >= r.max_score for r in results])),
        "steps": float(np.mean([r.steps for r in results])),
    }
