"""Builds the objects of a run from its configuration and links them."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from priorzero.app import checkpoint
from priorzero.app.learners import (
    Learner,
    build_learners,
    policy_micro_batches,
    reanalysis_config,
    records_updates,
)
from priorzero.app.models import build_models, plain
from priorzero.app.refusals import check_config, refusing
from priorzero.app.schedule import Round, rounds
from priorzero.app.tokens import learns_from_answers, policy_updates
from priorzero.callbacks.collector import Collector, CollectorConfig
from priorzero.callbacks.evaluation import Evaluation, EvaluationConfig
from priorzero.callbacks.rounds import GracefulStop, LiveProgress
from priorzero.callbacks.weights import Mailbox
from priorzero.collect.actor import Actor, CollectConfig
from priorzero.collect.evaluate import tasks
from priorzero.collect.player import Player
from priorzero.data.limiter import RateLimiter
from priorzero.data.replay import Replay
from priorzero.envs.base import GameSet
from priorzero.envs.vector import VectorEnv
from priorzero.rollout.base import TextGenerator
from priorzero.text.vocabulary import ActionVocabulary
from priorzero.utils.launch import set_threads


@dataclass
class Run:
    """Everything that a run consists of. ``close`` ends threads, worker processes and the rollout backend."""

    cfg: DictConfig
    folder: Path
    games: GameSet
    schedule: list[Round]
    learners: dict[str, Learner]
    collector: Collector
    evaluation: Evaluation
    replay: Replay
    limiter: RateLimiter
    vocabulary: ActionVocabulary
    mailbox: Mailbox
    stop: GracefulStop
    halt: threading.Event  # ends whoever waits for data
    fingerprint: dict[str, Any]
    progress: LiveProgress | None
    loggers: list[Any]
    position: int = 0  # rounds of the schedule that are done
    generator: TextGenerator | None = None  # the rollout backend, where the language model learns from its answers

    def close(self) -> None:
        """End everything that runs beside the training; safe to call twice."""
        self.halt.set()
        self.collector.close()
        self.collector.actor.envs.close()
        self.evaluation.close()
        generator, self.generator = self.generator, None
        if generator is not None:
            generator.close()


def build_run(cfg: DictConfig) -> Run:
    """All objects of a training run.

    Raises:
        ConfigError: something in the configuration cannot work; nothing has been played yet.
    """
    check_config(cfg)
    lightning.seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision(cfg.float32_matmul_precision)
    if cfg.trainer.threads:
        set_threads(cfg.trainer.threads)
    with refusing():
        schedule = instantiate(cfg.schedule, policy_updates=policy_updates(cfg))
        return _build(cfg, rounds(schedule), instantiate(cfg.env))


def _build(cfg: DictConfig, schedule: list[Round], games: GameSet) -> Run:
    reanalysis_config(cfg)  # as the planner's options, refused before anything is loaded
    records_updates(cfg)  # likewise, as is the next one
    policy_micro_batches(cfg)
    playing, evaluating = (np.random.default_rng(seed) for seed in np.random.SeedSequence(cfg.seed).spawn(2))
    models = build_models(cfg, playing)
    replay = build_replay(cfg)
    limiter = RateLimiter(cfg.data.samples_per_insert, cfg.collector.min_env_steps, cfg.data.tolerance)
    mailbox = Mailbox()
    collector = build_collector(cfg, games, models.player, replay, limiter, mailbox)
    show = cfg.trainer.progress_bar and sys.stderr.isatty()
    run = Run(
        cfg=cfg,
        folder=Path(cfg.paths.output_dir),
        games=games,
        schedule=schedule,
        learners={},
        collector=collector,
        evaluation=build_evaluation(cfg, games, models.player.with_rng(evaluating), collector),
        replay=replay,
        limiter=limiter,
        vocabulary=models.player.vocabulary,
        mailbox=mailbox,
        stop=GracefulStop(),
        halt=threading.Event(),
        fingerprint=fingerprint(cfg, games),
        progress=LiveProgress(len(schedule)) if show else None,
        loggers=[instantiate(logger) for logger in cfg.logger.values()],
    )
    build_learners(run, models)
    run.evaluation.on_best = partial(checkpoint.save_best, run)
    return run


def plays(cfg: DictConfig) -> bool:
    """Whether games are collected: not where a language model alone learns from a file of prompts."""
    return not (cfg.schedule.mode == "llm" and learns_from_answers(cfg) and cfg.experience.prompt_file)


def build_replay(cfg: DictConfig) -> Replay:
    """An empty replay."""
    return Replay(
        cfg.data.capacity_steps,
        prioritised=cfg.data.prioritised,
        alpha=cfg.data.alpha,
        beta=cfg.data.beta,
        gamma=cfg.gamma,
        seed=cfg.seed,
    )


def build_envs(cfg: DictConfig, num_envs: int) -> VectorEnv:
    """So many worker processes for games."""
    return VectorEnv(num_envs, timeout_s=cfg.collector.timeout_s, reset_timeout_s=cfg.collector.reset_timeout_s)


def history_steps(cfg: DictConfig) -> int:
    """How many past turns prompts may show."""
    return cfg.prompt.history_steps if cfg.llm.source is not None else 0


def build_collector(
    cfg: DictConfig, games: GameSet, player: Player, replay: Replay, limiter: RateLimiter, mailbox: Mailbox
) -> Collector:
    """The collector with its actor and worker processes."""
    config = CollectConfig(
        num_envs=cfg.collector.num_envs,
        groups=cfg.collector.groups,
        policy=cfg.collector.policy,
        segment_steps=cfg.collector.segment_steps,
        history_steps=history_steps(cfg),
        gamma=cfg.gamma,
        seed=cfg.seed,
        novelty=instantiate(cfg.collector.novelty),
    )
    actor = Actor(build_envs(cfg, config.num_envs), games.train, player, config)
    kind = CollectorConfig(
        kind=cfg.collector.kind,
        env_steps_per_round=cfg.collector.env_steps_per_round,
        finish_first=cfg.schedule.mode != "world_model" and cfg.data.advantage == "returns",
        plays=plays(cfg),
    )
    return Collector(actor, replay, limiter, mailbox, kind)


def build_evaluation(cfg: DictConfig, games: GameSet, player: Player, collector: Collector) -> Evaluation:
    """Evaluation shares the models with the collector; ``player`` has random numbers of its own."""
    config = EvaluationConfig(
        policies=tuple(cfg.evaluation.policies),
        episodes=cfg.evaluation.episodes,
        seed=cfg.evaluation.seed,
        best_by=cfg.optimized_metric,
    )
    return Evaluation(
        player,
        lambda: build_envs(cfg, cfg.evaluation.num_envs),
        tasks(games.train, config.episodes, config.seed),
        config,
        collector,
        history_steps=history_steps(cfg),
        folder=Path(cfg.paths.output_dir),
    )


def fingerprint(cfg: DictConfig, games: GameSet) -> dict[str, Any]:
    """What a checkpoint and the run that loads it must have in common."""
    return {
        "games": [spec.name for spec in games.train],
        "observation parts": list(cfg.env.observe),
        "encoder": cfg.encoder.source,
        "world model": plain(cfg.world_model.network),
        "unroll": cfg.data.unroll,
        "language model": cfg.llm.source,
        "adapters": plain(cfg.llm.peft) if cfg.llm.peft else None,
        "mode": cfg.schedule.mode,
    }
