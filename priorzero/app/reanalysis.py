"""Searches stored states again with the world model as it is now."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from priorzero.collect.player import RootPriorConfig
from priorzero.search import GumbelConfig, SearchConfig, StoredStates, llm_weights, reanalyse
from priorzero.text.vocabulary import ActionVocabulary
from priorzero.types import Context, Segment
from priorzero.world_model.planner import Planner


@dataclass(frozen=True, kw_only=True)
class Reanalyser:
    """Steps of segments to fresh policy targets, all in one batch. Not shared between threads.

    The root's prior mixes what the language model said when the step was played, stored with it, with the newest world
    model, by the weight that play has now. Where no language model was asked the world model stands alone. The language
    model itself is not asked again, and there is no noise.

    The context of a step reaches back to the start of its segment, as it does in training.
    """

    planner: Planner  # used by nobody else
    newest: Callable[[], Mapping[str, Tensor]]  # the world model's weights
    vocabulary: ActionVocabulary
    search: SearchConfig | GumbelConfig
    root_prior: RootPriorConfig
    env_steps: Callable[[], int]  # of the run, for annealing
    states: int  # the most that one search takes
    seconds: MutableMapping[str, float]  # where "reanalyse" adds up

    def __call__(self, segments: Sequence[Segment], steps: Sequence[int]) -> list[np.ndarray]:
        """What a search makes of each step ``steps`` [n] of ``segments`` [n]: n arrays [A_t] over the valid actions."""
        start = time.perf_counter()
        vectors = self.vocabulary.vectors()  # the collector may add to it meanwhile
        self.planner.load_weights(dict(self.newest()))
        self.planner.set_actions(vectors)
        valid = [segment.valid_actions[step] for segment, step in zip(segments, steps, strict=True)]
        actions = _padded([self.vocabulary.ids(some) for some in valid])
        context = contexts(segments, steps, self.planner.config.context_steps, self.vocabulary)
        prior, weight = self._prior(segments, steps, actions >= 0)
        states = StoredStates(context, actions, self._known(segments, len(vectors)), prior)
        found = reanalyse(self.planner, states, self.search, llm_weight=weight, batch=self.states)
        self.seconds["reanalyse"] += time.perf_counter() - start
        return [policy[: len(some)] for policy, some in zip(found.policy, valid, strict=True)]

    def _prior(
        self, segments: Sequence[Segment], steps: Sequence[int], legal: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The stored prior [n, A] and its weight [n]: both 0 where there is none."""
        mix, probs, asked = self.root_prior, np.zeros(legal.shape, np.float32), np.zeros(len(legal), bool)
        for row, (segment, step) in enumerate(zip(segments, steps, strict=True)):
            logprobs = segment.prior_logprobs[step]
            if logprobs is not None:
                probs[row, : len(logprobs)], asked[row] = np.exp(logprobs), True
        done = min(1.0, self.env_steps() / mix.anneal_env_steps) if mix.anneal_env_steps else 0.0
        weight = llm_weights(
            probs, legal, start=mix.llm_weight, end=mix.llm_weight_end, done=done, unsure=mix.llm_weight_unsure
        )
        return probs, np.where(asked, weight, np.float32(0))

    def _known(self, segments: Sequence[Segment], size: int) -> np.ndarray:
        """[n, V] bool: the actions known in each one's game, of the first ``size``."""
        rows: dict[str, np.ndarray] = {}
        for game in {segment.game for segment in segments}:
            ids = self.vocabulary.members(game)
            rows[game] = np.zeros(size, bool)
            rows[game][ids[ids < size]] = True
        return np.stack([rows[segment.game] for segment in segments])


def contexts(segments: Sequence[Segment], steps: Sequence[int], size: int, vocabulary: ActionVocabulary) -> Context:
    """The last ``size`` steps before and with each step, as far back as its segment reaches.

    Raises:
        KeyError: an action is not in the vocabulary.
    """
    n = len(segments)
    vectors = np.zeros((n, size, segments[0].vectors.shape[1]), np.float32)
    actions = np.full((n, size - 1), -1, np.int32)
    length = np.minimum(np.asarray(steps, np.int64) + 1, size)
    for row, (segment, step) in enumerate(zip(segments, steps, strict=True)):
        first = step + 1 - length[row]
        vectors[row, size - length[row] :] = segment.vectors[first : step + 1]
        if first < step:
            actions[row, size - length[row] :] = vocabulary.ids(segment.actions[first:step])
    return Context(vectors, actions, length)


def _padded(ids: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of unequal length as one array [n, A] int32, -1 at their ends."""
    out = np.full((len(ids), max(map(len, ids))), -1, np.int32)
    for row, some in zip(out, ids, strict=True):
        row[: len(some)] = some
    return out
