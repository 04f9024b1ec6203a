"""Fixed sizes, CUDA graphs and page-locked buffers; on a CPU the same functions, run as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from priorzero.utils.cuda_graphs import random_numbers, recording, replay

T = TypeVar("T")
WARM_UPS = 3


@dataclass(frozen=True)
class Sizes:
    """What is fixed for the life of an engine."""

    context_steps: int
    simulations: int
    top_k: int

    @property
    def root_tokens(self) -> int:
        """Tokens of a whole context."""
        return 2 * self.context_steps - 1

    @property
    def slots(self) -> int:
        """Tokens of a tree, padded for the attention kernels."""
        return round_up(self.root_tokens + 2 * self.simulations, 16)


class Replay(Generic[T]):
    """A function of static tensors, recorded once and replayed.

    The recording runs the function some times before, on whatever the tensors hold. What the function returns is
    overwritten by the next replay.

    Args:
        function: without arguments, without synchronisation; reads and writes tensors that stay where they are.
        device: a CUDA device records; any other runs the function each time.
        reset: called before each run of the recording, to undo what the function counts up.
    """

    def __init__(self, function: Callable[[], T], device: torch.device, reset: Callable[[], None]) -> None:
        self._function, self._graph = function, None
        if device.type == "cuda":
            with torch.cuda.device(device):
                self._record(reset)

    def _record(self, reset: Callable[[], None]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), random_numbers():
            for _ in range(WARM_UPS):
                reset()
                self._function()
            reset()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with recording(self._graph):
            self._out = self._function()

    def __call__(self) -> T:
        """Replays, or runs the function."""
        if self._graph is None:
            return self._function()
        replay(self._graph)
        return self._out


class Inlet:
    """A static device tensor that is filled from numpy arrays with fewer rows; the first row fills the rest.

    Args:
        shape: of the tensor, rows first.
        dtype: of the tensor.
        device: where it lies.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.tensor = torch.zeros(shape, dtype=dtype, device=device)
        self._staged = torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
        self._array = self._staged.numpy()

    def put(self, array: np.ndarray, fill: float | None = None) -> Tensor:
        """Copy ``array`` [n, m, ...] in. The last copy must have arrived, which any read of a result makes sure of.

        Args:
            array: n at most the rows; m, if narrower than the tensor, is completed with ``fill``.
            fill: what stands beyond m.
        """
        n = len(array)
        if fill is None:
            self._array[:n] = array
        else:
            self._array[:n, : array.shape[1]] = array
            self._array[:n, array.shape[1] :] = fill
        self._array[n:] = self._array[:1]
        return self.tensor.copy_(self._staged, non_blocking=True)


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple that is not below ``n``."""
    return -(-n // multiple) * multiple


def row_bucket(n: int) -> int:
    """The power of two, 8 or above, that holds ``n`` rows: few sizes, few recordings."""
    return max(8, 1 << (n - 1).bit_length())
