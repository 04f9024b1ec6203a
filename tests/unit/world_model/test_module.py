"""The LightningModule under a real Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from priorzero.types import WorldModelBatch
from priorzero.world_model.loss import LossWeights
from priorzero.world_model.model import UniZero
from priorzero.world_model.module import TargetConfig, WorldModelModule, WorldModelOptim

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # lightning 2.6 on torch 2.13
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # the batches are ready in memory
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),  # the target network is, on purpose
]

GAMMA, TD_STEPS, MOMENTUM = 0.9, 2, 0.25


class Outputs(lightning.Callback):
    """Keeps what every training step returned."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append({name: x.detach().clone() for name, x in outputs.items()})


@pytest.fixture
def make_module(make_model: Callable[..., UniZero]) -> Callable[..., WorldModelModule]:
    def make(seed: int = 0, lr: float = 3e-3, warmup: int = 1, **changes: object) -> WorldModelModule:
        return WorldModelModule(
            make_model(seed, **changes),
            loss=LossWeights(latent=10.0, reward=1.0, value=0.5, policy=1.0, entropy=0.05),
            target=TargetConfig(gamma=GAMMA, td_steps=TD_STEPS, momentum=MOMENTUM),
            optim=WorldModelOptim(lr=lr, betas=(0.9, 0.95), weight_decay=1e-4, warmup_updates=warmup),
        )

    return make


def make_trainer(updates: int, **changes: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = quiet | {"enable_checkpointing": False, "accelerator": "cpu", "max_epochs": -1, "max_steps": updates}
    return lightning.Trainer(**(settings | changes))


def fit(
    module: WorldModelModule, batches: list[WorldModelBatch], updates: int, **changes: Any
) -> list[dict[str, Tensor]]:
    outputs = Outputs()
    ckpt_path = changes.pop("ckpt_path", None)
    trainer = make_trainer(updates, callbacks=[outputs], **changes)
    trainer.fit(module, DataLoader(batches, batch_size=None), ckpt_path=ckpt_path)  # type: ignore[arg-type]
    return outputs.seen


def weights_of(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def by_hand(batch: WorldModelBatch, value: Tensor) -> Tensor:
    """n-step targets, one step at a time."""
    rows, unroll = batch.length.shape[0], batch.unroll
    y = torch.zeros(rows, unroll)
    for b in range(rows):
        end = int(batch.length[b])
        for t in range(min(unroll, end)):
            stop = min(t + TD_STEPS, end)
            y[b, t] = sum(GAMMA ** (i - t) * batch.reward[b, i] for i in range(t, stop))
            if not (stop == end and batch.terminated[b]):
                y[b, t] += GAMMA ** (stop - t) * value[b, stop]
    return y


def test_learns_a_batch(
    make_module: Callable[..., WorldModelModule], make_batch: Callable[..., WorldModelBatch]
) -> None:
    seen = fit(make_module(fresh=True), [make_batch()], 30)
    losses = [x["loss"].item() for x in seen]
    assert losses[-1] < 0.7 * losses[0]
    assert seen[0]["priority"].shape == (4,)
    assert seen[0]["index"].tolist() == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.timeout(900)  # it compiles
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_a_compiled_network_learns_the_same(
    make_module: Callable[..., WorldModelModule], make_batch: Callable[..., WorldModelBatch]
) -> None:
    plain, compiled = make_module(), make_module()
    compiled.compile_network()
    losses = [[x["loss"].item() for x in fit(module, [make_batch()], 3)] for module in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert compiled.state_dict().keys() == plain.state_dict().keys()  # checkpoints stay readable


def test_every_weight_gets_a_gradient(
    make_module: Callable[..., WorldModelModule], make_batch: Callable[..., WorldModelBatch]
) -> None:
    silent: list[str] = []

    class Gradients(lightning.Callback):
        def on_after_backward(self, trainer: Any, module: Any) -> None:
            found = {name: p.grad for name, p in module.model.named_parameters()}
            silent.extend(name for name, grad in found.items() if grad is None or not grad.any())

    make_trainer(1, callbacks=[Gradients()]).fit(make_module(), DataLoader([make_batch()], batch_size=None))
    assert silent == []


def test_targets_carry_no_gradient_and_no_dropout(
    make_module: Callable[..., WorldModelModule], make_batch: Callable[..., WorldModelBatch]
) -> None:
    module = make_module(dropout=0.5)
    batch = make_batch()
    before = module.advantages(batch)
    module.train()
    assert module.model.training
    assert not module.target.training
    assert torch.equal(module.advantages(batch), before)
    fit(module, [batch], 2)
    assert not module.target.training
    assert all(p.grad is None and not p.requires_grad for p in module.target.parameters())
    trained = {id(p) for group in module.trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.model.parameters()}


def test_weight_decay_is_for_matrices(make_module: Callable[..., WorldModelModule]) -> None:
    matrices, others = make_module().configure_optimizers()["optimizer"].param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (1e-4, 0.0)
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in others["params"]} == {1}


def test_learning_rate_warms_up(
    make_module: Callable[..., WorldModelModule], make_batch: Callable[..., WorldModelBatch]
) -> None:
    module = make_module(lr=0.1, warmup=4)
    optimizer = module.configure_optimizers()["optimizer"]
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(2):
        fit(module, [make_batch()], 2)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.025, 0.075, 0.1])


def test_target_network_follows(
    make_module: Callable[..., WorldModelModule], make_batch: Callable[..., WorldModelBatch]
) -> None:
    module = make_module()
    start = weights_of(module.target)
    assert all(torch.equal(a, b) for a, b in zip(start, weights_of(module.model), strict=True))
    fit(module, [make_batch()], 1)
    for old, new, target in zip(start, weights_of(module.model), weights_of(module.target), strict=True):
        torch.testing.assert_close(target, 0.75 * old + 0.25 * new)


def test_advantages_by_hand(
    make_module: Callable[..., WorldModelModule], make_batch: Callable[..., WorldModelBatch]
) -> None:
    module = make_module()
    batch = make_batch(
        length=torch.tensor([5, 2, 3, 1]), terminated=torch.tensor([False, True, False, True])
    )  # whole, ended inside, cut at the last trained step, ended at once
    with torch.no_grad():
        out = module.target(batch.observation, batch.candidates[batch.action])
        value = module.model.support.decode(out.value_logits)
    expected = by_hand(batch, value) - value[:, :3]
    expected[1, 2:], expected[3, 1:] = 0.0, 0.0
    advantage = module.advantages(batch)
    assert not advantage.requires_grad
    torch.testing.assert_close(advantage, expected, atol=1e-5, rtol=1e-5)


def test_a_cut_window_is_bootstrapped_and_an_ended_one_is_not(
    make_module: Callable[..., WorldModelModule], make_batch: Callable[..., WorldModelBatch]
) -> None:
    module, cut = make_module(), make_batch(length=torch.full((4,), 3))
    ended = replace(cut, terminated=torch.ones(4, dtype=torch.bool))
    difference = module.advantages(cut) - module.advantages(ended)
    with torch.no_grad():
        _, value = module.target.values(cut.observation, cut.candidates[cut.action])
    expected = torch.stack((torch.zeros(4), GAMMA**2 * value[:, 3], GAMMA * value[:, 3]), dim=1)
    torch.testing.assert_close(difference, expected, atol=1e-5, rtol=1e-5)


def test_priority_is_the_mean_error_of_the_real_steps(
    make_module: Callable[..., WorldModelModule], make_batch: Callable[..., WorldModelBatch]
) -> None:
    module = make_module()
    batch = make_batch(length=torch.tensor([5, 2, 3, 1]))
    with torch.no_grad():  # before the first update both networks are the same
        value = module.model.support.decode(
            module.model(batch.observation, batch.candidates[batch.action]).value_logits
        )
    error = (by_hand(batch, value) - value[:, :3]).abs()
    expected = torch.stack([error[b, : min(3, int(n))].mean() for b, n in enumerate(batch.length)])
    torch.testing.assert_close(fit(module, [batch], 1)[0]["priority"], expected, atol=1e-5, rtol=1e-5)


def test_padded_steps_change_nothing(
    make_module: Callable[..., WorldModelModule], make_batch: Callable[..., WorldModelBatch]
) -> None:
    batch = make_batch(length=torch.tensor([5, 2, 3, 1]))
    real = torch.arange(5) < batch.length[:, None]
    seen = torch.arange(6) <= batch.length[:, None]
    other = replace(
        batch,
        observation=torch.where(seen[..., None], batch.observation, 9.0),
        action=torch.where(real, batch.action, 0),
        reward=torch.where(real, batch.reward, 7.0),
        legal=batch.legal & real[:, :3, None],
        policy=batch.policy * real[:, :3, None],
    )
    (a,), (b,) = (fit(make_module(), [x], 1) for x in (batch, other))
    torch.testing.assert_close(a["loss"], b["loss"])
    torch.testing.assert_close(a["priority"], b["priority"])


def test_phases_share_one_optimizer(
    make_module: Callable[..., WorldModelModule], make_batch: Callable[..., WorldModelBatch]
) -> None:
    batches = [make_batch(0)]
    phases, whole = make_module(), make_module()
    fit(phases, batches, 3)
    losses = [x["loss"] for x in fit(phases, batches, 2)]
    state = phases.trainer.optimizers[0].state
    assert {int(s["step"]) for s in state.values()} == {5}
    torch.testing.assert_close(losses, [x["loss"] for x in fit(whole, batches, 5)[3:]])


def test_a_checkpoint_continues_exactly(
    make_module: Callable[..., WorldModelModule], make_batch: Callable[..., WorldModelBatch], tmp_path: Path
) -> None:
    batches, path = [make_batch()], tmp_path / "world_model.ckpt"
    whole = make_module(warmup=10)
    straight = fit(whole, batches, 6)

    first = make_module(warmup=10)
    fit(first, batches, 3)
    first.trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    assert {name.split(".")[0] for name in saved["state_dict"]} == {"model", "target"}

    resumed = make_module(seed=5, warmup=10)
    continued = fit(resumed, batches, 6, ckpt_path=path)
    assert [x["loss"].item() for x in continued] == [x["loss"].item() for x in straight[3:]]
    for net in ("model", "target"):
        pairs = zip(weights_of(getattr(resumed, net)), weights_of(getattr(whole, net)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert {int(s["step"]) for s in resumed.trainer.optimizers[0].state.values()} == {6}
    assert resumed.trainer.optimizers[0].param_groups[0]["lr"] == whole.trainer.optimizers[0].param_groups[0]["lr"]


@pytest.mark.parametrize("field", ["reward", "observation", "candidates"])
def test_nan_stops_the_run(
    make_module: Callable[..., WorldModelModule], make_batch: Callable[..., WorldModelBatch], field: str
) -> None:
    batch = make_batch()
    broken = torch.full_like(getattr(batch, field), math.nan)
    with pytest.raises(RuntimeError, match="world-model loss is nan in update 0: latent"):
        fit(make_module(), [replace(batch, **{field: broken})], 1)


def test_metrics_are_logged(
    make_module: Callable[..., WorldModelModule], make_batch: Callable[..., WorldModelBatch]
) -> None:
    module = make_module()
    fit(module, [make_batch()], 1)
    parts = {"loss", "latent", "reward", "value", "policy", "entropy", "td_error"}
    assert {f"wm/{name}" for name in parts} <= set(module.trainer.callback_metrics)


def test_validation_passes_metrics_on(make_module: Callable[..., WorldModelModule]) -> None:
    trainer = make_trainer(1)
    played = [{"val/wm/return": 2.0}, {"val/wm/return": 4.0}]
    trainer.validate(make_module(), DataLoader(played, batch_size=None, collate_fn=lambda x: x), verbose=False)
    assert trainer.callback_metrics["val/wm/return"].item() == 3.0
