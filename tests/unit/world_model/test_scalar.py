"""The scalar transform and the two-hot code."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from priorzero.world_model.scalar import Support, inverse_transform, transform

LIMIT = 5
LARGEST = inverse_transform(torch.tensor(float(LIMIT))).item()  # the largest scalar that the support can say


@pytest.mark.parametrize(
    ("x", "y"), [(0.0, 0.0), (3.0, 1.003), (-3.0, -1.003), (99.0, 9.099), (0.44, 0.20044), (-350.0, -18.0849940)]
)
def test_transform_by_hand(x: float, y: float) -> None:
    assert transform(torch.tensor(x)).item() == pytest.approx(y, abs=1e-6)
    assert inverse_transform(torch.tensor(y)).item() == pytest.approx(x, rel=1e-5, abs=1e-6)


@given(st.floats(-1e4, 1e4))
def test_inverse_undoes_the_transform(x: float) -> None:
    there = transform(torch.tensor(x, dtype=torch.float64))
    assert inverse_transform(there).item() == pytest.approx(x, rel=1e-9, abs=1e-9)


@given(st.floats(-2, 2, width=32))
def test_inverse_is_precise_near_zero_in_single_precision(x: float) -> None:
    assert inverse_transform(transform(torch.tensor(x))).item() == pytest.approx(x, abs=2e-6)


def test_encode_by_hand() -> None:
    support = Support(2)  # bins -2 .. 2
    quarter = inverse_transform(torch.tensor(1.25))
    target = support.encode(torch.tensor([0.0, 3.0, quarter, -1e9, 1e9]))
    expected = [[0, 0, 1, 0, 0], [0, 0, 0, 0.997, 0.003], [0, 0, 0, 0.75, 0.25], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    torch.testing.assert_close(target, torch.tensor(expected).float(), atol=1e-6, rtol=0)


def test_decode_by_hand() -> None:
    support = Support(1)
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, math.log(2.0)]])  # means 0 and (-1 + 0 + 2) / 4
    expected = inverse_transform(torch.tensor([0.0, 0.25]))
    torch.testing.assert_close(support.decode(logits), expected, atol=1e-6, rtol=0)


@given(st.lists(st.floats(-LARGEST, LARGEST, width=32), min_size=1, max_size=4))
def test_two_hot_round_trip(xs: list[float]) -> None:
    support = Support(LIMIT)
    target = support.encode(torch.tensor(xs))
    assert (target >= 0).all()
    assert ((target > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(target.sum(-1), torch.ones(len(xs)))
    torch.testing.assert_close(support.decode(target.log()), torch.tensor(xs), atol=1e-4, rtol=1e-4)


@given(st.floats(LARGEST, 1e30))
def test_beyond_the_support_is_its_end(x: float) -> None:
    support = Support(LIMIT)
    decoded = support.decode(support.encode(torch.tensor([x, -x])).log())
    torch.testing.assert_close(decoded, torch.tensor([LARGEST, -LARGEST]), atol=1e-4, rtol=1e-4)


def test_a_missing_number_stays_missing() -> None:
    assert Support(LIMIT).encode(torch.tensor([math.nan])).isnan().any()
