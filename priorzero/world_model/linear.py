"""Linear layers of a frozen network, in the form that runs fastest where they run.

A layer here is a function with two variants that may save a pass over memory: ``gelu`` applies the activation to its
output, ``add`` adds the output to a residual.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from priorzero.world_model.kernels import UNSIGNED_ZERO, quantize_rows, rescale, rescale_and_add

PACK_FROM = 2**16  # elements of a matrix from which the packed layout pays for the slower call
PRECISIONS = ("float32", "bfloat16", "int8")


class Dense:
    """Plain matrices in any float type, on any device. New weights are written in place: a recorded graph sees them.

    Args:
        parts: layers that read the same input; their outputs lie side by side.
        dtype: float type of the copy.
        device: where it lies.
    """

    def __init__(self, parts: Sequence[nn.Linear], dtype: torch.dtype, device: torch.device) -> None:
        self.weight, self.bias = (x.to(device, dtype) for x in _join(parts))

    def load(self, *parts: nn.Linear) -> None:
        """Take over the weights of the layers."""
        weight, bias = _join(parts)
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def __call__(self, x: Tensor) -> Tensor:
        """W x + b, from [..., in] to [..., out]."""
        return F.linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU(W x + b)."""
        return F.gelu(self(x))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """W x + b + residual."""
        return residual + self(x)


class Packed:
    """Float32 on a CPU with oneDNN: weights in its blocked layout, activation and residual fused into the product.

    For 8 to 64 rows, a batched search, this takes half to two thirds of the time of the plain product.
    """

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        self.load(*parts)

    def load(self, *parts: nn.Linear) -> None:
        """See `Dense`."""
        weight, self.bias = _join(parts)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 16)

    def __call__(self, x: Tensor) -> Tensor:
        """See `Dense`."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        """See `Dense`."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "none")

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """See `Dense`."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")


class Quantized:
    """Int8 on a CPU: weights with a scale for each output, activations with a scale for each row, made as they come.

    Rows do not influence each other. Products of 8-bit numbers are exact; what is lost is lost in rounding, about 1 %
    of the length of an output.
    """

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        self.load(*parts)

    def load(self, *parts: nn.Linear) -> None:
        """See `Dense`."""
        weight, bias = _join(parts)
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise ValueError("the world model's weights hold a NaN or an infinity, which int8 would hide")
        self.scale = (weight.abs().amax(1) / 127).clamp(min=1e-12)
        rounded = (weight / self.scale.unsqueeze(1)).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, [16, weight.shape[1]])
        self.zero, self.bias = torch.zeros(len(bias), dtype=torch.int64), bias.numpy()

    def __call__(self, x: Tensor) -> Tensor:
        """See `Dense`."""
        flat, product, row_scale = self._product(x)
        rescale(product, row_scale, self.bias)
        return flat.view(*x.shape[:-1], -1)

    def gelu(self, x: Tensor) -> Tensor:
        """See `Dense`."""
        return F.gelu(self(x))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """See `Dense`."""
        flat, product, row_scale = self._product(x)
        rescale_and_add(product, row_scale, self.bias, residual.reshape(product.shape).numpy())
        return flat.view(residual.shape)

    def _product(self, x: Tensor) -> tuple[Tensor, np.ndarray, np.ndarray]:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        quantized, row_scale = torch.empty(rows.shape, dtype=torch.uint8), np.empty(len(rows), np.float32)
        quantize_rows(rows.numpy(), quantized.numpy(), row_scale)
        out = torch.ops.onednn.qlinear_pointwise(
            *(quantized, 1.0, UNSIGNED_ZERO), *(self.packed, self.scale, self.zero, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )  # fmt: skip
        return out, out.numpy(), row_scale


FrozenLinear = Dense | Packed | Quantized


def freeze(parts: Sequence[nn.Linear], precision: str, device: torch.device, *, in_place: bool) -> FrozenLinear:
    """The fastest layer of this precision on this device.

    Args:
        parts: the layers, or several that read the same input.
        precision: one of `PRECISIONS`.
        device: where it runs.
        in_place: weights must stay plain tensors that never move.

    Raises:
        ValueError: the precision is unknown, or cannot be had there.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "int8":
        if device.type != "cpu" or in_place:
            raise ValueError(f"precision int8 needs a Planner on a CPU: on {device} take bfloat16, or float32")
        if "onednn" not in torch.backends.quantized.supported_engines:
            raise ValueError("precision int8 needs a torch built with oneDNN, and this one is not: take float32")
        return Quantized(parts)
    large = sum(part.weight.numel() for part in parts) >= PACK_FROM
    if (
        large
        and device.type == "cpu"
        and not in_place
        and precision == "float32"
        and torch.backends.mkldnn.is_available()
    ):
        return Packed(parts)
    return Dense(parts, getattr(torch, precision), device)


def _join(parts: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    weight = torch.cat([part.weight.detach() for part in parts])
    return weight, torch.cat([part.bias.detach() for part in parts])
