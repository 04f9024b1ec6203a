"""The two searches once more, one tree at a time, in plain Python: slow, readable, nothing shared with the package.

`imagine` is a world that is made up from the path of actions, and `ImaginedModel` gives it to the batched search.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from priorzero.types import Expansion, Root


@dataclass(frozen=True)
class State:
    """What a model says of one state: plain numbers, all representable in float32. Actions -1 are padding."""

    reward: float
    value: float
    actions: Sequence[int]
    probs: Sequence[float]


World = Callable[[tuple[int, ...]], State]  # from the path of actions since the root


@dataclass
class Node:
    state: State
    path: tuple[int, ...]
    visits: int = 0
    value_sum: float = 0.0
    children: dict[int, Node] = field(default_factory=dict)  # slot to node
    earlier: dict[int, tuple[int, float]] = field(default_factory=dict)  # slot to visits and Q of an earlier search

    @property
    def legal(self) -> list[int]:
        return [slot for slot, action in enumerate(self.state.actions) if action >= 0]

    @property
    def mean(self) -> float:
        return self.value_sum / self.visits

    @property
    def seen(self) -> list[int]:
        return sorted(self.children.keys() | self.earlier.keys())

    def n(self, slot: int) -> int:
        own = self.children[slot].visits if slot in self.children else 0
        return own + (self.earlier[slot][0] if slot in self.earlier else 0)

    def q(self, slot: int, gamma: float) -> float:
        parts = [self.earlier[slot]] if slot in self.earlier else []
        if slot in self.children:
            child = self.children[slot]
            parts.append((child.visits, child.state.reward + gamma * child.mean))
        return sum(n * q for n, q in parts) / sum(n for n, _ in parts)


@dataclass
class Tree:
    """A tree that grows by `simulate`; the rule says which slot to follow at a node."""

    world: World
    gamma: float
    earlier: dict[int, tuple[int, float]] = field(default_factory=dict)
    root: Node = field(init=False)
    q_seen: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root = Node(self.world(()), (), earlier=self.earlier)
        self.backup([self.root], [])
        for visits, q in self.earlier.values():
            self.root.visits += visits
            self.root.value_sum += visits * q
            self.q_seen.append(q)

    def simulate(self, rule: Callable[[Node], int]) -> None:
        nodes, slots = [self.root], []
        while True:
            node, slot = nodes[-1], rule(nodes[-1])
            slots.append(slot)
            if slot not in node.children:
                break
            nodes.append(node.children[slot])
        path = (*node.path, node.state.actions[slot])
        node.children[slot] = Node(self.world(path), path)
        nodes.append(node.children[slot])
        self.backup(nodes, slots)

    def backup(self, nodes: list[Node], slots: list[int]) -> None:
        gain = nodes[-1].state.value
        for i in reversed(range(len(nodes))):
            nodes[i].visits += 1
            nodes[i].value_sum += gain
            if i > 0:
                self.q_seen.append(nodes[i - 1].q(slots[i - 1], self.gamma))
            gain = nodes[i].state.reward + self.gamma * gain

    def result(self) -> tuple[list[int], list[float], float]:
        slots = range(len(self.root.state.actions))
        q = [self.root.q(slot, self.gamma) if slot in self.root.seen else 0.0 for slot in slots]
        return [self.root.n(slot) for slot in slots], q, self.root.mean


def puct(
    world: World,
    simulations: int,
    c_init: float,
    c_base: float,
    gamma: float,
    floor: float,
    earlier: dict[int, tuple[int, float]] | None = None,
) -> tuple[list[int], list[float], float]:
    """Visits, Q and value at the root."""
    tree = Tree(world, gamma, earlier or {})

    def rule(node: Node) -> int:
        total = sum(map(node.n, node.seen))
        if total == 0:
            return max(node.legal, key=lambda slot: (node.state.probs[slot], -slot))
        qs = [node.q(slot, gamma) for slot in node.seen]
        mean = sum(qs) / len(qs)
        low, high = min(tree.q_seen), max(tree.q_seen)
        exploration = (c_init + math.log((total + c_base + 1) / c_base)) * math.sqrt(total)
        scores = {}
        for slot in node.legal:
            q = node.q(slot, gamma) if slot in node.seen else mean
            prior = node.state.probs[slot] * exploration / (1 + node.n(slot))
            scores[slot] = prior + (q - low) / max(high - low, floor)
        return max(scores, key=lambda slot: (scores[slot], -slot))

    for _ in range(simulations):
        tree.simulate(rule)
    return tree.result()


@dataclass
class GumbelAnswer:
    visits: list[int]
    q: list[float]
    value: float
    action: int
    policy: list[float]


def gumbel(
    world: World,
    noise: Sequence[float],
    simulations: int,
    max_considered: int,
    c_visit: float,
    c_scale: float,
    gamma: float,
    floor: float,
) -> GumbelAnswer:
    """Sequential halving without a table: ``left`` actions share a phase, then half of them the next."""
    tree = Tree(world, gamma)
    root = tree.root

    def prob(node: Node, slot: int) -> float:
        return max(node.state.probs[slot], float(np.finfo(np.float32).tiny))

    def sigma(node: Node) -> dict[int, float]:
        total = sum(child.visits for child in node.children.values())
        value = node.state.value
        if node.children:
            visited = sorted(node.children)
            mass = sum(prob(node, slot) for slot in visited)
            average = sum(prob(node, slot) * node.q(slot, gamma) for slot in visited) / mass
            value = (value + total * average) / (1 + total)
        completed = {slot: node.q(slot, gamma) if slot in node.children else value for slot in node.legal}
        low, high = min(completed.values()), max(completed.values())
        scale = (c_visit + max(map(node.n, node.legal))) * c_scale / max(high - low, floor)
        return {slot: (q - high) * scale for slot, q in completed.items()}

    def improved(node: Node) -> dict[int, float]:
        transformed = sigma(node)
        weights = {slot: prob(node, slot) * math.exp(transformed[slot]) for slot in node.legal}
        mass = sum(weights.values())
        return {slot: weight / mass for slot, weight in weights.items()}

    def rule(node: Node) -> int:
        policy, total = improved(node), sum(child.visits for child in node.children.values())
        return max(node.legal, key=lambda slot: (policy[slot] - node.n(slot) / (1 + total), -slot))

    def root_score(slot: int) -> tuple[float, int]:
        return math.log(prob(root, slot)) + noise[slot] + sigma(root)[slot], -slot

    left = min(max_considered, len(root.legal))
    phases = max(1, math.ceil(math.log2(left)))
    while sum(map(root.n, root.legal)) < simulations:
        for _ in range(left * max(1, simulations // (phases * left))):
            if sum(map(root.n, root.legal)) < simulations:
                # One more visit for the best action of those that have the fewest visits among the `left` most visited.
                fewest = sorted(map(root.n, root.legal), reverse=True)[left - 1]
                best = max((slot for slot in root.legal if root.n(slot) == fewest), key=root_score)
                tree.simulate(lambda node, best=best: best if node is root else rule(node))
        left = max(min(2, left), left // 2)
    most = max(map(root.n, root.legal))
    action = max((slot for slot in root.legal if root.n(slot) == most), key=root_score)
    policy = improved(root)
    visits, q, value = tree.result()
    return GumbelAnswer(visits, q, value, action, [policy.get(slot, 0.0) for slot in range(len(visits))])


@dataclass(frozen=True)
class Imagination:
    """What `imagine` may make up."""

    seed: int
    root_width: int
    width: int
    holes: bool = True  # some slots are padding, anywhere in the list
    equal_probs: bool = False
    no_rewards: bool = False
    coarse: bool = False  # rewards and values from {-1, 0, 1}: many equal Q


def imagine(how: Imagination) -> World:
    """A world in which everything is drawn from a generator seeded by the path."""

    def world(path: tuple[int, ...]) -> State:
        rng = random.Random(f"{how.seed}:{path}")
        width = how.width if path else how.root_width
        actions = [rng.randrange(1000) * 100 + slot for slot in range(width)]
        if how.holes:
            spared = rng.randrange(width)
            actions = [a if slot == spared or rng.random() < 0.7 else -1 for slot, a in enumerate(actions)]
        weights = [1.0 if how.equal_probs else rng.random() ** 3 + 1e-3 for _ in actions]
        mass = sum(w for w, a in zip(weights, actions, strict=True) if a >= 0)
        probs = [float(np.float32(w / mass)) if a >= 0 else 0.0 for w, a in zip(weights, actions, strict=True)]

        def number() -> float:
            if how.no_rewards:
                return 0.0
            return float(rng.choice((-1, 0, 0, 1))) if how.coarse else float(np.float32(rng.gauss(0, 2)))

        return State(reward=number() if path else 0.0, value=number(), actions=actions, probs=probs)

    return world


class ImaginedModel:
    """Answers the batched search from one world a row; rows are padded to a common width."""

    def __init__(self, worlds: Sequence[World], padding: int = 0) -> None:
        self.worlds = worlds
        self.padding = padding
        self.paths: list[list[tuple[int, ...]]] = [[()] for _ in worlds]

    @property
    def root(self) -> Root:
        actions, probs, value, _ = self._stack([world(()) for world in self.worlds])
        return Root(actions, probs, value)

    def expand(self, node: int, parent: np.ndarray, action: np.ndarray) -> Expansion:
        states = []
        for row, world in enumerate(self.worlds):
            assert len(self.paths[row]) == node
            self.paths[row].append((*self.paths[row][parent[row]], int(action[row])))
            states.append(world(self.paths[row][node]))
        actions, probs, value, reward = self._stack(states)
        return Expansion(reward=reward, value=value, actions=actions, probs=probs)

    def _stack(self, states: Sequence[State]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        width = max(len(state.actions) for state in states) + self.padding
        actions = np.full((len(states), width), -1, np.int32)
        probs = np.zeros((len(states), width), np.float32)
        for row, state in enumerate(states):
            actions[row, : len(state.actions)] = state.actions
            probs[row, : len(state.probs)] = state.probs
        value = np.array([state.value for state in states], np.float32)
        return actions, probs, value, np.array([state.reward for state in states], np.float32)
