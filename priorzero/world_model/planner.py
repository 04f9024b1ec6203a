"""Runs a snapshot of the world model inside a search: contexts in, root predictions and expansions out.

Each decision encodes the last few steps afresh. Inside a tree every node adds two tokens (its action, its predicted
state) whose keys and values lie in one pool, preallocated and indexed by node. So nothing is copied between nodes and
nothing outlives a search.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from priorzero.types import Context, Expansion, Root
from priorzero.world_model.device import PLAIN, DeviceEngine, Kernels
from priorzero.world_model.device_tree import Gumbel, Puct
from priorzero.world_model.graphs import Sizes
from priorzero.world_model.host import HostEngine
from priorzero.world_model.linear import PRECISIONS
from priorzero.world_model.model import UniZero

TREES = ("auto", "host", "device")
KERNELS = {"plain": PLAIN, "compiled": Kernels("compiled", "plain"), "triton": Kernels("triton", "triton")}


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """Sizes of a search."""

    context_steps: int  # C: how many steps, the current one included, the root is encoded from
    top_k: int  # K: how many known actions an imagined state offers to the search
    simulations: int  # the most nodes a search may add


@dataclass(frozen=True, kw_only=True)
class PlannerOptions:
    """How a planner runs: what changes its speed, and what it says by no more than rounding.

    Raises:
        ValueError: an unknown name, or options that do not go together; they are named as in the configuration.
    """

    device: str
    precision: str  # auto (bfloat16 on a CUDA device, float32 elsewhere), or one of `linear.PRECISIONS`
    tree: str  # one of `TREES`; auto: beside the network on a CUDA device, in the host's memory elsewhere
    kernels: str  # auto (triton on a CUDA device, plain elsewhere), or one of `KERNELS`

    def __post_init__(self) -> None:
        for name, known in (("precision", ("auto", *PRECISIONS)), ("tree", TREES), ("kernels", ("auto", *KERNELS))):
            if getattr(self, name) not in known:
                raise ValueError(f"world_model.planner.{name}={getattr(self, name)}: use one of {', '.join(known)}")
        where = f"on trainer.device={self.device} with world_model.planner.tree={self.tree}"
        if self.precision == "int8" and not self.on_host:
            raise ValueError(
                f"world_model.planner.precision=int8 cannot be had {where}: it needs a CPU with the trees on the host; "
                "use auto, float32 or bfloat16"
            )
        if self.precision == "bfloat16" and self.on_host:
            raise ValueError(
                f"world_model.planner.precision=bfloat16 cannot be had {where}: use auto, float32 or int8, or a GPU "
                "(trainer=gpu)"
            )
        if self.kernels not in ("auto", "plain") and (self.on_host or (self.kernels == "triton" and not self.cuda)):
            raise ValueError(
                f"world_model.planner.kernels={self.kernels} cannot be had {where}: use auto or plain, or a GPU "
                "(trainer=gpu)"
            )

    @property
    def cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return torch.device(self.device).type == "cuda"

    @property
    def device_tree(self) -> bool:
        """Whether the trees lie beside the network."""
        return self.tree == "device" or (self.tree == "auto" and self.cuda)

    @property
    def on_host(self) -> bool:
        """Whether all of a search runs in compiled loops on the CPU (`HostEngine`)."""
        return not self.cuda and not self.device_tree


@dataclass(frozen=True, slots=True)
class RootPrediction:
    """What the network says of the states to decide in."""

    value: np.ndarray  # [B] float32
    logits: np.ndarray  # [B, A] float32 of the given actions, -inf where padded


class Planner:
    """A `priorzero.search.Model` over a UniZero network. One search at a time; not shared between threads.

    Args:
        model: the network. It is moved to ``device`` and frozen.
        config: sizes.
        device: where it runs. On a CUDA device one simulation is one recorded graph.
        precision: see `linear.PRECISIONS`; None: bfloat16 on a CUDA device, float32 elsewhere.
        kernels: what a simulation runs on, see `device.Kernels`; a `Planner` on a CPU has loops of its own.

    Raises:
        ValueError: the network is too short for the search, or the precision or the kernels cannot be had.
    """

    def __init__(
        self,
        model: UniZero,
        config: PlannerConfig,
        *,
        device: str = "cpu",
        precision: str | None = None,
        kernels: Kernels = PLAIN,
    ) -> None:
        longest = 2 * config.context_steps - 1 + 2 * config.simulations
        if model.config.max_positions < longest:
            raise ValueError(
                f"world_model.max_positions is {model.config.max_positions}, but a context of {config.context_steps} "
                f"steps and {config.simulations} simulations need {longest}: raise it, or lower one of them"
            )
        self.config, self.device = config, torch.device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self._sizes = Sizes(config.context_steps, config.simulations, config.top_k)
        precision = precision or ("bfloat16" if self.device.type == "cuda" else "float32")
        self._engine = self._make_engine(precision, kernels)
        self._vectors = torch.zeros(0, model.config.action_width, device=self.device)
        self._embed_actions()

    def _make_engine(self, precision: str, kernels: Kernels) -> HostEngine | DeviceEngine:
        if self.device.type != "cpu":
            return DeviceEngine(self.model, self._sizes, precision, kernels)
        if kernels != PLAIN:
            raise ValueError(f"a Planner on a CPU has no use for {kernels}: leave them out, or take a DevicePlanner")
        return HostEngine(self.model, self._sizes, precision)

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Take over new weights (a ``state_dict`` of `UniZero`)."""
        self.model.load_state_dict(state)
        self._engine.load()
        self._embed_actions()

    @torch.inference_mode()
    def set_actions(self, vectors: np.ndarray) -> None:
        """Tell the vectors [V, E] of all known actions; the row is the id. Vocabularies only grow."""
        if len(vectors) > len(self._vectors):
            new = torch.tensor(vectors[len(self._vectors) :], dtype=torch.float32, device=self.device)
            self._vectors = torch.cat((self._vectors, new))
            self._embed_actions()

    @torch.inference_mode()
    def _embed_actions(self) -> None:
        self._engine.set_actions(self.model.action_tokens(self._vectors), self.model.action_keys(self._vectors))

    @torch.inference_mode()
    def root(self, context: Context, actions: np.ndarray, known: np.ndarray) -> RootPrediction:
        """Start a search of ``B`` trees.

        Args:
            context: the last steps of each episode.
            actions: [B, A] int32 ids of the valid actions, -1 where padded.
            known: [B, V] bool, the actions that imagined states of each tree may offer.
        """
        return RootPrediction(*self._engine.root(context, actions, known))

    @torch.inference_mode()
    def expand(self, node: int, parent: np.ndarray, action: np.ndarray) -> Expansion:
        """Take ``action`` [B] (ids) in node ``parent`` [B] of each tree and keep the state reached as ``node``."""
        return self._engine.expand(node, parent, action)


class DevicePlanner(Planner):
    """A planner that keeps the trees beside the network: `priorzero.search` hands whole searches over to it.

    Arguments as for `Planner`; on a CPU it works, slowly, and not in int8.
    """

    _engine: DeviceEngine

    def _make_engine(self, precision: str, kernels: Kernels) -> DeviceEngine:
        return DeviceEngine(self.model, self._sizes, precision, kernels)

    @torch.inference_mode()
    def grow_puct(
        self, root: Root, exploration: np.ndarray, floor: float, gamma: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `priorzero.search.search.TreeModel`."""
        rule = Puct(tuple(exploration.tolist()), floor, gamma)
        return self._engine.grow(root, rule, len(exploration) - 1, None)

    @torch.inference_mode()
    def grow_gumbel(
        self, root: Root, noise: tuple[np.ndarray, np.ndarray], constants: tuple[float, float, float], gamma: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `priorzero.search.search.TreeModel`."""
        return self._engine.grow(root, Gumbel(*constants, gamma), len(noise[1]), noise)


def make_planner(model: UniZero, config: PlannerConfig, options: PlannerOptions) -> Planner:
    """The planner that ``options`` ask for.

    Raises:
        ValueError: as `Planner`, or Triton is needed and not installed.
    """
    precision = None if options.precision == "auto" else options.precision
    kind = DevicePlanner if options.device_tree else Planner
    kernels = ("triton" if options.cuda else "plain") if options.kernels == "auto" else options.kernels
    if kernels == "triton" and importlib.util.find_spec("triton") is None:
        raise ValueError(
            "world_model.planner.kernels=auto takes Triton's kernels on a GPU, and this torch comes without Triton: "
            "install torch for CUDA, or set world_model.planner.kernels=plain"
        )
    return kind(model, config, device=options.device, precision=precision, kernels=KERNELS[kernels])
