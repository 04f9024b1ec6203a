"""The network as a whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from priorzero.world_model.model import SimNorm, UniZero, interleave


def inputs(rows: int = 2, steps: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, steps + 1, 6, generator=generator), torch.randn(rows, steps, 4, generator=generator)


def test_simnorm_is_a_softmax_over_groups_of_eight() -> None:
    x = torch.zeros(2, 16)
    x[0, 3] = torch.log(torch.tensor(9.0))
    out = SimNorm()(x)
    expected = torch.full((2, 16), 1 / 8)
    expected[0, :8], expected[0, 3] = 1 / 16, 9 / 16
    torch.testing.assert_close(out, expected)


def test_interleave_alternates_in_time() -> None:
    latent, action = torch.tensor([[[0.0], [2.0], [4.0]]]), torch.tensor([[[1.0], [3.0]]])
    assert interleave(latent, action).flatten().tolist() == [0, 1, 2, 3, 4]
    assert interleave(latent[:, :1], action[:, :0]).flatten().tolist() == [0]


def test_shapes(make_model: Callable[..., UniZero]) -> None:
    out = make_model()(*inputs())
    assert out.latent.shape == (*out.value_logits.shape[:2], 16) == (2, 5, 16)
    assert out.next_latent.shape == (2, 4, 16)
    assert out.reward_logits.shape == (2, 4, 7)
    assert out.policy_query.shape == (2, 5, 16)


def test_a_fresh_network_knows_nothing_but_tells_states_apart(make_model: Callable[..., UniZero]) -> None:
    model = make_model(fresh=True)
    out = model(*inputs())
    assert (out.reward_logits == 0).all()
    assert (out.value_logits == 0).all()
    assert (out.policy_query == 0).all()
    assert out.next_latent.flatten(0, 1).std(0).min() > 0


def test_what_an_output_may_depend_on(make_model: Callable[..., UniZero]) -> None:
    """State t knows actions before t; step t knows action t; neither knows a later observation."""
    model, (observation, action) = make_model(window_steps=10), inputs()
    before = model(observation, action)
    action[:, 2] += 1.0
    after = model(observation, action)

    def changed(name: str) -> list[bool]:
        return ((getattr(before, name) - getattr(after, name)).abs().amax((0, 2)) > 1e-6).tolist()

    assert changed("value_logits") == changed("policy_query") == [False, False, False, True, True]
    assert changed("reward_logits") == changed("next_latent") == [False, False, True, True]
    assert changed("latent") == [False] * 5


def test_values_are_those_of_forward(make_model: Callable[..., UniZero]) -> None:
    model = make_model()
    out = model(*inputs())
    latent, value = model.values(*inputs())
    torch.testing.assert_close(latent, out.latent)
    torch.testing.assert_close(value, model.support.decode(out.value_logits))


@pytest.mark.parametrize("norm", ["simnorm", "layernorm"])
def test_predicted_latents_are_normalised_as_encoded_ones(make_model: Callable[..., UniZero], norm: str) -> None:
    out = make_model(latent_norm=norm)(*inputs())
    for latent in (out.latent, out.next_latent):
        groups = latent.unflatten(-1, (2, 8)).sum(-1) if norm == "simnorm" else latent.sum(-1) + 1.0
        torch.testing.assert_close(groups, torch.ones_like(groups), atol=1e-5, rtol=0)


def test_unknown_norm_and_bad_width_are_refused(make_model: Callable[..., UniZero]) -> None:
    with pytest.raises(ValueError, match="latent_norm must be one of"):
        make_model(latent_norm="batch")
    with pytest.raises(ValueError, match="width 12 must be a multiple of 8"):
        make_model(width=12)
