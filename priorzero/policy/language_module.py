"""What every LightningModule around a language model shares: optimizer, weights to copy, checkpoints, reference."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from priorzero.policy.load import without_adapters
from priorzero.rl.kl import AdaptiveKL, FixedKL, KLController


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


class LanguageModule(lightning.LightningModule):
    """Trains the trainable weights of ``scorer``, an nn.Module with the language model as ``scorer.model``.

    Checkpoints hold the trainable weights only. The reference of a KL is the model at the start: with adapters the
    model without them, otherwise a frozen copy, made only if ``reference`` asks for it.
    """

    def __init__(self, scorer: nn.Module, optim: PolicyOptim, kl: KLController, *, adapted: bool, reference: bool):
        super().__init__()
        self.scorer, self.optim, self.kl = scorer, optim, kl
        self._adapted = adapted
        # in a list: not a submodule, so neither in checkpoints nor wrapped by a strategy
        self._frozen = [] if adapted or not reference else [copy.deepcopy(scorer).requires_grad_(False).eval()]
        self._optimizers: dict[str, Any] | None = None

    @property
    def strict_loading(self) -> bool:
        """False: frozen weights are not in checkpoints. ``on_load_checkpoint`` checks the trainable ones."""
        return False

    def on_fit_start(self) -> None:
        """Put the reference where the model is, and dropout on."""
        self.train()
        self._frozen = [scorer.to(self.device) for scorer in self._frozen]

    def reference(self) -> tuple[nn.Module, AbstractContextManager[Any]]:
        """The scorer with the initial weights, and a context in which to call it."""
        if not self._adapted:
            return self._frozen[0], nullcontext()
        return self.scorer, without_adapters(self.scorer.model)

    def validation_step(self, metrics: dict[str, float], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log what the evaluation episodes gave; they were played by the data loader."""
        self.log_dict({name: float(value) for name, value in metrics.items()}, batch_size=1, add_dataloader_idx=False)

    # -------------------------------------------------------------------------------------------------- optimizer

    def configure_optimizers(self) -> dict[str, Any]:
        """One AdamW for the whole run: phases re-enter ``fit``, and Adam must not start again each time."""
        if self._optimizers is None:
            optimizer = torch.optim.AdamW(
                self.parameter_groups(), lr=self.optim.lr, betas=tuple(self.optim.betas),
                weight_decay=self.optim.weight_decay,
            )  # fmt: skip
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.optim.factor)
            self._optimizers = {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        return self._optimizers

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices with weight decay, the rest without."""
        weights = list(self._trainable().values())
        groups = [
            {"params": [p for p in weights if p.ndim >= 2]},
            {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    # ---------------------------------------------------------------------------------------------------- weights

    def trainable_state(self) -> dict[str, Tensor]:
        """Copies of the language model's trainable weights on the CPU, under its own names; for who plays or writes."""
        own = {name.removeprefix("model."): p for name, p in self._trainable().items() if name.startswith("model.")}
        return {name: p.detach().to("cpu", copy=True) for name, p in own.items()}

    def _trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.scorer.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trainable weights, and the state of the KL weight."""
        names = {f"scorer.{name}" for name in self._trainable()}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in names}
        checkpoint["kl"] = self.kl.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits.

        Raises:
            RuntimeError: its weights are not the trainable ones of this model.
        """
        names = {f"scorer.{name}" for name in self._trainable()}
        if names != checkpoint["state_dict"].keys():
            different = sorted(names ^ checkpoint["state_dict"].keys())
            raise RuntimeError(
                f"the checkpoint does not fit: {len(different)} weights are on one side only, {different[0]!r} for "
                "example. Use the llm source and the LoRA settings that it was trained with"
            )
        self.kl.load_state_dict(checkpoint["kl"])


def kl_controller(weight: float, target: float | None, horizon: int) -> KLController:
    """A fixed weight of the KL, or with a target one that adapts."""
    return FixedKL(weight) if target is None else AdaptiveKL(weight, target, horizon)
