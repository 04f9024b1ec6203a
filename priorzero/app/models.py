"""Builds what plays: encoder, world model, language model, and the player that uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from priorzero.collect.player import Player
from priorzero.policy.load import LanguageModel, load_llm
from priorzero.prior.base import Prior
from priorzero.prior.llm import LLMPrior
from priorzero.text.prompt import PromptBuilder
from priorzero.text.vocabulary import ActionVocabulary
from priorzero.world_model.model import UniZero, UniZeroConfig
from priorzero.world_model.planner import Planner, PlannerConfig, PlannerOptions, make_planner


@dataclass(frozen=True)
class Models:
    """What plays: snapshots, separate from what is trained."""

    player: Player
    world_model: UniZero  # a network of its own with the same start weights, to be trained
    language_model: LanguageModel | None  # likewise, None where the schedule trains none


def plain(node: DictConfig) -> dict[str, Any]:
    """A part of the configuration as plain containers, interpolations resolved."""
    return {str(key): value for key, value in cast(dict, OmegaConf.to_container(node, resolve=True)).items()}


def build_models(cfg: DictConfig, rng: np.random.Generator) -> Models:
    """Encoder, world model, language model and the player that uses them.

    Raises:
        ValueError: something cannot work; the options of the planner are looked at before anything is loaded.
    """
    options = planner_options(cfg)
    if options.device_tree and cfg.search.config.get("reuse", False):
        raise ValueError(
            f"search.config.reuse=true reads the trees, and world_model.planner.tree={options.tree} on "
            f"trainer.device={options.device} keeps them beside the network: use world_model.planner.tree=host"
        )
    encoder = instantiate(cfg.encoder)
    vocabulary = ActionVocabulary(encoder.encode, encoder.width)
    world_model = UniZero(network_config(cfg, encoder.width))
    planner = build_planner(cfg, world_model.config, options)
    planner.load_weights(world_model.state_dict())
    language_model, prior = build_llm(cfg)
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
    return Models(player, world_model, language_model)


def planner_options(cfg: DictConfig) -> PlannerOptions:
    """How every planner of the run computes."""
    return PlannerOptions(device=cfg.trainer.device, **plain(cfg.world_model.planner))


def build_planner(cfg: DictConfig, network: UniZeroConfig, options: PlannerOptions) -> Planner:
    """A planner with a network of its own, whose weights are still to be loaded."""
    sizes = PlannerConfig(
        context_steps=cfg.world_model.context_steps,
        top_k=cfg.world_model.top_k,
        simulations=cfg.search.config.simulations,
    )
    return make_planner(UniZero(network), sizes, options)


def network_config(cfg: DictConfig, sentence_width: int) -> UniZeroConfig:
    """Sizes of the world model, those that follow from other settings included."""
    unroll, bootstrap, context = cfg.data.unroll, cfg.data.td_steps, cfg.world_model.context_steps
    return UniZeroConfig(
        observation_width=sentence_width * len(cfg.env.observe),
        action_width=sentence_width,
        max_positions=2 * max(unroll + bootstrap + 1, context + cfg.search.config.simulations),
        **plain(cfg.world_model.network),
    )


def build_llm(cfg: DictConfig) -> tuple[LanguageModel | None, Prior | None]:
    """The language model to be trained, and a prior with a copy of its own."""
    if cfg.llm.source is None:
        return None, None
    playing = load_copy(cfg)
    prior = LLMPrior(playing, PromptBuilder(playing.tokenizer, instantiate(cfg.prompt)), **plain(cfg.prior))
    trained = load_copy(cfg) if cfg.schedule.mode != "world_model" else None
    return trained, prior


def load_copy(cfg: DictConfig) -> LanguageModel:
    """The language model as it is at the start; every copy has the same adapters."""
    torch.manual_seed(cfg.seed)
    return load_llm(
        cfg.llm.source,
        dtype=cfg.llm.dtype,
        device=cfg.trainer.device,
        attn_implementation=cfg.llm.attn_implementation,
        lora=instantiate(cfg.llm.peft) if cfg.llm.peft else None,
        gradient_checkpointing=cfg.llm.gradient_checkpointing,
    )
