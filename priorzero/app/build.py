"""Builds the objects of a run from its configuration and links them."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from priorzero.app.refusals import check_config
from priorzero.app.schedule import Round, rounds
from priorzero.callbacks.collector import Collector, CollectorConfig
from priorzero.callbacks.evaluation import Evaluation, EvaluationConfig
from priorzero.callbacks.rounds import GracefulStop, LiveProgress, RoundReport
from priorzero.callbacks.weights import Mailbox, WeightSync
from priorzero.collect.actor import Actor, CollectConfig
from priorzero.collect.evaluate import tasks
from priorzero.collect.player import Player
from priorzero.data.collate import world_model_batch
from priorzero.data.datamodule import PriorZeroData
from priorzero.data.limiter import RateLimiter
from priorzero.data.replay import Replay
from priorzero.data.streams import PolicyDataConfig, PolicyStream, Source, Stream, WorldModelDataConfig, WorldModelStream
from priorzero.envs.base import GameSet
from priorzero.envs.vector import VectorEnv
from priorzero.policy.load import LanguageModel, load_llm
from priorzero.policy.logprobs import pack
from priorzero.policy.module import PolicyModule
from priorzero.prior.base import Prior
from priorzero.prior.llm import LLMPrior
from priorzero.text.prompt import PromptBuilder
from priorzero.text.vocabulary import ActionVocabulary
from priorzero.types import Segment
from priorzero.utils.launch import set_threads
from priorzero.world_model.model import UniZero, UniZeroConfig
from priorzero.world_model.module import WorldModelModule
from priorzero.world_model.planner import Planner, PlannerConfig

log = logging.getLogger(__name__)


@dataclass
class Learner:
    """A model, the Trainer that trains it, and its view of the data."""

    module: lightning.LightningModule
    trainer: lightning.Trainer
    data: PriorZeroData
    rounds: int = 0  # trained so far
    resume_from: Path | None = None  # a checkpoint that the first fit takes its optimizer from


@dataclass
class Run:
    """Everything that a run consists of. ``close`` ends threads and worker processes."""

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

    def close(self) -> None:
        self.halt.set()
        self.collector.close()
        self.collector.actor.envs.close()
        self.evaluation.close()


@dataclass(frozen=True)
class Models:
    """What plays: snapshots, separate from what is trained."""

    player: Player
    world_model: UniZero | None  # a fresh network with the same start weights, to be trained
    language_model: LanguageModel | None  # likewise
    prompts: PromptBuilder | None


def plain(node: Any) -> dict[str, Any]:
    return OmegaConf.to_container(node, resolve=True)


# ------------------------------------------------------------------------------------------------------------- players


def build_models(cfg: DictConfig, rng: np.random.Generator) -> Models:
    """Encoder, world model, language model and the player that uses them."""
    encoder = instantiate(cfg.encoder)
    vocabulary = ActionVocabulary(encoder.encode, encoder.width)
    world_model = UniZero(network_config(cfg, encoder.width))
    planner = Planner(
        UniZero(world_model.config),
        PlannerConfig(
            context_steps=cfg.world_model.context_steps,
            top_k=cfg.world_model.top_k,
            simulations=cfg.search.config.simulations,
        ),
        device=cfg.trainer.device,
    )
    planner.load_weights(world_model.state_dict())
    language_model, prior, prompts = build_llm(cfg)
    player = Player(
        encoder=encoder,
        vocabulary=vocabulary,
        planner=planner,
        prior=prior,
        search=instantiate(cfg.search.config),
        root_prior=instantiate(cfg.search.root_prior),
        explore=instantiate(cfg.search.explore),
        observe=cfg.env.observe,
        rng=rng,
    )
    return Models(player, world_model, language_model, prompts)


def network_config(cfg: DictConfig, sentence_width: int) -> UniZeroConfig:
    unroll, bootstrap, context = cfg.data.unroll, cfg.data.td_steps, cfg.world_model.context_steps
    return UniZeroConfig(
        observation_width=sentence_width * len(cfg.env.observe),
        action_width=sentence_width,
        window_steps=unroll,
        max_positions=2 * max(unroll + bootstrap + 1, context + cfg.search.config.simulations),
        **plain(cfg.world_model.network),
    )


def build_llm(cfg: DictConfig) -> tuple[LanguageModel | None, Prior | None, PromptBuilder | None]:
    """The language model to be trained, a prior with a copy of its own, and the prompt writer of both."""
    if cfg.llm.source is None:
        return None, None, None
    lora = instantiate(cfg.llm.peft) if cfg.llm.peft else None

    def load() -> LanguageModel:
        torch.manual_seed(cfg.seed)  # both copies start with the same adapters
        return load_llm(
            cfg.llm.source,
            dtype=cfg.llm.dtype,
            device=cfg.trainer.device,
            attn_implementation=cfg.llm.attn_implementation,
            lora=lora,
            gradient_checkpointing=cfg.llm.gradient_checkpointing,
        )

    playing = load()
    prompts = PromptBuilder(playing.tokenizer, instantiate(cfg.prompt))
    prior = LLMPrior(playing, prompts, **plain(cfg.prior))
    trained = load() if cfg.schedule.mode != "world_model" else None
    return trained, prior, prompts


# ---------------------------------------------------------------------------------------------------------------- runs


def build_run(cfg: DictConfig) -> Run:
    """All objects of a training run. What cannot work is refused here, before anything is played."""
    check_config(cfg)
    lightning.seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision(cfg.float32_matmul_precision)
    if cfg.trainer.threads:
        set_threads(cfg.trainer.threads)
    folder = Path(cfg.paths.output_dir)
    games: GameSet = instantiate(cfg.env)
    seeds = np.random.SeedSequence(cfg.seed).spawn(3)
    models = build_models(cfg, np.random.default_rng(seeds[0]))
    replay = Replay(
        cfg.data.capacity_steps,
        prioritised=cfg.data.prioritised,
        alpha=cfg.data.alpha,
        beta=cfg.data.beta,
        gamma=cfg.gamma,
        seed=cfg.seed,
    )
    limiter = RateLimiter(cfg.data.samples_per_insert, cfg.collector.min_env_steps, cfg.data.tolerance)
    mailbox = Mailbox()
    collector = build_collector(cfg, games, models.player, replay, limiter, mailbox)
    evaluation = build_evaluation(cfg, games, models.player, collector, np.random.default_rng(seeds[1]), folder)
    schedule = rounds(instantiate(cfg.schedule))
    show = cfg.trainer.progress_bar and sys.stderr.isatty()
    run = Run(
        cfg=cfg,
        folder=folder,
        games=games,
        schedule=schedule,
        learners={},
        collector=collector,
        evaluation=evaluation,
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
    return run


def build_envs(cfg: DictConfig, num_envs: int) -> VectorEnv:
    return VectorEnv(num_envs, timeout_s=cfg.collector.timeout_s, reset_timeout_s=cfg.collector.reset_timeout_s)


def history_steps(cfg: DictConfig) -> int:
    return cfg.prompt.history_steps if cfg.llm.source is not None else 0


def build_collector(
    cfg: DictConfig, games: GameSet, player: Player, replay: Replay, limiter: RateLimiter, mailbox: Mailbox
) -> Collector:
    config = CollectConfig(
        num_envs=cfg.collector.num_envs,
        policy=cfg.collector.policy,
        segment_steps=cfg.collector.segment_steps,
        history_steps=history_steps(cfg),
        gamma=cfg.gamma,
        seed=cfg.seed,
    )
    actor = Actor(build_envs(cfg, config.num_envs), games.train, player, config)
    kind = CollectorConfig(
        kind=cfg.collector.kind,
        env_steps_per_round=cfg.collector.env_steps_per_round,
    )
    return Collector(actor, replay, limiter, mailbox, kind)


def build_evaluation(
    cfg: DictConfig,
    games: GameSet,
    player: Player,
    collector: Collector,
    rng: np.random.Generator,
    folder: Path,
) -> Evaluation:
    """Evaluation shares the models with the collector and has games and random numbers of its own."""
    config = EvaluationConfig(
        policies=tuple(cfg.evaluation.policies),
        episodes=cfg.evaluation.episodes,
        seed=cfg.evaluation.seed,
        num_envs=cfg.evaluation.num_envs,
    )
    return Evaluation(
        player.with_rng(rng),
        lambda: build_envs(cfg, config.num_envs),
        tasks(games.train, config.episodes, config.seed),
        config,
        collector,
        history_steps=history_steps(cfg),
        folder=folder,
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


# ------------------------------------------------------------------------------------------------------------ learners


def build_learners(run: Run, models: Models) -> None:
    """The modules that the schedule trains, each with its Trainer and its stream of batches."""
    cfg = run.cfg
    trained = {r.model for r in run.schedule}
    world_model = WorldModelModule(
        models.world_model,
        loss=instantiate(cfg.world_model.loss),
        target=instantiate(cfg.world_model.target),
        optim=instantiate(cfg.world_model.optim),
    )
    if "world_model" in trained:
        config = WorldModelDataConfig(
            batch_size=cfg.data.batch_size,
            unroll=cfg.data.unroll,
            bootstrap=cfg.data.td_steps,
            max_known=cfg.data.max_known,
        )
        source = build_source(run, limited=cfg.collector.kind == "thread")
        stream = WorldModelStream(source, run.vocabulary, config, seed=cfg.seed)
        run.learners["world_model"] = build_learner(run, "world_model", world_model, stream, trained)
    if "policy" in trained:
        policy = PolicyModule(
            models.language_model, loss=instantiate(cfg.objective), optim=instantiate(cfg.policy_optim)
        )
        stream = build_policy_stream(run, models, world_model)
        run.learners["policy"] = build_learner(run, "policy", policy, stream, trained)


def build_source(run: Run, *, limited: bool) -> Source:
    stall_s = run.cfg.collector.stall_s
    return Source(replay=run.replay, limiter=run.limiter, limited=limited, stall_s=stall_s, stop=run.halt)


def build_policy_stream(run: Run, models: Models, world_model: WorldModelModule) -> PolicyStream:
    cfg = run.cfg
    config = PolicyDataConfig(
        batch_size=cfg.data.policy_micro_batch * cfg.data.policy_accumulate,
        micro_batch_size=cfg.data.policy_micro_batch,
        newest_steps=cfg.data.newest_steps,
        newest_share=cfg.data.newest_share,
        advantage=cfg.data.advantage,
        normalisation=cfg.data.advantage_normalisation,
        decay=cfg.data.advantage_decay,
    )
    return PolicyStream(
        build_source(run, limited=False),
        config,
        prompts=models.prompts,
        pack=pack,
        pad_id=models.language_model.pad_id,
        advantages=lambda segments, steps: world_model_advantages(world_model, run, segments, steps),
        seed=cfg.seed,
    )


def build_learner(
    run: Run, name: str, module: lightning.LightningModule, stream: Stream, trained: set[str]
) -> Learner:
    evaluates = name == "world_model" or trained == {"policy"}
    data = PriorZeroData(stream, evaluations=run.evaluation.plays if evaluates else None)
    return Learner(module, build_trainer(run, name), data)


def build_trainer(run: Run, name: str) -> lightning.Trainer:
    """One Trainer a model. Its epochs are rounds of an integer number of updates (style 5.3, R1)."""
    t, data, policy = run.cfg.trainer, run.cfg.data, name == "policy"
    accumulate = data.policy_accumulate if policy else 1
    updates = data.policy_updates_per_round if policy else data.updates_per_round
    sync = WeightSync(run.mailbox, name, None if policy else t.sync_every_updates)
    callbacks: list[Callback] = [run.collector, sync, RoundReport(run.collector, name, run.progress), run.stop]
    return lightning.Trainer(
        accelerator=t.accelerator,
        devices=t.devices,
        strategy=run.cfg.strategy.name if "_target_" not in run.cfg.strategy else instantiate(run.cfg.strategy),
        precision=t.precision,
        max_epochs=0,
        limit_train_batches=updates * accumulate,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=t.policy_gradient_clip_val if policy else t.gradient_clip_val,
        check_val_every_n_epoch=run.cfg.evaluation.every_n_rounds,
        num_sanity_val_steps=0,
        log_every_n_steps=t.log_every_n_steps,
        detect_anomaly=t.detect_anomaly,
        profiler=t.profiler,
        logger=run.loggers or False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=run.folder,
    )


def world_model_advantages(
    module: WorldModelModule, run: Run, segments: Sequence[Segment], starts: Sequence[int]
) -> np.ndarray:
    """y_t - v(s_t) [n] of the steps ``starts`` of ``segments``, from the world model's target network."""
    data = run.cfg.data
    n = len(segments)
    batch = world_model_batch(
        segments,
        starts,
        unroll=1,
        bootstrap=data.td_steps,
        vocabulary=run.vocabulary,
        weight=np.ones(n, np.float32),
        index=np.zeros(n, np.int64),
        max_known=0,
        rng=np.random.default_rng(0),
    )
    return module.advantages(batch)[:, 0].float().cpu().numpy()

