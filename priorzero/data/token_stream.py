"""Endless micro-batches of generated samples: new samples whenever the last ones have been trained on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from priorzero.data.prompt_source import PromptSource
from priorzero.rl.token_advantages import NoExperienceError
from priorzero.types import PromptRow, TokenBatch


class Samples(Protocol):
    """Samples that are ready to be trained on; ``policy.experience.Experience`` is one."""

    def groups(self) -> list[list[int]]:
        """Samples that belong into one micro-batch."""
        ...

    def size(self, samples: Sequence[int]) -> tuple[int, int]:
        """Trained tokens, and samples with any."""
        ...

    def batch(self, samples: Sequence[int], size: tuple[int, int], pad_id: int, row_tokens: int) -> TokenBatch:
        """A micro-batch of an update of ``size``."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokenDataConfig:
    """How samples become updates.

    Raises:
        ValueError: there are fewer prompts than micro-batches in a pass.
    """

    prompts: int  # new prompts of a round
    epochs: int  # passes over the samples of a round
    updates: int  # updates of a pass
    micro_batches: int  # of an update
    row_tokens: int  # samples share a row until it holds so many tokens

    def __post_init__(self) -> None:
        if min(self.prompts, self.epochs, self.updates, self.micro_batches, self.row_tokens) < 1:
            raise ValueError("prompts, epochs, updates, micro_batches and row_tokens must be 1 or more")
        if self.prompts < self.updates * self.micro_batches:
            raise ValueError(
                f"{self.prompts} prompts are too few for {self.updates} updates of {self.micro_batches} micro-batches: "
                "each needs one at least"
            )

    @property
    def batches(self) -> int:
        """Micro-batches of a round."""
        return self.epochs * self.updates * self.micro_batches


class TokenStream:
    """A stream (``data.streams.Stream``) whose rounds begin with writing answers to new prompts.

    Args:
        source: of the prompts.
        make: writes and scores answers to rows.
        config: how they become updates.
        pad_id: token of the padding.
        seed: of the order in which samples are trained on.
    """

    def __init__(
        self,
        source: PromptSource,
        make: Callable[[Sequence[PromptRow]], Samples],
        config: TokenDataConfig,
        *,
        pad_id: int,
        seed: int,
    ) -> None:
        self.source, self.config = source, config
        self._make, self._pad_id = make, pad_id
        self._rng = np.random.default_rng(seed)
        self._waiting: deque[TokenBatch] = deque()

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        if not self._waiting:
            samples = self._make(self.source.take(self.config.prompts))
            for _ in range(self.config.epochs):
                self._waiting.extend(self._pass(samples))
        return self._waiting.popleft()

    def _pass(self, samples: Samples) -> Iterator[TokenBatch]:
        """Every group once. Groups in which everything is masked are dealt out last, so that each update gets others.

        Raises:
            NoExperienceError: there are fewer groups with something to train on than updates.
        """
        config, groups = self.config, samples.groups()
        order = self._rng.permutation(len(groups))
        masked = np.array([samples.size(groups[g])[0] == 0 for g in order], bool)
        trained = int((~masked).sum())
        if trained < config.updates or len(groups) < config.updates * config.micro_batches:
            raise NoExperienceError(
                f"{trained} of {len(groups)} prompts have answers that can be trained on (see rollout/masked_samples "
                f"and rollout/not_comparable), too few for {config.updates} updates of {config.micro_batches} "
                "micro-batches: take more prompts a round (experience.prompts), or fewer updates"
            )
        order = np.concatenate([order[~masked], order[masked]])
        for update in (order[first :: config.updates] for first in range(config.updates)):
            size = samples.size([n for g in update for n in groups[g]])
            for part in np.array_split(update, config.micro_batches):
                chosen = [n for g in part for n in groups[g]]
                yield samples.batch(chosen, size, self._pad_id, config.row_tokens)

    def state_dict(self) -> dict[str, Any]:
        """Of the source and the order. Samples are not kept: checkpoints are written between rounds.

        Raises:
            RuntimeError: in the middle of a round.
        """
        if self._waiting:
            raise RuntimeError(f"{len(self._waiting)} micro-batches of the round are still to be trained: report this")
        return {"source": self.source.state_dict(), "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where ``state_dict`` was taken."""
        self.source.load_state_dict(state["source"])
        self._rng.bit_generator.state = state["rng"]
