"""Searches stored states again with newer weights, many at once (MuZero Reanalyse, arXiv 2104.06294)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from priorzero.search.gumbel import GumbelConfig, gumbel_search
from priorzero.search.root import masked_softmax, mix_priors
from priorzero.search.search import SearchConfig, search
from priorzero.types import Context, Root


class RootModel(Protocol):
    """A model of `search` that also reads contexts: a planner."""

    def root(self, context: Context, actions: np.ndarray, known: np.ndarray) -> Any:
        """Starts trees; returns something with ``value`` [B] and ``logits`` [B, A]."""
        ...


@dataclass(frozen=True, slots=True)
class StoredStates:
    """States to search again, with what was known when they were played. Vocabularies must be set on the planner."""

    context: Context  # n rows
    actions: np.ndarray  # [n, A] int32 ids of the valid actions, -1 where padded
    known: np.ndarray  # [n, V] bool, the actions that imagined states may offer
    prior_probs: np.ndarray | None = None  # [n, A] float32 of the language model, None if it was never asked


@dataclass(frozen=True, slots=True)
class Reanalysis:
    """Fresh targets for stored states."""

    policy: np.ndarray  # [n, A] float32, what to learn from: shares of the visits, or Gumbel's improved policy
    value: np.ndarray  # [n] float32, what the search thinks of the state


def reanalyse(
    planner: RootModel,
    states: StoredStates,
    config: SearchConfig | GumbelConfig,
    *,
    llm_weight: np.ndarray | float,
    batch: int,
) -> Reanalysis:
    """Searches ``n`` stored states as in an evaluation: no noise.

    Args:
        planner: the model, with the newest weights.
        states: n of them.
        config: which search, and its constants.
        llm_weight: share of ``prior_probs`` in the root's prior, one number or [n]; without them the world model's
            policy stands alone, as it does in rows of share 0.
        batch: most trees in one search. The more the faster; memory grows with them.

    Raises:
        ValueError: ``batch`` is below 1, or what `search` raises.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    weight = np.broadcast_to(llm_weight, len(states.actions))
    chunks = [slice(start, start + batch) for start in range(0, len(states.actions), batch)]
    parts = [_search_again(planner, _rows(states, rows), config, weight[rows]) for rows in chunks]
    if not parts:
        return Reanalysis(np.zeros(states.actions.shape, np.float32), np.zeros(0, np.float32))
    policies, values = zip(*parts, strict=True)
    return Reanalysis(np.concatenate(policies), np.concatenate(values))


def _rows(states: StoredStates, rows: slice) -> StoredStates:
    context = states.context
    part = Context(context.vectors[rows], context.actions[rows], context.length[rows])
    prior = None if states.prior_probs is None else states.prior_probs[rows]
    return StoredStates(part, states.actions[rows], states.known[rows], prior)


def _search_again(
    planner: Any, states: StoredStates, config: SearchConfig | GumbelConfig, llm_weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    said = planner.root(states.context, states.actions, states.known)
    probs = masked_softmax(said.logits, states.actions >= 0)
    if states.prior_probs is not None:
        probs = mix_priors(probs, states.prior_probs, llm_weight)
    root = Root(states.actions, probs, said.value)
    if isinstance(config, GumbelConfig):
        result = gumbel_search(planner, root, config, None)
        return result.policy, result.value
    found = search(planner, root, config)
    return found.visit_probs, found.value
