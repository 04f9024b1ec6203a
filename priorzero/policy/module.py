"""Trains the language model towards the search and the environment: one optimizer, the initial model as reference."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import lightning
import torch
from torch import Tensor, nn

from priorzero.policy.load import LanguageModel, without_adapters
from priorzero.policy.logprobs import CandidateScorer
from priorzero.rl import policy_loss
from priorzero.rl.kl import AdaptiveKL, FixedKL, KLController, kl_estimate
from priorzero.types import PackedPrompts, PolicyBatch


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


@dataclass(frozen=True, kw_only=True)
class PolicyOptim:
    """AdamW with linear warm-up and cosine decay."""

    lr: float
    betas: tuple[float, float]
    weight_decay: float  # on matrices only
    warmup_updates: int
    total_updates: int  # where the cosine ends; it stays at the minimum afterwards
    min_lr_ratio: float

    def factor(self, update: int) -> float:
        """What the learning rate is multiplied by in update 0, 1, ..."""
        if update < self.warmup_updates:
            return (update + 1) / self.warmup_updates
        progress = (update - self.warmup_updates) / max(self.total_updates - self.warmup_updates, 1)
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


class PolicyModule(lightning.LightningModule):
    """The language model under Lightning.

    ``training_step`` takes one micro-batch, a `PolicyBatch`; an update of several is Lightning's
    ``accumulate_grad_batches``. Checkpoints hold the trainable weights only. With adapters the reference of the KL is
    the model without them; without adapters it is a frozen copy, made only if the KL is on.
    """

    def __init__(self, language_model: LanguageModel, *, loss: PolicyLossConfig, optim: PolicyOptim) -> None:
        super().__init__()
        self.scorer = CandidateScorer(language_model.model)
        self.loss, self.optim = loss, optim
        self.kl: KLController = (
            FixedKL(loss.kl_weight)
            if loss.kl_target is None
            else AdaptiveKL(loss.kl_weight, loss.kl_target, loss.kl_horizon)
        )
        self._adapted = language_model.has_adapters
        # in a list: not a submodule, so neither in checkpoints nor wrapped by a strategy
        self._frozen = [] if self._adapted or not loss.kl_weight else [_frozen_copy(self.scorer)]
        self._optimizers: dict[str, Any] | None = None

    @property
    def strict_loading(self) -> bool:
        """False: frozen weights are not in checkpoints. ``on_load_checkpoint`` checks the trainable ones."""
        return False

    # --------------------------------------------------------------------------------------------------- training

    def on_fit_start(self) -> None:
        """Put the reference where the model is, and dropout on."""
        self.train()
        self._frozen = [scorer.to(self.device) for scorer in self._frozen]

    def training_step(self, batch: PolicyBatch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch.

        Raises:
            RuntimeError: the loss is not finite.
        """
        reference = self._reference(batch.prompts) if self.loss.kl_weight else None
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
        if not self._adapted:
            return self._policy(*self._frozen[0](prompts))
        with without_adapters(self.scorer.model):
            return self._policy(*self.scorer(prompts))

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

    def validation_step(self, metrics: dict[str, float], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log what the evaluation episodes gave; they were played by the data loader."""
        self.log_dict({name: float(value) for name, value in metrics.items()}, batch_size=1, add_dataloader_idx=False)

    # -------------------------------------------------------------------------------------------------- optimizer

    def configure_optimizers(self) -> dict[str, Any]:
        """One AdamW for the whole run: phases re-enter ``fit``, and Adam must not start again each time."""
        if self._optimizers is None:
            weights = list(self._trainable().values())
            groups = [
                {"params": [p for p in weights if p.ndim >= 2]},
                {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
            ]
            optimizer = torch.optim.AdamW(
                [g for g in groups if g["params"]],
                lr=self.optim.lr,
                betas=tuple(self.optim.betas),
                weight_decay=self.optim.weight_decay,
            )
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.optim.factor)
            self._optimizers = {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        return self._optimizers

    # ---------------------------------------------------------------------------------------------------- weights

    def trainable_state(self) -> dict[str, Tensor]:
        """Copies of the trainable weights on the CPU, under the names of the language model; for ``LLMPrior``."""
        return {name: p.detach().to("cpu", copy=True) for name, p in self._trainable().items()}

    def _trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.scorer.model.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trainable weights, and the state of the KL weight."""
        names = {f"scorer.model.{name}" for name in self._trainable()}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in names}
        checkpoint["kl"] = self.kl.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits.

        Raises:
            RuntimeError: its weights are not the trainable ones of this model.
        """
        names = {f"scorer.model.{name}" for name in self._trainable()}
        if names != checkpoint["state_dict"].keys():
            different = sorted(names ^ checkpoint["state_dict"].keys())
            raise RuntimeError(
                f"the checkpoint does not fit: {len(different)} weights are on one side only, {different[0]!r} for "
                "example. Use the llm source and the LoRA settings that it was trained with"
            )
        self.kl.load_state_dict(checkpoint["kl"])


def _frozen_copy(scorer: CandidateScorer) -> CandidateScorer:
    return copy.deepcopy(scorer).requires_grad_(False).eval()
