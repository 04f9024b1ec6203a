"""Gumbel search: sequential halving at the root, a deterministic rule below it, a policy target from completed Q.

Source: Danihelka et al., "Policy improvement by planning with Gumbel" (ICLR 2022), with the rescaling of Q at each
node that the authors' library mctx applies. With few simulations and many actions it improves on its prior where the
visit counts of pUCT do not: most actions stay unvisited, and completed Q says what they are worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit

from priorzero.search.backup import plant
from priorzero.search.root import masked_softmax
from priorzero.search.search import Model, TreeModel, check_constants, grow, root_statistics
from priorzero.search.tree import ROOT, UNVISITED, Tree
from priorzero.types import Root, SearchResult

TINY = float(np.finfo(np.float32).tiny)  # stands in for the prior 0 of a legal action, whose logarithm is needed


@dataclass(frozen=True)
class GumbelConfig:
    """Constants of Gumbel search.

    Attributes:
        simulations: Nodes that each search adds, at least 1.
        max_considered: Root actions among which sequential halving starts, at least 1.
        c_visit: Visits that are added to the largest count in the weight of Q; 50 in the paper.
        c_scale: Weight of Q; 1.0 for board games, 0.1 otherwise in the paper.
        gamma: Discount of the world model's returns.
        minmax_floor: Smallest range of Q at a node that is stretched to 0..1; smaller differences stay small.
    """

    simulations: int
    max_considered: int
    c_visit: float
    c_scale: float
    gamma: float
    minmax_floor: float

    def __post_init__(self) -> None:
        check_constants(self.simulations, self.gamma, self.minmax_floor)
        if self.max_considered < 1:
            raise ValueError(f"max_considered must be at least 1, got {self.max_considered}")
        if not (self.c_visit >= 0 and self.c_scale >= 0):
            raise ValueError(f"c_visit and c_scale must not be negative, got {self.c_visit} and {self.c_scale}")


@dataclass(frozen=True, slots=True)
class GumbelResult(SearchResult):
    """What Gumbel search found; train on ``policy``, not on the visits, which halving spreads on purpose."""

    action: np.ndarray  # [B] int32 index into A of the action to play
    policy: np.ndarray  # [B, A] float32, the improved policy softmax(logits + sigma(completed Q))


def gumbel_search(
    model: Model | TreeModel, root: Root, config: GumbelConfig, rng: np.random.Generator | None
) -> GumbelResult:
    """Plans from ``root`` with Gumbel MuZero.

    Args:
        model: Called ``config.simulations`` times.
        root: The decisions, B of them; ``probs`` without Dirichlet noise, for the Gumbel noise is the exploration.
        config: Constants.
        rng: Source of the Gumbel noise, one number for each legal action in row order. None means no noise: the
            actions of highest prior are considered and the best of them is played, as in an evaluation.

    Raises:
        ValueError: ``root`` or an answer of the model has a wrong type, shape or content; the message names it.
    """
    if root.earlier is not None:
        raise ValueError("Gumbel search cannot start from an earlier one: sequential halving counts visits from zero")
    tree = plant(root, config.simulations + 1)  # also checks the root
    legal = root.legal
    logits = np.log(np.maximum(root.probs.astype(np.float64), TINY))
    noisy = logits.copy()
    if rng is not None:
        noisy[legal] += rng.gumbel(size=int(legal.sum()))
    considered = np.minimum(legal.sum(-1), config.max_considered)
    schedule = considered_visits(config.max_considered, config.simulations).take(considered, axis=1)  # [simulations, B]

    constants = (float(config.c_visit), float(config.c_scale), float(config.minmax_floor))

    if isinstance(model, TreeModel):
        visits, q, value = model.grow_gumbel(root, (noisy, schedule), constants, float(config.gamma))
        return _result(_write_roots(tree, visits, q), root, noisy, constants, value.astype(np.float32))

    def select(tree: Tree, simulation: int, parent: np.ndarray, slot: np.ndarray, action: np.ndarray) -> None:
        select_gumbel(tree, noisy, schedule[simulation], *constants, parent, slot, action)

    tree = grow(tree, model, select, config.simulations, config.gamma)
    return _result(tree, root, noisy, constants, root_statistics(tree, legal.shape[1])[2])


def _result(
    tree: Tree, root: Root, noisy: np.ndarray, constants: tuple[float, float, float], value: np.ndarray
) -> GumbelResult:
    legal, width = root.legal, root.actions.shape[1]
    visits, q = tree.child_visits[:, ROOT, :width].copy(), tree.child_q[:, ROOT, :width].astype(np.float32)
    sigma = transform_roots(tree, *constants)[:, :width]
    finalist = legal & (visits == visits.max(-1, keepdims=True))
    action = np.where(finalist, noisy + sigma, -np.inf).argmax(-1).astype(np.int32)
    logits = np.log(np.maximum(root.probs.astype(np.float64), TINY))
    return GumbelResult(visits, q, value, action, masked_softmax(logits + sigma, legal))


def _write_roots(tree: Tree, visits: np.ndarray, q: np.ndarray) -> Tree:
    """Writes what a `TreeModel` found at the roots into trees that hold nothing else."""
    tree.child_visits[:, ROOT], tree.child_q[:, ROOT] = visits, q
    tree.visits[:, ROOT] = 1 + visits.sum(-1)
    return tree


@lru_cache(maxsize=32)
def considered_visits(max_considered: int, simulations: int) -> np.ndarray:
    """Sequential halving as a table: which visit count an action must have to be considered.

    Column m is for m considered actions: all m get the same number of visits, then the better half of them, and so
    on, at least two. To visit "the best action with that visit count" at every simulation is the same thing.

    Returns:
        [simulations, max_considered + 1] int32, not to be changed; column 0 is unused.
    """
    table = np.zeros((simulations, max_considered + 1), np.int32)
    for m in range(1, max_considered + 1):
        table[:, m] = _halving(m, simulations)
    table.flags.writeable = False
    return table


def _halving(considered: int, simulations: int) -> list[int]:
    if considered == 1:
        return list(range(simulations))
    phases = (considered - 1).bit_length()  # ceil(log2(considered))
    counts, left = [], considered
    done = 0  # visits of each action that is still considered
    while len(counts) < simulations:
        for _ in range(max(1, simulations // (phases * left))):
            counts += [done] * left
            done += 1
        left = max(2, left // 2)
    return counts[:simulations]


@njit(cache=True, nogil=True)
def transform_q(
    tree: Tree, b: int, node: int, c_visit: float, c_scale: float, floor: float, sigma: np.ndarray
) -> None:  # pragma: no cover (compiled)
    """Writes sigma(completed Q) of one node into ``sigma`` [W]; slots without a legal action are left alone.

    An unvisited action is worth v_mix (paper, equation 33, appendix D), with v the model's value of the node:
    ``v_mix = (v + N sum_visited P Q / sum_visited P) / (1 + N)``. Completed Q is stretched to a range of 1 over the
    legal actions of the node, then ``sigma(q) = (c_visit + max_a n(a)) c_scale q`` (equation 8). Only differences of
    sigma matter wherever it is used; here its highest value is 0, so that its exponential cannot overflow.
    """
    most, mass, weighted = 0, 0.0, 0.0
    for a in range(tree.width[b, node]):
        if tree.child_visits[b, node, a] > 0:
            prob = max(float(tree.probs[b, node, a]), TINY)
            mass += prob
            weighted += prob * tree.child_q[b, node, a]
            most = max(most, tree.child_visits[b, node, a])
    total = tree.visits[b, node] - 1
    v_mix = tree.value[b, node]
    if total > 0:
        v_mix = (v_mix + total * (weighted / mass)) / (1 + total)
    low, high = np.inf, -np.inf
    for a in range(tree.width[b, node]):
        if tree.actions[b, node, a] >= 0:
            q = tree.child_q[b, node, a] if tree.child_visits[b, node, a] > 0 else v_mix
            sigma[a] = q
            low, high = min(low, q), max(high, q)
    scale = (c_visit + most) * c_scale / max(high - low, floor)
    for a in range(tree.width[b, node]):
        if tree.actions[b, node, a] >= 0:
            sigma[a] = (sigma[a] - high) * scale


@njit(cache=True, nogil=True)
def transform_roots(
    tree: Tree, c_visit: float, c_scale: float, floor: float
) -> np.ndarray:  # pragma: no cover (compiled)
    """sigma(completed Q) of the roots, [B, W] float64, 0 where no action is legal."""
    sigma = np.zeros((tree.actions.shape[0], tree.actions.shape[2]))
    for b in range(len(sigma)):
        transform_q(tree, b, ROOT, c_visit, c_scale, floor, sigma[b])
    return sigma


@njit(cache=True, nogil=True)
def select_gumbel(
    tree: Tree,
    noisy: np.ndarray,
    considered: np.ndarray,
    c_visit: float,
    c_scale: float,
    floor: float,
    parent: np.ndarray,
    slot: np.ndarray,
    action: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    """Walks every tree from the root to an action that was never taken.

    At the root the highest ``noisy + sigma(completed Q)`` among the actions with ``considered`` visits is followed.
    Below it the visits are to follow the improved policy ``pi' = softmax(logits + sigma(completed Q))``: the highest
    ``pi'(a) - n(a) / (1 + N)`` is (paper, equation 14). The lowest slot wins among equals.

    Args:
        tree: The trees; only read.
        noisy: [B, A] float64, logarithm of the root's prior plus Gumbel noise.
        considered: [B] int32, this simulation's row of `considered_visits`.
        c_visit: See `GumbelConfig`.
        c_scale: See `GumbelConfig`.
        floor: See `GumbelConfig`.
        parent: [B] int32, written: the node where the walk ends.
        slot: [B] int32, written: the position of the action in that node's list.
        action: [B] int32, written: the id of the action.
    """
    sigma = np.empty(tree.actions.shape[2])
    for b in range(tree.actions.shape[0]):
        transform_q(tree, b, ROOT, c_visit, c_scale, floor, sigma)
        node, best, best_score = ROOT, -1, -np.inf
        for a in range(tree.width[b, ROOT]):
            wanted = tree.actions[b, ROOT, a] >= 0 and tree.child_visits[b, ROOT, a] == considered[b]
            if wanted and noisy[b, a] + sigma[a] > best_score:
                best, best_score = a, noisy[b, a] + sigma[a]
        while tree.child[b, node, best] != UNVISITED:
            node = tree.child[b, node, best]
            transform_q(tree, b, node, c_visit, c_scale, floor, sigma)
            mass = 0.0
            for a in range(tree.width[b, node]):
                if tree.actions[b, node, a] >= 0:
                    sigma[a] = max(float(tree.probs[b, node, a]), TINY) * np.exp(sigma[a])
                    mass += sigma[a]
            best, best_score = -1, -np.inf
            for a in range(tree.width[b, node]):
                if tree.actions[b, node, a] >= 0:
                    score = sigma[a] / mass - tree.child_visits[b, node, a] / tree.visits[b, node]
                    if score > best_score:
                        best, best_score = a, score
        parent[b] = node
        slot[b] = best
        action[b] = tree.actions[b, node, best]
