"""After every weight sync: does the backend that writes have the weights that are trained?

A sync that does nothing raises no error by itself (a LoRA adapter that is still cached, a prefix cache of old weights,
names that match nothing), and training goes on with answers of old weights. So the backend writes an answer to a probe
prompt, and its log-probabilities are compared with those that the trainer computes for the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from priorzero.policy.load import causal_lm
from priorzero.rollout.base import Sampling, TextGenerator

Scorer = Callable[[Sequence[int], Sequence[int]], np.ndarray]  # prompt and answer -> [len(answer)] log-probabilities


class WeightSyncError(RuntimeError):
    """The backend does not write with the weights of the trainer."""


@dataclass(frozen=True)
class ProbeConfig:
    """How strictly a weight sync is checked.

    Attributes:
        max_tokens: length of the probe answer; longer ones see smaller differences.
        tolerance: largest allowed mean difference of a token's log-probability. It has to be above the noise between
            the two computations: about 1e-5 where both are float32, 1e-2 where one is bfloat16.
        seed: of the answer.
    """

    max_tokens: int
    tolerance: float
    seed: int

    def __post_init__(self) -> None:
        if self.tolerance <= 0:
            raise ValueError(f"the tolerance of the probe must be positive, not {self.tolerance}")


class WeightProbe:
    """Compares a backend with the trainer on one prompt.

    A difference below the tolerance is not seen: a sync that is skipped once after a small update shows only when the
    updates have added up.

    Args:
        prompt: tokens of the probe prompt; a typical one of the run is best.
        config: how strictly.
    """

    def __init__(self, prompt: Sequence[int], config: ProbeConfig) -> None:
        self.prompt = tuple(prompt)
        self.config = config
        self._sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=config.max_tokens, stop=(), seed=config.seed)

    def check(self, generator: TextGenerator, score: Scorer, version: int) -> dict[str, float]:
        """Lets ``generator`` answer the probe prompt, and compares.

        Args:
            generator: got its weights just now.
            score: the trainer's log-probabilities of an answer after a prompt (``answer_scorer`` makes one).
            version: of the trainer's weights.

        Returns:
            Mean and largest difference, for the log.

        Raises:
            WeightSyncError: another version, or a mean difference above the tolerance.
        """
        if generator.version != version:
            raise WeightSyncError(
                f"the backend writes with weights of version {generator.version}, the trainer has {version}: "
                "load_weights was not called after the last update, or with another version"
            )
        answer = generator.generate([self.prompt], self._sampling)[0][0]
        difference = np.abs(np.asarray(score(self.prompt, answer.tokens)) - answer.logprobs)
        mean, largest = float(difference.mean()), float(difference.max())
        if not mean <= self.config.tolerance:  # nan is a failure
            raise WeightSyncError(
                f"version {version} did not arrive: over {len(answer.tokens)} tokens the backend's log-probabilities "
                f"differ from the trainer's by {mean:.2g} on average (at most {largest:.2g}; tolerance "
                f"{self.config.tolerance:g}). Check that both have the same base model, dtype and LoRA settings, that "
                "load_weights got every trained weight under its name, that a LoRA adapter got a new id and the "
                "prefix cache was emptied, and that log-probabilities are taken after temperature (vLLM: "
                "logprobs_mode=processed_logprobs). With bfloat16 on one side a tolerance of 0.05 is usual"
            )
        return {"rollout/probe_difference_mean": mean, "rollout/probe_difference_max": largest}


def answer_scorer(model: nn.Module) -> Scorer:
    """A ``Scorer`` for a model that is whole in this process: one plain forward pass without dropout.

    A model in train mode is in train mode again afterwards.
    """

    def score(prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
        causal: Any = causal_lm(model)
        device = next(causal.parameters()).device
        training = model.training
        model.eval()
        with torch.no_grad():
            logits = causal(input_ids=torch.tensor([[*prompt, *answer]], device=device), use_cache=False).logits[0]
        model.train(training)
        behind = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
        return behind.gather(-1, torch.tensor(answer, device=device)[:, None])[:, 0].cpu().numpy()

    return score
