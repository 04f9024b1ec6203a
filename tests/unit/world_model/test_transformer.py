"""Windows, padding, causality and positions of the transformer."""

from __future__ import annotations

from math import cos, sin

import pytest
import torch
from torch import Tensor

from priorzero.world_model.transformer import Rotary, Transformer, rotate

WIDTH = 8


def make(window: int = 4, layers: int = 1, dropout: float = 0.0) -> Transformer:
    torch.manual_seed(0)
    return Transformer(
        width=WIDTH, layers=layers, heads=2, dropout=dropout, window=window, max_positions=32
    ).requires_grad_(False)


def tokens(length: int, rows: int = 2) -> Tensor:
    return torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(1))


def changed_positions(net: Transformer, at: int, length: int = 12) -> list[int]:
    x = tokens(length)
    y = x.clone()
    y[:, at, 0] += 1.0  # one channel: a shift of all would vanish in the layer norm
    difference = (net(x)[0] - net(y)[0]).abs().amax((0, 2))
    return (difference > 1e-6).nonzero().flatten().tolist()


def test_rotary_by_hand() -> None:
    rotary = Rotary(2, 4)  # one frequency: 1
    x = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])
    turned = rotate(x.unsqueeze(1), rotary(torch.tensor([1, 3])))[:, 0]
    expected = torch.tensor([[cos(1), sin(1)], [-2 * sin(3), 2 * cos(3)]])
    torch.testing.assert_close(turned[:, 0], expected)


def test_rotary_products_depend_on_distance_only() -> None:
    rotary = Rotary(8, 64)
    q, k = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(i: int, j: int) -> Tensor:
        return (rotate(q, rotary(torch.tensor(i))) * rotate(k, rotary(torch.tensor(j)))).sum()

    torch.testing.assert_close(score(9, 4), score(60, 55), atol=1e-5, rtol=1e-5)
    assert (score(9, 4) - score(9, 5)).abs() > 1e-3


@pytest.mark.parametrize("at", [0, 3, 7])
def test_a_token_is_seen_by_itself_and_the_next_window(at: int) -> None:
    assert changed_positions(make(window=4), at) == [at, at + 1, at + 2, at + 3]


def test_layers_widen_the_view_but_never_to_the_past() -> None:
    assert changed_positions(make(window=3, layers=2), 4) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("window", [3, 100])
def test_padding_in_front_changes_nothing(window: int) -> None:
    net, x = make(window, layers=2), tokens(6)
    padded = torch.cat((torch.full((2, 5, WIDTH), 7.0), x), dim=1)
    real = torch.arange(11) >= 5
    out, kept = net(padded, real.expand(2, -1))
    torch.testing.assert_close(out[:, 5:], net(x)[0], atol=1e-5, rtol=1e-5)
    assert out.isfinite().all()
    assert [k.shape for k, _ in kept] == [(2, 11, 2, 4)] * 2


def test_rows_are_padded_each_for_itself() -> None:
    net, x = make(100, layers=2), tokens(6)
    real = torch.tensor([[True] * 6, [False] * 4 + [True] * 2])
    out, _ = net(x, real)
    torch.testing.assert_close(out[0], net(x)[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out[1, 4:], net(x[1:, 4:])[0][0], atol=1e-5, rtol=1e-5)


def test_dropout_only_in_training() -> None:
    net, x = make(dropout=0.5), tokens(4)
    assert not torch.equal(net(x)[0], net(x)[0])
    net.eval()
    assert torch.equal(net(x)[0], net(x)[0])


def test_refusals() -> None:
    with pytest.raises(ValueError, match="must split into 3 heads"):
        Transformer(width=8, layers=1, heads=3, dropout=0.0, window=4, max_positions=8)
    with pytest.raises(ValueError, match="must split into 8 heads of an even size"):
        Transformer(width=8, layers=1, heads=8, dropout=0.0, window=4, max_positions=8)
    with pytest.raises(ValueError, match="33 tokens, but max_positions is 32"):
        make()(tokens(33))


@pytest.mark.parametrize("length", [6, 7])
@pytest.mark.parametrize("layers", [1, 2])
def test_outputs_at_every_second_token(length: int, layers: int) -> None:
    net, x = make(layers=layers), tokens(length)
    real = torch.tensor([[False, False] + [True] * (length - 2), [True] * length])
    torch.testing.assert_close(net(x, every=2)[0], net(x)[0][:, ::2])
    torch.testing.assert_close(net(x, real, every=2)[0], net(x, real)[0][:, ::2])
