"""Advantages of the tokens of generated text: what the estimators of ``gae`` and ``group_advantages`` take and give.

Shapes: ``N`` samples of ``L`` tokens. The mask is True on tokens that the model wrote; it may have gaps (results of
tools, observations between turns), and what stands outside it is never read. A sample whose mask is all False (a fault,
no reward) takes part in nothing: it is neither trained nor counted in the mean of its group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from priorzero.types import TensorRecord

Reduce = Callable[[Tensor], Tensor]  # sums a small vector over all ranks


class NoExperienceError(RuntimeError):
    """What was generated cannot be trained on, or too little of it."""


@dataclass(frozen=True, kw_only=True)
class AdvantageInputs(TensorRecord):
    """Rewards of ``N`` samples, and what else some estimator needs (None where it is not known).

    Raises:
        ValueError: a shape does not fit, or a reward lies outside the mask of a sample that is trained, where an
            estimator would lose it.
    """

    rewards: Tensor  # [N, L] float; kl.token_rewards makes it
    mask: Tensor  # [N, L] bool
    group: Tensor | None = None  # [N] int64, equal for samples of one task; a whole group lies on one rank
    values: Tensor | None = None  # [N, L] float, of the critic
    turn_ends: Tensor | None = None  # [N, L] bool, the last masked token of each turn
    baseline: Tensor | None = None  # [N] float, score of the greedy answer to the same prompt
    episode: Tensor | None = None  # [N] int64, which episode the sample is a step of
    step: Tensor | None = None  # [N] int64, its place in the episode
    state: Tensor | None = None  # [N] int64, equal for equal situations

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool or self.mask.shape != self.rewards.shape or self.mask.ndim != 2:
            raise ValueError(f"rewards {list(self.rewards.shape)} need a bool mask of the same shape [N, L]")
        for name in ("values", "turn_ends"):
            self._check_shape(name, self.mask.shape)
        for name in ("group", "baseline", "episode", "step", "state"):
            self._check_shape(name, self.mask.shape[:1])
        lost = (self.rewards != 0) & ~self.mask & self.trained[:, None]
        if bool(lost.any()):
            n, t = lost.nonzero()[0].tolist()
            raise ValueError(
                f"sample {n} has a reward on token {t}, which the model did not write: put it on the last written "
                "token of that turn"
            )

    @property
    def trained(self) -> Tensor:
        """[N] bool: samples with at least one masked token."""
        return self.mask.any(-1)

    @property
    def scores(self) -> Tensor:
        """[N] float64: sum of the rewards of each sample."""
        return self.rewards.double().masked_fill(~self.mask, 0.0).sum(-1)

    def need(self, name: str, estimator: str) -> Tensor:
        """The field ``name``.

        Raises:
            ValueError: it is None.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"the estimator {estimator} needs {name!r} of every sample: give it, or choose another")
        return value

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        value = getattr(self, name)
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} has shape {list(value.shape)}, expected {list(shape)}")


@dataclass(frozen=True, kw_only=True)
class Advantages(TensorRecord):
    """What an estimator gives."""

    advantages: Tensor  # [N, L] float, 0 outside the mask and where not usable
    usable: Tensor  # [N] bool: False where there was nothing to compare the sample with; drop and count those
    returns: Tensor | None = None  # [N, L] float, targets of the critic, 0 outside the mask; None without a critic


@dataclass(frozen=True, kw_only=True)
class AdvantageEstimator:
    """An estimator, and whether its advantages are whitened over the batch afterwards.

    Attributes:
        estimate: a function of ``gae`` or ``group_advantages`` with its constants bound.
        whiten: True for GAE (as PPO is usually run), REINFORCE++ and its baseline variant.
    """

    estimate: Callable[[AdvantageInputs], Advantages]
    whiten: bool

    def __call__(self, inputs: AdvantageInputs, reduce: Reduce | None = None) -> Advantages:
        """Advantages of a whole batch (all micro-batches of an update or of a rollout, not one micro-batch).

        Args:
            inputs: the samples of this rank.
            reduce: sums a vector over all ranks; None for a single process. Every rank must then call.

        Raises:
            ValueError: the estimator lacks an input.
            NoExperienceError: there are too few tokens to whiten.
        """
        result = self.estimate(inputs)
        if not self.whiten:
            return result
        mask = inputs.mask & result.usable[:, None]
        return replace(result, advantages=whiten(result.advantages, mask, reduce))


@torch.no_grad()
def whiten(x: Tensor, mask: Tensor, reduce: Reduce | None = None, epsilon: float = 1e-8) -> Tensor:
    """Mean 0 and variance 1 over the masked entries of all ranks: ``(x - mean) / sqrt(var + epsilon)``.

    The variance is the unbiased one. Equal entries become 0.

    Args:
        x: any shape.
        mask: bool, same shape; entries outside become 0.
        reduce: sums the vector (count, sum, sum of squares) over all ranks; None for a single process.
        epsilon: added to the variance.

    Raises:
        NoExperienceError: fewer than two masked entries over all ranks.
    """
    values = x.double().masked_fill(~mask, 0.0)
    sums = torch.stack([mask.sum().double(), values.sum(), values.square().sum()])
    if reduce is not None:
        sums = reduce(sums)
    count, total, squares = sums.tolist()
    if count < 2:
        raise NoExperienceError(
            f"{count:.0f} trained tokens are too few to whiten advantages: raise experience.prompts or "
            "rollout.samples_per_prompt"
        )
    mean = total / count
    variance = max(squares - count * mean**2, 0.0) / (count - 1)
    return ((values - mean) / (variance + epsilon) ** 0.5).masked_fill(~mask, 0.0).to(x.dtype)


def index_of(names: Sequence[str], what: str) -> Tensor:
    """Numbers [N] int64 for names: equal numbers where names are equal, in order of appearance.

    Args:
        names: one a sample, for example the ``group_id`` of its row.
        what: what the names are, for the error.

    Raises:
        ValueError: a name is empty, so that samples which have none would be taken for equal.
    """
    if "" in names:
        raise ValueError(f"sample {list(names).index('')} has no {what}: set it where the prompt rows are made")
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], dtype=torch.int64)
