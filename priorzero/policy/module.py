"""Trains the language model towards the search and the environment: one optimizer, the initial model as reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from priorzero.policy.language_module import LanguageModule, PolicyOptim, kl_controller
from priorzero.policy.load import LanguageModel
from priorzero.policy.logprobs import CandidateScorer
from priorzero.rl import policy_loss
from priorzero.rl.kl import kl_estimate
from priorzero.types import PackedPrompts, PolicyBatch
from priorzero.utils.cuda_graphs import random_numbers


@dataclass(frozen=True, kw_only=True)
class PolicyLossConfig:
    """Which terms make the loss: sft_weight * SFT + rft_weight * RFT + kl * KL - entropy_weight * entropy."""

    sft_weight: float  # towards the visits of the search; 0 = off
    sft_kind: Literal["listwise", "text"]  # distribution over the candidates, or likelihood of their text
    rft_weight: float  # -A log pi of the played action; 0 = off
    rft_kind: Literal["reinforce", "ppo"]
    importance_cap: float | None  # reinforce only: truncated weight pi / behaviour; None = not corrected
    clip_low: float  # ppo only
    clip_high: float  # ppo only
    kl_weight: float  # to the initial model; 0 = off
    kl_kind: Literal["exact", "k1", "k2", "k3"]  # exact: over all candidates; the others: of the played action
    kl_target: float | None  # with a target the weight adapts (rl.kl.AdaptiveKL); None = fixed
    kl_horizon: int
    entropy_weight: float
    temperature: float  # of the policy, the same as the prior's
    normalise_length: bool  # score by the mean over an action's tokens, the same as in the prior

    def __post_init__(self) -> None:
        for name, allowed in (
            ("sft_kind", ("listwise", "text")),
            ("rft_kind", ("reinforce", "ppo")),
            ("kl_kind", ("exact", "k1", "k2", "k3")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        if self.temperature <= 0:
            raise ValueError(f"the temperature of a policy is positive, not {self.temperature}")


class PolicyModule(LanguageModule):
    """The language model that chooses among valid actions, under Lightning.

    ``training_step`` takes one micro-batch, a `PolicyBatch`; an update of several is Lightning's
    ``accumulate_grad_batches``.
    """

    def __init__(self, language_model: LanguageModel, *, loss: PolicyLossConfig, optim: PolicyOptim) -> None:
        super().__init__(
            CandidateScorer(language_model.model),
            optim,
            kl_controller(loss.kl_weight, loss.kl_target, loss.kl_horizon),
            adapted=language_model.has_adapters,
            reference=bool(loss.kl_weight),
        )
        self.loss = loss

    def training_step(self, batch: PolicyBatch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch.

        Raises:
            RuntimeError: the loss is not finite.
        """
        reference = self._reference(batch.prompts) if self.loss.kl_weight else None
        with random_numbers():  # of dropout
            sums, counts = self.scorer(batch.prompts)
        policy = self._policy(sums, counts)
        terms = self._terms(batch, sums, counts, policy, reference)
        means = {name: policy_loss.weighted_mean(values, batch.weight) for name, values in terms.items()}
        weighted = [weight * means[name] for name, weight in self._weights().items() if name in means]
        total = torch.stack(weighted).sum()
        if not torch.isfinite(total):
            readable = ", ".join(f"{name} {value.item():.4g}" for name, value in means.items())
            raise RuntimeError(f"policy loss is {total.item()} in update {self.global_step}: {readable}")
        if reference is not None:
            self.kl.update(means["kl"].item(), int((batch.weight > 0).sum()))
        self._log(batch, policy, total, means)
        return total

    def _weights(self) -> dict[str, float]:
        return {
            "sft": self.loss.sft_weight,
            "rft": self.loss.rft_weight,
            "kl": self.kl.coefficient,
            "entropy": -self.loss.entropy_weight,
        }

    def _policy(self, sums: Tensor, counts: Tensor) -> Tensor:
        return policy_loss.action_logprobs(sums, counts, self.loss.temperature, self.loss.normalise_length)

    def _terms(
        self, batch: PolicyBatch, sums: Tensor, counts: Tensor, policy: Tensor, reference: Tensor | None
    ) -> dict[str, Tensor]:
        played = policy_loss.pick(policy, batch.action)
        terms = {"entropy": policy_loss.entropy(policy), "rft": self._rft(batch, played)}
        if self.loss.sft_kind == "listwise":
            terms["sft"] = policy_loss.sft_listwise(policy, batch.visit_probs)
        else:
            terms["sft"] = policy_loss.sft_text(sums, counts, batch.visit_probs, self.loss.normalise_length)
        if reference is not None:
            exact = self.loss.kl_kind == "exact"
            terms["kl"] = (
                policy_loss.categorical_kl(policy, reference)
                if exact
                else kl_estimate(played, policy_loss.pick(reference, batch.action), self.loss.kl_kind)
            )
        return terms

    def _rft(self, batch: PolicyBatch, played: Tensor) -> Tensor:
        if self.loss.rft_kind == "ppo":
            return policy_loss.ppo_clip(
                played, batch.behaviour_logprobs, batch.advantage, self.loss.clip_low, self.loss.clip_high
            )
        cap = self.loss.importance_cap
        importance = None
        if cap is not None:
            importance = policy_loss.truncated_importance(played, batch.behaviour_logprobs, cap)
        return policy_loss.reinforce(played, batch.advantage, importance)

    @torch.no_grad()
    def _reference(self, prompts: PackedPrompts) -> Tensor:
        """Log-probabilities [B, A] of the initial model. Before the policy's forward: peft toggles its weights."""
        scorer, initial = self.reference()
        with initial:
            return self._policy(*scorer(prompts))

    @torch.no_grad()
    def _log(self, batch: PolicyBatch, policy: Tensor, total: Tensor, means: dict[str, Tensor]) -> None:
        agrees = (policy.argmax(-1) == batch.visit_probs.argmax(-1)).float()
        played = policy_loss.pick(policy, batch.action)
        metrics = {f"policy/{name}": value for name, value in means.items()}
        metrics["policy/top1_agreement"] = policy_loss.weighted_mean(agrees, batch.weight)
        metrics["policy/logp_action"] = policy_loss.weighted_mean(played, batch.weight)
        if "kl" in means:
            metrics["policy/kl_weight"] = torch.tensor(self.kl.coefficient)
        self.log("policy/loss", total, prog_bar=True, batch_size=len(batch.weight))
        self.log_dict(metrics, batch_size=len(batch.weight))
