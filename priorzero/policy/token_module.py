"""Trains the language model on the tokens that it wrote: PPO, GRPO and their kin, with or without a critic."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from priorzero.policy.language_module import LanguageModule, PolicyOptim, kl_controller
from priorzero.policy.load import LanguageModel, causal_lm
from priorzero.policy.scorer import Critic, TokenScorer, TokenScores
from priorzero.rl.aggregation import AggregationMode, UpdateSize, aggregate, check_aggregation
from priorzero.rl.kl import KLKind, token_kl
from priorzero.rl.token_loss import LossInputs, TokenLoss, rollout_weight, value_loss
from priorzero.types import TokenBatch
from priorzero.utils.cuda_graphs import random_numbers


@dataclass(frozen=True, kw_only=True)
class TokenObjective:
    """The loss: policy loss + kl * KL - entropy_weight * entropy + value_weight * value loss, each aggregated."""

    policy_loss: Callable[[LossInputs], TokenLoss]  # a function of rl.token_loss with its constants bound
    aggregation: AggregationMode  # rl.aggregation
    aggregation_norm: float | None  # for seq-mean-token-sum-norm only
    rollout_cap: float | None  # largest weight that corrects from rollout to trainer; None: no correction
    entropy_weight: float
    kl_place: Literal["none", "loss", "reward"]  # where the KL to the initial model counts
    kl_weight: float
    kl_kind: KLKind  # of the loss; in the reward it is k1
    kl_target: float | None  # with a target the weight adapts to it
    kl_horizon: int
    critic: Literal["none", "shared", "detached", "own"]  # on the policy's states (trained or not), or its own model
    critic_lr: float
    value_weight: float
    value_clip: float | None

    def __post_init__(self) -> None:
        if self.kl_place not in ("none", "loss", "reward"):
            raise ValueError(f"kl_place is {self.kl_place!r}: choose none, loss or reward")
        if self.critic not in ("none", "shared", "detached", "own"):
            raise ValueError(f"critic is {self.critic!r}: choose none, shared, detached or own")
        if self.kl_kind not in get_args(KLKind):
            raise ValueError(f"kl_kind is {self.kl_kind!r}: choose one of {', '.join(get_args(KLKind))}")
        if self.kl_target is not None and (self.kl_place == "none" or self.kl_target <= 0):
            raise ValueError(
                f"kl_target={self.kl_target} adapts the weight of a KL: it must be positive, and kl_place loss or "
                f"reward, not {self.kl_place}"
            )
        check_aggregation(self.aggregation, self.aggregation_norm)


class TokenModule(LanguageModule):
    """The language model that writes, under Lightning. ``training_step`` takes one micro-batch, a `TokenBatch`.

    ``told`` holds what was found out while the samples were made; it is logged with the next micro-batch.

    Args:
        language_model: the policy.
        critic_model: the trunk of a critic of its own, for ``critic="own"``.
        objective: the loss.
        optim: of the policy; the critic has its own learning rate.
        temperature: that samples are drawn with.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        critic_model: LanguageModel | None,
        *,
        objective: TokenObjective,
        optim: PolicyOptim,
        temperature: float,
    ) -> None:
        if (critic_model is not None) != (objective.critic == "own"):
            raise ValueError("a critic model belongs to critic=own, and to nothing else")
        critic = None
        if objective.critic != "none":
            width = causal_lm(language_model.model).config.hidden_size
            critic = Critic(width, critic_model, detach=objective.critic == "detached")
            critic.to(next(language_model.model.parameters()).device)
        super().__init__(
            TokenScorer(language_model.model, critic, temperature),
            optim,
            kl_controller(objective.kl_weight, objective.kl_target, objective.kl_horizon),
            adapted=language_model.has_adapters,
            reference=objective.kl_place != "none",
        )
        self.objective = objective
        self.told: dict[str, float] = {}

    def forward_context(self) -> AbstractContextManager[Any]:
        """The precision of ``training_step``, for scores of before the update: they must not differ by it."""
        attached = self._trainer is not None
        return self.trainer.strategy.precision_plugin.forward_context() if attached else nullcontext()

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch.

        Raises:
            RuntimeError: the loss is not finite.
            ValueError: the samples lack what the objective needs.
        """
        entropy_gradient = self.objective.entropy_weight != 0
        with random_numbers():  # of dropout
            scores: TokenScores = self.scorer(batch, entropy=True, entropy_gradient=entropy_gradient)
        size = UpdateSize(tokens=batch.tokens, sequences=batch.sequences, world_size=self.trainer.world_size)
        terms, metrics = self._terms(batch, scores)
        weights = {
            "policy": 1.0,
            "kl": self.kl.coefficient if self.objective.kl_place == "loss" else 0.0,
            "entropy": -self.objective.entropy_weight,
            "value": self.objective.value_weight,
        }
        aggregated = {name: self._aggregate(values, batch.mask, size) for name, values in terms.items()}
        total = torch.stack([weights[name] * value for name, value in aggregated.items()]).sum()
        if not torch.isfinite(total):
            readable = ", ".join(f"{name} {value.item():.4g}" for name, value in aggregated.items())
            raise RuntimeError(f"policy loss is {total.item()} in update {self.global_step}: {readable}")
        self._log(batch, total, aggregated, metrics)
        # Lightning divides by the number of micro-batches, which the sizes of the whole update already account for
        return total * self.trainer.accumulate_grad_batches

    def _terms(self, batch: TokenBatch, scores: TokenScores) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        objective = self.objective
        inputs = LossInputs(
            logprobs=scores.logprobs, old_logprobs=batch.old_logprobs, advantages=batch.advantages, mask=batch.mask
        )
        found = objective.policy_loss(inputs)
        policy, metrics = found.loss, dict(found.metrics)
        if objective.rollout_cap is not None:
            factor, told = rollout_weight(batch.old_logprobs, batch.rollout_logprobs, batch.mask, objective.rollout_cap)
            policy, metrics = policy * factor, metrics | told
        terms = {"policy": policy}
        if scores.entropy is not None:
            terms["entropy"] = scores.entropy
        if objective.kl_place == "loss":
            reference = _needed(batch.ref_logprobs, "a KL in the loss", "log-probabilities of the initial model")
            terms["kl"] = token_kl(scores.logprobs, reference, batch.mask, objective.kl_kind)
        if scores.values is not None:
            old_values = _needed(batch.old_values, "a critic", "values of before the update")
            returns = _needed(batch.returns, "a critic", "targets, which gae and bilevel_gae give")
            value = value_loss(scores.values, old_values, returns, batch.mask, objective.value_clip)
            terms["value"], metrics = value.loss, metrics | value.metrics
        return terms, metrics

    def _aggregate(self, values: Tensor, mask: Tensor, size: UpdateSize) -> Tensor:
        return aggregate(values, mask, mode=self.objective.aggregation, size=size, norm=self.objective.aggregation_norm)

    @torch.no_grad()
    def _log(self, batch: TokenBatch, total: Tensor, aggregated: dict[str, Tensor], metrics: dict[str, Tensor]) -> None:
        tokens = int(batch.mask.sum())
        told, self.told = self.told, {}
        self.log("policy/loss", total * self.trainer.accumulate_grad_batches, prog_bar=True, batch_size=1)
        if told:
            self.log_dict(told, batch_size=1)
        if tokens:
            self.log_dict({f"policy/{name}": value for name, value in metrics.items()}, batch_size=tokens)
        parts = {
            f"policy/{name}_loss": value * self.trainer.accumulate_grad_batches for name, value in aggregated.items()
        }
        self.log_dict(parts, batch_size=1)
        if self.objective.kl_place != "none":
            self.log("policy/kl_weight", self.kl.coefficient, batch_size=1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Those of the policy, and the critic with its own learning rate."""
        groups = super().parameter_groups()
        if self.scorer.critic is None:
            return groups
        critic = {id(p) for p in self.scorer.critic.parameters()}
        own = [p for p in self.scorer.critic.parameters() if p.requires_grad]
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in critic]
        return [*(g for g in groups if g["params"]), {"params": own, "lr": self.objective.critic_lr}]


def _needed(values: Tensor | None, who: str, what: str) -> Tensor:
    if values is None:
        raise ValueError(f"{who} needs {what}, and the samples have none: choose another objective or advantage")
    return values
