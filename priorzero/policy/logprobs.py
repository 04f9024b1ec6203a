"""Log-probabilities of answers under a language model, from packed prompts in one forward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from priorzero.policy.load import causal_lm
from priorzero.policy.packing import tree_mask
from priorzero.types import PackedPrompts


class CandidateScorer(nn.Module):
    """A language model whose forward scores candidates, so that DDP and FSDP can wrap it."""

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
    return per_answer(packed_token_logprobs(model, packed), packed)


def per_answer(token_logprobs: Tensor, packed: PackedPrompts) -> tuple[Tensor, Tensor]:
    """What ``answer_logprobs`` returns, from the log-probabilities [M] of the scored tokens, on the same device."""
    shape = (len(packed.candidates), packed.max_candidates)
    empty = torch.zeros(shape[0] * shape[1], dtype=torch.float32, device=token_logprobs.device)
    sums = empty.index_add(0, packed.score_slot, token_logprobs).view(shape)
    counts = empty.index_add(0, packed.score_slot, torch.ones_like(token_logprobs)).view(shape)
    return sums.masked_fill(counts == 0, -torch.inf), counts.long()


def packed_token_logprobs(
    model: nn.Module, packed: PackedPrompts, hidden_states: Callable[[nn.Module, PackedPrompts], Tensor] | None = None
) -> Tensor:
    """Log-probability of each scored token, [M] float32 in the order of ``packed.score_token``.

    The output layer runs on the scored positions only, each once.

    Args:
        model: as in ``answer_logprobs``.
        packed: likewise.
        hidden_states: another way to what ``packed_hidden`` computes; None for that.
    """
    causal = causal_lm(model)
    position, which = torch.unique(packed.score_position, return_inverse=True)
    hidden = (hidden_states or packed_hidden)(model, packed).flatten(0, 1)[position]
    logits = causal.get_output_embeddings()(hidden).float()
    return logits[which, packed.score_token] - logits.logsumexp(-1)[which]


def packed_hidden(model: nn.Module, packed: PackedPrompts) -> Tensor:
    """Last hidden states [R, L, width] of the packed rows."""
    causal = causal_lm(model)
    mask = tree_mask(packed.end)
    if causal.config._attn_implementation == "eager":  # adds its mask to the scores
        dtype = next(causal.parameters()).dtype
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return causal.get_decoder()(
        input_ids=packed.tokens, attention_mask=mask, position_ids=packed.position, use_cache=False
    ).last_hidden_state
