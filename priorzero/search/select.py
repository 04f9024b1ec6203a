"""pUCT selection: which action to try next in every tree."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from priorzero.search.tree import ROOT, UNVISITED, Tree


def exploration_table(simulations: int, c_init: float, c_base: float) -> np.ndarray:
    """The pUCT factor ``[c_init + log((N + c_base + 1) / c_base)] sqrt(max(N, 1))`` for N = 0..simulations, float64.

    Source: MuZero, arXiv 1911.08265, appendix B, equation 2. There N = 0 makes every score 0, and the first simulation
    of a node goes to whatever comes first; taken as 1 it goes to the action that the prior likes best.
    """
    factors = [(c_init + math.log((n + c_base + 1) / c_base)) * math.sqrt(max(n, 1)) for n in range(simulations + 1)]
    return np.array(factors, np.float64)


@njit(cache=True, nogil=True)
def select_puct(
    tree: Tree, exploration: np.ndarray, floor: float, parent: np.ndarray, slot: np.ndarray, action: np.ndarray
) -> None:  # pragma: no cover (compiled)
    """Walks every tree from the root to an action that was never taken.

    At each node the action with the highest score is followed, the lowest slot among equals:
    ``score(a) = P(a) exploration[N] / (1 + n(a)) + (Q(a) - q_min) / max(q_max - q_min, floor)``.
    n(a) counts the visits of the action, N is their sum over the actions. Q of an unvisited action is the plain mean
    of Q over the visited ones. Where none is visited only the prior counts.

    Args:
        tree: The trees; only read.
        exploration: [N] float64, from `exploration_table`.
        floor: Smallest range of Q that is stretched to 0..1.
        parent: [B] int32, written: the node where the walk ends.
        slot: [B] int32, written: the position of the action in that node's list.
        action: [B] int32, written: the id of the action.
    """
    for b in range(tree.actions.shape[0]):
        low = tree.q_min[b]
        span = max(tree.q_max[b] - low, floor)
        node = ROOT
        while True:
            total = tree.visits[b, node] - 1
            visited, q_sum = 0, 0.0
            for a in range(tree.width[b, node]):
                if tree.child_visits[b, node, a] > 0:
                    visited += 1
                    q_sum += tree.child_q[b, node, a]
            mean = q_sum / visited if visited > 0 else low
            best, best_score = -1, -np.inf
            for a in range(tree.width[b, node]):
                if tree.actions[b, node, a] < 0:
                    continue
                count = tree.child_visits[b, node, a]
                score = tree.probs[b, node, a] * exploration[total] / (1 + count)
                if total > 0:
                    score += ((tree.child_q[b, node, a] if count > 0 else mean) - low) / span
                if score > best_score:
                    best, best_score = a, score
            if tree.child[b, node, best] == UNVISITED:
                break
            node = tree.child[b, node, best]
        parent[b] = node
        slot[b] = best
        action[b] = tree.actions[b, node, best]
