"""Scores candidates after prompts: tokens in, numbers out, each forward pass within a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from priorzero.policy.load import causal_lm
from priorzero.policy.logprobs import packed_token_logprobs, per_answer
from priorzero.policy.packing import TreeRow, lay_out, stack
from priorzero.prior.recorded import RecordedDecoder, rounded


class PackedScorer:
    """Log-probabilities of candidates, in few forward passes over packed rows (``policy.packing``).

    Args:
        model: a causal language model, or a peft model around one; it is put into eval mode.
        pad_id: token of the padding.
        row_tokens: prompts share a row of the forward pass until it holds so many tokens.
        max_batch_tokens: padded tokens in one forward pass; a row that alone needs more goes alone.
        cuda_graphs: on a GPU, record the forward passes of each size of batch; no effect on a CPU.
        compiled: fuse the small operations of a layer with ``torch.compile`` (about a minute at the first calls).
    """

    def __init__(
        self,
        model: nn.Module,
        pad_id: int,
        *,
        row_tokens: int,
        max_batch_tokens: int,
        cuda_graphs: bool,
        compiled: bool,
    ) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.pad_id, self.row_tokens, self.max_batch_tokens = pad_id, row_tokens, max_batch_tokens
        self.forwards = 0  # counted since the owner set it to 0
        if compiled:  # one layer at a time: they are alike, so the first is compiled and the others reuse it
            decoder: Any = causal_lm(model)
            for layer in decoder.get_decoder().layers:
                layer.compile(dynamic=True)
        self._recorded = RecordedDecoder() if cuda_graphs and self.device.type == "cuda" else None

    @torch.no_grad()
    def score(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Scores every candidate of every prompt.

        Args:
            prompts: tokens of each prompt.
            answers: for each prompt its candidates, for each candidate its tokens.

        Yields:
            For one forward pass after the other: which prompts, and what ``answer_logprobs`` returns for them, on the
            CPU.

        Raises:
            ValueError: as ``pack``.
        """
        rows = lay_out(prompts, answers, self.row_tokens)
        for batch in _batches(sorted(rows, key=lambda row: len(row.tokens)), self.max_batch_tokens):
            order = [i for row in batch for i in row.prompts]
            packed = stack(batch, order, self.pad_id)
            packed = packed if self._recorded is None else rounded(packed)
            self.forwards += 1
            logprobs = packed_token_logprobs(self.model, packed.to(self.device), self._recorded)
            yield order, *per_answer(logprobs.cpu(), packed)


def _batches(rows: Sequence[TreeRow], max_tokens: int) -> Iterator[list[TreeRow]]:
    """Rows, shortest first, in batches of at most ``max_tokens`` padded tokens (a longer row goes alone)."""
    batch: list[TreeRow] = []
    for row in rows:
        if batch and len(row.tokens) * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    yield batch
