"""The decoder of a language model as CUDA graphs: small batches wait for the launches of kernels, not for the GPU."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from priorzero.policy.logprobs import packed_hidden
from priorzero.policy.packing import padded
from priorzero.types import PackedPrompts
from priorzero.utils.cuda_graphs import recording, replay

WIDTH_STEP = 64  # rows are padded to multiples of it
KEPT = 64  # recordings; the least recently used one is dropped


class RecordedDecoder:
    """Does what ``packed_hidden`` does. A size of batch is recorded when it comes for the second time.

    Call it without gradients, and read what it returns before the next call, which overwrites it. Weights may change in
    place. What a model does with its inputs must not depend on their values on the host.
    """

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()
        self._recordings: OrderedDict[tuple[int, int], _Recording] = OrderedDict()
        self._memory: Any = None  # shared by all recordings: only one of them runs at a time

    def __call__(self, model: nn.Module, packed: PackedPrompts) -> Tensor:
        """Last hidden states [R, L, width] of the rows of ``packed``, which lies on a CUDA device."""
        rows, width = packed.tokens.shape
        size = (rows, width)
        if size not in self._seen:
            self._seen.add(size)
            return packed_hidden(model, packed)
        if size not in self._recordings:
            self._memory = self._memory or torch.cuda.graph_pool_handle()
            self._recordings[size] = _Recording.of(model, packed, self._memory)
            if len(self._recordings) > KEPT:
                self._recordings.popitem(last=False)
        self._recordings.move_to_end(size)
        return self._recordings[size].run(packed)


@dataclass(frozen=True)
class _Recording:
    inputs: PackedPrompts  # of the graph, which stay where they are
    graph: torch.cuda.CUDAGraph
    hidden: Tensor

    @staticmethod
    def of(model: nn.Module, packed: PackedPrompts, memory: Any) -> _Recording:
        inputs = replace(packed, tokens=packed.tokens.clone(), position=packed.position.clone(), end=packed.end.clone())
        with torch.cuda.device(packed.tokens.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                packed_hidden(model, inputs)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with recording(graph, memory):
                hidden = packed_hidden(model, inputs)
        return _Recording(inputs, graph, hidden)

    def run(self, packed: PackedPrompts) -> Tensor:
        for name in ("tokens", "position", "end"):
            getattr(self.inputs, name).copy_(getattr(packed, name))
        replay(self.graph)
        return self.hidden


def rounded(packed: PackedPrompts) -> PackedPrompts:
    """The same, padded to one of few sizes: so recordings are used again."""
    rows, width = packed.tokens.shape
    return padded(packed, _few(rows), -(-width // WIDTH_STEP) * WIDTH_STEP)


def _few(n: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is not below ``n``."""
    power = 1 << (n - 1).bit_length()
    return power * 3 // 4 if power >= 4 and n <= power * 3 // 4 else power
