"""Each part of the loss on numbers that one can check by hand."""

from __future__ import annotations

from dataclasses import fields, replace
from math import log

import pytest
import torch

from priorzero.world_model.loss import (
    LossWeights,
    Predictions,
    Targets,
    cross_entropy,
    entropy,
    masked_mean,
    world_model_loss,
)

WEIGHTS = LossWeights(latent=10.0, reward=1.0, value=0.5, policy=1.0, entropy=0.05)


@pytest.fixture
def predictions() -> Predictions:
    return Predictions(
        latent=torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]),
        reward_logits=torch.zeros(1, 2, 3),
        value_logits=torch.tensor([[[0.0, log(2), 0.0]] * 2]),  # probabilities 1/4 1/2 1/4
        policy_logits=torch.tensor([[[log(2), 0.0, 5.0]] * 2]),  # 2/3 1/3 over the known two
    )


@pytest.fixture
def targets() -> Targets:
    return Targets(
        latent=torch.tensor([[[0.0, 0.0], [0.0, 2.0]]]),
        reward=torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]]),
        value=torch.tensor([[[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]]),
        policy=torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]]),
        legal=torch.tensor([[[True, False, False], [True, True, False]]]),
        known=torch.tensor([[True, True, False]]),
        real=torch.ones(1, 2),
        modelled=torch.ones(1, 2),
        weight=torch.ones(1),
    )


PARTS = {  # step 0, step 1
    "latent": (0.5, 2.0),
    "reward": (log(3), log(3)),
    "value": (1.5 * log(2), log(2)),
    "policy": (log(1.5), -0.5 * log(2 / 9)),
    "entropy": (0.0, log(3) - 2 / 3 * log(2)),
}


def test_parts_and_total(predictions: Predictions, targets: Targets) -> None:
    total, parts = world_model_loss(predictions, targets, WEIGHTS)
    expected = {name: (a + b) / 2 for name, (a, b) in PARTS.items()}
    assert {name: x.item() for name, x in parts.items()} == pytest.approx(expected, abs=1e-6)
    weighted = 10 * expected["latent"] + expected["reward"] + 0.5 * expected["value"] + expected["policy"]
    assert total.item() == pytest.approx(weighted - 0.05 * expected["entropy"], abs=1e-5)


def test_only_real_steps_count_and_rows_are_weighted(predictions: Predictions, targets: Targets) -> None:
    first = torch.tensor([[1.0, 0.0]])
    targets = replace(targets, real=first, modelled=first, weight=torch.tensor([3.0]))
    _, parts = world_model_loss(predictions, targets, WEIGHTS)
    assert {name: x.item() for name, x in parts.items()} == pytest.approx({n: 3 * a for n, (a, _) in PARTS.items()})


def test_padded_steps_take_no_part(predictions: Predictions, targets: Targets) -> None:
    first = torch.tensor([[1.0, 0.0]])
    targets = replace(targets, real=first, modelled=first)
    total, _ = world_model_loss(predictions, targets, WEIGHTS)
    shift = torch.tensor([[[0.0], [3.0]]])
    moved = replace(predictions, **{f.name: getattr(predictions, f.name) * (1 + shift) for f in fields(Predictions)})
    other = {"latent": targets.latent + shift, "policy": targets.policy.flip(2) * shift + targets.policy * (shift == 0)}
    other["legal"] = targets.legal & (shift == 0)
    assert torch.equal(world_model_loss(moved, replace(targets, **other), WEIGHTS)[0], total)


def test_absorbing_steps_have_every_target_but_the_policy(predictions: Predictions, targets: Targets) -> None:
    _, parts = world_model_loss(predictions, replace(targets, real=torch.tensor([[1.0, 0.0]])), WEIGHTS)
    both = {name: sum(PARTS[name]) / 2 for name in ("latent", "reward", "value")}
    first = {name: PARTS[name][0] for name in ("policy", "entropy")}
    assert {name: x.item() for name, x in parts.items()} == pytest.approx(both | first, abs=1e-6)


def test_unknown_candidates_take_no_part(predictions: Predictions, targets: Targets) -> None:
    total, _ = world_model_loss(predictions, targets, WEIGHTS)
    moved = predictions.policy_logits + torch.tensor([0.0, 0.0, 50.0])
    assert torch.equal(world_model_loss(replace(predictions, policy_logits=moved), targets, WEIGHTS)[0], total)


def test_known_but_invalid_candidates_are_pushed_down_and_carry_no_entropy(
    predictions: Predictions, targets: Targets
) -> None:
    moved = replace(predictions, policy_logits=predictions.policy_logits + torch.tensor([0.0, 1.0, 0.0]))
    targets = replace(targets, real=torch.tensor([[1.0, 0.0]]))  # there candidate 1 is known, not valid
    before, after = (world_model_loss(p, targets, WEIGHTS)[1] for p in (predictions, moved))
    assert after["policy"] > before["policy"]
    assert after["entropy"] == before["entropy"]


def test_valid_candidates_count_as_known(predictions: Predictions, targets: Targets) -> None:
    unknown = replace(targets, known=torch.zeros(1, 3, dtype=torch.bool))
    _, parts = world_model_loss(predictions, unknown, WEIGHTS)
    assert parts["policy"].item() == pytest.approx((0.0 + PARTS["policy"][1]) / 2, abs=1e-6)


def test_nothing_allowed_gives_no_entropy_and_finite_gradients() -> None:
    logits = torch.tensor([[1.0, 2.0]], requires_grad=True)
    out = entropy(logits, torch.zeros(1, 2, dtype=torch.bool))
    out.sum().backward()
    assert out.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_cross_entropy_ignores_what_has_no_mass() -> None:
    out = cross_entropy(torch.tensor([0.0, 0.0, -torch.inf]), torch.tensor([0.25, 0.75, 0.0]))
    assert out.item() == pytest.approx(log(2))


def test_a_missing_target_does_not_vanish() -> None:
    assert cross_entropy(torch.zeros(3), torch.tensor([0.0, 1.0, torch.nan])).isnan()


def test_masked_mean_of_nothing_is_zero() -> None:
    assert masked_mean(torch.ones(2, 2), torch.zeros(2, 2), torch.ones(2)).item() == 0.0
