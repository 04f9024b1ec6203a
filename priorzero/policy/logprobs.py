"""Log-probabilities of many candidate answers to a prompt in one forward pass.

The candidates follow the prompt in one row as branches of a tree: under the mask each sees the prompt and itself only,
and its positions count on from the prompt. The result equals one full sequence per candidate (up to rounding) and the
prompt is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from priorzero.policy.load import causal_lm
from priorzero.types import PackedPrompts


def pack(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], pad_id: int) -> PackedPrompts:
    """Lays out ``B`` prompts with their candidates, padded on the right.

    Args:
        prompts: tokens of each prompt, at least one.
        answers: for each prompt its candidates, for each candidate its tokens, at least one of each.
        pad_id: token of the padding.

    Raises:
        ValueError: different numbers of prompts and answers, or something is empty.
    """
    if len(prompts) != len(answers) or not prompts:
        raise ValueError(f"need one list of answers a prompt, got {len(prompts)} prompts and {len(answers)} lists")
    rows = [_Row(prompt, candidates) for prompt, candidates in zip(prompts, answers, strict=True)]
    return PackedPrompts(
        tokens=_pad([r.tokens for r in rows], pad_id),
        position=_pad([r.position for r in rows], 0),
        branch=_pad([r.branch for r in rows], -1),
        score_position=_pad([r.score_position for r in rows], 0),
        score_token=_pad([r.score_token for r in rows], 0),
        score_candidate=_pad([r.score_candidate for r in rows], -1),
        candidates=torch.tensor([len(candidates) for candidates in answers]),
    )


class _Row:
    """One prompt with its candidates, as the lists of ``PackedPrompts``."""

    def __init__(self, prompt: Sequence[int], candidates: Sequence[Sequence[int]]) -> None:
        if not prompt or not candidates or not all(candidates):
            raise ValueError("a prompt, a list of candidates or a candidate is empty")
        start = len(prompt)
        self.tokens, self.position, self.branch = list(prompt), list(range(start)), [0] * start
        self.score_position: list[int] = []
        self.score_token: list[int] = []
        self.score_candidate: list[int] = []
        for j, candidate in enumerate(candidates):
            fed = len(candidate) - 1
            first = len(self.tokens)
            self.score_position += [start - 1, *range(first, first + fed)]
            self.score_token += candidate
            self.score_candidate += [j] * (fed + 1)
            self.tokens += candidate[:-1]
            self.position += range(start, start + fed)
            self.branch += [j + 1] * fed


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.int64)


def tree_mask(branch: Tensor) -> Tensor:
    """Who may see whom: ``[B, 1, L, L]`` bool (query, key), True = visible, from ``branch`` [B, L].

    A token sees earlier tokens of the prompt and of its own branch, and itself; padding sees only itself, so that no
    row of the softmax is empty.
    """
    query, key = branch[:, :, None], branch[:, None, :]
    causal = torch.ones(branch.shape[1], branch.shape[1], dtype=torch.bool, device=branch.device).tril()
    same = torch.eye(branch.shape[1], dtype=torch.bool, device=branch.device)
    visible = causal & (query >= 0) & ((key == 0) | (key == query))
    return (visible | same)[:, None]


class CandidateScorer(nn.Module):
    """A language model whose forward scores candidates, so that DDP and FSDP can wrap it.

    Calls the decoder and the output layer separately: the output layer runs on the scored positions only.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, packed: PackedPrompts) -> tuple[Tensor, Tensor]:
        """Same as ``answer_logprobs``."""
        return answer_logprobs(self.model, packed)


def answer_logprobs(model: nn.Module, packed: PackedPrompts) -> tuple[Tensor, Tensor]:
    """Log-probability of each candidate after its prompt.

    Args:
        model: a transformers causal language model or a peft model around one, with attention "sdpa" or "eager".
        packed: ``B`` prompts with at most ``A`` candidates, on the model's device.

    Returns:
        sums [B, A] float32, summed over the candidate's tokens, -inf where padded, and the number of tokens [B, A].
    """
    causal = causal_lm(model)
    mask = tree_mask(packed.branch)
    if causal.config._attn_implementation == "eager":  # adds its mask to the scores
        dtype = next(causal.parameters()).dtype
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    decoder = causal.get_decoder()
    hidden = decoder(
        input_ids=packed.tokens, attention_mask=mask, position_ids=packed.position, use_cache=False
    ).last_hidden_state
    return _gather(hidden, causal.get_output_embeddings(), packed)


def _gather(hidden: Tensor, head: nn.Module, packed: PackedPrompts) -> tuple[Tensor, Tensor]:
    rows, width = packed.tokens.shape
    real = packed.score_candidate >= 0  # [B, M]
    row = torch.arange(rows, device=hidden.device)[:, None]
    # every candidate's first token is predicted by the same position: its logits are computed once
    position, which = torch.unique((row * width + packed.score_position)[real], return_inverse=True)
    logprobs = head(hidden.flatten(0, 1)[position]).float().log_softmax(-1)
    token_logprobs = logprobs[which, packed.score_token[real]]
    slot = (row * packed.max_candidates + packed.score_candidate)[real]
    empty = torch.zeros(rows * packed.max_candidates, dtype=torch.float32, device=hidden.device)
    sums = empty.index_add(0, slot, token_logprobs).view(rows, -1)
    counts = empty.index_add(0, slot, torch.ones_like(token_logprobs)).view(rows, -1)
    return sums.masked_fill(counts == 0, -torch.inf), counts.long()
