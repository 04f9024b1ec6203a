"""A collector on the corridor game, played at random: no models are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from toy_games import CorridorSpec

from priorzero.callbacks.collector import Collector, CollectorConfig
from priorzero.callbacks.weights import Mailbox
from priorzero.collect.actor import Actor, CollectConfig
from priorzero.collect.novelty import NoveltyConfig
from priorzero.collect.player import ExploreConfig, Player, RootPriorConfig
from priorzero.data.limiter import RateLimiter
from priorzero.data.replay import Replay
from priorzero.envs.vector import VectorEnv
from priorzero.search import SearchConfig
from priorzero.text.encoder import SentenceEncoder
from priorzero.text.vocabulary import ActionVocabulary


@pytest.fixture(scope="session")
def encoder(tiny_encoder: Path) -> SentenceEncoder:
    return SentenceEncoder(tiny_encoder, pooling="mean", normalise=True, max_tokens=64, cache_size=1000, batch_size=8)


@pytest.fixture(scope="session")
def envs() -> Iterator[VectorEnv]:
    with VectorEnv(2, timeout_s=20, reset_timeout_s=30) as vector:
        yield vector


@pytest.fixture
def player(encoder: SentenceEncoder) -> Player:
    return Player(
        encoder=encoder,
        vocabulary=ActionVocabulary(encoder.encode, encoder.width),
        planner=None,
        prior=None,
        search=SearchConfig(simulations=2, c_init=1.25, c_base=19652, gamma=0.9, minmax_floor=0.01, reuse=False),
        root_prior=RootPriorConfig(
            llm_weight=0, llm_weight_end=0, anneal_env_steps=0, llm_from_env_step=0, llm_weight_unsure=None
        ),
        explore=ExploreConfig(dirichlet_alpha=0.3, dirichlet_fraction=0.25, temperature=1, prior_temperature=1),
        observe=("feedback", "look", "inventory"),
        rng=np.random.default_rng(0),
    )


@pytest.fixture
def make_collector(envs: VectorEnv, player: Player) -> Iterator[Callable[..., Collector]]:
    """A collector of two games with segments of at most 4 steps."""
    made = []

    def make(
        kind: str = "inline",
        *,
        ratio: float = 2.0,
        min_size: int = 20,
        tolerance: float = 40,
        game: CorridorSpec | None = None,
        **changes,
    ) -> Collector:
        config = CollectConfig(
            num_envs=2, groups=1, policy="random", segment_steps=4, history_steps=0, gamma=0.9, seed=0,
            novelty=NoveltyConfig(
                weight=0.0, try_share=0.0, return_share=0.0, return_policy="own", return_try_share=0.0,
                imitate_share=0.0, imitate_first=0, cross_share=0.0, carry_share=0.5, rare_place_share=0.0,
                count_passing=False, of=("look",),
            ),
        )  # fmt: skip
        actor = Actor(envs, [game or CorridorSpec(4)], player, config)
        replay = Replay(10_000, prioritised=True, alpha=1.0, beta=0.4, gamma=0.9, seed=0)
        settings = {"kind": kind, "env_steps_per_round": 10, "finish_first": False, "plays": True}
        limiter = RateLimiter(ratio, min_size, tolerance)
        made.append(Collector(actor, replay, limiter, Mailbox(), CollectorConfig(**(settings | changes))))
        return made[-1]

    yield make
    for collector in made:
        collector.close()
