"""The search tree: plain preallocated arrays for B trees, read and written by the functions of this package.

Every tree grows by one node a simulation, so node ``s + 1`` of every tree was made by simulation ``s`` and one index
names the newest node of the whole batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ROOT = 0  # the node of the decision
UNVISITED = -1  # in `child`: the action was never taken
NO_PARENT = -1  # in `parent`: the node is the root


class Tree(NamedTuple):
    """B search trees of at most N nodes with at most W actions each.

    A named tuple because numba takes it as one argument. The arrays are allocated empty: only nodes that were added
    hold meaning, and of them only the first ``width`` slots. A slot is a position in a node's action list.
    """

    parent: np.ndarray  # [B, N] int32, NO_PARENT at the root
    slot: np.ndarray  # [B, N] int32, the parent's slot that leads here
    width: np.ndarray  # [B, N] int32, last legal slot + 1: what lies beyond is padding
    visits: np.ndarray  # [B, N] int32, values backed up through the node, its own included
    reward: np.ndarray  # [B, N] float64, of the step into the node; 0 at the root
    value: np.ndarray  # [B, N] float64, the model's value of the state
    value_sum: np.ndarray  # [B, N] float64, of the backed-up values; value_sum / visits is the node's value v
    earlier_visits: np.ndarray  # [B, A] int32, visits of the root's actions in an earlier search
    earlier_q: np.ndarray  # [B, A] float64, and their Q
    q_min: np.ndarray  # [B] float64, lowest Q ever backed up in the tree
    q_max: np.ndarray  # [B] float64, highest
    actions: np.ndarray  # [B, N, W] int32, ids of the vocabulary, -1 where padded
    probs: np.ndarray  # [B, N, W] float32, prior
    child: np.ndarray  # [B, N, W] int32, node behind the action, or UNVISITED
    child_visits: np.ndarray  # [B, N, W] int32, visits of that node and, at the root, earlier ones; 0 where unvisited
    child_q: np.ndarray  # [B, N, W] float64, Q = reward + gamma v(child), their mean; 0 where unvisited

    ROOT = ROOT
    UNVISITED = UNVISITED
    NO_PARENT = NO_PARENT

    @property
    def batch(self) -> int:
        """B, the number of trees."""
        return self.actions.shape[0]


def allocate(batch: int, nodes: int, width: int) -> Tree:
    """Makes room for ``batch`` trees of ``nodes`` nodes with ``width`` actions; no node is added yet.

    Pages that no simulation reaches are never touched, so the cost does not grow with ``nodes``.
    """
    per_node, per_slot = (batch, nodes), (batch, nodes, width)
    return Tree(
        parent=np.empty(per_node, np.int32),
        slot=np.empty(per_node, np.int32),
        width=np.empty(per_node, np.int32),
        visits=np.empty(per_node, np.int32),
        reward=np.empty(per_node, np.float64),
        value=np.empty(per_node, np.float64),
        value_sum=np.empty(per_node, np.float64),
        earlier_visits=np.zeros((batch, width), np.int32),
        earlier_q=np.zeros((batch, width), np.float64),
        q_min=np.full(batch, np.inf),
        q_max=np.full(batch, -np.inf),
        actions=np.empty(per_slot, np.int32),
        probs=np.empty(per_slot, np.float32),
        child=np.empty(per_slot, np.int32),
        child_visits=np.empty(per_slot, np.int32),
        child_q=np.empty(per_slot, np.float64),
    )


def widen(tree: Tree, width: int) -> Tree:
    """Returns the same trees with room for ``width`` actions a node.

    Needed at most once in a search whose interior nodes are all equally wide: the model tells their width only with
    its first expansion.
    """
    batch, nodes, narrow = tree.actions.shape
    wide = allocate(batch, nodes, width)
    for name in ("actions", "probs", "child", "child_visits", "child_q"):
        getattr(wide, name)[:, :, :narrow] = getattr(tree, name)
    return wide._replace(**{name: getattr(tree, name) for name in Tree._fields if getattr(tree, name).ndim < 3})
