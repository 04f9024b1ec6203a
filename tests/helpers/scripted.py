"""A player of fixed texts, and token sequences with a mask: what tests of the agent loop and its trainer share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from priorzero.rollout.base import Sampling
from priorzero.text.chat import encode
from priorzero.types import Generation


class ScriptedGenerator:
    """Writes the given texts in order, as their tokens; keeps what it was asked.

    A text that ends in the end-of-turn token or in a stop string finishes with "stop", any other with "length".
    """

    def __init__(self, tokenizer, *texts: str) -> None:
        self.tokenizer, self.texts, self.version = tokenizer, list(texts), 0
        self.asked: list[tuple[list[list[int]], Sampling, int]] = []
        self.written: list[tuple[int, ...]] = []

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, samples: int = 1):
        self.asked.append(([list(prompt) for prompt in prompts], sampling, samples))
        return [[self._next(sampling) for _ in range(samples)] for _ in prompts]

    def _next(self, sampling: Sampling) -> Generation:
        text = self.texts.pop(0)
        tokens = tuple(encode(self.tokenizer, text))
        self.written.append(tokens)
        stopped = text.endswith((*sampling.stop, self.tokenizer.eos_token))
        logprobs = -1.0 - np.arange(len(tokens), dtype=np.float32)  # never 0, which stands for "not written"
        return Generation(tokens, logprobs, "stop" if stopped else "length")

    def load_weights(self, state: Mapping[str, Tensor], version: int) -> None:
        self.version = version

    def metrics(self) -> dict[str, float]:
        return {}

    def sleep(self) -> None:
        pass

    def close(self) -> None:
        pass


def perturb_given(values: np.ndarray, written: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``values`` [..., L] with noise, infinities and nan where ``written`` [..., L] is False; the rest is untouched.

    A loss or an advantage that keeps to the mask is the same for both, to the bit.
    """
    noise = rng.choice([np.nan, np.inf, -np.inf, -1e9, 1e9, *rng.normal(size=20)], size=values.shape)
    return np.where(written, values, noise).astype(values.dtype)
