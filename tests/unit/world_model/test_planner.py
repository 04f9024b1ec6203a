"""The planner against the plain network run over the whole sequence of every node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from priorzero.types import Context, Expansion
from priorzero.world_model.device import PLAIN, Kernels
from priorzero.world_model.model import UniZero, interleave
from priorzero.world_model.planner import (
    KERNELS,
    DevicePlanner,
    Planner,
    PlannerConfig,
    PlannerOptions,
    RootPrediction,
    make_planner,
)

STEPS, SIMULATIONS, VOCABULARY = 4, 10, 7
CONFIG = PlannerConfig(context_steps=STEPS, top_k=VOCABULARY, simulations=SIMULATIONS)
PARENTS = np.array(  # node s + 1 of each tree hangs below row s: a chain, a star, something between
    [list(range(SIMULATIONS)), [0] * SIMULATIONS, [0, 0, 1, 2, 2, 5, 1, 6, 0, 8]], np.int32
).T


def make_context(seed: int = 0) -> Context:
    rng = np.random.default_rng(seed)
    return Context(
        vectors=rng.standard_normal((3, STEPS, 6)).astype(np.float32),
        actions=rng.integers(0, VOCABULARY, (3, STEPS - 1)).astype(np.int32),
        length=np.array([4, 1, 2]),
    )


def taken_actions(seed: int = 1) -> np.ndarray:  # [SIMULATIONS, 3]
    return np.random.default_rng(seed).integers(0, VOCABULARY, (SIMULATIONS, 3)).astype(np.int32)


def vectors(size: int = VOCABULARY) -> np.ndarray:
    out = np.random.default_rng(2).standard_normal((size, 4)).astype(np.float32)
    out.flags.writeable = False  # as the vocabulary gives them
    return out


def valid_actions() -> np.ndarray:
    return np.array([[0, 2, 4], [5, -1, -1], [1, 6, -1]], np.int32)


def run_search(
    model: UniZero,
    context: Context,
    taken: np.ndarray,
    *,
    rows: list[int] | None = None,
    known: np.ndarray | None = None,
    config: PlannerConfig = CONFIG,
    kind: Callable[..., Planner] = Planner,
) -> tuple[RootPrediction, list[Expansion]]:
    rows = [0, 1, 2] if rows is None else rows
    planner = kind(model, config, device="cpu")
    planner.set_actions(vectors())
    known = np.ones((3, VOCABULARY), bool) if known is None else known
    part = Context(context.vectors[rows], context.actions[rows], context.length[rows])
    root = planner.root(part, valid_actions()[rows], known[rows])
    return root, [planner.expand(s + 1, PARENTS[s, rows], taken[s, rows]) for s in range(SIMULATIONS)]


@torch.no_grad()
def run_plainly(model: UniZero, context: Context, row: int, path: list[int]) -> tuple[float, float, Tensor]:
    """Reward, value and policy logits at the end of ``path`` [actions], from whole sequences without padding."""
    first = STEPS - int(context.length[row])
    actions = torch.from_numpy(vectors().copy())
    latent = model.encode(torch.from_numpy(context.vectors[row, first:]))
    tokens = interleave(latent[None], model.action_tokens(actions[context.actions[row, first:]])[None])
    reward = 0.0
    for action in path:
        tokens = torch.cat((tokens, model.action_tokens(actions[action])[None, None]), dim=1)
        reward_logits, latent = model.read_step(model.transformer(tokens)[0][:, -1])
        reward = model.support.decode(reward_logits).item()
        tokens = torch.cat((tokens, latent[:, None]), dim=1)
    value_logits, query = model.read_state(model.transformer(tokens)[0][0, -1])
    return reward, model.support.decode(value_logits).item(), model.action_keys(actions) @ query


def path_to(node: int, row: int, taken: np.ndarray) -> list[int]:
    path: list[int] = []
    while node:
        path.append(int(taken[node - 1, row]))
        node = int(PARENTS[node - 1, row])
    return path[::-1]


@pytest.mark.parametrize("kind", [Planner, DevicePlanner])
@pytest.mark.parametrize("latent_norm", ["simnorm", "layernorm"])
@pytest.mark.parametrize("window_steps", [1, 2, 5, 30])  # the context has 7 tokens, the deepest path adds 20
def test_every_node_equals_the_whole_sequence(
    make_model: Callable[..., UniZero], window_steps: int, latent_norm: str, kind: Callable[..., Planner]
) -> None:
    model = make_model(window_steps=window_steps, latent_norm=latent_norm).eval()
    context, taken = make_context(), taken_actions()
    root, expansions = run_search(model, context, taken, kind=kind)
    for row in range(3):
        _, value, logits = run_plainly(model, context, row, [])
        valid = [a for a in valid_actions()[row] if a >= 0]
        assert root.value[row] == pytest.approx(value, abs=1e-5)
        np.testing.assert_allclose(root.logits[row, : len(valid)], logits[valid], atol=1e-5)
        assert np.isneginf(root.logits[row, len(valid) :]).all()
        for node, expansion in enumerate(expansions, 1):
            reward, value, logits = run_plainly(model, context, row, path_to(node, row, taken))
            assert expansion.reward[row] == pytest.approx(reward, abs=1e-5)
            assert expansion.value[row] == pytest.approx(value, abs=1e-5)
            probs = logits.softmax(-1)[torch.from_numpy(expansion.actions[row]).long()]
            np.testing.assert_allclose(expansion.probs[row], probs, atol=1e-5)
            assert (np.diff(expansion.probs[row]) <= 0).all()


def test_the_network_tells_nodes_apart(make_model: Callable[..., UniZero]) -> None:
    """Guards the test above: it would pass on a network that says the same everywhere."""
    _, expansions = run_search(make_model(), make_context(), taken_actions())
    values = np.concatenate([e.value for e in expansions])
    assert np.std(values) > 1e-3
    assert len(np.unique(values.round(5))) > 20


@pytest.mark.parametrize("row", [0, 1, 2])
def test_alone_equals_in_a_batch(make_model: Callable[..., UniZero], row: int) -> None:
    model, context, taken = make_model(), make_context(), taken_actions()
    _, together = run_search(model, context, taken)
    _, alone = run_search(model, context, taken, rows=[row])
    for a, b in zip(together, alone, strict=True):
        for name in ("reward", "value", "actions", "probs"):
            np.testing.assert_allclose(getattr(a, name)[row], getattr(b, name)[0], atol=1e-5)


def test_rows_do_not_see_each_other(make_model: Callable[..., UniZero]) -> None:
    model, context, taken = make_model(), make_context(), taken_actions()
    other, other_taken = make_context(9), taken_actions(8)
    mixed = Context(context.vectors.copy(), context.actions.copy(), context.length.copy())
    mixed.vectors[1], mixed.actions[1], mixed.length[1] = other.vectors[1], other.actions[1], 4
    mixed_taken = taken.copy()
    mixed_taken[:, 1] = other_taken[:, 1]
    _, before = run_search(model, context, taken)
    _, after = run_search(model, mixed, mixed_taken)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a.value[[0, 2]], b.value[[0, 2]])
        np.testing.assert_array_equal(a.probs[[0, 2]], b.probs[[0, 2]])
        assert a.value[1] != b.value[1]


def test_what_stands_in_the_padding_does_not_matter(make_model: Callable[..., UniZero]) -> None:
    model, context, taken = make_model(), make_context(), taken_actions()
    filled = Context(context.vectors.copy(), context.actions.copy(), context.length)
    filled.vectors[1, :3], filled.vectors[2, :2] = 50.0, -50.0
    filled.actions[1, :3], filled.actions[2, :2] = -1, -1
    _, before = run_search(model, context, taken)
    _, after = run_search(model, filled, taken)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a.value, b.value, atol=1e-6)


def test_a_second_search_remembers_nothing(make_model: Callable[..., UniZero]) -> None:
    planner, context, taken = Planner(make_model(), CONFIG), make_context(), taken_actions()
    planner.set_actions(vectors())
    known = np.ones((3, VOCABULARY), bool)

    def search(c: Context) -> list[np.ndarray]:
        planner.root(c, valid_actions(), known)
        return [planner.expand(s + 1, PARENTS[s], taken[s]).value for s in range(SIMULATIONS)]

    first = search(context)
    search(make_context(5))
    np.testing.assert_array_equal(search(context), first)


def test_only_known_actions_are_offered(make_model: Callable[..., UniZero]) -> None:
    known = np.zeros((3, VOCABULARY), bool)
    known[0, [1, 3, 4, 6]], known[1, 2] = True, True  # tree 2 knows nothing at all
    config = replace(CONFIG, top_k=3)
    model, context, taken = make_model(), make_context(), taken_actions()
    _, (expansion, *_) = run_search(model, context, taken, known=known, config=config)
    _, _, logits = run_plainly(model, context, 0, [int(taken[0, 0])])
    best = sorted([1, 3, 4, 6], key=lambda a: -logits[a].item())[:3]
    assert expansion.actions.dtype == np.int32
    assert expansion.actions.tolist() == [best, [2, -1, -1], [-1, -1, -1]]
    np.testing.assert_allclose(expansion.probs[0], logits[best].softmax(-1), atol=1e-5)
    assert expansion.probs[1:].tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_vocabulary_smaller_than_top_k(make_model: Callable[..., UniZero]) -> None:
    _, (expansion, *_) = run_search(
        make_model(), make_context(), taken_actions(), config=replace(CONFIG, top_k=VOCABULARY + 5)
    )
    assert expansion.actions.shape == expansion.probs.shape == (3, VOCABULARY)


def test_vocabulary_grows(make_model: Callable[..., UniZero]) -> None:
    model, context = make_model(), make_context()
    grown, whole = Planner(model, CONFIG), Planner(model, CONFIG)
    grown.set_actions(vectors()[:3])
    grown.set_actions(vectors())
    whole.set_actions(vectors())
    known = np.ones((3, VOCABULARY), bool)
    a, b = (p.root(context, valid_actions(), known) for p in (grown, whole))
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-6)


def test_new_weights_are_taken_over_with_their_action_tokens(make_model: Callable[..., UniZero]) -> None:
    model, other, context, taken = make_model(), make_model(seed=1), make_context(), taken_actions()
    planner = Planner(model, CONFIG)
    planner.set_actions(vectors())
    planner.load_weights({name: x.clone() for name, x in other.state_dict().items()})
    root = planner.root(context, valid_actions(), np.ones((3, VOCABULARY), bool))
    expansion = planner.expand(1, PARENTS[0], taken[0])
    expected_root, (expected, *_) = run_search(other, context, taken)
    np.testing.assert_allclose(root.logits, expected_root.logits, atol=1e-6)
    np.testing.assert_allclose(expansion.value, expected.value, atol=1e-6)
    np.testing.assert_allclose(expansion.probs, expected.probs, atol=1e-6)


def test_positions_must_suffice(make_model: Callable[..., UniZero]) -> None:
    with pytest.raises(ValueError, match="max_positions is 26, but a context of 4 steps and 10 simulations need 27"):
        Planner(make_model(max_positions=26), CONFIG)
    Planner(make_model(max_positions=27), CONFIG)


def test_bfloat16_is_refused_on_a_cpu(make_model: Callable[..., UniZero]) -> None:
    with pytest.raises(ValueError, match="float32 or int8, not in bfloat16"):
        Planner(make_model(), CONFIG, precision="bfloat16")


@pytest.mark.parametrize("name", ["compiled", "triton"])
def test_a_planner_on_a_cpu_takes_no_kernels(name: str, make_model: Callable[..., UniZero]) -> None:
    with pytest.raises(ValueError, match=f"no use for .*network='{name}'.*: leave them out, or take a DevicePlanner"):
        Planner(make_model(), CONFIG, kernels=KERNELS[name])


def options(**changes) -> PlannerOptions:
    return PlannerOptions(**({"device": "cpu", "precision": "auto", "tree": "auto", "kernels": "auto"} | changes))


@pytest.mark.parametrize(
    ("changes", "kind", "dtype"),
    [
        ({}, Planner, torch.float32),
        ({"precision": "int8"}, Planner, torch.float32),
        ({"tree": "device"}, DevicePlanner, torch.float32),
        ({"tree": "device", "precision": "bfloat16"}, DevicePlanner, torch.bfloat16),
    ],
)
def test_options_choose_the_planner(changes, kind, dtype, make_model: Callable[..., UniZero]) -> None:
    planner = make_planner(make_model(), CONFIG, options(**changes))
    assert type(planner) is kind
    assert planner._engine.net.dtype == dtype


def test_a_gpu_without_triton_is_told_what_to_do(
    make_model: Callable[..., UniZero], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"without Triton: .*planner\.kernels=plain"):
        make_planner(make_model(), CONFIG, options(device="cuda"))


def test_options_choose_the_kernels(make_model: Callable[..., UniZero]) -> None:
    for name in ("plain", "compiled"):  # nothing is compiled before the first search
        planner = make_planner(make_model(), CONFIG, options(tree="device", kernels=name))
        assert planner._engine.kernels == Kernels(name, "plain")
    assert make_planner(make_model(), CONFIG, options(tree="device", kernels="auto"))._engine.kernels == PLAIN
    assert options(device="cuda", kernels="triton").kernels == "triton"  # allowed, and what it stands for:
    assert KERNELS["triton"] == Kernels("triton", "triton")


@pytest.mark.parametrize(
    ("device", "tree", "beside"),
    [("cpu", "auto", False), ("cpu", "device", True), ("cuda", "auto", True), ("cuda:1", "host", False)],
)
def test_trees_lie_beside_the_network_on_a_gpu(device: str, tree: str, beside: bool) -> None:
    assert options(device=device, tree=tree).device_tree == beside


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int8", "device": "cuda"}, "precision=int8 cannot be had on trainer.device=cuda.*needs a CPU"),
        ({"precision": "int8", "tree": "device"}, "precision=int8 cannot be had .*planner.tree=device: it"),
        ({"precision": "bfloat16"}, "precision=bfloat16 cannot be had .*use auto, float32 or int8, or a GPU"),
        ({"kernels": "compiled"}, "kernels=compiled cannot be had on trainer.device=cpu .*use auto or plain, or a GPU"),
        ({"kernels": "triton"}, "kernels=triton cannot be had on trainer.device=cpu .*use auto or plain, or a GPU"),
        ({"kernels": "triton", "tree": "device"}, "kernels=triton cannot be had .*planner.tree=device: use auto"),
        ({"kernels": "cuda", "device": "cuda"}, "planner.kernels=cuda: use one of auto, plain, compiled, triton"),
        ({"precision": "float64"}, "planner.precision=float64: use one of auto, float32, bfloat16, int8"),
        ({"tree": "disk"}, "planner.tree=disk: use one of auto, host, device"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options(**changes)
