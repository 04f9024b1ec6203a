"""Monte-Carlo tree search, batched over the trees of several environments.

The search knows neither networks nor text. It asks a `Model` what lies behind an action, once a simulation for the
whole batch, and algorithms differ by the selection function that they hand to `grow`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from priorzero.search.backup import attach, check_root, plant
from priorzero.search.select import exploration_table, select_puct
from priorzero.search.tree import ROOT, UNVISITED, Tree
from priorzero.types import Edges, Expansion, Root, SearchResult, Subtree

Select = Callable[[Tree, int, np.ndarray, np.ndarray, np.ndarray], None]
"""(tree, simulation, parent, slot, action): reads the trees, writes the last three, each [B] int32."""


class Model(Protocol):
    """What the search needs of a world model."""

    def expand(self, node: int, parent: np.ndarray, action: np.ndarray) -> Expansion:
        """Imagines one step in every tree and says what is there.

        Simulation s makes node s + 1 of every tree; node 0 is the root. So the model can keep its own state of a
        node at index ``node`` and find the state that it continues from at index ``parent``.

        Args:
            node: Index of the new node, in every tree.
            parent: [B] int32, the node where the action is taken. The array is the model's to keep.
            action: [B] int32, id of the action in the vocabulary. The array is the model's to keep.

        Returns:
            The states reached. Every row needs a legal action. The number of actions may differ from the root's and
            from node to node; actions in order of falling probability make the best use of a first visit.
        """
        ...


@runtime_checkable
class TreeModel(Protocol):
    """A model that grows the trees itself, beside its network: one call a search, the same visits.

    Both methods start from the decisions that the model was last shown, and return the roots' visits [B, A] int32,
    Q [B, A] float64 (0 where unvisited) and values [B] float64. They raise ValueError where the model says something
    that is not finite.
    """

    def grow_puct(
        self, root: Root, exploration: np.ndarray, floor: float, gamma: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Select with `select_puct`; one simulation less than ``exploration`` is long."""
        ...

    def grow_gumbel(
        self, root: Root, noise: tuple[np.ndarray, np.ndarray], constants: tuple[float, float, float], gamma: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Select with `select_gumbel`: ``noise`` is (noisy, schedule), ``constants`` (c_visit, c_scale, floor)."""
        ...


@dataclass(frozen=True)
class SearchConfig:
    """Constants of pUCT search.

    Attributes:
        simulations: Nodes that each search adds, at least 1.
        c_init: Weight of the prior.
        c_base: Visits at which the weight of the prior starts to grow.
        gamma: Discount of the world model's returns.
        minmax_floor: Smallest range of Q in a tree that is stretched to 0..1; smaller differences stay small.
        reuse: Whether the next search of an episode starts from what this one found behind the played action.
    """

    simulations: int
    c_init: float
    c_base: float
    gamma: float
    minmax_floor: float
    reuse: bool

    def __post_init__(self) -> None:
        check_constants(self.simulations, self.gamma, self.minmax_floor)
        if not self.c_base > 0:
            raise ValueError(f"c_base must be above 0, got {self.c_base}")
        if not self.c_init >= 0:
            raise ValueError(f"c_init must not be negative, got {self.c_init}")


def search(model: Model | TreeModel, root: Root, config: SearchConfig) -> SearchResult:
    """Plans from ``root`` with pUCT (MuZero, arXiv 1911.08265, appendix B).

    Deterministic: noise, if any, is already in ``root.probs``. The rows do not influence each other.

    Args:
        model: Called ``config.simulations`` times.
        root: The decisions, B of them.
        config: Constants.

    Returns:
        Visits and Q of the root's actions, and the root's value: the mean of the model's own value and of the values
        that the simulations backed up, as it is for every other node.

    Raises:
        ValueError: ``root`` or an answer of the model has a wrong type, shape or content; the message names it. Or the
            model grows the trees itself, and ``root.earlier`` is given: it cannot start from that.
    """
    if not isinstance(model, TreeModel):
        return search_tree(model, root, config)[0]
    check_root(root)
    if root.earlier is not None:
        raise ValueError(
            "a model that grows the trees itself cannot start from an earlier search: keep trees on the host"
        )
    exploration = exploration_table(config.simulations, config.c_init, config.c_base)
    visits, q, value = model.grow_puct(root, exploration, float(config.minmax_floor), float(config.gamma))
    return SearchResult(visits, q.astype(np.float32), value.astype(np.float32))


def search_tree(model: Model, root: Root, config: SearchConfig) -> tuple[SearchResult, Tree]:
    """`search`, and the trees that it has grown: `subtree` reads from them what the next search can start from."""
    most = config.simulations + (0 if root.earlier is None else int(root.earlier.visits.sum(-1).max()))
    exploration = exploration_table(most, config.c_init, config.c_base)

    def select(tree: Tree, _: int, parent: np.ndarray, slot: np.ndarray, action: np.ndarray) -> None:
        select_puct(tree, exploration, float(config.minmax_floor), parent, slot, action)

    tree = plant(root, config.simulations + 1)
    tree = grow(tree, model, select, config.simulations, config.gamma)
    return SearchResult(*root_statistics(tree, root.actions.shape[1])), tree


def grow(tree: Tree, model: Model, select: Select, simulations: int, gamma: float) -> Tree:
    """Runs the simulations: select in all trees, ask the model once, back up in all trees."""
    parent = np.empty((simulations, tree.batch), np.int32)
    action = np.empty((simulations, tree.batch), np.int32)
    slot = np.empty(tree.batch, np.int32)
    for s in range(simulations):
        select(tree, s, parent[s], slot, action[s])
        tree = attach(tree, s + 1, parent[s], slot, model.expand(s + 1, parent[s], action[s]), float(gamma))
    return tree


def root_statistics(tree: Tree, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Visits [B, A] int32, Q [B, A] float32 (0 where unvisited) and value [B] float32 of the roots."""
    visits = tree.child_visits[:, ROOT, :width].copy()
    q = tree.child_q[:, ROOT, :width].astype(np.float32)
    value = (tree.value_sum[:, ROOT] / tree.visits[:, ROOT]).astype(np.float32)
    return visits, q, value


def subtree(tree: Tree, row: int, slot: int) -> Subtree:
    """What the search of ``row`` found behind the root's action at ``slot``; empty where it was never taken.

    Only what this search imagined there, not what it started from: the states below were not seen by the former one.
    """
    node = tree.child[row, ROOT, slot]
    if node == UNVISITED:
        return Subtree(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0))
    visits = tree.child_visits[row, node, : tree.width[row, node]]
    seen = np.flatnonzero(visits)
    return Subtree(tree.actions[row, node, seen], visits[seen], tree.child_q[row, node, seen])


def earlier_edges(actions: np.ndarray, subtrees: Sequence[Subtree | None]) -> Edges:
    """What subtrees say of the actions that are now to be searched.

    The states that the former search imagined are not searched on: the world has now been seen as it is, and the model
    reads another sequence. What it found of each action counts like visits of this search, as long as the action is
    valid; of the others there is nothing left.

    Args:
        actions: [B, A] int32 ids of the valid actions, -1 where padded.
        subtrees: B, None where there is none.
    """
    edges = Edges(np.zeros(actions.shape, np.int32), np.zeros(actions.shape, np.float64))
    for row, known in enumerate(subtrees):
        if known is not None:
            _, at, of = np.intersect1d(actions[row], known.actions, return_indices=True)
            edges.visits[row, at], edges.q[row, at] = known.visits[of], known.q[of]
    return edges


def check_constants(simulations: int, gamma: float, minmax_floor: float) -> None:
    """Raises ValueError where a constant that every search has is out of its range."""
    if simulations < 1:
        raise ValueError(f"simulations must be at least 1, got {simulations}")
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must lie in 0..1, got {gamma}")
    if not minmax_floor > 0.0:
        raise ValueError(f"minmax_floor must be above 0, got {minmax_floor}")
