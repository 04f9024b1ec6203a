"""The network inside a search on a GPU: fixed shapes, one recorded graph a simulation.

The tree may lie on the host (`DeviceEngine.expand`, one round trip a simulation) or beside the network
(`DeviceEngine.grow`, one read a search). All of it runs on a CPU too, unrecorded: so it is tested.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from priorzero.types import Context, Expansion, Root
from priorzero.world_model.device_tree import DeviceTree, Gumbel, Puct
from priorzero.world_model.frozen import Attend, FrozenNet
from priorzero.world_model.graphs import Inlet, Replay, Sizes, round_up, row_bucket
from priorzero.world_model.model import UniZero, interleave
from priorzero.world_model.transformer import rotate

VOCABULARY_STEP = 256  # the vocabulary's tensors grow by doubling, from here
WIDTH_STEP = 16  # lists of actions are padded to multiples of it


class DeviceEngine:
    """Searches on one device. Sizes of batches and lists are rounded up, and each rounded size is recorded once.

    Args:
        model: the network, on the device.
        sizes: of a search.
        precision: float32 or bfloat16.
        compiled: fuse the small operations of a simulation with ``torch.compile`` (minutes at the first search).
    """

    def __init__(self, model: UniZero, sizes: Sizes, precision: str, compiled: bool) -> None:
        self.model, self.sizes, self.compiled = model, sizes, compiled
        self.device = next(model.parameters()).device
        self.net = FrozenNet(model, precision, self.device, in_place=True)
        self.vocabulary = 0
        self.tokens = self.keys = torch.zeros(0, model.config.width, dtype=self.net.dtype, device=self.device)
        self._sessions: dict[tuple[int, int], Session] = {}

    def load(self) -> None:
        """Take over what the model's weights are now, in place: recordings stay valid."""
        self.net.load()

    def set_actions(self, tokens: Tensor, keys: Tensor) -> None:
        """Take over tokens and keys [V, D] of all actions."""
        self.vocabulary = len(tokens)
        if self.vocabulary > len(self.tokens):
            room = max(VOCABULARY_STEP, round_up(self.sizes.top_k, 16), 1 << (self.vocabulary - 1).bit_length())
            self.tokens, self.keys = (
                torch.zeros(room, x.shape[1], dtype=self.net.dtype, device=self.device) for x in (tokens, keys)
            )
            self._sessions.clear()
        self.tokens[: self.vocabulary], self.keys[: self.vocabulary] = tokens, keys

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
        self.rows, self.width = rows, width
        model, sizes, steps = engine.model, engine.sizes, engine.sizes.context_steps
        self.window, self.heads = model.transformer.window, model.transformer.heads
        self.rotary, integer = model.transformer.rotary, torch.int64

        def inlet(*shape: int, dtype: torch.dtype = integer) -> Inlet:
            return Inlet(shape, dtype, self.device)

        self._vectors = inlet(rows, steps, model.config.observation_width, dtype=torch.float32)
        self._past, self._length = inlet(rows, steps - 1), inlet(rows)
        self._ids, self._known = inlet(rows, width), inlet(rows, len(engine.keys), dtype=torch.bool)
        self._probs, self._value = inlet(rows, width, dtype=torch.float32), inlet(rows, dtype=torch.float32)
        self._asked, self._node = inlet(rows, 2), torch.ones(1, dtype=integer, device=self.device)
        self._length.tensor.fill_(1)
        nodes = sizes.simulations + 1
        dim = self.net.width // self.heads
        shape = (self.net.layers, 2, rows, self.heads, sizes.slots, dim)
        self._pool = torch.zeros(shape, dtype=self.net.dtype, device=self.device)
        self._seen = torch.zeros(rows, nodes, sizes.slots, dtype=torch.bool, device=self.device)
        self._position = torch.zeros(rows, nodes, dtype=integer, device=self.device)
        self._slot_position = torch.zeros(rows, sizes.slots, dtype=integer, device=self.device)
        self._slot = torch.arange(sizes.slots, device=self.device)
        self._row = torch.arange(rows, device=self.device)
        self._root = self._record(self._run_root)
        self._expand: Replay[Tensor] | None = None
        self._trees: dict[Puct | Gumbel, _Recorded] = {}

    def _record(self, function: Callable, node: Tensor | None = None, compiled: bool = False) -> Replay:
        if compiled:
            function = torch.compile(function, dynamic=False)
        node = self._node if node is None else node
        return Replay(function, self.device, lambda: node.fill_(1))

    # -------------------------------------------------------------------------------------------------- the root

    def root(self, context: Context, actions: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `DeviceEngine.root`."""
        self._vectors.put(context.vectors)
        self._past.put(np.maximum(context.actions, 0))
        self._length.put(context.length)
        self._ids.put(actions, fill=-1)
        self._known.put(known, fill=False)
        out = self._root()[: len(actions)].cpu().numpy()
        return out[:, 0].copy(), out[:, 1 : 1 + actions.shape[1]].copy()

    def _run_root(self) -> Tensor:
        tokens = self.sizes.root_tokens
        vectors = self._vectors.tensor
        latent = self.net.encode(vectors.flatten(0, 1)).unflatten(0, vectors.shape[:2])
        index = self._slot[:tokens]
        real = index >= tokens - (2 * self._length.tensor - 1).unsqueeze(1)
        self._pool[..., tokens:, :] = 0.0  # what an earlier search left is hidden, but must be finite
        self._seen[:, 0] = False
        self._seen[:, 0, :tokens] = real
        self._slot_position[:, :tokens] = index
        self._position[:, 0] = tokens - 1
        sequence = interleave(latent, self.engine.tokens[self._past.tensor])
        value_logits, query = self.net.read_state(self.net.sequence(sequence, self._attend_root(index, real)))
        ids = self._ids.tensor
        logits = (query @ self.engine.keys.T).float().gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
        return torch.cat((self.net.support.decode(value_logits).unsqueeze(1), logits), dim=1)

    def _attend_root(self, index: Tensor, real: Tensor) -> Attend:
        rotation, mask = self._rotation(index), self.engine.model.transformer.mask(index, real)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            qkv = qkv.unflatten(-1, (3, self.heads, -1))
            q, k = (t.transpose(1, 2) for t in rotate(qkv[..., :2, :, :], rotation).unbind(-3))
            v = qkv[..., 2, :, :].transpose(1, 2)
            self._pool[layer, 0, :, :, : len(index)] = k
            self._pool[layer, 1, :, :, : len(index)] = v
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2)

        return attend

    def _rotation(self, position: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary(position)
        return cos.to(self.net.dtype), sin.to(self.net.dtype)

    # ------------------------------------------------------------------------------------------------- the nodes

    def expand(self, node: int, parent: np.ndarray, action: np.ndarray) -> Expansion:
        """See `DeviceEngine.expand`."""
        if self._expand is None:
            self._expand = self._record(self._run_expand, compiled=self.engine.compiled)
        self._asked.put(np.stack((parent, action), axis=1))
        self._node.fill_(node)
        out = self._expand()[: len(parent)].cpu().numpy()
        width = min(self.sizes.top_k, self.engine.vocabulary)
        ids, probs = out[:, 2 : 2 + width], out[:, 2 + self.sizes.top_k : 2 + self.sizes.top_k + width]
        return Expansion(out[:, 0].copy(), out[:, 1].copy(), ids.astype(np.int32), probs.copy())

    def _run_expand(self) -> Tensor:
        parent, action = self._asked.tensor.unbind(1)
        reward, value, ids, probs = self._imagine(parent, action, self._node)
        return torch.cat((reward.unsqueeze(1), value.unsqueeze(1), ids.float(), probs), dim=1)  # ids are below 2^24

    def _imagine(self, parent: Tensor, action: Tensor, node: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reward and value [B], ids and probs [B, K] of the state behind ``action`` [B], kept as ``node`` [1]."""
        position = self._position.gather(1, parent.unsqueeze(1)) + 1  # [B, 1]
        slot = self.sizes.root_tokens + 2 * (node - 1)
        self._slot_position.index_copy_(1, slot, position)
        self._slot_position.index_copy_(1, slot + 1, position + 1)
        seen = self._seen[self._row, parent] | (self._slot == slot)
        attend = self._attend_node(slot, position, seen)
        reward_logits, latent = self.net.read_step(self.net.token(self.engine.tokens[action], attend))
        seen = seen | (self._slot == slot + 1)
        attend = self._attend_node(slot + 1, position + 1, seen)
        value_logits, query = self.net.read_state(self.net.token(latent, attend))
        self._seen.index_copy_(1, node, seen.unsqueeze(1))
        self._position.index_copy_(1, node, position + 1)
        reward, value = self.net.support.decode(torch.stack((reward_logits, value_logits))).unbind(0)
        logits = (query @ self.engine.keys.T).float().masked_fill(~self._known.tensor, -torch.inf)
        best, ids = logits.topk(self.sizes.top_k, dim=1)
        padded = best == -torch.inf  # a NaN must stay one
        return reward, value, ids.masked_fill(padded, -1), best.softmax(1).masked_fill(padded, 0.0)

    def _attend_node(self, slot: Tensor, position: Tensor, seen: Tensor) -> Attend:
        visible = seen & (position - self._slot_position < self.window)
        bias = torch.where(visible, 0.0, -torch.inf).to(self.net.dtype)[:, None, None]  # [B, 1, 1, slots]
        rotation = self._rotation(position[:, 0])

        def attend(layer: int, qkv: Tensor) -> Tensor:
            qkv = qkv.unflatten(-1, (3, self.heads, -1))
            q, k = rotate(qkv[:, :2], rotation).unbind(1)
            keys, values = self._pool[layer, 0], self._pool[layer, 1]
            keys.index_copy_(2, slot, k.unsqueeze(2))
            values.index_copy_(2, slot, qkv[:, 2].unsqueeze(2))
            return F.scaled_dot_product_attention(q.unsqueeze(2), keys, values, attn_mask=bias).flatten(1)

        return attend

    # -------------------------------------------------------------------------------------------------- the tree

    def grow(
        self, root: Root, rule: Puct | Gumbel, simulations: int, noise: tuple[np.ndarray, np.ndarray] | None
    ) -> np.ndarray:
        """`DeviceTree.read` after a search, one row a tree; rows beyond the batch repeat the first."""
        if rule not in self._trees:
            self._trees[rule] = _Recorded(self, rule)
        self._probs.put(root.probs, fill=0.0)
        self._value.put(root.value)
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
        self.tree = DeviceTree(shape, rule, session.device)
        self._noisy = Inlet((session.rows, self.width), torch.float64, session.device)
        self._schedule = Inlet((session.rows, sizes.simulations), torch.int64, session.device)
        self.plant = session._record(self._plant)
        self.plant()
        self.simulate = session._record(self._simulate, self.tree.node, session.engine.compiled)
        self.read = session._record(self.tree.read)

    def take_noise(self, noisy: np.ndarray, schedule: np.ndarray) -> None:
        self.tree.noisy.copy_(self._noisy.put(noisy, fill=0.0))
        self.tree.schedule[: self._schedule.tensor.shape[1]].copy_(self._schedule.put(schedule.T, fill=0).T)

    def _plant(self) -> None:
        spare = self.width - self.session.width
        ids, probs = self.session._ids.tensor, self.session._probs.tensor
        self.tree.plant(F.pad(ids, (0, spare), value=-1), F.pad(probs, (0, spare)), self.session._value.tensor)

    def _simulate(self) -> None:
        parent, slot, action = self.tree.select()
        reward, value, ids, probs = self.session._imagine(parent, action.clamp(min=0), self.tree.node)
        self.tree.offer(ids, probs)
        self.tree.attach(parent, slot, reward, value)
