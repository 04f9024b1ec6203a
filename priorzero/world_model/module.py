"""Trains the world model: one optimizer, an EMA target network, targets made fresh from it in every update."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Self

import lightning
import torch
from torch import Tensor

from priorzero.rl.returns import td_targets
from priorzero.types import WorldModelBatch
from priorzero.utils.cuda_graphs import random_numbers
from priorzero.world_model.loss import LossWeights, Predictions, Targets, world_model_loss
from priorzero.world_model.model import UniZero
from priorzero.world_model.update import FiniteLoss, Losses, RecordedLosses


@dataclass(frozen=True, kw_only=True)
class WorldModelOptim:
    """Settings of AdamW and its warm-up."""

    lr: float
    betas: tuple[float, float]
    weight_decay: float  # on matrices only
    warmup_updates: int


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """How value targets are made, and how the target network follows."""

    gamma: float
    td_steps: int  # n of the n-step return
    momentum: float  # theta: how far the target network moves towards the trained one in an update


class WorldModelModule(lightning.LightningModule):
    """UniZero under Lightning. ``training_step`` takes a `WorldModelBatch` and also returns new priorities [B]."""

    def __init__(self, model: UniZero, *, loss: LossWeights, target: TargetConfig, optim: WorldModelOptim) -> None:
        super().__init__()
        self.model, self.loss, self.targets_from, self.optim = model, loss, target, optim
        self.target = copy.deepcopy(model).requires_grad_(False).eval()
        self._optimizers: dict[str, Any] | None = None
        self._recorded: RecordedLosses | None = None
        self._finite = FiniteLoss()

    def compile_network(self) -> None:
        """Fuse the network's small operations with ``torch.compile``: pays on a GPU, after a minute at the start."""
        self.model.compile(dynamic=False)
        self.target.values = torch.compile(self.target.values, dynamic=False)

    def record_updates(self) -> None:
        """Record forward and backward pass as one CUDA graph for each size of batch; on one device only."""
        self._recorded = RecordedLosses(self.compute_losses, self.model.parameters(), self)

    # --------------------------------------------------------------------------------------------------- training

    def train(self, mode: bool = True) -> Self:
        """As in `nn.Module`, but the target network stays in evaluation: no dropout in targets."""
        super().train(mode)
        self.target.eval()
        return self

    def on_fit_start(self) -> None:
        if self._recorded is not None and self.trainer.world_size > 1:
            raise ValueError(
                f"recorded updates run on one device, not on {self.trainer.world_size}, whose gradients would have to "
                "be averaged: set world_model.record=false, or train on one device"
            )

    def training_step(self, batch: WorldModelBatch, batch_idx: int) -> dict[str, Tensor]:
        if self._recorded is None:
            with random_numbers():  # of dropout
                losses = self.compute_losses(batch)
        else:
            losses = self._recorded(batch)
        self._finite.see(losses, self.global_step)
        self.log("wm/loss", losses.total.detach(), prog_bar=True)
        self.log_dict({f"wm/{name}": value for name, value in losses.parts.items()})
        self.log("wm/td_error", losses.td_error.mean())
        return {"loss": losses.total, "priority": losses.td_error, "index": batch.index}

    def on_train_end(self) -> None:
        self._finite.settle()

    def compute_losses(self, batch: WorldModelBatch) -> Losses:
        """The losses of a batch; nothing waits for the device."""
        target_latent, target_value = self._target_values(batch)
        targets, value_target, real = self._targets(batch, target_latent, target_value)
        steps = batch.unroll
        actions = batch.candidates[batch.action[:, :steps]]
        out = self.model(batch.observation[:, :steps], actions)
        keys = self.model.action_keys(batch.candidates)  # [U, D]
        predictions = Predictions(
            latent=out.next_latent,
            reward_logits=out.reward_logits,
            value_logits=out.value_logits,
            policy_logits=out.policy_query @ keys.T,
        )
        total, parts = world_model_loss(predictions, targets, self.loss)
        error = (self.model.support.decode(predictions.value_logits.detach()) - value_target).abs() * real
        return Losses(total, parts, error.sum(1) / real.sum(1).clamp(min=1))

    def on_train_batch_end(self, outputs: Any, batch: WorldModelBatch, batch_idx: int) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(
                [p.data for p in self.target.parameters()],
                [p.data for p in self.model.parameters()],
                self.targets_from.momentum,
            )

    def _target_values(self, batch: WorldModelBatch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.target.values(batch.observation, batch.candidates[batch.action])

    def _value_targets(self, batch: WorldModelBatch, target_value: Tensor) -> Tensor:
        return td_targets(
            batch.reward,
            target_value,
            batch.length,
            batch.terminated,
            gamma=self.targets_from.gamma,
            n=self.targets_from.td_steps,
            unroll=batch.unroll,
        )

    def _targets(
        self, batch: WorldModelBatch, target_latent: Tensor, target_value: Tensor
    ) -> tuple[Targets, Tensor, Tensor]:
        steps = batch.unroll
        value_target = self._value_targets(batch, target_value)
        real = torch.arange(steps, device=batch.length.device) < batch.length.unsqueeze(1)
        modelled = real | batch.terminated.unsqueeze(1)
        support = self.model.support
        targets = Targets(
            latent=target_latent[:, 1 : steps + 1],
            reward=support.encode(batch.reward[:, :steps]),
            value=support.encode(value_target),
            policy=batch.policy,
            legal=batch.legal,
            known=batch.known,
            real=real.float(),
            modelled=modelled.float(),
            weight=batch.weight,
        )
        return targets, value_target, real.float()

    # --------------------------------------------------------------------------------------------- for the policy

    @torch.no_grad()
    def advantages(self, batch: WorldModelBatch) -> Tensor:
        """y_t - v(s_t) [B, T] for the language model, both from the target network; 0 past the window's end."""
        batch = batch.to(self.device)
        _, value = self._target_values(batch)
        advantage = self._value_targets(batch, value) - value[:, : batch.unroll]
        real = torch.arange(batch.unroll, device=self.device) < batch.length.unsqueeze(1)
        return advantage * real

    def validation_step(self, metrics: dict[str, float], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log what the evaluation episodes gave; they were played by the data loader."""
        self.log_dict({name: float(value) for name, value in metrics.items()}, batch_size=1, add_dataloader_idx=False)

    # -------------------------------------------------------------------------------------------------- optimizer

    def configure_optimizers(self) -> dict[str, Any]:
        """One AdamW for the whole run: phases re-enter ``fit``, and Adam must not start again each time."""
        if self._optimizers is None:
            matrices = [p for p in self.model.parameters() if p.ndim >= 2]
            others = [p for p in self.model.parameters() if p.ndim < 2]
            groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
            optimizer = torch.optim.AdamW(
                groups,
                lr=self.optim.lr,
                betas=tuple(self.optim.betas),
                weight_decay=self.optim.weight_decay,
                fused=matrices[0].is_cuda or None,  # None: torch chooses
            )
            # Lightning would not clip gradients for a fused optimizer, which may unscale them itself; this one does not
            optimizer._step_supports_amp_scaling = False
            warmup = max(self.optim.warmup_updates, 1)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: min(1.0, (update + 1) / warmup))
            self._optimizers = {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        return self._optimizers
