"""What makes an update cheap on a GPU: both passes recorded as one graph, and nothing that waits for its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from priorzero.types import WorldModelBatch
from priorzero.world_model.graphs import Replay, round_up

CANDIDATES_STEP = 64  # the candidates of a batch are padded to multiples of it: few sizes, few recordings
CANDIDATE_AXIS = {"candidates": 0, "legal": 2, "known": 1, "policy": 2}


class Losses(NamedTuple):
    """What an update computes."""

    total: Tensor  # scalar
    parts: dict[str, Tensor]  # scalars, detached
    td_error: Tensor  # [B], detached


class RecordedLosses:
    """Losses and their gradients, recorded as one CUDA graph for each size of batch; a CPU runs them as they are.

    A recording holds while what it reads stays where it is in memory; where that moved, it is made again. The parts
    that it returns are overwritten by the next call.

    Args:
        compute: the losses of a batch, on the batch's device, without waiting for it.
        parameters: what is trained. Each must have a gradient.
        reads: holds all parameters and buffers that ``compute`` reads.
    """

    def __init__(
        self, compute: Callable[[WorldModelBatch], Losses], parameters: Iterable[Tensor], reads: nn.Module
    ) -> None:
        self._compute, self._parameters, self._reads = compute, list(parameters), reads
        self._where: list[int] = []
        self._recordings: dict[Any, tuple[WorldModelBatch, Replay]] = {}

    def __call__(self, batch: WorldModelBatch) -> Losses:
        """As ``compute``. The total's gradients are known already: ``backward`` only hands them out."""
        where = [x.data_ptr() for x in (*self._reads.parameters(), *self._reads.buffers())]
        if where != self._where:
            self._where = where
            self._recordings.clear()
        sizes = _sizes(batch)
        key = (*sizes.values(), torch.is_autocast_enabled(batch.reward.device.type))
        if key not in self._recordings:
            static = replace(batch, **{name: getattr(batch, name).new_zeros(size) for name, size in sizes.items()})
            _fill(static, batch)
            self._recordings[key] = static, Replay(lambda: self._run(static), batch.reward.device, lambda: None)
        static, replay = self._recordings[key]
        _fill(static, batch)
        total, parts, td_error, gradients = replay()
        return Losses(_Known.apply(total, gradients, *self._parameters), parts, td_error.clone())

    def _run(self, batch: WorldModelBatch) -> tuple[Tensor, dict[str, Tensor], Tensor, tuple[Tensor, ...]]:
        with torch.enable_grad():
            total, parts, td_error = self._compute(batch)
            return total.detach(), parts, td_error, torch.autograd.grad(total, self._parameters)


class _Known(torch.autograd.Function):
    """A loss whose gradients lie ready in tensors that the next recording overwrites."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: tuple[Tensor, ...], *_parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return total.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *torch._foreach_mul(ctx.gradients, upstream)


class FiniteLoss:
    """Raises where a loss is not finite: at once on a CPU; on a GPU an update later, so that nothing waits for it."""

    def __init__(self) -> None:
        self._pending: tuple[int, list[str], Tensor, torch.cuda.Event | None] | None = None
        self._staged = torch.zeros(0)

    def see(self, losses: Losses, update: int) -> None:
        """Look at the losses of an update, and at what is left of the one before.

        Raises:
            RuntimeError: one of them is not finite.
        """
        self.settle()
        numbers = torch.stack((losses.total.detach(), *losses.parts.values())).float()
        event = None
        if numbers.is_cuda:
            if self._staged.shape != numbers.shape:
                self._staged = torch.zeros(numbers.shape, pin_memory=True)
            numbers, event = self._staged.copy_(numbers, non_blocking=True), torch.cuda.Event()
            event.record()
        self._pending = update, list(losses.parts), numbers, event
        if event is None:
            self.settle()

    def settle(self) -> None:
        """Look at what is left of the last update. Raises as `see` does."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        update, names, numbers, event = pending
        if event is not None:
            event.synchronize()
        total, *parts = numbers.tolist()
        if not math.isfinite(total):
            readable = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, parts, strict=True))
            raise RuntimeError(f"world-model loss is {total} in update {update}: {readable}")


def _sizes(batch: WorldModelBatch) -> dict[str, tuple[int, ...]]:
    sizes = {f.name: list(getattr(batch, f.name).shape) for f in fields(batch)}
    for name, axis in CANDIDATE_AXIS.items():
        sizes[name][axis] = round_up(sizes[name][axis], CANDIDATES_STEP)
    return {name: tuple(size) for name, size in sizes.items()}


def _fill(static: WorldModelBatch, batch: WorldModelBatch) -> None:
    """Candidates beyond those of the batch are neither legal nor known, so that no loss sees them."""
    for f in fields(batch):
        to, given = getattr(static, f.name), getattr(batch, f.name)
        if to.shape != given.shape:
            axis = CANDIDATE_AXIS[f.name]
            count = given.shape[axis]
            to.narrow(axis, count, to.shape[axis] - count).zero_()
            to = to.narrow(axis, 0, count)
        to.copy_(given, non_blocking=True)
