"""What the agent loop asks of a backend that writes text: tokens in, tokens and their log-probabilities out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from priorzero.types import Generation


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn.

    Whatever ends an answer, its tokens are kept as they were sampled. A stop string is looked for after every token in
    the text of the sampled tokens, special tokens left out, the prompt not included. The token that completes it is
    the last one kept; where that token also carries characters behind the stop string, they stay.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token each time. Log-probabilities are those of
            logits / temperature, and of the logits as they are where the temperature is 0.
        top_p: draw from the smallest set of most likely tokens that has at least this probability (Holtzman et al.
            2020, arXiv:1904.09751). Below 1 the backends differ in the log-probabilities that they return: the
            transformers backend gives those of the whole distribution, which a trainer computes too, vLLM those of
            the set, which sum to 1 over it. Sample with 1 where log-probabilities of different origin are compared.
        max_tokens: at most so many tokens, the one that ends the answer included.
        stop: strings that end the answer, besides the model's own end of a turn.
        seed: makes the call repeatable on the same backend; None goes on with the backend's own random stream.
    """

    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...]
    seed: int | None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or positive, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}: 1 samples from all tokens")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not all(self.stop):
            raise ValueError("an empty stop string would end every answer at once: leave it out")


class TextGenerator(Protocol):
    """Continues prompts. One call at a time computes; calls from several threads wait for each other."""

    @property
    def version(self) -> int:
        """Policy version of the weights that write; 0 before the first ``load_weights``."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that write; low-rank adapters may have another."""
        ...

    def weights(self) -> Mapping[str, Tensor] | None:
        """What ``load_weights`` loaded, under the same names; None where the backend keeps it in a form of its own."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, samples: int = 1
    ) -> list[list[Generation]]:
        """Continues each prompt ``samples`` times.

        Returns:
            One list a prompt, in their order, of ``samples`` generations.

        Raises:
            ValueError: a prompt is empty or leaves no room for ``max_tokens`` in the model's context, or ``samples``
                is below 1.
        """
        ...

    def load_weights(self, state: Mapping[str, Tensor], version: int) -> None:
        """Write with these weights from now on; they are ``version``.

        Args:
            state: what ``LanguageModule.trainable_state`` returned: every weight, or every adapter weight under LoRA.
            version: the policy version that they are.

        Raises:
            ValueError: the names are not the trainable weights of this model.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """What is worth logging, counted since the last call."""
        ...

    def sleep(self) -> None:
        """Gives accelerator memory back until the next ``generate`` or ``load_weights``, where there is any to give."""
        ...

    def close(self) -> None:
        """Gives everything back; the generator cannot be used any more."""
        ...


def check_request(prompts: Sequence[Sequence[int]], sampling: Sampling, samples: int, context: int) -> None:
    """Raises the ``ValueError`` of ``TextGenerator.generate``; ``context`` is the model's length in tokens."""
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {i} is empty: it needs at least one token to continue from")
        if len(prompt) + sampling.max_tokens > context:
            raise ValueError(
                f"prompt {i} has {len(prompt)} tokens; with max_tokens={sampling.max_tokens} that is more than the "
                f"model's context of {context}: shorten the prompt or lower max_tokens"
            )


@dataclass
class GenerationCounts:
    """What a backend counts between two calls of ``metrics``."""

    prompts: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    cut: int = 0  # answers that reached max_tokens
    seconds: float = 0.0

    def add(self, prompts: Sequence[Sequence[int]], answers: Sequence[Generation], seconds: float) -> None:
        """Counts one call."""
        self.prompts += len(prompts)
        self.prompt_tokens += sum(map(len, prompts))
        self.answers += len(answers)
        self.tokens += sum(len(a.tokens) for a in answers)
        self.cut += sum(a.finish == "length" for a in answers)
        self.seconds += seconds

    def metrics(self, version: int) -> dict[str, float]:
        """The counts under their names in the log, tokens a second, mean length of an answer, share of cut ones."""
        found = {f"rollout/{f.name}": float(getattr(self, f.name)) for f in fields(self)}
        found["rollout/tokens_per_s"] = self.tokens / self.seconds if self.seconds else 0.0
        found["rollout/mean_tokens"] = self.tokens / max(self.answers, 1)
        found["rollout/cut_rate"] = self.cut / max(self.answers, 1)
        found["rollout/version"] = float(version)
        return found
