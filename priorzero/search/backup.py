"""Growing the trees: one new node in every tree, and its value backed up to the root."""

from __future__ import annotations

import numpy as np
from numba import njit

from priorzero.search.tree import NO_PARENT, ROOT, UNVISITED, Tree, allocate, widen
from priorzero.types import Edges, Expansion, Root

OK = 0
FAULTS = (
    "",
    "reward is NaN or infinite",
    "value is NaN or infinite",
    "no legal action (actions are all -1)",
    "probs hold a NaN, an infinity or a negative number",
    "probs are not 0 where actions are padded",
    "probs sum to 0 over the legal actions",
)


def plant(root: Root, nodes: int) -> Tree:
    """Makes trees with room for ``nodes`` nodes that hold only ``root``.

    The root counts as visited once, with the value that the model gave it, and as often as ``root.earlier`` says.

    Raises:
        ValueError: An array of ``root`` has a wrong type, shape or content; a row has no legal action.
    """
    batch, width = _check_arrays("root", root.actions, root.probs, value=root.value)
    tree = allocate(batch, nodes, width)
    tree.reward[:, ROOT] = 0.0
    tree.value[:, ROOT] = root.value
    tree.actions[:, ROOT] = root.actions
    tree.probs[:, ROOT] = root.probs
    nowhere = np.full(batch, NO_PARENT, np.int32)
    _raise_fault("root", *add_and_backup(tree, ROOT, nowhere, nowhere, 1.0))
    if root.earlier is not None:
        _remember(tree, root.legal, root.earlier)
    return tree


def _remember(tree: Tree, legal: np.ndarray, earlier: Edges) -> None:
    """Start the roots' edges from an earlier search."""
    visits, q = earlier.visits, earlier.q
    _check_array("root: earlier.visits", visits, np.int32, legal.shape)
    _check_array("root: earlier.q", q, np.float64, legal.shape)
    seen = visits > 0
    if (visits < 0).any() or (seen & ~legal).any() or not np.isfinite(q).all():
        raise ValueError(
            "root: earlier visits lie on legal actions and are not negative, and every earlier Q is finite"
        )
    tree.earlier_visits[:], tree.earlier_q[:] = visits, np.where(seen, q, 0.0)
    tree.child_visits[:, ROOT], tree.child_q[:, ROOT] = visits, tree.earlier_q
    tree.visits[:, ROOT] += visits.sum(-1, dtype=np.int32)
    tree.value_sum[:, ROOT] += (visits * tree.earlier_q).sum(-1)
    tree.q_min[:] = np.where(seen, q, np.inf).min(-1)
    tree.q_max[:] = np.where(seen, q, -np.inf).max(-1)


def check_root(root: Root) -> None:
    """Raises ValueError as `plant` does, for searches whose trees lie elsewhere."""
    plant(root, 1)


def attach(tree: Tree, node: int, parent: np.ndarray, slot: np.ndarray, expansion: Expansion, gamma: float) -> Tree:
    """Adds ``node`` to every tree, behind ``slot`` [B] of ``parent`` [B], and backs its value up.

    Returns:
        The trees: the same object, or a wider copy where the expansion has more actions than ever before.

    Raises:
        ValueError: An array of ``expansion`` has a wrong type, shape or content.
    """
    what = f"expansion of node {node}"
    batch, width = _check_arrays(
        what, expansion.actions, expansion.probs, value=expansion.value, reward=expansion.reward
    )
    if batch != tree.batch:
        raise ValueError(f"{what}: it has {batch} rows, the root has {tree.batch}")
    if width > tree.actions.shape[2]:
        tree = widen(tree, width)
    tree.reward[:, node] = expansion.reward
    tree.value[:, node] = expansion.value
    tree.actions[:, node, :width] = expansion.actions
    tree.actions[:, node, width:] = -1
    tree.probs[:, node, :width] = expansion.probs
    tree.probs[:, node, width:] = 0.0
    _raise_fault(what, *add_and_backup(tree, node, parent, slot, gamma))
    return tree


@njit(cache=True, nogil=True)
def add_and_backup(
    tree: Tree, node: int, parent: np.ndarray, slot: np.ndarray, gamma: float
) -> tuple[int, int]:  # pragma: no cover (compiled)
    """Links ``node``, whose reward, value, actions and probs are already written, and backs its value up.

    On the way to the root the value G becomes ``reward + gamma G`` at every step (MuZero, arXiv 1911.08265, appendix
    B, equation 3), every edge gets its new ``Q = reward + gamma v(child)``, and the bounds of Q take it in.

    Args:
        tree: The trees; changed in place.
        node: Index of the new node, the same in every tree.
        parent: [B] int32, the node above it, NO_PARENT for the root.
        slot: [B] int32, the action slot of the parent.
        gamma: Discount.

    Returns:
        Row and index into ``FAULTS`` of the first fault in what the model said, or ``(0, OK)``. After a fault the
        trees are of no use.
    """
    for b in range(tree.actions.shape[0]):
        if not np.isfinite(tree.reward[b, node]):
            return b, 1
        if not np.isfinite(tree.value[b, node]):
            return b, 2
        width, total = 0, 0.0
        for a in range(tree.actions.shape[2]):
            prob = tree.probs[b, node, a]
            if not 0.0 <= prob < np.inf:
                return b, 4
            if tree.actions[b, node, a] >= 0:
                width = a + 1
            elif prob != 0.0:
                return b, 5
            total += prob
            tree.child[b, node, a] = UNVISITED
            tree.child_visits[b, node, a] = 0
            tree.child_q[b, node, a] = 0.0
        if width == 0:
            return b, 3
        if total == 0.0:
            return b, 6
        tree.width[b, node] = width
        tree.visits[b, node] = 0
        tree.value_sum[b, node] = 0.0
        tree.parent[b, node] = parent[b]
        tree.slot[b, node] = slot[b]
        if parent[b] != NO_PARENT:
            tree.child[b, parent[b], slot[b]] = node

        at, gain = node, tree.value[b, node]
        while True:
            tree.visits[b, at] += 1
            tree.value_sum[b, at] += gain
            above = tree.parent[b, at]
            if above == NO_PARENT:
                break
            count, taken = tree.visits[b, at], tree.slot[b, at]
            q = tree.reward[b, at] + gamma * (tree.value_sum[b, at] / count)
            if above == ROOT and tree.earlier_visits[b, taken] > 0:
                before = tree.earlier_visits[b, taken]
                q = (before * tree.earlier_q[b, taken] + count * q) / (before + count)
                count += before
            tree.child_visits[b, above, taken] = count
            tree.child_q[b, above, taken] = q
            tree.q_min[b] = min(tree.q_min[b], q)
            tree.q_max[b] = max(tree.q_max[b], q)
            gain = tree.reward[b, at] + gamma * gain
            at = above
    return 0, OK


def _check_arrays(what: str, actions: np.ndarray, probs: np.ndarray, **per_row: np.ndarray) -> tuple[int, int]:
    """Raises ValueError unless the arrays are int32 [B, A], float32 [B, A] and float32 [B]; returns B and A."""
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or 0 in actions.shape:
        raise ValueError(f"{what}: actions must be a non-empty numpy array [B, A], got {_describe(actions)}")
    _check_array(f"{what}: actions", actions, np.int32, actions.shape)
    _check_array(f"{what}: probs", probs, np.float32, actions.shape)
    for name, array in per_row.items():
        _check_array(f"{what}: {name}", array, np.float32, actions.shape[:1])
    return actions.shape


def _check_array(what: str, array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{what} must be a numpy array {dtype.__name__} {list(shape)}, got {_describe(array)}")


def _describe(value: object) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} {dtype} {list(shape)}"


def _raise_fault(what: str, row: int, fault: int) -> None:
    if fault != OK:
        raise ValueError(f"{what}, row {row}: {FAULTS[fault]}")
