"""The arrays: what is in them after planting, attaching and widening."""

from __future__ import annotations

import numpy as np

from priorzero.search.backup import attach, plant
from priorzero.search.tree import NO_PARENT, ROOT, UNVISITED, Tree, allocate, widen
from priorzero.types import Expansion, Root


def ints(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int32)


def floats(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def two_trees() -> Tree:
    root = Root(ints([3, 4, -1], [5, -1, 6]), floats([0.5, 0.5, 0], [0.25, 0, 0.75]), np.array([1, 2], np.float32))
    return plant(root, nodes=4)


def expansion(reward: list[float], value: list[float], width: int) -> Expansion:
    actions = np.tile(np.arange(width, dtype=np.int32), (2, 1))
    probs = np.full((2, width), 1 / width, np.float32)
    return Expansion(np.array(reward, np.float32), np.array(value, np.float32), actions, probs)


def test_constants_are_named_on_the_class_too() -> None:
    assert (Tree.ROOT, Tree.UNVISITED, Tree.NO_PARENT) == (ROOT, UNVISITED, NO_PARENT) == (0, -1, -1)


def test_shapes_and_types() -> None:
    tree = allocate(batch=2, nodes=3, width=5)
    assert tree.batch == 2
    assert {a.shape for a in tree} == {(2,), (2, 3), (2, 5), (2, 3, 5)}
    assert {a.dtype.name for a in tree} == {"int32", "float32", "float64"}


def test_planted_root() -> None:
    tree = two_trees()
    np.testing.assert_array_equal(tree.width[:, ROOT], [2, 3])  # behind the last legal action all is padding
    np.testing.assert_array_equal(tree.visits[:, ROOT], [1, 1])
    np.testing.assert_array_equal(tree.value_sum[:, ROOT], [1, 2])
    np.testing.assert_array_equal(tree.parent[:, ROOT], [NO_PARENT, NO_PARENT])
    assert (tree.child[:, ROOT] == UNVISITED).all()
    assert np.isinf(tree.q_min).all()


def test_backup_by_hand() -> None:
    # Tree 0: root -0-> node 1 (reward 1, value 2) -1-> node 2 (reward 3, value 4), gamma 0.5.
    #   After node 1: Q = 1 + 0.5 * 2 = 2, the root has the values 1 and 2.
    #   After node 2: Q(1, 1) = 3 + 0.5 * 4 = 5; G at node 1 = 5, v(1) = (2 + 5)/2 = 3.5, Q(0, 0) = 1 + 1.75 = 2.75;
    #   G at the root = 1 + 0.5 * 5 = 3.5, the sum there is 1 + 2 + 3.5 = 6.5.
    # Tree 1: root -0-> node 1 (reward -1, value 0), root -2-> node 2 (reward 0, value 2).
    #   Q = -1 and 1; the sum at the root is 2 - 1 + 1 = 2.
    tree = two_trees()
    first, second = expansion([1, -1], [2, 0], 3), expansion([3, 0], [4, 2], 3)
    tree = attach(tree, 1, np.array([0, 0], np.int32), np.array([0, 0], np.int32), first, 0.5)
    tree = attach(tree, 2, np.array([1, 0], np.int32), np.array([1, 2], np.int32), second, 0.5)
    np.testing.assert_array_equal(tree.child[:, ROOT], [[1, UNVISITED, UNVISITED], [1, UNVISITED, 2]])
    np.testing.assert_array_equal(tree.child[0, 1], [UNVISITED, 2, UNVISITED])
    np.testing.assert_array_equal(tree.visits[:, :3], [[3, 2, 1], [3, 1, 1]])
    np.testing.assert_array_equal(tree.child_visits[:, ROOT], [[2, 0, 0], [1, 0, 1]])
    np.testing.assert_array_equal(tree.child_q[:, ROOT], [[2.75, 0, 0], [-1, 0, 1]])
    np.testing.assert_array_equal(tree.child_q[0, 1], [0, 5, 0])
    np.testing.assert_array_equal(tree.value_sum[:, ROOT], [6.5, 2.0])
    np.testing.assert_array_equal(tree.q_min, [2, -1])
    np.testing.assert_array_equal(tree.q_max, [5, 1])


def test_widening_keeps_what_was_there() -> None:
    tree = two_trees()
    wide = widen(tree, 6)
    assert wide.actions.shape == (2, 4, 6)
    np.testing.assert_array_equal(wide.actions[:, ROOT, :3], tree.actions[:, ROOT])
    np.testing.assert_array_equal(wide.probs[:, ROOT, :3], tree.probs[:, ROOT])
    assert wide.visits is tree.visits

    wide = attach(tree, 1, np.zeros(2, np.int32), np.zeros(2, np.int32), expansion([0, 0], [0, 0], 6), 1.0)
    np.testing.assert_array_equal(wide.width[:, :2], [[2, 6], [3, 6]])
    np.testing.assert_array_equal(wide.child[:, ROOT, 0], [1, 1])


def test_narrow_nodes_are_padded() -> None:
    tree = attach(two_trees(), 1, np.zeros(2, np.int32), np.zeros(2, np.int32), expansion([0, 0], [0, 0], 1), 1.0)
    np.testing.assert_array_equal(tree.actions[:, 1], [[0, -1, -1], [0, -1, -1]])
    np.testing.assert_array_equal(tree.width[:, 1], [1, 1])
