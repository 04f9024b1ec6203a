"""Builds what learns: the modules that the schedule trains, each with its Trainer and its stream of batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
import numpy as np
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from priorzero.app.models import Models, build_planner, planner_options
from priorzero.app.reanalysis import Reanalyser
from priorzero.app.tokens import build_token_module, build_token_stream, learns_from_answers, policy_updates
from priorzero.callbacks.rounds import RoundReport
from priorzero.callbacks.weights import WeightSync
from priorzero.data.collate import world_model_batch
from priorzero.data.datamodule import PriorZeroData
from priorzero.data.reanalysis import FreshPolicies, ReanalysisConfig
from priorzero.data.streams import (
    PolicyDataConfig,
    PolicyStream,
    Source,
    Stream,
    WorldModelDataConfig,
    WorldModelStream,
)
from priorzero.policy.language_module import LanguageModule
from priorzero.policy.load import LanguageModel
from priorzero.policy.module import PolicyModule
from priorzero.policy.packing import pack
from priorzero.text.prompt import PromptBuilder
from priorzero.types import Segment
from priorzero.world_model.module import WorldModelModule

if TYPE_CHECKING:
    from priorzero.app.build import Run


@dataclass
class Learner:
    """A model, the Trainer that trains it, and its view of the data."""

    module: lightning.LightningModule
    trainer: lightning.Trainer
    data: PriorZeroData
    rounds: int = 0  # trained so far
    resume_from: Path | None = None  # a checkpoint that the first fit takes its optimizer from


def build_learners(run: Run, models: Models) -> None:
    """Put a learner for each model that the schedule trains into ``run.learners``."""
    cfg = run.cfg
    trained: set[str] = {r.model for r in run.schedule}
    world_model = WorldModelModule(
        models.world_model,
        loss=instantiate(cfg.world_model.loss),
        target=instantiate(cfg.world_model.target),
        optim=instantiate(cfg.world_model.optim),
    )
    if cfg.world_model.compile:
        world_model.compile_network()
    if records_updates(cfg):
        world_model.record_updates()
    if "world_model" in trained:
        stream = build_world_model_stream(run, world_model)
        run.learners["world_model"] = build_learner(run, "world_model", world_model, stream, evaluates=True)
    if "policy" in trained:
        if models.language_model is None:
            raise ValueError(f"mode={cfg.schedule.mode} trains a language model, and none was loaded")
        policy, stream = build_policy(run, models.language_model, world_model, limited=trained == {"policy"})
        evaluates = cfg.schedule.mode in ("llm", "sequential")  # elsewhere the world model's rounds come soon after
        run.learners["policy"] = build_learner(run, "policy", policy, stream, evaluates=evaluates)


def records_updates(cfg: DictConfig) -> bool:
    """Whether updates of the world model are recorded as CUDA graphs.

    Raises:
        ValueError: an unknown choice; they are to be, and the training has no CUDA device.
    """
    gpu, record = cfg.trainer.accelerator == "gpu", cfg.world_model.record
    if record not in ("auto", True, False):
        raise ValueError(f"world_model.record={record}: use auto, true or false")
    if record is True and not gpu:
        raise ValueError(
            "world_model.record=true records updates as CUDA graphs, and "
            f"trainer.accelerator={cfg.trainer.accelerator} is not a GPU: set it to auto, or use trainer=gpu"
        )
    return gpu and not cfg.trainer.detect_anomaly if record == "auto" else record


def build_policy(
    run: Run, language_model: LanguageModel, world_model: WorldModelModule, *, limited: bool
) -> tuple[LanguageModule, Stream]:
    """The language model under its module, with the samples that its objective trains on."""
    cfg = run.cfg
    if learns_from_answers(cfg):
        writer = build_token_module(cfg, language_model)
        return writer, build_token_stream(run, writer, language_model)
    chooser = PolicyModule(language_model, loss=instantiate(cfg.objective), optim=instantiate(cfg.policy_optim))
    return chooser, build_policy_stream(run, language_model, world_model, limited=limited)


def build_learner(
    run: Run, name: str, module: lightning.LightningModule, stream: Stream, *, evaluates: bool
) -> Learner:
    """A learner; its rounds are evaluated if ``evaluates``."""
    data = PriorZeroData(stream, evaluations=run.evaluation.plays if evaluates else None)
    return Learner(module, build_trainer(run, name), data)


def build_source(run: Run, *, limited: bool) -> Source:
    """The replay as a stream draws from it. One stream of a run is ``limited``: its samples hold the collector."""
    background = run.cfg.collector.kind == "thread"
    return Source(
        replay=run.replay,
        limiter=run.limiter,
        limited=limited and background,
        stall_s=run.cfg.collector.stall_s if background else 0.0,  # inline: nobody else could bring more data
        stop=run.halt,
    )


def build_world_model_stream(run: Run, world_model: WorldModelModule) -> WorldModelStream:
    """Windows for the world model, some of them searched again where the configuration asks for it."""
    data = run.cfg.data
    config = WorldModelDataConfig(
        batch_size=data.batch_size, unroll=data.unroll, bootstrap=data.td_steps, max_known=data.max_known
    )
    asked = reanalysis_config(run.cfg)
    fresh = None
    if asked.ratio:
        search = build_reanalyser(run, world_model, asked.states)
        fresh = FreshPolicies(run.replay, search, ratio=asked.ratio, unroll=data.unroll)
    source = build_source(run, limited=True)
    return WorldModelStream(source, run.vocabulary, config, seed=run.cfg.seed, fresh=fresh)


def reanalysis_config(cfg: DictConfig) -> ReanalysisConfig:
    """How much is searched again.

    Raises:
        ValueError: a number is out of its range, no world model trains, or ways are to be imitated.
    """
    config = ReanalysisConfig(ratio=cfg.data.reanalysis_ratio, states=cfg.data.reanalysis_states)
    if config.ratio and cfg.schedule.mode == "llm":
        raise ValueError(
            f"data.reanalysis_ratio={config.ratio} makes targets for the world model, and mode=llm trains none: set it "
            "to 0, or use another mode"
        )
    novelty = cfg.collector.novelty
    if config.ratio and novelty.return_share * novelty.imitate_share:
        raise ValueError(
            f"data.reanalysis_ratio={config.ratio} puts the search's opinion in the place of every policy target, also "
            f"of the ways that collector.novelty.imitate_share={novelty.imitate_share} is there to imitate: set one of "
            "them to 0"
        )
    return config


def build_reanalyser(run: Run, world_model: WorldModelModule, states: int) -> Reanalyser:
    """Searches with the weights as they are now, on a planner of its own: the collector may be using the other one."""
    player = run.collector.actor.player
    return Reanalyser(
        planner=build_planner(run.cfg, world_model.model.config, planner_options(run.cfg)),
        newest=world_model.model.state_dict,
        vocabulary=run.vocabulary,
        search=player.search_config,
        root_prior=player.root_prior,
        env_steps=lambda: run.collector.actor.env_steps,
        states=states,
        seconds=player.seconds,
    )


def build_policy_stream(
    run: Run, language_model: LanguageModel, world_model: WorldModelModule, *, limited: bool
) -> PolicyStream:
    """Steps for the language model. Its prompts are written with a tokenizer that no other thread uses."""
    cfg = run.cfg
    config = PolicyDataConfig(
        batch_size=cfg.data.policy_batch_size,
        micro_batch_size=cfg.data.policy_batch_size // policy_micro_batches(cfg),
        newest_steps=cfg.data.newest_steps,
        newest_share=cfg.data.newest_share,
        advantage=cfg.data.advantage,
        normalisation=cfg.data.advantage_normalisation,
        decay=cfg.data.advantage_decay,
    )
    return PolicyStream(
        build_source(run, limited=limited),
        config,
        prompts=PromptBuilder(language_model.tokenizer, instantiate(cfg.prompt)),
        pack=partial(pack, row_tokens=cfg.data.policy_row_tokens),
        pad_id=language_model.pad_id,
        advantages=lambda segments, steps: world_model_advantages(world_model, run, segments, steps),
        seed=cfg.seed,
    )


def policy_micro_batches(cfg: DictConfig) -> int:
    """Into how many forward passes an update of the language model from play is split.

    Raises:
        ValueError: that is not a whole number.
    """
    samples, most = cfg.data.policy_batch_size, cfg.trainer.policy_micro_batch
    if samples > most and samples % most:
        raise ValueError(
            f"data.policy_batch_size={samples} samples cannot be split into forward passes of "
            f"trainer.policy_micro_batch={most}: make one a multiple of the other"
        )
    return max(1, samples // most)


def build_trainer(run: Run, name: str) -> lightning.Trainer:
    """One Trainer a model. Its epochs are rounds of an integer number of updates (style 5.3, R1)."""
    t, data, policy = run.cfg.trainer, run.cfg.data, name == "policy"
    accumulate = policy_micro_batches(run.cfg) if policy else 1
    updates = policy_updates(run.cfg) if policy else data.updates_per_round
    if policy and learns_from_answers(run.cfg):
        accumulate = run.cfg.experience.micro_batches
    sync = WeightSync(run.mailbox, name, None if policy else t.sync_every_updates)
    callbacks: list[Callback] = [RoundReport(run.collector, name, run.progress), run.collector, sync, run.stop]
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
        log_every_n_steps=1 if policy else t.log_every_n_steps,
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
