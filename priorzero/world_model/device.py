"""The network inside a search on a GPU: fixed shapes, one recorded graph a simulation.

The tree may lie on the host (`DeviceEngine.expand`, one round trip a simulation) or beside the network
(`DeviceEngine.grow`, one read a search). All of it runs on a CPU too, unrecorded: so it is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from priorzero.types import Context, Expansion, Root
from priorzero.world_model.device_step import Memory, PlainStep, Step, Vocabulary
from priorzero.world_model.device_tree import DeviceTree, Gumbel, Puct
from priorzero.world_model.frozen import Attend, FrozenNet
from priorzero.world_model.graphs import Inlet, Replay, Sizes, round_up, row_bucket
from priorzero.world_model.model import UniZero, interleave
from priorzero.world_model.transformer import rotate

VOCABULARY_STEP = 256  # the vocabulary's tensors grow by doubling, from here
WIDTH_STEP = 16  # lists of actions are padded to multiples of it
NETWORKS = ("plain", "compiled", "triton")
TREES = ("plain", "triton")


@dataclass(frozen=True)
class Kernels:
    """What a simulation runs on; all say the same, up to rounding.

    Args:
        network: plain tensor operations (`device_step`); the same through ``torch.compile`` (a minute at the first
            search of each size); or our own Triton kernels between the matrix products (`fused_step`).
        tree: plain tensor operations (`device_tree`), or two Triton kernels (`tree_kernels`).

    Raises:
        ValueError: an unknown name.
    """

    network: str
    tree: str

    def __post_init__(self) -> None:
        if self.network not in NETWORKS or self.tree not in TREES:
            raise ValueError(
                f"network must be one of {', '.join(NETWORKS)} and tree one of {', '.join(TREES)}, not {self}"
            )


PLAIN = Kernels("plain", "plain")


class DeviceEngine:
    """Searches on one device. Sizes of batches and lists are rounded up, and each rounded size is recorded once.

    Args:
        model: the network, on the device.
        sizes: of a search.
        precision: float32 or bfloat16.
        kernels: what a simulation runs on.
    """

    def __init__(self, model: UniZero, sizes: Sizes, precision: str, kernels: Kernels) -> None:
        self.model, self.sizes, self.kernels = model, sizes, kernels
        self.device = next(model.parameters()).device
        self.net = FrozenNet(model, precision, self.device, in_place=True)
        self.known = 0  # actions
        empty = torch.zeros(0, model.config.width, dtype=self.net.dtype, device=self.device)
        self.vocabulary = Vocabulary(empty, empty)
        self._sessions: dict[tuple[int, int], Session] = {}

    def load(self) -> None:
        """Take over what the model's weights are now, in place: recordings stay valid."""
        self.net.load()

    def set_actions(self, tokens: Tensor, keys: Tensor) -> None:
        """Take over tokens and keys [V, D] of all actions."""
        self.known = len(tokens)
        if self.known > len(self.vocabulary.tokens):
            room = max(VOCABULARY_STEP, round_up(self.sizes.top_k, 16), 1 << (self.known - 1).bit_length())
            self.vocabulary = Vocabulary(
                *(torch.zeros(room, x.shape[1], dtype=self.net.dtype, device=self.device) for x in (tokens, keys))
            )
            self._sessions.clear()
        self.vocabulary.tokens[: self.known], self.vocabulary.keys[: self.known] = tokens, keys

    def root(self, context: Context, actions: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `planner.Planner.root`: value [B] and logits [B, A]."""
        rows, width = actions.shape
        key = row_bucket(rows), round_up(width, WIDTH_STEP)
        if key not in self._sessions:
            self._sessions[key] = Session(self, *key)
        self._session = self._sessions[key]
        return self._session.root(context, actions, known)

    def expand(self, node: int, parent: np.ndarray, action: np.ndarray) -> Expansion:
        """See `planner.Planner.expand`."""
        return self._session.expand(node, parent, action)

    def grow(
        self, root: Root, rule: Puct | Gumbel, simulations: int, noise: tuple[np.ndarray, np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Run a whole search from the states of the last `root`.

        Args:
            root: the same decisions.
            rule: how to select.
            simulations: at most as many as the engine has room for.
            noise: for Gumbel, ``noisy`` [B, A] and ``schedule`` [simulations, B].

        Returns:
            Visits [B, A] int32 and Q [B, A] float64 of the roots' actions, and the roots' values [B] float64.

        Raises:
            ValueError: the model said something that is not finite, or offered no action.
        """
        if simulations > self.sizes.simulations:
            raise ValueError(f"the planner has room for {self.sizes.simulations} simulations, not for {simulations}")
        rows, width = root.actions.shape
        out = self._session.grow(root, rule, simulations, noise)[:rows]
        if out[:, -1].any():
            row = int(out[:, -1].argmax())
            raise ValueError(f"row {row}: the world model's rewards or values are not finite, or it offers no action")
        wide = (out.shape[1] - 2) // 2
        return out[:, :width].astype(np.int32), out[:, wide : wide + width].copy(), out[:, -2].copy()


class Session:
    """Static tensors and recordings for one size of batch."""

    def __init__(self, engine: DeviceEngine, rows: int, width: int) -> None:
        self.engine, self.net, self.sizes, self.device = engine, engine.net, engine.sizes, engine.device
        self.rows, self.width, self.vocabulary = rows, width, engine.vocabulary
        model, sizes, steps, integer = engine.model, engine.sizes, engine.sizes.context_steps, torch.int64

        def inlet(*shape: int, dtype: torch.dtype = integer) -> Inlet:
            return Inlet(shape, dtype, self.device)

        self._vectors = inlet(rows, steps, model.config.observation_width, dtype=torch.float32)
        self._past, self._length = inlet(rows, steps - 1), inlet(rows)
        self._known = inlet(rows, len(self.vocabulary.keys), dtype=torch.bool)
        self.ids, self.probs = inlet(rows, width), inlet(rows, width, dtype=torch.float32)
        self.value = inlet(rows, dtype=torch.float32)
        self._asked, self._node = inlet(rows, 2), torch.ones(1, dtype=integer, device=self.device)
        self._length.tensor.fill_(1)
        attention = model.transformer.heads, model.transformer.window, model.transformer.rotary
        self.memory = Memory(self.net, attention, sizes, rows, self.device)
        self.step = self._make_step()
        self._root = self.record(self._run_root)
        self._expand: Replay[Tensor] | None = None
        self._trees: dict[Puct | Gumbel, _Recorded] = {}

    def record(self, function: Callable, reset: Callable[[], object] | None = None) -> Replay:
        """See `graphs.Replay`."""
        return Replay(function, self.device, reset or (lambda: None))

    def _make_step(self) -> Step:
        parts = self.net, self.memory, self.vocabulary, self._known.tensor
        if self.engine.kernels.network == "triton":
            from priorzero.world_model.fused_step import FusedStep  # needs Triton

            return FusedStep(*parts)
        plain = PlainStep(*parts)
        return torch.compile(plain.__call__, dynamic=False) if self.engine.kernels.network == "compiled" else plain

    # -------------------------------------------------------------------------------------------------- the root

    def root(self, context: Context, actions: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `DeviceEngine.root`."""
        self._vectors.put(context.vectors)
        self._past.put(np.maximum(context.actions, 0))
        self._length.put(context.length)
        self.ids.put(actions, fill=-1)
        self._known.put(known, fill=False)
        out = self._root()[: len(actions)].cpu().numpy()
        return out[:, 0].copy(), out[:, 1 : 1 + actions.shape[1]].copy()

    def _run_root(self) -> Tensor:
        tokens, memory, vectors = self.sizes.root_tokens, self.memory, self._vectors.tensor
        latent = self.net.encode(vectors.flatten(0, 1)).unflatten(0, vectors.shape[:2])
        index = memory.slot[:tokens]
        real = index >= tokens - (2 * self._length.tensor - 1).unsqueeze(1)
        if self.engine.kernels.network != "triton":
            memory.pool[..., tokens:, :] = 0.0  # what an earlier search left is hidden, but must be finite
        memory.seen[:, 0] = False
        memory.seen[:, 0, :tokens] = real
        memory.slot_position[:, :tokens] = index
        memory.position[:, 0] = tokens - 1
        sequence = interleave(latent, self.vocabulary.tokens[self._past.tensor])
        value_logits, query = self.net.read_state(self.net.sequence(sequence, self._attend_root(index, real)))
        ids = self.ids.tensor
        logits = (query @ self.vocabulary.keys.T).float().gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
        return torch.cat((self.net.support.decode(value_logits).unsqueeze(1), logits), dim=1)

    def _attend_root(self, index: Tensor, real: Tensor) -> Attend:
        memory = self.memory
        rotation, mask = memory.rotation(index), self.engine.model.transformer.mask(index, real)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            qkv = qkv.unflatten(-1, (3, memory.heads, -1))
            q, k = (t.transpose(1, 2) for t in rotate(qkv[..., :2, :, :], rotation).unbind(-3))
            v = qkv[..., 2, :, :].transpose(1, 2)
            memory.pool[layer, 0, :, :, : len(index)] = k
            memory.pool[layer, 1, :, :, : len(index)] = v
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2)

        return attend

    # ------------------------------------------------------------------------------------------------- the nodes

    def expand(self, node: int, parent: np.ndarray, action: np.ndarray) -> Expansion:
        """See `DeviceEngine.expand`."""
        if self._expand is None:
            self._expand = self.record(self._run_expand, lambda: self._node.fill_(1))
        self._asked.put(np.stack((parent, action), axis=1))
        self._node.fill_(node)
        out = self._expand()[: len(parent)].cpu().numpy()
        width = min(self.sizes.top_k, self.engine.known)
        ids, probs = out[:, 2 : 2 + width], out[:, 2 + self.sizes.top_k : 2 + self.sizes.top_k + width]
        return Expansion(out[:, 0].copy(), out[:, 1].copy(), ids.astype(np.int32), probs.copy())

    def _run_expand(self) -> Tensor:
        parent, action = self._asked.tensor.T.contiguous()
        said = self.step(parent, action, self._node.expand(self.rows))
        numbers = said.reward.unsqueeze(1), said.value.unsqueeze(1), said.actions.float()  # ids are below 2^24
        return torch.cat((*numbers, said.probs), dim=1)

    # -------------------------------------------------------------------------------------------------- the tree

    def grow(
        self, root: Root, rule: Puct | Gumbel, simulations: int, noise: tuple[np.ndarray, np.ndarray] | None
    ) -> np.ndarray:
        """`DeviceTree.read` after a search, one row a tree; rows beyond the batch repeat the first."""
        if rule not in self._trees:
            self._trees[rule] = _Recorded(self, rule)
        self.probs.put(root.probs, fill=0.0)
        self.value.put(root.value)
        recorded = self._trees[rule]
        recorded.plant()
        if noise is not None:
            recorded.take_noise(*noise)
        for _ in range(simulations):
            recorded.simulate()
        return recorded.read().cpu().numpy()


class _Recorded:
    """One tree with the recordings that grow it."""

    def __init__(self, session: Session, rule: Puct | Gumbel) -> None:
        sizes, self.session = session.sizes, session
        self.width = max(session.width, round_up(sizes.top_k, WIDTH_STEP))
        shape = (session.rows, sizes.simulations + 1, self.width)
        kind = DeviceTree
        if session.engine.kernels.tree == "triton":
            from priorzero.world_model.tree_kernels import KernelTree as kind  # needs Triton
        self.tree = kind(shape, rule, session.device)
        self._noisy = Inlet((session.rows, self.width), torch.float64, session.device)
        self._schedule = Inlet((session.rows, sizes.simulations), torch.int64, session.device)
        self.plant = session.record(self._plant)
        self.simulate = session.record(self._simulate, self._plant)
        self.read = session.record(self.tree.read)

    def take_noise(self, noisy: np.ndarray, schedule: np.ndarray) -> None:
        self.tree.noisy.copy_(self._noisy.put(noisy, fill=0.0))
        self.tree.schedule[: self._schedule.tensor.shape[1]].copy_(self._schedule.put(schedule.T, fill=0).T)

    def _plant(self) -> None:
        spare = self.width - self.session.width
        ids, probs = self.session.ids.tensor, self.session.probs.tensor
        self.tree.plant(F.pad(ids, (0, spare), value=-1), F.pad(probs, (0, spare)), self.session.value.tensor)

    def _simulate(self) -> None:
        parent, slot, action = self.tree.select()
        said = self.session.step(parent, action, self.tree.node.expand(self.session.rows))
        self.tree.attach(parent, slot, said)
