"""From logits to tokens, and from tokens to an end: what the backends that run here share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draws one token a row by inverting the cumulative distribution, so that a row's draw depends on that row alone.

    Args:
        logits: [B, V].
        uniform: [B] float64 in [0, 1), the random numbers.
        temperature: divides the logits; 0 takes the most likely token.
        top_p: see ``Sampling``.

    Returns:
        tokens [B] int64, and their log-probabilities [B] float32 in the whole distribution, not only in ``top_p``.
    """
    logits = logits.float()
    logprobs = (logits / temperature if temperature else logits).log_softmax(-1)
    if temperature == 0:
        tokens = logprobs.argmax(-1)
    else:
        probs, order = logprobs.double().exp(), None
        if top_p < 1:
            probs, order = probs.sort(dim=-1, descending=True, stable=True)
            probs = probs.where(probs.cumsum(-1) - probs < top_p, 0.0)
        cumulative = probs.cumsum(-1)
        target = uniform[:, None] * cumulative[:, -1:]
        picked = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
        tokens = (picked if order is None else order.gather(-1, picked))[:, 0]
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def end_tokens(tokenizer: Any, listed: int | Sequence[int] | None) -> frozenset[int]:
    """The tokens that end a turn: the tokenizer's and those that the model's generation config lists.

    Raises:
        ValueError: there is none, so that no answer would ever end.
    """
    several = (listed,) if listed is None or isinstance(listed, int) else listed
    ends = frozenset(t for t in (*several, tokenizer.eos_token_id) if t is not None)
    if not ends:
        raise ValueError("the tokenizer names no end-of-turn token: set its eos_token")
    return ends


class StopText:
    """Watches one answer for its end; see ``Sampling`` for when that is.

    Args:
        tokenizer: writes tokens as text.
        ends: tokens that end a turn.
        stop: strings that end an answer.
    """

    def __init__(self, tokenizer: Any, ends: frozenset[int], stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.ends = ends
        self.stop = stop
        added = tokenizer.added_tokens_decoder.items()
        self.special = frozenset((*tokenizer.all_special_ids, *(number for number, token in added if token.special)))
        # every token with text has at least one byte, and the first of the tail may lose its leading space
        self.window = max((len(s.encode()) for s in stop), default=0) + 4

    def ended(self, tokens: Sequence[int]) -> bool:
        """Whether the last of ``tokens`` completes the answer that they are."""
        if tokens[-1] in self.ends:
            return True
        if not self.stop:
            return False
        tail: list[int] = []
        for token in reversed(tokens):
            if len(tail) == self.window:
                break
            if token not in self.special:
                tail.append(token)
        text = self.tokenizer.decode(tail[::-1])
        return any(s in text for s in self.stop)
