"""Tiny world models and synthetic batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from priorzero.types import WorldModelBatch
from priorzero.world_model.model import UniZero, UniZeroConfig

OBSERVATION, ACTION, WIDTH = 6, 4, 16


@pytest.fixture
def make_model() -> Callable[..., UniZero]:
    """A tiny network; unless ``fresh``, the zero-initialised last layers are random: every output depends on input."""

    def make(seed: int = 0, fresh: bool = False, **changes: object) -> UniZero:
        torch.manual_seed(seed)
        settings = {
            "observation_width": OBSERVATION,
            "action_width": ACTION,
            "width": WIDTH,
            "layers": 2,
            "heads": 2,
            "dropout": 0.0,
            "latent_norm": "simnorm",
            "support_limit": 3,
            "window_steps": 3,
            "max_positions": 64,
        }
        model = UniZero(UniZeroConfig(**(settings | changes)))
        if not fresh:
            for head in (model.reward_head, model.value_head, model.policy_head, model.next_head):
                nn.init.normal_(head[-1].weight, std=0.5)
        return model

    return make


@pytest.fixture
def make_batch() -> Callable[..., WorldModelBatch]:
    """``rows`` random windows of 3 trained and 2 bootstrap steps over 5 candidates; all steps are real."""

    def make(seed: int = 0, rows: int = 4, **changes: object) -> WorldModelBatch:
        generator = torch.Generator().manual_seed(seed)
        unroll, steps, candidates = 3, 5, 5
        legal = torch.rand(rows, unroll, candidates, generator=generator) < 0.6
        legal[..., 0] = True
        policy = torch.rand(rows, unroll, candidates, generator=generator) * legal
        fields = {
            "observation": torch.randn(rows, steps + 1, OBSERVATION, generator=generator),
            "action": torch.randint(candidates, (rows, steps), generator=generator),
            "reward": torch.randint(-1, 3, (rows, steps), generator=generator).float(),
            "length": torch.full((rows,), steps),
            "terminated": torch.zeros(rows, dtype=torch.bool),
            "candidates": torch.randn(candidates, ACTION, generator=generator),
            "legal": legal,
            "known": torch.ones(rows, candidates, dtype=torch.bool),
            "policy": policy / policy.sum(-1, keepdim=True),
            "weight": torch.ones(rows),
            "index": torch.arange(rows),
        }
        return WorldModelBatch(**(fields | changes))

    return make
