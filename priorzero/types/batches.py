"""What both models are trained on: records of tensors that move between devices as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorRecord:
    """A frozen dataclass of tensors (and plain values) that moves between devices as one."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same record on ``device``."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same record in page-locked memory."""
        return self._map(lambda x: x.pin_memory())

    def _map(self, fn: Callable[[Any], Any]) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: fn(v) for name, v in values.items() if isinstance(v, (Tensor, TensorRecord))})


@dataclass(frozen=True)
class WorldModelBatch(TensorRecord):
    """``B`` windows of ``S`` steps. Step ``t`` is real where ``t < length``; windows are padded at the end.

    The padding after a true end is the absorbing state: the last observation again, any actions, rewards of 0.

    Tokens in time order: observation 0, action 0, observation 1, ..., observation S. Actions are indices into
    ``candidates``, the distinct actions of the batch.
    """

    observation: Tensor  # [B, S + 1, O] float; real up to index ``length`` inclusive
    action: Tensor  # [B, S] int64 into candidates; where padded 0, or any after a true end
    reward: Tensor  # [B, S] float; 0 where padded
    length: Tensor  # [B] int64, 1..S: real steps
    terminated: Tensor  # [B] bool: step ``length - 1`` ended the game, so observation ``length`` is worth 0
    candidates: Tensor  # [U, E] float, sentence vectors of the actions
    legal: Tensor  # [B, T, U] bool: the valid actions of step t
    known: Tensor  # [B, U] bool: candidates that belong to the vocabulary of the window's game (legal is a subset)
    policy: Tensor  # [B, T, U] float, visit probabilities of the search, 0 outside legal
    weight: Tensor  # [B] float, importance weights of prioritised sampling, mean near 1
    index: Tensor  # [B] int64, row of the replay's last draw, to give priorities back

    @property
    def unroll(self) -> int:
        """T."""
        return self.legal.shape[1]


@dataclass(frozen=True)
class PackedPrompts(TensorRecord):
    """``B`` prompts with candidate answers, laid out as trees in ``R`` rows of ``L`` tokens (``policy.packing``).

    A row is in depth-first order: token i sees token j where ``j <= i < end[j]``. Every candidate's last token is
    scored but not fed. ``score_*`` list the ``M`` tokens of all candidates.
    """

    tokens: Tensor  # [R, L] int64
    position: Tensor  # [R, L] int64: depth in the tree
    end: Tensor  # [R, L] int64: index after the last descendant; on padding the index after itself
    score_position: Tensor  # [M] int64: index into the R * L tokens whose logits predict the token
    score_token: Tensor  # [M] int64: the predicted token
    score_slot: Tensor  # [M] int64: prompt * A + candidate that it belongs to
    candidates: Tensor  # [B] int64: number of candidates of each prompt

    @property
    def max_candidates(self) -> int:
        """A."""
        return int(self.candidates.max())


@dataclass(frozen=True)
class PolicyBatch(TensorRecord):
    """States on which the language model is trained, each with all its valid actions as candidates."""

    prompts: PackedPrompts
    visit_probs: Tensor  # [B, A] float, the search's distribution over the candidates; rows sum to 1
    action: Tensor  # [B] int64, the candidate that was played
    advantage: Tensor  # [B] float, of the played action
    behaviour_logprobs: Tensor  # [B] float, log-probability of the played action when it was played
    weight: Tensor  # [B] float, 0 for padding samples


@dataclass(frozen=True)
class TokenBatch(TensorRecord):
    """A micro-batch of ``N`` generated samples with at most ``L`` tokens after their prompts.

    [N, L] fields count from the end of the prompt; what the model did not write is False in ``mask`` and 0 elsewhere.
    """

    packed: PackedPrompts  # samples of one prompt are its candidates; only written tokens are scored
    place: Tensor  # [M] int64: where each scored token lies in the flattened [N, L]
    mask: Tensor  # [N, L] bool: written, and trained
    rollout_logprobs: Tensor  # [N, L] float, as sampled
    old_logprobs: Tensor  # [N, L] float, of the trainer before the update
    advantages: Tensor  # [N, L] float
    ref_logprobs: Tensor | None  # [N, L] float, of the initial model; None without a KL
    old_values: Tensor | None  # [N, L] float, of the critic before the update; None without a critic
    returns: Tensor | None  # [N, L] float, targets of the critic
    tokens: int  # trained tokens of the whole update, over all micro-batches
    sequences: int  # samples with any
