"""Search trees as tensors of fixed shape: selection and backup without a loop over depth or trees.

What `priorzero.search` does with compiled loops on a CPU, here in tensor operations that a CUDA graph can replay. The
rule is evaluated at every node at once; the walk to a leaf is a pointer that is doubled; the backup multiplies by a
matrix of paths. In exact arithmetic the visits are the same; sums are taken in another order, so that actions whose
scores differ by rounding alone may change places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

ROOT = 0
TINY = torch.finfo(torch.float32).tiny  # stands in for the prior 0 of a legal action, as in `priorzero.search.gumbel`


@dataclass(frozen=True)
class Puct:
    """Rule and constants of `priorzero.search.search`; ``exploration`` comes from its table."""

    exploration: tuple[float, ...]
    floor: float
    gamma: float


@dataclass(frozen=True)
class Gumbel:
    """Constants of `priorzero.search.gumbel_search`."""

    c_visit: float
    c_scale: float
    floor: float
    gamma: float


class Imagined(NamedTuple):
    """What the model says of the states behind the chosen actions."""

    reward: Tensor  # [B] of the steps that lead there
    value: Tensor  # [B]
    actions: Tensor  # [B, K] ids of the actions offered there, -1 where padded
    probs: Tensor  # [B, K] of them, 0 where padded


class DeviceTree:
    """``B`` trees of ``N`` nodes with ``W`` actions each. Every simulation adds the node ``self.node`` to every tree.

    Args:
        shape: (B, N, W).
        rule: how to select.
        device: where the tensors lie.
    """

    def __init__(self, shape: tuple[int, int, int], rule: Puct | Gumbel, device: torch.device) -> None:
        batch, nodes, width = shape
        self.shape, self.rule, self.doublings = shape, rule, max(1, math.ceil(math.log2(nodes)))

        def zeros(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        integer = torch.int64
        self.actions = zeros(batch, nodes, width, dtype=integer)  # ids of the vocabulary, -1 where padded
        self.probs = zeros(batch, nodes, width)
        self.child = zeros(batch, nodes, width, dtype=integer)  # node behind the action, -1 where there is none
        self.visits = zeros(batch, nodes, dtype=integer)
        self.reward, self.value, self.value_sum = (zeros(batch, nodes) for _ in range(3))
        self.low, self.high = zeros(batch, 1), zeros(batch, 1)  # bounds of Q
        # from each node to each of its ancestors and itself: 1, the discount between them, the rewards between them
        self.path = zeros(batch, nodes, 3, nodes)
        self.node = zeros(1, dtype=integer)  # the next node to add
        self.fault = zeros(batch, 1, dtype=torch.bool)  # the model said NaN, or offered nothing
        self.noisy = zeros(batch, width)  # Gumbel: logarithm of the root's prior plus noise
        self.schedule = zeros(nodes, batch, dtype=integer)  # Gumbel: the visits that an action must have
        self._index = torch.arange(nodes, device=device)
        self._exploration = torch.tensor(getattr(rule, "exploration", ()), dtype=torch.float64, device=device)

    # --------------------------------------------------------------------------------------------------------- grow

    def plant(self, actions: Tensor, probs: Tensor, value: Tensor) -> None:
        """Start anew from roots with ``actions`` and ``probs`` [B, W] and the model's ``value`` [B]."""
        for x, start in ((self.actions, -1), (self.child, -1), (self.probs, 0), (self.reward, 0), (self.visits, 0)):
            x.fill_(start)
        for x, start in ((self.value_sum, 0), (self.path, 0), (self.low, math.inf), (self.high, -math.inf)):
            x.fill_(start)
        self.node.fill_(1)
        self.fault.fill_(False)
        self.actions[:, ROOT], self.probs[:, ROOT] = actions, probs.double()
        self.value[:, ROOT], self.value_sum[:, ROOT] = value.double(), value.double()
        self.visits[:, ROOT] = 1
        self.path[:, ROOT, :2, ROOT] = 1

    def attach(self, parent: Tensor, slot: Tensor, said: Imagined) -> None:
        """Add the next node behind ``slot`` [B] of ``parent`` [B], and back its value up. K is at most W."""
        batch, nodes, width = self.shape
        self._offer(said.actions, said.probs)
        reward, value = said.reward.double().unsqueeze(1), said.value.double().unsqueeze(1)  # [B, 1]
        self.child.view(batch, -1).scatter_(1, (parent * width + slot).unsqueeze(1), self.node.expand(batch, 1))
        self.reward.index_copy_(1, self.node, reward)
        self.value.index_copy_(1, self.node, value)
        above = self.path.gather(1, parent.view(-1, 1, 1, 1).expand(-1, 1, 3, nodes)).squeeze(1)  # [B, 3, N]
        own = (self._index == self.node).double()
        member = above[:, 0] + own
        discount = self.rule.gamma * above[:, 1] + own
        gained = above[:, 2] + above[:, 1] * reward
        self.path.index_copy_(1, self.node, torch.stack((member, discount, gained), dim=1).unsqueeze(1))
        self.visits += member.long()
        self.value_sum += member * (gained + discount * value)
        edge = (member > 0) & (self._index > ROOT)  # the root has no edge that leads to it
        q = self._node_q()
        self.low.copy_(torch.minimum(self.low, q.masked_fill(~edge, math.inf).amin(1, keepdim=True)))
        self.high.copy_(torch.maximum(self.high, q.masked_fill(~edge, -math.inf).amax(1, keepdim=True)))
        self.fault |= ~(reward.isfinite() & value.isfinite())
        self.node += 1

    def _offer(self, actions: Tensor, probs: Tensor) -> None:
        width = actions.shape[1]
        self.actions[:, :, :width].index_copy_(1, self.node, actions.long().unsqueeze(1))
        self.probs[:, :, :width].index_copy_(1, self.node, probs.double().unsqueeze(1))
        self.fault |= (actions < 0).all(1, keepdim=True) | ~probs.isfinite().all(1, keepdim=True)

    # ------------------------------------------------------------------------------------------------------- select

    def select(self) -> tuple[Tensor, Tensor, Tensor]:
        """For every tree a node, the slot of an action that was never taken there, and the action: each [B]."""
        counts, q = self._edges()
        best = self._puct(self.rule, counts, q) if isinstance(self.rule, Puct) else self._gumbel(self.rule, counts, q)
        following = self.child.gather(2, best.unsqueeze(2)).squeeze(2)  # [B, N]
        following = torch.where(following < 0, self._index, following)  # the walk stays where it ends
        for _ in range(self.doublings):
            following = following.gather(1, following)
        parent = following[:, ROOT]
        slot = best.gather(1, parent.unsqueeze(1)).squeeze(1)
        return parent, slot, self.actions.flatten(1).gather(1, (parent * self.shape[2] + slot).unsqueeze(1)).squeeze(1)

    def _node_q(self) -> Tensor:
        return self.reward + self.rule.gamma * (self.value_sum / self.visits.clamp(min=1))  # [B, N]

    def _edges(self) -> tuple[Tensor, Tensor]:
        """Visits and Q [B, N, W] of the actions; 0 where never taken."""
        child = self.child.clamp(min=0).flatten(1)
        taken = self.child >= 0
        counts = self.visits.gather(1, child).view(self.shape) * taken
        return counts, torch.where(taken, self._node_q().gather(1, child).view(self.shape), 0.0)

    def _puct(self, rule: Puct, counts: Tensor, q: Tensor) -> Tensor:
        low = self.low.unsqueeze(2)
        span = (self.high - self.low).clamp(min=rule.floor).unsqueeze(2)
        taken = counts > 0
        total = self.visits - 1
        mean = (q.sum(2) / taken.sum(2).clamp(min=1)).unsqueeze(2)
        score = self.probs * self._exploration[total.clamp(0, len(rule.exploration) - 1)].unsqueeze(2) / (1 + counts)
        score = score + torch.where(total.unsqueeze(2) > 0, (torch.where(taken, q, mean) - low) / span, 0.0)
        return score.masked_fill(self.actions < 0, -math.inf).argmax(2)

    def _gumbel(self, rule: Gumbel, counts: Tensor, q: Tensor) -> Tensor:
        legal, taken = self.actions >= 0, counts > 0
        probs = self.probs.clamp(min=TINY)
        mass, total = (probs * taken).sum(2), self.visits - 1
        mixed = (self.value + total * ((probs * q).sum(2) / mass.clamp(min=TINY))) / total.clamp(min=0).add(1)
        completed = torch.where(taken, q, torch.where(total > 0, mixed, self.value).unsqueeze(2))
        low = completed.masked_fill(~legal, math.inf).amin(2, keepdim=True)
        high = completed.masked_fill(~legal, -math.inf).amax(2, keepdim=True)
        scale = (rule.c_visit + counts.amax(2, keepdim=True)) * rule.c_scale / (high - low).clamp(min=rule.floor)
        sigma = (completed - high) * scale
        weight = torch.where(legal, probs * sigma.exp(), 0.0)
        score = weight / weight.sum(2, keepdim=True) - counts / self.visits.clamp(min=1).unsqueeze(2)
        best = score.masked_fill(~legal, -math.inf).argmax(2)
        wanted = legal[:, ROOT] & (counts[:, ROOT] == self.schedule.index_select(0, self.node - 1).view(-1, 1))
        best[:, ROOT] = (self.noisy + sigma[:, ROOT]).masked_fill(~wanted, -math.inf).argmax(1)
        return best

    def read(self) -> Tensor:
        """The roots' visits and Q of W actions each, mean value, and fault: [B, 2 W + 2] float64."""
        counts, q = self._edges()
        value = self.value_sum[:, ROOT] / self.visits[:, ROOT]
        return torch.cat((counts[:, ROOT].double(), q[:, ROOT], value.unsqueeze(1), self.fault.double()), dim=1)
