"""After every weight sync: does the backend that writes have the weights that are trained?

A sync that does nothing raises no error by itself (a LoRA adapter that is still cached, a prefix cache of old weights,
names that match nothing), and training goes on with answers of old weights. Three things are compared, each where it
can be:

- the weights, exactly, where the backend shows them: no update is too small;
- the answer to a probe prompt with that of the check before: a backend whose log-probabilities are the same to the last
  bit, while the trainer's for those tokens moved, did not get the update;
- the probabilities of the answer's tokens with those that the trainer computes. Probabilities, because rounding moves
  the logarithms of unlikely tokens most: with bfloat16 by 0.05 on average although nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from priorzero.policy.load import causal_lm
from priorzero.rollout.base import Sampling, TextGenerator
from priorzero.types import Generation

FINE, COARSE = 1e-4, 0.05  # tolerances: both sides in float32, where 1e-6 is usual; either side coarser, 0.01 is usual
STILL = 0.02  # of the tolerance: where the trainer moved by more, a backend must have moved too


class WeightSyncError(RuntimeError):
    """The backend does not write with the weights of the trainer."""


class Trainer(Protocol):
    """The side that the backend must agree with."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that compute."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """What is trained, under the names that ``load_weights`` takes."""
        ...

    def __call__(self, prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
        """Log-probabilities [len(answer)] of an answer's tokens after a prompt."""
        ...


@dataclass(frozen=True)
class ProbeConfig:
    """How a weight sync is checked.

    Attributes:
        max_tokens: length of the probe answer.
        tolerance: largest allowed mean difference of a token's probability; None: 1e-4 where trainer and backend
            are both float32, else 0.05.
        seed: of the answer.
    """

    max_tokens: int
    tolerance: float | None
    seed: int

    def __post_init__(self) -> None:
        if self.tolerance is not None and self.tolerance <= 0:
            raise ValueError(f"the tolerance of the probe must be positive, not {self.tolerance}")


class WeightProbe:
    """Compares a backend with the trainer on one prompt.

    Args:
        prompt: tokens of the probe prompt; a typical one of the run is best.
        config: how.
    """

    def __init__(self, prompt: Sequence[int], config: ProbeConfig) -> None:
        self.prompt = tuple(prompt)
        self.config = config
        self._sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=config.max_tokens, stop=(), seed=config.seed)
        self._said: tuple[Generation, np.ndarray] | None = (
            None  # the last answer that differed, the trainer's view then
        )

    def check(self, generator: TextGenerator, trainer: Trainer, version: int) -> dict[str, float]:
        """Compares ``generator``, which got its weights just now, with ``trainer``, whose weights are ``version``.

        Returns:
            Mean and largest difference of a token's probability, for the log.

        Raises:
            WeightSyncError: another version, other weights, the answer of an older version, or a mean difference above
                the tolerance.
        """
        if generator.version != version:
            raise WeightSyncError(
                f"the backend writes with weights of version {generator.version}, the trainer has {version}: "
                "load_weights was not called after the last update, or with another version"
            )
        _compare_weights(generator.weights(), trainer.weights(), version)
        tolerance = self.config.tolerance
        if tolerance is None:
            tolerance = FINE if {generator.dtype, trainer.dtype} == {torch.float32} else COARSE
        answer = generator.generate([self.prompt], self._sampling)[0][0]
        expected = np.asarray(trainer(self.prompt, answer.tokens))
        difference = np.abs(np.exp(expected) - np.exp(answer.logprobs))
        mean, largest = float(difference.mean()), float(difference.max())
        if not mean <= tolerance:  # nan is a failure
            raise WeightSyncError(
                f"version {version} did not arrive: over {len(answer.tokens)} tokens the backend's probabilities "
                f"differ from the trainer's by {mean:.2g} on average (at most {largest:.2g}; tolerance {tolerance:g}). "
                "Check that both have the same base model, dtype and LoRA settings, that load_weights got every "
                "trained weight under its name, that a LoRA adapter got a new id and the prefix cache was emptied, and "
                "that log-probabilities are taken after temperature (vLLM: logprobs_mode=processed_logprobs)"
            )
        self._compare_with_last(answer, expected, tolerance, version)
        return {"rollout/probe_difference_mean": mean, "rollout/probe_difference_max": largest}

    def _compare_with_last(self, answer: Generation, expected: np.ndarray, tolerance: float, version: int) -> None:
        if self._said is None or not _equal(answer, self._said[0]):
            self._said = answer, expected
            return
        moved = float(np.abs(np.exp(expected) - np.exp(self._said[1])).mean())
        if moved > STILL * tolerance:
            raise WeightSyncError(
                f"version {version} did not arrive: the trainer's probabilities of the probe answer moved by "
                f"{moved:.2g} on average, and the backend's are the same to the last bit. Check that a LoRA adapter "
                "got a new id, that the prefix cache was emptied, and that the names of the weights match"
            )


def _equal(a: Generation, b: Generation) -> bool:
    return a.tokens == b.tokens and np.array_equal(a.logprobs, b.logprobs)


def _compare_weights(shown: Mapping[str, Tensor] | None, trained: Mapping[str, Tensor], version: int) -> None:
    if shown is None:
        return
    if shown.keys() != trained.keys():
        raise WeightSyncError(f"{len(shown.keys() ^ trained.keys())} weights are trained or written with, but not both")
    wrong = [name for name, own in shown.items() if not torch.equal(own.cpu(), trained[name].to(own.dtype).cpu())]
    if wrong:
        raise WeightSyncError(
            f"version {version} did not arrive: {len(wrong)} of {len(shown)} weights differ from the trainer's, "
            f"{wrong[0]!r} for example. load_weights must copy every weight, and the trainer must not go on before"
        )


class ModelScorer:
    """A ``Trainer`` for a model that is whole in this process: one plain forward pass without dropout.

    Args:
        model: that is trained; in train mode it is in train mode again afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def dtype(self) -> torch.dtype:
        """See ``Trainer``: that of the base model where there are adapters."""
        causal: Any = causal_lm(self.model)
        return causal.get_input_embeddings().weight.dtype

    def weights(self) -> dict[str, Tensor]:
        """See ``Trainer``."""
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def __call__(self, prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
        """See ``Trainer``."""
        causal: Any = causal_lm(self.model)
        device = next(causal.parameters()).device
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            logits = causal(input_ids=torch.tensor([[*prompt, *answer]], device=device), use_cache=False).logits[0]
        self.model.train(training)
        behind = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
        return behind.gather(-1, torch.tensor(answer, device=device)[:, None])[:, 0].cpu().numpy()
