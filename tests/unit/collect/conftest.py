"""A player with random models for the corridor game."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_llm import small_llm

from priorzero.collect.player import ExploreConfig, Player, RootPriorConfig
from priorzero.envs.vector import VectorEnv
from priorzero.prior.llm import LLMPrior
from priorzero.search import SearchConfig
from priorzero.text.encoder import SentenceEncoder
from priorzero.text.prompt import PromptBuilder, PromptConfig
from priorzero.text.vocabulary import ActionVocabulary
from priorzero.world_model.model import UniZero, UniZeroConfig
from priorzero.world_model.planner import Planner, PlannerConfig

MIX = RootPriorConfig(
    llm_weight=0.5, llm_weight_end=0.5, anneal_env_steps=0, llm_from_env_step=0, llm_weight_unsure=None
)


@pytest.fixture(scope="session")
def envs() -> Iterator[VectorEnv]:
    with VectorEnv(2, timeout_s=20, reset_timeout_s=30) as vector:
        yield vector


@pytest.fixture(scope="session")
def encoder(tiny_encoder: Path) -> SentenceEncoder:
    return SentenceEncoder(
        tiny_encoder, pooling="mean", normalise=True, max_tokens=64, cache_size=1000, batch_size=8
    )  # fmt: skip


@pytest.fixture(scope="session")
def prior() -> LLMPrior:
    llm = small_llm()
    config = PromptConfig(
        format="plain", history_steps=2, max_tokens=512, show_valid_actions=False, show_rewards=True,
        truncate_observation=True, show=("feedback", "look", "inventory"), system=None,
    )  # fmt: skip
    return LLMPrior(
        llm, PromptBuilder(llm.tokenizer, config), temperature=1.0, normalise_length=True, cache_size=1000,
        row_tokens=256, max_batch_tokens=2048, cuda_graphs=False, compiled=False,
    )  # fmt: skip


@pytest.fixture
def make_player(encoder: SentenceEncoder, prior: LLMPrior) -> Callable[..., Player]:
    """Players share their models; each has a vocabulary and random numbers of its own."""

    def make(seed: int = 0, **changes) -> Player:
        torch.manual_seed(0)
        sizes = UniZeroConfig(
            observation_width=3 * encoder.width, action_width=encoder.width, width=16, layers=1, heads=2, dropout=0.0,
            latent_norm="layernorm", support_limit=5, window_steps=4, max_positions=40,
        )  # fmt: skip
        planner = Planner(UniZero(sizes), PlannerConfig(context_steps=3, top_k=4, simulations=8))
        parts = {
            "encoder": encoder,
            "vocabulary": ActionVocabulary(encoder.encode, encoder.width),
            "planner": planner,
            "prior": prior,
            "search": SearchConfig(simulations=8, c_init=1.25, c_base=19652, gamma=0.9, minmax_floor=0.01, reuse=False),
            "root_prior": MIX,
            "explore": ExploreConfig(
                dirichlet_alpha=0.3, dirichlet_fraction=0.25, temperature=1.0, prior_temperature=1.0
            ),
            "observe": ("feedback", "look", "inventory"),
            "rng": np.random.default_rng(seed),
        }
        return Player(**(parts | changes))

    return make
