"""Texts to vectors: a frozen BERT-like sentence encoder that computes each distinct text once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from priorzero.utils.models import resolve

Pooling = Literal["mean", "cls"]


class SentenceEncoder:
    """A frozen encoder behind a bounded cache (the least recently used text leaves first).

    Mean pooling over the real tokens is what Sentence-BERT does (Reimers & Gurevych 2019, arXiv:1908.10084), the first
    token's state is what BGE does (Xiao et al. 2023, arXiv:2309.07597). Computed in float32 without gradients. Safe to
    call from several threads: one computes while the others wait.

    Args:
        source: a folder, an embedded model or a hub name, see ``priorzero.utils.models.resolve``.
        pooling: ``mean`` or ``cls``.
        normalise: scale every vector to length 1.
        max_tokens: longer texts are cut, special tokens included.
        cache_size: how many texts are remembered.
        batch_size: how many texts go through the network at once.
        device: where the network runs; vectors are always returned on the CPU.

    Raises:
        ValueError: a number is out of range, or ``max_tokens`` is more than the model can read.
        ModelSourceError: the model cannot be had.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        pooling: Pooling,
        normalise: bool,
        max_tokens: int,
        cache_size: int,
        batch_size: int,
        device: str | torch.device = "cpu",
    ) -> None:
        if pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be 'mean' or 'cls', not {pooling!r}")
        if min(cache_size, batch_size) < 1:
            raise ValueError(f"cache_size ({cache_size}) and batch_size ({batch_size}) must be at least 1")
        self._pooling = pooling
        self._normalise = normalise
        self._max_tokens = max_tokens
        self._cache_size = cache_size
        self._batch_size = batch_size
        self._device = torch.device(device)
        self._tokenizer, self._model = _load(source, self._device)
        self.width: int = self._model.config.hidden_size
        longest = self._model.config.max_position_embeddings
        if not 2 < max_tokens <= longest:
            raise ValueError(f"max_tokens must be in 3..{longest} for the encoder {source}, not {max_tokens}")
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = 0  # texts answered without computing
        self.misses = 0  # texts that went through the network

    @property
    def hit_rate(self) -> float:
        """Share of the non-empty texts that were answered from the cache; 0 before the first."""
        return self.hits / max(self.hits + self.misses, 1)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors ``[n, width]`` float32 of ``n`` texts; the empty string is the zero vector."""
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        asked = [text for text in texts if text]
        if not asked:
            return vectors
        with self._lock:
            known = self._look_up(asked)
            missing = [text for text in dict.fromkeys(asked) if text not in known]
            known.update(self._compute(missing))
            self.misses += len(missing)
            self.hits += len(asked) - len(missing)
            self._remember({text: known[text] for text in missing})
        for row, text in enumerate(texts):
            if text:
                vectors[row] = known[text]
        return vectors

    def state_dict(self) -> dict[str, Any]:
        """The cache: which texts went through the network together shows in the last bits of their vectors."""
        with self._lock:
            vectors = np.stack(list(self._cache.values())) if self._cache else np.zeros((0, self.width), np.float32)
            counts = {"hits": self.hits, "misses": self.misses}
            return {"texts": list(self._cache), "vectors": torch.from_numpy(vectors)} | counts

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the cache of ``state_dict`` over."""
        with self._lock:
            self._cache = OrderedDict(zip(state["texts"], state["vectors"].numpy(), strict=True))
            self._remember({})
            self.hits, self.misses = int(state["hits"]), int(state["misses"])

    def _look_up(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        found = {}
        for text in texts:
            if text in self._cache:
                self._cache.move_to_end(text)
                found[text] = self._cache[text]
        return found

    def _remember(self, new: dict[str, np.ndarray]) -> None:
        self._cache.update(new)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)

    def _compute(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Encode distinct texts, those of like length together, so that little is spent on padding."""
        if not texts:
            return {}
        rows = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)["input_ids"]
        order = sorted(range(len(texts)), key=lambda i: len(rows[i]))
        vectors: dict[str, np.ndarray] = {}
        for chosen in _chunks(order, self._batch_size):
            batch = self._forward([rows[i] for i in chosen])
            vectors.update((texts[i], vector.copy()) for i, vector in zip(chosen, batch, strict=True))
        return vectors

    @torch.inference_mode()
    def _forward(self, rows: Sequence[list[int]]) -> np.ndarray:
        """Pooled vectors ``[n, width]`` of ``n`` token lists."""
        length = max(map(len, rows))
        tokens = torch.full((len(rows), length), self._tokenizer.pad_token_id or 0)
        mask = torch.zeros(len(rows), length, dtype=torch.int64)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        tokens, mask = tokens.to(self._device), mask.to(self._device)
        states = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state
        pooled = states[:, 0] if self._pooling == "cls" else _mean(states, mask)
        if self._normalise:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        return pooled.float().cpu().numpy()


def number_vector(number: float, width: int) -> np.ndarray:
    """A number as a vector [width] float32 of length 1: sines and cosines of it, with periods from 4 to 4,000.

    Sentence vectors of two numbers are all but equal. These tell neighbours apart, and are alike where the numbers are
    close (Vaswani et al. 2017, arXiv 1706.03762, section 3.5). An odd width ends in a zero.
    """
    half = width // 2
    angles = number * 2 * np.pi / np.geomspace(4, 4000, half)
    vector = np.zeros(width, np.float32)
    vector[:half], vector[half : 2 * half] = np.sin(angles), np.cos(angles)
    return vector / np.sqrt(half, dtype=np.float32)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens: ``[B, L, E]`` and ``[B, L]`` to ``[B, E]``."""
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1)


def _chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _load(source: str | Path, device: torch.device) -> tuple[Any, Any]:
    """Tokenizer and frozen float32 network of ``source``."""
    from transformers import AutoModel, AutoTokenizer

    path = resolve(source)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModel.from_pretrained(path, dtype=torch.float32)
    return tokenizer, model.eval().requires_grad_(False).to(device)
