"""Frozen linear layers against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from priorzero.world_model.linear import Dense, Packed, Quantized, freeze

CPU = torch.device("cpu")


def layers(seed: int = 0, width: int = 256) -> list[nn.Linear]:
    torch.manual_seed(seed)
    return [nn.Linear(width, width), nn.Linear(width, width + 8)]


def plain(parts: list[nn.Linear], x: Tensor) -> Tensor:
    return torch.cat([part(x) for part in parts], dim=-1)


@pytest.mark.parametrize("kind", [Dense, Packed, Quantized])
@torch.inference_mode()
def test_equals_linear(kind: type) -> None:
    parts = layers()
    layer = Dense(parts, torch.float32, CPU) if kind is Dense else kind(parts)
    bound = 0.02 if kind is Quantized else 1e-5
    for shape in ((1,), (5,), (3, 4)):
        x, residual = torch.randn(*shape, 256), torch.randn(*shape, 520)
        expected = plain(parts, x)
        for got, wanted in (
            (layer(x), expected),
            (layer.gelu(x), F.gelu(expected)),
            (layer.add(x, residual), expected + residual),
        ):
            assert got.shape == wanted.shape
            assert (got - wanted).norm() / wanted.norm() < bound


@pytest.mark.parametrize("kind", [Dense, Packed, Quantized])
def test_takes_new_weights(kind: type) -> None:
    old, new = layers(), layers(1)
    layer = Dense(old, torch.float32, CPU) if kind is Dense else kind(old)
    layer.load(*new)
    x = torch.randn(4, 256)
    with torch.no_grad():
        assert (layer(x) - plain(new, x)).norm() / plain(new, x).norm() < 0.02


def test_dense_weights_stay_where_they_are() -> None:
    layer = Dense(layers(), torch.float32, CPU)
    where = layer.weight.data_ptr()
    layer.load(*layers(1))
    assert layer.weight.data_ptr() == where


@torch.inference_mode()
def test_int8_rows_do_not_influence_each_other() -> None:
    layer, x = Quantized(layers()), torch.randn(4, 256)
    alone = layer(x[1:2])
    x[2] *= 100
    torch.testing.assert_close(layer(x)[1:2], alone, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_int8_of_zeros_is_the_bias() -> None:
    parts = layers()
    assert torch.equal(Quantized(parts)(torch.zeros(2, 256))[0], torch.cat([p.bias for p in parts]))


def test_int8_refuses_what_it_would_hide() -> None:
    parts = layers()
    with torch.no_grad():
        parts[0].weight[3, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or an infinity"):
        Quantized(parts)


def test_choice() -> None:
    assert isinstance(freeze(layers(), "float32", CPU, in_place=False), Packed)
    assert isinstance(freeze(layers(width=16), "float32", CPU, in_place=False), Dense)
    assert isinstance(freeze(layers(), "float32", CPU, in_place=True), Dense)
    assert isinstance(freeze(layers(), "int8", CPU, in_place=False), Quantized)
    with pytest.raises(ValueError, match="must be one of float32, bfloat16, int8, not 'int4'"):
        freeze(layers(), "int4", CPU, in_place=False)
    with pytest.raises(ValueError, match="int8 needs a Planner on a CPU"):
        freeze(layers(), "int8", torch.device("cuda"), in_place=True)
