"""A language model as prior, run by transformers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from priorzero.policy.load import LanguageModel
from priorzero.prior.base import check_situations
from priorzero.prior.cache import PriorCache
from priorzero.prior.scorer import PackedScorer
from priorzero.rl.policy_loss import action_logprobs
from priorzero.text.prompt import PromptBuilder
from priorzero.types import PriorResult, Situation


@dataclass(frozen=True)
class _Query:
    """One situation in tokens; equal queries have equal scores under the same weights."""

    prompt: tuple[int, ...]
    actions: tuple[str, ...]


class LLMPrior:
    """Scores valid actions by the likelihood of their text after the prompt.

    Equal situations are computed once, in a call and (while the weights stay) between calls. One lock makes ``score``
    and ``load_weights`` safe against each other; the model must not be one that a trainer changes.

    Args:
        language_model: the model, with its own weights. It is put into eval mode.
        prompts: writes the prompts and answers.
        temperature: divides the scores before the softmax; above 1 flattens the prior.
        normalise_length: score an action by the mean instead of the sum of its tokens' log-probabilities.
        cache_size: situations remembered, for the present weights.
        row_tokens: see ``PackedScorer``.
        max_batch_tokens: likewise.
        cuda_graphs: likewise.
        compiled: likewise.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        prompts: PromptBuilder,
        *,
        temperature: float,
        normalise_length: bool,
        cache_size: int,
        row_tokens: int,
        max_batch_tokens: int,
        cuda_graphs: bool,
        compiled: bool,
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"the temperature of a prior is positive, not {temperature}")
        self.language_model = language_model
        self.prompts = prompts
        self.temperature = temperature
        self.normalise_length = normalise_length
        self.version = 0
        self.scorer = PackedScorer(
            language_model.model,
            language_model.pad_id,
            row_tokens=row_tokens,
            max_batch_tokens=max_batch_tokens,
            cuda_graphs=cuda_graphs,
            compiled=compiled,
        )
        self._cache = PriorCache(cache_size)
        self._lock = threading.Lock()
        self._hits = self._misses = 0
        self._seconds = 0.0

    def score(self, situations: Sequence[Situation]) -> PriorResult:
        """See ``Prior.score``.

        Raises:
            ValueError: a situation has no valid action.
            PromptTooLongError: an observation does not fit into the prompt's budget.
        """
        check_situations(situations)
        with self._lock:
            begin = time.perf_counter()
            queries = [_Query(tuple(self.prompts.prompt(s)), s.valid_actions) for s in situations]
            known = {q: found for q in set(queries) if (found := self._cache.get((self.version, q))) is not None}
            missing = [q for q in dict.fromkeys(queries) if q not in known]
            known.update(self._compute(missing))
            for query in missing:
                self._cache.put((self.version, query), known[query])
            hits = len(queries) - len(missing)
            self._hits += hits
            self._misses += len(missing)
            self._seconds += time.perf_counter() - begin
            return PriorResult(tuple(known[q].copy() for q in queries), version=self.version, cache_hits=hits)

    def load_weights(self, state: Mapping[str, Tensor], version: int) -> None:
        """Takes over new weights, and forgets the scores of the old ones.

        Args:
            state: what ``PolicyModule.trainable_state`` returned.
            version: the policy version that they are.

        Raises:
            ValueError: the names are not the trainable weights of this model (another LoRA setting, for example).
        """
        with self._lock:
            own = {name: p for name, p in self.language_model.model.named_parameters() if p.requires_grad}
            if own.keys() != state.keys():
                different = sorted(own.keys() ^ state.keys())
                raise ValueError(
                    f"{len(different)} weights are on one side only, {different[0]!r} for example: the prior's model "
                    "and the trained one need the same source and the same LoRA settings"
                )
            with torch.no_grad():
                for name, weight in own.items():
                    weight.copy_(state[name])
            self.version = version
            self._cache.use_version(version)

    def metrics(self) -> dict[str, float]:
        """Counts since the last call: hits, misses, forwards, seconds, states a second."""
        with self._lock:
            total = self._hits + self._misses
            result = {
                "prior/cache_hits": float(self._hits),
                "prior/cache_misses": float(self._misses),
                "prior/cache_hit_rate": self._hits / max(total, 1),
                "prior/forwards": float(self.scorer.forwards),
                "prior/seconds": self._seconds,
                "prior/states_per_s": total / self._seconds if self._seconds else 0.0,
                "prior/version": float(self.version),
            }
            self._hits = self._misses = self.scorer.forwards = 0
            self._seconds = 0.0
            return result

    def state_dict(self) -> dict[str, Any]:
        """The remembered scores of the present weights.

        How situations are put together into batches shows in the last bits of a score, so a run that goes on exactly
        must ask again only what it would have asked.
        """
        with self._lock:
            entries = [(query, logprobs) for (_, query), logprobs in self._cache.entries()]
        return {
            "version": self.version,
            "tokens": torch.tensor([t for query, _ in entries for t in query.prompt], dtype=torch.int32),
            "lengths": [len(query.prompt) for query, _ in entries],
            "actions": [list(query.actions) for query, _ in entries],
            "logprobs": torch.tensor(np.concatenate([np.zeros(0, np.float32), *(row for _, row in entries)])),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember the scores of ``state_dict``; they are of weights that were loaded before, or come right after."""
        prompts = state["tokens"].split(state["lengths"])
        scores = state["logprobs"].split([len(actions) for actions in state["actions"]])
        with self._lock:
            self.version = int(state["version"])
            self._cache.use_version(self.version)
            for prompt, actions, logprobs in zip(prompts, state["actions"], scores, strict=True):
                query = _Query(tuple(prompt.tolist()), tuple(actions))
                self._cache.put((self.version, query), logprobs.numpy().copy())

    def _compute(self, queries: Sequence[_Query]) -> Iterator[tuple[_Query, np.ndarray]]:
        """Log-probabilities [A] of each query, in the order in which they come out."""
        if not queries:
            return
        prompts, answers = [q.prompt for q in queries], [self.prompts.answers(q.actions) for q in queries]
        for order, sums, counts in self.scorer.score(prompts, answers):
            logprobs = action_logprobs(sums, counts, self.temperature, self.normalise_length).numpy()
            if np.isnan(logprobs).any():
                raise RuntimeError("the language model gave nan scores: its weights or its dtype are broken")
            for row, i in zip(logprobs, order, strict=True):
                yield queries[i], row[: len(queries[i].actions)].copy()
