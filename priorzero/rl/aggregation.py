"""From a loss a token to the number that ``backward`` is called on, equal for every split into micro-batches and ranks.

Each rank calls ``backward`` once a micro-batch on what ``aggregate`` returns, without further scaling (no division by
the number of micro-batches), and gradients are then averaged over the ranks, as DDP and FSDP do. The counts are those
of the whole update, over all micro-batches and ranks, so that the result is the gradient of one rank with one batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

AggregationMode = Literal[
    "token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"
]


@dataclass(frozen=True, kw_only=True)
class UpdateSize:
    """How much one update trains on, over all micro-batches and ranks."""

    tokens: int  # masked tokens
    sequences: int  # sequences with at least one masked token
    world_size: int  # ranks whose gradients are averaged


def count(mask: Tensor) -> Tensor:
    """[2] int64: masked tokens and sequences with any, of a mask [N, L]; to be summed over micro-batches and ranks."""
    return torch.stack([mask.sum(), mask.any(-1).sum()])


def check_aggregation(mode: str, norm: float | None) -> None:
    """Raises ValueError for an unknown mode, or a norm that it lacks or does not take; see ``aggregate``."""
    if mode not in get_args(AggregationMode):
        raise ValueError(f"unknown loss aggregation {mode!r}: choose one of {', '.join(get_args(AggregationMode))}")
    if (norm is not None) != (mode == "seq-mean-token-sum-norm"):
        raise ValueError("norm belongs to the aggregation seq-mean-token-sum-norm, which needs it; null for the others")


def aggregate(
    loss: Tensor, mask: Tensor, *, mode: AggregationMode, size: UpdateSize, norm: float | None = None
) -> Tensor:
    """This micro-batch's share of the loss of the whole update, times the world size.

    With N_tok and N_seq of the whole update and |i| the masked tokens of sequence i:

    ========================  ========================================================================================
    token-mean                sum of all tokens / N_tok (DAPO, arXiv:2503.14476): every token weighs the same
    token-sum                 sum of all tokens; the step then depends on the size of the update
    seq-mean-token-sum        sum over sequences of their token sums / N_seq
    seq-mean-token-mean       sum over sequences of (token sum / |i|) / N_seq (GRPO, arXiv:2402.03300)
    seq-mean-token-sum-norm   seq-mean-token-sum / norm (Dr. GRPO, arXiv:2503.20783)
    ========================  ========================================================================================

    Args:
        loss: [N, L] a token; not read outside the mask.
        mask: [N, L] bool; it may be all False (then 0 is returned, and ``backward`` works).
        mode: as above.
        size: counts of the whole update.
        norm: for the last mode only: a constant, usually the most tokens that a sample may have.

    Raises:
        ValueError: unknown mode, no token to train on, or a norm that the mode lacks or does not take.
    """
    check_aggregation(mode, norm)
    if size.tokens < 1 or size.sequences < 1:
        raise ValueError("no token of the whole update is trained: skip the update, or look why all samples are masked")
    loss = loss.masked_fill(~mask, 0.0)
    if mode == "token-mean":
        total = loss.sum() / size.tokens
    elif mode == "token-sum":
        total = loss.sum()
    elif mode == "seq-mean-token-mean":
        total = (loss.sum(-1) / mask.sum(-1).clamp(min=1)).sum() / size.sequences
    else:
        total = loss.sum() / size.sequences / (norm or 1.0)
    return total * size.world_size
