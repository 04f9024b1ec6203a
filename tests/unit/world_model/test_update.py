"""Recorded updates against plain ones, and losses that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from priorzero.types import WorldModelBatch
from priorzero.world_model.loss import LossWeights
from priorzero.world_model.model import UniZero
from priorzero.world_model.module import TargetConfig, WorldModelModule, WorldModelOptim
from priorzero.world_model.update import CANDIDATES_STEP, FiniteLoss, Losses, RecordedLosses


def make_module(model: UniZero) -> WorldModelModule:
    return WorldModelModule(
        model,
        loss=LossWeights(latent=10.0, reward=1.0, value=0.5, policy=1.0, entropy=0.05),
        target=TargetConfig(gamma=0.9, td_steps=2, momentum=0.25),
        optim=WorldModelOptim(lr=3e-3, betas=(0.9, 0.95), weight_decay=1e-4, warmup_updates=1),
    )


def gradients(module: WorldModelModule, losses: Losses) -> list[torch.Tensor]:
    module.zero_grad()
    losses.total.backward()
    return [p.grad.clone() for p in module.model.parameters()]


def assert_same(module: WorldModelModule, recorded: RecordedLosses, batch: WorldModelBatch) -> None:
    other = recorded(batch)
    plain = module.compute_losses(batch)  # after: its graph must not be alive when the other is recorded
    torch.testing.assert_close(other.total, plain.total)
    torch.testing.assert_close(other.parts, plain.parts)
    torch.testing.assert_close(other.td_error, plain.td_error)
    torch.testing.assert_close(gradients(module, other), gradients(module, plain))


def check(make_model: Callable[..., UniZero], make_batch: Callable[..., WorldModelBatch], device: str) -> None:
    module = make_module(make_model()).to(device)
    recorded = RecordedLosses(module.compute_losses, module.model.parameters(), module)
    for seed, rows in ((0, 4), (1, 4), (2, 3)):  # the last one is of another size
        assert_same(module, recorded, make_batch(seed, rows).to(device))
    batch = make_batch(3)
    wide = {
        "candidates": torch.randn(CANDIDATES_STEP, batch.candidates.shape[1]),
        "legal": torch.cat((batch.legal, torch.ones(4, 3, CANDIDATES_STEP - 5, dtype=torch.bool)), dim=2),
        "known": torch.ones(4, CANDIDATES_STEP, dtype=torch.bool),
        "policy": torch.full((4, 3, CANDIDATES_STEP), 1 / CANDIDATES_STEP),
    }
    assert_same(module, recorded, replace(batch, **wide).to(device))  # fills the padding
    assert_same(module, recorded, make_batch(4).to(device))  # and leaves nothing of it behind
    with torch.no_grad():
        for p in module.model.parameters():
            p.mul_(1.1)
    assert_same(module, recorded, make_batch(5).to(device))  # new weights in the same place
    module.cpu().to(device)
    assert_same(module, recorded, make_batch(5).to(device))  # and elsewhere


def test_recorded_losses_equal_plain_ones(
    make_model: Callable[..., UniZero], make_batch: Callable[..., WorldModelBatch]
) -> None:
    check(make_model, make_batch, "cpu")


@pytest.mark.gpu
def test_recorded_losses_equal_plain_ones_on_a_gpu(
    make_model: Callable[..., UniZero], make_batch: Callable[..., WorldModelBatch]
) -> None:
    check(make_model, make_batch, "cuda")


def test_gradients_accumulate_and_scale(
    make_model: Callable[..., UniZero], make_batch: Callable[..., WorldModelBatch]
) -> None:
    module = make_module(make_model())
    recorded = RecordedLosses(module.compute_losses, module.model.parameters(), module)
    expected = gradients(module, module.compute_losses(make_batch()))
    module.zero_grad()
    for _ in range(2):
        (recorded(make_batch()).total * 0.5).backward()
    torch.testing.assert_close([p.grad for p in module.model.parameters()], expected)


def losses(total: float, device: str = "cpu") -> Losses:
    parts = {"latent": torch.tensor(2.0, device=device), "value": torch.tensor(total, device=device)}
    return Losses(torch.tensor(total, device=device), parts, torch.zeros(1, device=device))


def test_a_loss_that_is_not_finite_raises_at_once_on_a_cpu() -> None:
    finite = FiniteLoss()
    finite.see(losses(1.0), 6)
    with pytest.raises(RuntimeError, match="world-model loss is inf in update 7: latent 2, value inf"):
        finite.see(losses(torch.inf), 7)
    finite.settle()


@pytest.mark.gpu
def test_a_loss_that_is_not_finite_raises_an_update_later_on_a_gpu() -> None:
    finite = FiniteLoss()
    finite.see(losses(1.0, "cuda"), 6)
    finite.see(losses(torch.nan, "cuda"), 7)
    with pytest.raises(RuntimeError, match="world-model loss is nan in update 7: latent 2, value nan"):
        finite.see(losses(1.0, "cuda"), 8)
