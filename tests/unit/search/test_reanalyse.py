"""Reanalysis in chunks against single searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from reference import Imagination, ImaginedModel, imagine

from priorzero.search import GumbelConfig, SearchConfig, StoredStates, gumbel_search, masked_softmax, reanalyse, search
from priorzero.types import Context, Root

PUCT = SearchConfig(20, 1.25, 19652.0, 0.997, 0.01, False)
GUMBEL = GumbelConfig(20, 4, 50.0, 0.1, 0.997, 0.01)


@dataclass
class Said:
    value: np.ndarray
    logits: np.ndarray


class Worlds:
    """A planner over imagined worlds: the first number of an observation is the seed."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def root(self, context: Context, actions: np.ndarray, known: np.ndarray) -> Said:
        self.batches.append(len(actions))
        self.model = ImaginedModel(
            [imagine(Imagination(int(v), root_width=6, width=4, holes=False)) for v in context.vectors[:, -1, 0]]
        )
        root = self.model.root
        return Said(root.value, np.log(root.probs))

    def expand(self, *args: Any) -> Any:
        return self.model.expand(*args)


def states(n: int, prior: bool) -> StoredStates:
    vectors = np.arange(n, dtype=np.float32).reshape(n, 1, 1)
    context = Context(vectors, np.zeros((n, 0), np.int32), np.ones(n, np.int64))
    worlds = [imagine(Imagination(i, root_width=6, width=4, holes=False))(()) for i in range(n)]
    actions = np.array([w.actions for w in worlds], np.int32).reshape(n, 6)
    probs = np.random.default_rng(0).dirichlet(np.ones(6), n).astype(np.float32) if prior else None
    return StoredStates(context, actions, np.ones((n, 1), bool), probs)


@pytest.mark.parametrize("config", [PUCT, GUMBEL])
@pytest.mark.parametrize("prior", [False, True])
def test_equals_single_searches(config: SearchConfig | GumbelConfig, prior: bool) -> None:
    stored, planner = states(7, prior), Worlds()
    found = reanalyse(planner, stored, config, llm_weight=0.25, batch=3)
    assert planner.batches == [3, 3, 1]
    for i in range(7):
        said = planner.root(
            Context(stored.context.vectors[i : i + 1], *[np.zeros(1)] * 2), stored.actions[:1], stored.known
        )
        probs = masked_softmax(said.logits, np.ones((1, 6), bool))
        if stored.prior_probs is not None:
            probs = (0.75 * probs + 0.25 * stored.prior_probs[i]).astype(np.float32)
        root = Root(stored.actions[i : i + 1], probs, said.value)
        if isinstance(config, GumbelConfig):
            result = gumbel_search(planner, root, config, None)
            np.testing.assert_allclose(found.policy[i], result.policy[0], atol=1e-5)
        else:
            result = search(planner, root, config)
            np.testing.assert_array_equal(found.policy[i], result.visit_probs[0])
        assert found.value[i] == pytest.approx(result.value[0], abs=1e-5)


@pytest.mark.parametrize("config", [PUCT, GUMBEL])
def test_every_state_may_have_its_own_share(config: SearchConfig | GumbelConfig) -> None:
    weight = np.array([0.0, 0.6, 0.0, 0.6, 0.0], np.float32)
    found = reanalyse(Worlds(), states(5, True), config, llm_weight=weight, batch=2)
    without = reanalyse(Worlds(), states(5, False), config, llm_weight=0.6, batch=5)
    with_it = reanalyse(Worlds(), states(5, True), config, llm_weight=0.6, batch=5)
    mixed = np.where(weight[:, None] > 0, with_it.policy, without.policy)
    np.testing.assert_allclose(found.policy, mixed, atol=1e-5)
    assert not np.allclose(with_it.policy, without.policy, atol=1e-2)


def test_nothing_to_search() -> None:
    found = reanalyse(Worlds(), states(0, False), PUCT, llm_weight=0.5, batch=3)
    assert found.policy.shape == (0, 6)
    assert found.value.shape == (0,)


def test_bad_batch() -> None:
    with pytest.raises(ValueError, match="batch must be at least 1"):
        reanalyse(Worlds(), states(2, False), PUCT, llm_weight=0.5, batch=0)
