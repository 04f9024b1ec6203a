"""The planner that keeps its trees beside the network, on a CPU, against the one that does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from priorzero.search import GumbelConfig, SearchConfig, gumbel_search, masked_softmax, search
from priorzero.types import Context, Root, SearchResult
from priorzero.world_model.device import Kernels
from priorzero.world_model.graphs import Inlet, Replay, row_bucket
from priorzero.world_model.model import UniZero
from priorzero.world_model.planner import DevicePlanner, Planner, PlannerConfig

STEPS, SIMULATIONS, VOCABULARY = 3, 12, 30
CONFIG = PlannerConfig(context_steps=STEPS, top_k=6, simulations=SIMULATIONS)
PUCT = SearchConfig(SIMULATIONS, 1.25, 19652.0, 0.997, 0.01, False)
GUMBEL = GumbelConfig(SIMULATIONS, 4, 50.0, 0.1, 0.997, 0.01)


def vectors(size: int = VOCABULARY) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((size, 4)).astype(np.float32)


def decisions(batch: int, seed: int) -> tuple[Context, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    context = Context(
        vectors=rng.standard_normal((batch, STEPS, 6)).astype(np.float32),
        actions=rng.integers(-1, VOCABULARY, (batch, STEPS - 1)).astype(np.int32),
        length=rng.integers(1, STEPS + 1, batch),
    )
    actions = np.stack([rng.permutation(VOCABULARY)[:5] for _ in range(batch)]).astype(np.int32)
    actions[0, 2:] = -1
    known = rng.random((batch, VOCABULARY)) < 0.5
    known[:, 3] = True
    return context, actions, known


def plan(planner: Planner, batch: int, seed: int, config: SearchConfig | GumbelConfig = PUCT) -> SearchResult:
    context, actions, known = decisions(batch, seed)
    said = planner.root(context, actions, known)
    root = Root(actions, masked_softmax(said.logits, actions >= 0), said.value)
    if isinstance(config, GumbelConfig):
        return gumbel_search(planner, root, config, np.random.default_rng(seed))
    return search(planner, root, config)


def pair(make_model: Callable[..., UniZero]) -> tuple[Planner, DevicePlanner]:
    planners = Planner(make_model(), CONFIG), DevicePlanner(make_model(), CONFIG, device="cpu")
    for planner in planners:
        planner.set_actions(vectors())
    return planners


def assert_equal(a: SearchResult, b: SearchResult) -> None:
    np.testing.assert_array_equal(a.visits, b.visits)
    np.testing.assert_allclose(a.q, b.q, atol=1e-4)
    np.testing.assert_allclose(a.value, b.value, atol=1e-4)


@pytest.mark.parametrize("config", [PUCT, GUMBEL])
@pytest.mark.parametrize("batch", [1, 3, 11])
def test_equals_the_planner_on_the_host(
    make_model: Callable[..., UniZero], config: SearchConfig | GumbelConfig, batch: int
) -> None:
    host, device = pair(make_model)
    for seed in range(3):  # the second and third search find what the first left behind
        assert_equal(plan(host, batch, seed, config), plan(device, batch, seed, config))


def test_new_weights_and_actions_reach_the_search(make_model: Callable[..., UniZero]) -> None:
    host, device = pair(make_model)
    before = plan(device, 4, 0)
    state = make_model(seed=5).state_dict()
    grown = np.concatenate((vectors(), np.random.default_rng(9).standard_normal((300, 4)).astype(np.float32)))
    for planner in (host, device):
        planner.load_weights(state)
    assert_equal(plan(host, 4, 0), plan(device, 4, 0))
    assert not np.allclose(before.value, plan(device, 4, 0).value)
    for planner in (host, device):
        planner.set_actions(grown)
    context, actions, known = decisions(4, 0)
    known = np.pad(known, ((0, 0), (0, 300)), constant_values=True)
    results = []
    for planner in (host, device):
        said = planner.root(context, actions, known)
        results.append(search(planner, Root(actions, masked_softmax(said.logits, actions >= 0), said.value), PUCT))
    assert_equal(*results)


def test_a_nan_is_an_error_and_does_not_stay(make_model: Callable[..., UniZero]) -> None:
    _, device = pair(make_model)
    good = {name: x.clone() for name, x in device.model.state_dict().items()}
    expected = plan(device, 3, 0)
    context, actions, known = decisions(3, 0)
    said = device.root(context, actions, known)
    root = Root(actions, masked_softmax(said.logits, actions >= 0), said.value)
    device.load_weights({name: torch.full_like(x, torch.nan) for name, x in good.items()})
    with pytest.raises(ValueError, match="row 0: the world model's rewards or values are not finite"):
        search(device, root, PUCT)
    device.load_weights(good)
    np.testing.assert_array_equal(plan(device, 3, 0).visits, expected.visits)


def test_too_many_simulations(make_model: Callable[..., UniZero]) -> None:
    _, device = pair(make_model)
    with pytest.raises(ValueError, match="room for 12 simulations, not for 13"):
        plan(device, 2, 0, SearchConfig(13, 1.25, 19652.0, 0.997, 0.01, False))


def test_a_bad_root_is_refused_before_it_reaches_the_device(make_model: Callable[..., UniZero]) -> None:
    _, device = pair(make_model)
    context, actions, known = decisions(2, 0)
    said = device.root(context, actions, known)
    probs = masked_softmax(said.logits, actions >= 0)
    probs[1, 0] = np.nan
    with pytest.raises(ValueError, match="root, row 1: probs hold a NaN"):
        search(device, Root(actions, probs, said.value), PUCT)


def test_bfloat16_finds_about_the_same(make_model: Callable[..., UniZero]) -> None:
    device = DevicePlanner(make_model(), CONFIG, device="cpu", precision="bfloat16")
    device.set_actions(vectors())
    host, _ = pair(make_model)
    context, actions, known = decisions(8, 0)
    a, b = (planner.root(context, actions, known) for planner in (host, device))
    np.testing.assert_allclose(a.value, b.value, rtol=0.02, atol=0.05)
    a, b = plan(host, 8, 0), plan(device, 8, 0)  # a random network: single trees may part early
    assert np.median(np.abs(a.value - b.value)) < 0.1


@pytest.mark.parametrize(("n", "bucket"), [(1, 8), (8, 8), (9, 16), (64, 64), (65, 128), (256, 256)])
def test_row_bucket(n: int, bucket: int) -> None:
    assert row_bucket(n) == bucket


def test_inlet_repeats_the_first_row_and_fills_columns() -> None:
    inlet = Inlet((3, 3), torch.int64, torch.device("cpu"))
    out = inlet.put(np.array([[1, 2], [3, 4]]), fill=-1)
    assert out.tolist() == [[1, 2, -1], [3, 4, -1], [1, 2, -1]]


def test_replay_without_a_gpu_runs_the_function() -> None:
    ran = []
    replay = Replay(lambda: ran.append(1) or len(ran), torch.device("cpu"), lambda: None)
    assert (replay(), replay()) == (1, 2)


@pytest.fixture
def triton_device() -> str:
    """Where kernels run: on the GPU, or on a CPU with ``TRITON_INTERPRET=1 pytest -m gpu``."""
    pytest.importorskip("triton")
    return "cpu" if os.environ.get("TRITON_INTERPRET") else "cuda"


def kernelled(model: UniZero, device: str, network: str, tree: str) -> DevicePlanner:
    return DevicePlanner(model, CONFIG, device=device, precision="float32", kernels=Kernels(network, tree))


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="network must be one of plain, compiled, triton"):
        Kernels("fast", "plain")


@pytest.mark.gpu
@pytest.mark.parametrize("config", [PUCT, GUMBEL])
@pytest.mark.parametrize("changes", [{}, {"latent_norm": "layernorm", "window_steps": 1}, {"layers": 1, "heads": 4}])
def test_kernels_equal_the_host_tree(
    make_model: Callable[..., UniZero], triton_device: str, config: SearchConfig | GumbelConfig, changes: dict[str, Any]
) -> None:
    kinds = [("triton", "triton"), ("triton", "plain"), ("plain", "triton")]
    planners = [kernelled(make_model(**changes), triton_device, *kind) for kind in kinds]
    planners = [Planner(make_model(**changes), CONFIG), *planners]
    for planner in planners:
        planner.set_actions(vectors())
    for seed in range(1 if triton_device == "cpu" else 4):  # later searches find what the first left behind
        expected = plan(planners[0], 5, seed, config)
        for planner in planners[1:]:
            assert_equal(expected, plan(planner, 5, seed, config))


@pytest.mark.gpu
def test_a_fused_step_equals_the_plain_one(make_model: Callable[..., UniZero], triton_device: str) -> None:
    planners = [kernelled(make_model(), triton_device, network, "plain") for network in ("plain", "triton")]
    context, actions, known = decisions(4, 0)
    known[1, 5:] = False  # fewer than are asked for
    for planner in planners:
        planner.set_actions(vectors())
        planner.root(context, actions, known)
    rng = np.random.default_rng(0)
    for node in range(1, SIMULATIONS + 1):
        parent, action = rng.integers(0, node, 4).astype(np.int32), rng.integers(0, VOCABULARY, 4).astype(np.int32)
        a, b = (planner.expand(node, parent, action) for planner in planners)
        np.testing.assert_array_equal(a.actions, b.actions)
        for name in ("reward", "value", "probs"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, which runs Triton on a CPU
def test_kernels_notice_what_is_not_finite(make_model: Callable[..., UniZero], triton_device: str) -> None:
    planner = kernelled(make_model(), triton_device, "triton", "triton")
    planner.set_actions(vectors())
    context, actions, known = decisions(3, 0)
    said = planner.root(context, actions, known)
    root = Root(actions, masked_softmax(said.logits, actions >= 0), said.value)
    planner.load_weights({name: torch.full_like(x, torch.nan) for name, x in planner.model.state_dict().items()})
    with pytest.raises(ValueError, match="row 0: the world model's rewards or values are not finite"):
        search(planner, root, SearchConfig(2, 1.25, 19652.0, 0.997, 0.01, False))


@pytest.mark.gpu
def test_recorded_graphs_equal_the_host_tree(make_model: Callable[..., UniZero]) -> None:
    host = Planner(make_model(), CONFIG, device="cuda", precision="float32")
    device = DevicePlanner(make_model(), CONFIG, device="cuda", precision="float32")
    for planner in (host, device):
        planner.set_actions(vectors())
    for seed in range(5):
        for config in (PUCT, GUMBEL):
            assert_equal(plan(host, 5, seed, config), plan(device, 5, seed, config))
