"""Text generation by transformers: batched, with a cache of keys and values, and with random numbers of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from priorzero.policy.load import LanguageModel, causal_lm
from priorzero.rollout.base import GenerationCounts, Sampling, check_request
from priorzero.rollout.sampling import StopText, draw, end_tokens
from priorzero.types import Generation


@dataclass
class _Row:
    """One answer on its way."""

    prompt: int  # which prompt it answers
    uniform: Tensor  # [max_tokens] float64, its random numbers
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = ""  # empty while it goes on


class TransformersGenerator:
    """See ``TextGenerator``. The samples of one prompt share its computation; finished rows leave the batch.

    Each answer has its random numbers before the first forward pass, so what it says does not depend on which answers
    are computed with it (up to rounding of the logits). Log-probabilities are those of the whole distribution after
    temperature, also under top_p. One lock makes ``generate`` and ``load_weights`` safe against each other; the model
    must not be one that a trainer changes.

    Args:
        language_model: the model, with its own weights: float32 on a CPU, bfloat16 on a GPU. It is put into eval mode.
        max_batch_tokens: in one batch, rows times the length that they may reach; a row that alone needs more goes
            alone. The cache holds that many keys and values.
        seed: of the stream that answers calls whose ``Sampling.seed`` is None.
    """

    def __init__(self, language_model: LanguageModel, *, max_batch_tokens: int, seed: int) -> None:
        if max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens must be at least 1, not {max_batch_tokens}")
        self.language_model = language_model
        self.max_batch_tokens = max_batch_tokens
        self.version = 0
        self._model: nn.Module = language_model.model.eval()
        self._causal: Any = causal_lm(self._model)
        self._ends = end_tokens(language_model.tokenizer, self._causal.generation_config.eos_token_id)
        self._random = torch.Generator().manual_seed(seed)
        self._lock = threading.Lock()
        self._counts = GenerationCounts()

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, samples: int = 1
    ) -> list[list[Generation]]:
        """See ``TextGenerator.generate``.

        Raises:
            ValueError: as there.
            RuntimeError: the model gave nan.
        """
        check_request(prompts, sampling, samples, self._causal.config.max_position_embeddings)
        with self._lock, torch.no_grad():
            begin = time.perf_counter()
            random = self._random if sampling.seed is None else torch.Generator().manual_seed(sampling.seed)
            uniform = torch.rand(len(prompts) * samples, sampling.max_tokens, generator=random, dtype=torch.float64)
            rows = [_Row(i // samples, u) for i, u in enumerate(uniform)]
            for batch in self._batches(prompts, rows, sampling.max_tokens):
                self._run(prompts, batch, sampling)
            done = [Generation(tuple(row.tokens), np.array(row.logprobs, dtype=np.float32), row.finish) for row in rows]
            self._counts.add(prompts, done, time.perf_counter() - begin)
        return [done[i : i + samples] for i in range(0, len(done), samples)]

    @property
    def dtype(self) -> torch.dtype:
        """See ``TextGenerator``."""
        return self._causal.get_input_embeddings().weight.dtype

    def weights(self) -> dict[str, Tensor]:
        """See ``TextGenerator.weights``."""
        return {name: p.detach() for name, p in self._model.named_parameters() if p.requires_grad}

    def load_weights(self, state: Mapping[str, Tensor], version: int) -> None:
        """See ``TextGenerator.load_weights``."""
        with self._lock, torch.no_grad():
            own = self.weights()
            if own.keys() != state.keys():
                different = sorted(own.keys() ^ state.keys())
                raise ValueError(
                    f"{len(different)} weights are on one side only, {different[0]!r} for example: the model that "
                    "writes and the trained one need the same source and the same LoRA settings"
                )
            for name, weight in own.items():
                weight.copy_(state[name])
            self.version = version

    def metrics(self) -> dict[str, float]:
        """See ``GenerationCounts``."""
        with self._lock:
            counts, self._counts = self._counts, GenerationCounts()
            return counts.metrics(self.version)

    def sleep(self) -> None:
        """Nothing to give back: between calls there is only the model."""

    def close(self) -> None:
        """Nothing to give back: the model belongs to whoever loaded it."""

    def _batches(self, prompts: Sequence[Sequence[int]], rows: list[_Row], room: int) -> Iterator[list[_Row]]:
        """Rows with prompts of similar length together, longest first, each batch within the token budget."""
        batch: list[_Row] = []
        for row in sorted(rows, key=lambda r: (-len(prompts[r.prompt]), r.prompt)):
            longest = len(prompts[batch[0].prompt]) + room if batch else 0
            if batch and longest * (len(batch) + 1) > self.max_batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _run(self, prompts: Sequence[Sequence[int]], rows: list[_Row], sampling: Sampling) -> None:
        """Writes the answers of one batch into its rows."""
        watch = StopText(self.language_model.tokenizer, self._ends, sampling.stop)
        logits, state = self._prefill(prompts, rows)
        while True:
            step = len(rows[0].tokens)
            uniform = torch.stack([row.uniform[step] for row in rows]).to(logits.device)
            tokens, logprobs = draw(logits, uniform, sampling.temperature, sampling.top_p)
            self._note(rows, tokens.tolist(), logprobs.tolist(), watch, sampling.max_tokens)
            going = [i for i, row in enumerate(rows) if not row.finish]
            if not going:
                return
            if len(going) < len(rows):
                keep = torch.tensor(going, device=logits.device)
                rows, tokens = [rows[i] for i in going], tokens[keep]
                state.select(keep)
            logits = self._forward(tokens[:, None], state)

    @staticmethod
    def _note(rows: list[_Row], tokens: list[int], logprobs: list[float], watch: StopText, max_tokens: int) -> None:
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            if np.isnan(logprob):
                raise RuntimeError("the language model gave nan scores: its weights or its dtype are broken")
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if watch.ended(row.tokens):
                row.finish = "stop"
            elif len(row.tokens) == max_tokens:
                row.finish = "length"

    def _prefill(self, prompts: Sequence[Sequence[int]], rows: list[_Row]) -> tuple[Tensor, _State]:
        """The logits behind each row's prompt [B, V], and the state to go on from.

        Equal prompts are computed once, and so are the tokens that all prompts begin with.
        """
        from transformers import DynamicCache

        asked = list(dict.fromkeys(tuple(prompts[row.prompt]) for row in rows))
        device = next(self._model.parameters()).device
        state = _State(DynamicCache(config=self._causal.config), torch.ones(1, 0, dtype=torch.int64, device=device))
        shared = _shared(asked)
        if shared:
            self._forward(torch.tensor([asked[0][:shared]], device=device), state)
            state.select(torch.zeros(len(asked), dtype=torch.int64, device=device))
        rests = [prompt[shared:] for prompt in asked]
        width = max(map(len, rests))
        padded = [(self.language_model.pad_id,) * (width - len(rest)) + rest for rest in rests]
        lengths = torch.tensor([len(rest) for rest in rests], device=device)
        real = torch.arange(width, device=device) >= width - lengths[:, None]
        logits = self._forward(torch.tensor(padded, device=device), state, real.long())
        if len(asked) < len(rows):
            place = {prompt: i for i, prompt in enumerate(asked)}
            where = torch.tensor([place[tuple(prompts[row.prompt])] for row in rows], device=device)
            state.select(where)
            logits = logits[where]
        return logits, state

    def _forward(self, tokens: Tensor, state: _State, real: Tensor | None = None) -> Tensor:
        """Feeds ``tokens`` [B, n], all of them ``real`` or as it says [B, n], and returns the last logits [B, V]."""
        state.mask = torch.cat(
            [state.mask.expand(len(tokens), -1), torch.ones_like(tokens) if real is None else real], 1
        )
        position = (state.mask.cumsum(-1) - 1).clamp(min=0)[:, state.fed :]
        state.fed += tokens.shape[1]
        out = self._causal(
            input_ids=tokens,
            attention_mask=state.mask,
            position_ids=position,
            past_key_values=state.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens several prompts begin with together; the last token of each is never counted."""
    if len(prompts) < 2:
        return 0
    tokens = [tuple(prompt) for prompt in prompts]
    low, high = min(tokens), max(tokens)  # what these two share, all between them share
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


@dataclass
class _State:
    """What a batch has fed: keys and values, and the mask of what is no padding, [B, fed] int64."""

    cache: Any
    mask: Tensor
    fed: int = 0

    def select(self, rows: Tensor) -> None:
        """Keeps ``rows`` [B'] int64 of the batch, in that order; a row may come several times."""
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]
