"""Search trees on a GPU: one kernel walks every tree down to a leaf, one adds the new nodes and backs up.

The same search as `device_tree.DeviceTree`, in the order of operations of `priorzero.search`, one program a tree. Needs
Triton, which comes with torch for CUDA: imported only where it is asked for. ``TRITON_INTERPRET=1`` runs it on a CPU,
to test it.

A program has one warp: it reads and writes the same numbers of its tree again and again, and within a warp they are in
order.
"""

from __future__ import annotations

import math

import torch
import triton  # ty: ignore[import-not-found]
import triton.language as tl  # ty: ignore[import-not-found]
from torch import Tensor

from priorzero.world_model.device_tree import ROOT, TINY, Gumbel, Imagined, Puct

ORDERED = {"num_warps": 1, "enable_fp_fusion": False}  # a fused multiply-add rounds once, the host's loops twice


@triton.jit
def select_puct(
    actions, probs, child, child_visits, child_q, visits, low, high, table, constants, parent, slot, action,
    last: tl.constexpr, nodes: tl.constexpr, width: tl.constexpr, block: tl.constexpr,
):  # fmt: skip  # pragma: no cover (compiled)
    """`priorzero.search.select.select_puct`: writes ``parent``, ``slot`` and ``action`` [B]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    lowest = tl.load(low + row)
    span = tl.maximum(tl.load(high + row) - lowest, tl.load(constants + 1))
    at = 0
    best = 0
    following = 0
    steps = 0
    while (following >= 0) & (steps < nodes):
        at = following
        edge = (row * nodes + at) * width
        legal = tl.load(actions + edge + column, mask=inside, other=-1) >= 0
        prior = tl.load(probs + edge + column, mask=inside, other=0.0).to(tl.float64)
        count = tl.load(child_visits + edge + column, mask=inside, other=0)
        q = tl.load(child_q + edge + column, mask=inside, other=0.0)
        total = tl.load(visits + row * nodes + at) - 1
        factor = tl.load(table + tl.minimum(total, last))
        taken = count > 0
        mean = tl.sum(tl.where(taken, q, 0.0), 0) / tl.maximum(tl.sum(taken.to(tl.int32), 0), 1).to(tl.float64)
        score = prior * factor / (1 + count).to(tl.float64)
        score += tl.where(total > 0, (tl.where(taken, q, mean) - lowest) / span, 0.0)
        best = tl.minimum(tl.argmax(tl.where(legal, score, float("-inf")), 0), width - 1)
        following = tl.load(child + edge + best)
        steps += 1
    tl.store(parent + row, at)
    tl.store(slot + row, best)
    tl.store(action + row, tl.load(actions + (row * nodes + at) * width + best))


@triton.jit
def select_gumbel(
    actions, probs, child, child_visits, child_q, visits, value, noisy, schedule, node, constants, parent, slot, action,
    rows, nodes: tl.constexpr, width: tl.constexpr, block: tl.constexpr,
):  # fmt: skip  # pragma: no cover (compiled)
    """`priorzero.search.gumbel.select_gumbel`: writes ``parent``, ``slot`` and ``action`` [B]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    floor, c_visit, c_scale = tl.load(constants + 1), tl.load(constants + 2), tl.load(constants + 3)
    tiny = tl.load(constants + 4)
    considered = tl.load(schedule + (tl.load(node + row) - 1) * rows + row)
    drawn = tl.load(noisy + row * width + column, mask=inside, other=0.0)
    at = 0
    best = 0
    following = 0
    steps = 0
    while (following >= 0) & (steps < nodes):
        at = following
        edge = (row * nodes + at) * width
        legal = tl.load(actions + edge + column, mask=inside, other=-1) >= 0
        prior = tl.load(probs + edge + column, mask=inside, other=0.0).to(tl.float64)
        prior = tl.maximum(prior, tiny)
        count = tl.load(child_visits + edge + column, mask=inside, other=0)
        q = tl.load(child_q + edge + column, mask=inside, other=0.0)
        seen = tl.load(visits + row * nodes + at)
        taken = count > 0
        mass = tl.maximum(tl.sum(tl.where(taken, prior, 0.0), 0), tiny)
        own, total = tl.load(value + row * nodes + at), (seen - 1).to(tl.float64)
        mixed = (own + total * (tl.sum(tl.where(taken, prior * q, 0.0), 0) / mass)) / (1.0 + total)
        mixed = tl.where(seen > 1, mixed, own)
        completed = tl.where(taken, q, mixed)
        worst = tl.min(tl.where(legal, completed, float("inf")), 0)
        top = tl.max(tl.where(legal, completed, float("-inf")), 0)
        most = tl.max(count, 0).to(tl.float64)
        sigma = (completed - top) * ((c_visit + most) * c_scale / tl.maximum(top - worst, floor))
        weight = tl.where(legal, prior * tl.exp(tl.where(legal, sigma, 0.0)), 0.0)
        below = weight / tl.sum(weight, 0) - count.to(tl.float64) / seen.to(tl.float64)
        wanted = tl.where(at == 0, legal & (count == considered), legal)
        score = tl.where(wanted, tl.where(at == 0, drawn + sigma, below), float("-inf"))
        best = tl.minimum(tl.argmax(score, 0), width - 1)
        following = tl.load(child + edge + best)
        steps += 1
    tl.store(parent + row, at)
    tl.store(slot + row, best)
    tl.store(action + row, tl.load(actions + (row * nodes + at) * width + best))


@triton.jit
def attach(
    actions, probs, child, child_visits, child_q, visits, value_sum, reward, value, above, behind, low, high, fault,
    node, constants, parent, slot, said_reward, said_value, said_actions, said_probs,
    offered: tl.constexpr, nodes: tl.constexpr, width: tl.constexpr, block: tl.constexpr,
):  # fmt: skip  # pragma: no cover (compiled)
    """`priorzero.search.backup.add_and_backup` of the next node, behind ``slot`` of ``parent`` [B]."""
    row = tl.program_id(0).to(tl.int64)
    gamma, new = tl.load(constants), tl.load(node + row)
    column = tl.arange(0, block)
    inside, told = column < width, column < offered
    ids = tl.load(said_actions + row * offered + column, mask=told, other=-1).to(tl.int32)
    prior = tl.load(said_probs + row * offered + column, mask=told, other=0.0).to(tl.float32)
    edge = (row * nodes + new) * width + column
    tl.store(actions + edge, ids, mask=inside)
    tl.store(probs + edge, prior, mask=inside)
    tl.store(child + edge, tl.full((block,), -1, tl.int32), mask=inside)
    tl.store(child_visits + edge, tl.zeros((block,), tl.int32), mask=inside)
    tl.store(child_q + edge, tl.zeros((block,), tl.float64), mask=inside)

    up, way = tl.load(parent + row).to(tl.int32), tl.load(slot + row).to(tl.int32)
    paid, gain = tl.load(said_reward + row).to(tl.float64), tl.load(said_value + row).to(tl.float64)
    legal = tl.sum((ids >= 0).to(tl.int32), 0)
    unfit = tl.sum((~(tl.abs(prior) < float("inf"))).to(tl.int32), 0)
    sound = (tl.abs(paid) < float("inf")) & (tl.abs(gain) < float("inf")) & (legal > 0) & (unfit == 0)
    tl.store(fault + row, tl.where(sound, tl.load(fault + row), 1))
    base = row * nodes
    tl.store(child + (base + up) * width + way, new)
    tl.store(reward + base + new, paid)
    tl.store(value + base + new, gain)
    tl.store(above + base + new, up)
    tl.store(behind + base + new, way)
    tl.store(visits + base + new, 1)
    tl.store(value_sum + base + new, gain)

    lowest, highest = tl.load(low + row), tl.load(high + row)
    count = 1
    total = gain
    steps = 0
    while (up >= 0) & (steps < nodes):  # the edge from `up` through `way` leads to a node of `count` visits
        q = paid + gamma * (total / tl.cast(count, tl.float64))
        tl.store(child_visits + (base + up) * width + way, count)
        tl.store(child_q + (base + up) * width + way, q)
        lowest, highest = tl.minimum(lowest, q), tl.maximum(highest, q)
        gain = paid + gamma * gain
        here = base + up
        count, total = tl.load(visits + here) + 1, tl.load(value_sum + here) + gain
        tl.store(visits + here, count)
        tl.store(value_sum + here, total)
        paid, up, way = tl.load(reward + here), tl.load(above + here), tl.load(behind + here)
        steps += 1
    tl.store(low + row, lowest)
    tl.store(high + row, highest)
    tl.store(node + row, new + 1)


class KernelTree:
    """``B`` trees of ``N`` nodes with ``W`` actions each; the interface of `device_tree.DeviceTree`.

    Args:
        shape: (B, N, W).
        rule: how to select.
        device: where the tensors lie.
    """

    def __init__(self, shape: tuple[int, int, int], rule: Puct | Gumbel, device: torch.device) -> None:
        batch, nodes, width = shape
        self.shape, self.rule = shape, rule

        def zeros(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        per_slot, per_node, integer = (batch, nodes, width), (batch, nodes), torch.int32
        self.actions, self.child, self.child_visits = (zeros(*per_slot, dtype=integer) for _ in range(3))
        self.probs, self.child_q = zeros(*per_slot, dtype=torch.float32), zeros(*per_slot)
        self.visits, self.above, self.behind = (zeros(*per_node, dtype=integer) for _ in range(3))
        self.reward, self.value, self.value_sum = (zeros(*per_node) for _ in range(3))
        self.low, self.high = zeros(batch), zeros(batch)  # bounds of Q
        self.fault = zeros(batch, dtype=integer)  # the model said what is not finite, or offered nothing
        self.node = zeros(batch, dtype=torch.int64)  # the next node to add
        self.noisy = zeros(batch, width)  # Gumbel: logarithm of the root's prior plus noise
        self.schedule = zeros(nodes, batch, dtype=torch.int64)  # Gumbel: the visits that an action must have
        self._chosen = tuple(zeros(batch, dtype=torch.int64) for _ in range(3))
        given = (rule.gamma, rule.floor, getattr(rule, "c_visit", 0.0), getattr(rule, "c_scale", 0.0), TINY)
        self._constants = torch.tensor(given, dtype=torch.float64, device=device)  # an argument would be rounded
        self._table = torch.tensor(getattr(rule, "exploration", (0.0,)), dtype=torch.float64, device=device)
        self._sizes = {"nodes": nodes, "width": width, "block": triton.next_power_of_2(width)}

    def plant(self, actions: Tensor, probs: Tensor, value: Tensor) -> None:
        """Start anew from roots with ``actions`` and ``probs`` [B, W] and the model's ``value`` [B]."""
        for x, start in (
            (self.child, -1),
            (self.child_visits, 0),
            (self.child_q, 0),
            (self.reward, 0),
            (self.visits, 1),
        ):
            x[:, ROOT] = start
        for x, start in ((self.above, -1), (self.behind, -1), (self.value, value), (self.value_sum, value)):
            x[:, ROOT] = start
        self.actions[:, ROOT], self.probs[:, ROOT] = actions, probs
        for x, start in ((self.low, math.inf), (self.high, -math.inf), (self.fault, 0), (self.node, 1)):
            x.fill_(start)

    def select(self) -> tuple[Tensor, Tensor, Tensor]:
        """For every tree a node, the slot of an action that was never taken there, and the action: each [B]."""
        shared = (self.actions, self.probs, self.child, self.child_visits, self.child_q, self.visits)
        if isinstance(self.rule, Puct):
            select_puct[(self.shape[0],)](
                *shared, self.low, self.high, self._table, self._constants, *self._chosen,
                last=len(self._table) - 1, **self._sizes, **ORDERED,
            )  # fmt: skip
        else:
            select_gumbel[(self.shape[0],)](
                *shared, self.value, self.noisy, self.schedule, self.node, self._constants, *self._chosen,
                self.shape[0], **self._sizes, **ORDERED,
            )  # fmt: skip
        parent, slot, action = self._chosen
        return parent, slot, action

    def attach(self, parent: Tensor, slot: Tensor, said: Imagined) -> None:
        """Add the next node behind ``slot`` [B] of ``parent`` [B], and back its value up."""
        attach[(self.shape[0],)](
            self.actions, self.probs, self.child, self.child_visits, self.child_q, self.visits, self.value_sum,
            self.reward, self.value, self.above, self.behind, self.low, self.high, self.fault, self.node,
            self._constants, parent, slot, *(x.contiguous() for x in said),
            offered=said.actions.shape[1], **self._sizes, **ORDERED,
        )  # fmt: skip

    def read(self) -> Tensor:
        """The roots' visits and Q of W actions each, mean value, and fault: [B, 2 W + 2] float64."""
        value = self.value_sum[:, ROOT] / self.visits[:, ROOT]
        ends = value.unsqueeze(1), self.fault.double().unsqueeze(1)
        return torch.cat((self.child_visits[:, ROOT].double(), self.child_q[:, ROOT], *ends), dim=1)
