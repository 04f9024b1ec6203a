"""Trees as tensors against the plain reference search and the compiled one.

The kernels need a GPU, or Triton on a CPU: ``TRITON_INTERPRET=1 pytest -m gpu``.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from reference import Imagination, ImaginedModel, gumbel, imagine, puct

from priorzero.search.gumbel import GumbelConfig, considered_visits, gumbel_search
from priorzero.search.search import SearchConfig, search
from priorzero.search.select import exploration_table
from priorzero.types import Root
from priorzero.world_model.device_tree import DeviceTree, Gumbel, Imagined, Puct

WIDTH = 12
MakeTree = Callable[[tuple[int, int, int], Puct | Gumbel], DeviceTree]


@pytest.fixture(params=["plain", pytest.param("triton", marks=pytest.mark.gpu)])
def make_tree(request: pytest.FixtureRequest) -> MakeTree:
    """Trees in plain tensor operations on the CPU, or as kernels."""
    if request.param == "plain":
        return lambda shape, rule: DeviceTree(shape, rule, torch.device("cpu"))
    pytest.importorskip("triton")
    from priorzero.world_model.tree_kernels import KernelTree

    device = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") else "cuda")
    return lambda shape, rule: KernelTree(shape, rule, device)


class OnTensors(ImaginedModel):
    """An imagined world behind `DeviceTree`: what `DevicePlanner` is for a network."""

    def __init__(self, worlds: list, make_tree: MakeTree) -> None:
        super().__init__(worlds)
        self.make_tree = make_tree

    def grow(self, root: Root, tree: DeviceTree, simulations: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        width, device = root.actions.shape[1], tree.node.device
        pad = (0, tree.shape[2] - width)
        actions = torch.nn.functional.pad(torch.from_numpy(root.actions).long(), pad, value=-1)
        probs = torch.nn.functional.pad(torch.from_numpy(root.probs), pad)
        tree.plant(actions.to(device), probs.to(device), torch.from_numpy(root.value).to(device))
        for node in range(1, simulations + 1):
            parent, slot, action = tree.select()
            said = self.expand(node, parent.cpu().numpy().copy(), action.cpu().numpy().copy())
            numbers = (torch.from_numpy(x).to(device) for x in (said.reward, said.value, said.actions, said.probs))
            tree.attach(parent, slot, Imagined(*numbers))
        out = tree.read().cpu().numpy()
        assert not out[:, -1].any()
        wide = tree.shape[2]
        return out[:, :width].astype(np.int32), out[:, wide : wide + width], out[:, -2]

    def grow_puct(
        self, root: Root, exploration: np.ndarray, floor: float, gamma: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        simulations = len(exploration) - 1
        shape = (len(root.value), simulations + 1, WIDTH)
        return self.grow(root, self.make_tree(shape, Puct(tuple(exploration), floor, gamma)), simulations)

    def grow_gumbel(
        self, root: Root, noise: tuple[np.ndarray, np.ndarray], constants: tuple[float, float, float], gamma: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        noisy, schedule = noise
        tree = self.make_tree((len(noisy), len(schedule) + 1, WIDTH), Gumbel(*constants, gamma))
        tree.noisy[:, : noisy.shape[1]] = torch.from_numpy(noisy)
        tree.schedule[: len(schedule)] = torch.from_numpy(schedule)
        return self.grow(root, tree, len(schedule))


def imaginations(seed: int) -> tuple[list[Imagination], float]:
    """Four worlds of unequal width; in half of the cases with many ties, where sums must be exact: gamma 0.5."""
    rng = np.random.default_rng(seed)
    ties = seed % 2 == 0
    hows = [
        Imagination(
            seed=int(rng.integers(10**9)),
            root_width=int(rng.integers(1, WIDTH + 1)),
            width=int(rng.integers(1, 7)),
            holes=bool(rng.random() < 0.5),
            equal_probs=ties and bool(rng.random() < 0.5),
            no_rewards=ties and bool(rng.random() < 0.3),
            coarse=ties,
        )
        for _ in range(4)
    ]
    return hows, 0.5 if ties else 0.997


@pytest.mark.parametrize("block", range(10))
def test_puct_equals_the_plain_reference_in_200_cases(block: int, make_tree: MakeTree) -> None:
    for seed in range(block * 5, block * 5 + 5):
        hows, gamma = imaginations(seed)
        worlds, simulations = [imagine(how) for how in hows], 1 + seed % 30
        model = OnTensors(worlds, make_tree)
        result = search(model, model.root, SearchConfig(simulations, 1.25, 19652.0, gamma, 0.01, False))
        for row, (how, world) in enumerate(zip(hows, worlds, strict=True)):
            visits, q, value = puct(world, simulations, 1.25, 19652.0, gamma, 0.01)
            assert result.visits[row, : how.root_width].tolist() == visits, (seed, row)
            np.testing.assert_allclose(result.q[row, : how.root_width], q, rtol=1e-6, atol=1e-6)
            assert result.value[row] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("seed", range(1, 51, 2))
def test_gumbel_equals_the_plain_reference(seed: int, make_tree: MakeTree) -> None:
    hows, gamma = imaginations(seed)
    worlds, simulations = [imagine(how) for how in hows], 1 + seed % 30
    model = OnTensors(worlds, make_tree)
    config = GumbelConfig(simulations, 8, 50.0, 0.1, gamma, 0.01)
    root = model.root
    drawn = np.zeros(root.legal.shape)
    drawn[root.legal] = np.random.default_rng(seed).gumbel(size=int(root.legal.sum()))
    result = gumbel_search(model, root, config, np.random.default_rng(seed))
    for row, (how, world) in enumerate(zip(hows, worlds, strict=True)):
        answer = gumbel(world, drawn[row, : how.root_width], simulations, 8, 50.0, 0.1, gamma, 0.01)
        assert result.visits[row, : how.root_width].tolist() == answer.visits, (seed, row)
        assert result.action[row] == answer.action
        np.testing.assert_allclose(result.policy[row, : how.root_width], answer.policy, atol=1e-5)
        assert result.value[row] == pytest.approx(answer.value, abs=1e-6)


def test_both_searches_take_the_schedule_and_table_that_the_host_takes() -> None:
    assert len(exploration_table(25, 1.25, 19652.0)) == 26
    assert considered_visits(8, 25).shape == (25, 9)


@pytest.mark.parametrize("what", ["reward", "value", "probs"])
def test_what_is_not_finite_is_a_fault_of_its_row_only(what: str, make_tree: MakeTree) -> None:
    tree = make_tree((2, 3, 2), Puct((1.0, 1.0, 1.0), 0.01, 1.0))
    device = tree.node.device
    ids = torch.tensor([[0, 1], [0, 1]], device=device)
    tree.plant(ids, torch.full((2, 2), 0.5, device=device), torch.zeros(2, device=device))
    parent, slot, _ = tree.select()
    said = {"reward": torch.zeros(2), "value": torch.zeros(2), "probs": torch.full((2, 2), 0.5)}
    said[what][1] = torch.nan
    tree.attach(parent, slot, Imagined(actions=ids, **{name: x.to(device) for name, x in said.items()}))
    assert tree.read()[:, -1].tolist() == [0.0, 1.0]


def test_a_state_without_actions_is_a_fault(make_tree: MakeTree) -> None:
    tree = make_tree((1, 3, 2), Puct((1.0, 1.0, 1.0), 0.01, 1.0))
    device = tree.node.device
    tree.plant(*(torch.tensor(x, device=device) for x in ([[4, -1]], [[1.0, 0.0]], [0.0])))
    parent, slot, action = tree.select()
    assert (parent.item(), slot.item(), action.item()) == (0, 0, 4)
    nothing = ([0.0], [0.0], [[-1, -1]], [[0.0, 0.0]])
    tree.attach(parent, slot, Imagined(*(torch.tensor(x, device=device) for x in nothing)))
    assert tree.read()[0, -1] == 1.0


def test_planting_again_forgets_the_last_search(make_tree: MakeTree) -> None:
    hows, gamma = imaginations(3)
    tree = make_tree((4, 11, WIDTH), Puct(tuple(exploration_table(10, 1.25, 19652.0)), 0.01, gamma))
    model = OnTensors([imagine(how) for how in hows], make_tree)
    first = model.grow(model.root, tree, 10)
    other = OnTensors([imagine(how) for how in imaginations(5)[0]], make_tree)
    other.grow(other.root, tree, 10)
    again = OnTensors([imagine(how) for how in hows], make_tree)
    for a, b in zip(first, again.grow(again.root, tree, 10), strict=True):
        np.testing.assert_array_equal(a, b)
