"""A weight matrix kept in the form in which few rows are multiplied fastest."""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F

_FLOOR = {torch.float32: 500_000, torch.bfloat16: 0}
"""
Multiply-adds from which oneDNN's packed weights are faster than what F.linear calls, by type.

Measured on AMD EPYC, one thread: a call costs 10 µs more than MKL's in fp32, whose products of few
rows reach 30 G/s where oneDNN's reach 70. In bf16 both are oneDNN; packed spares a reordering.
"""


def _can_pack(weight: torch.Tensor) -> bool:
    return (weight.device.type == 'cpu' and weight.dtype in _FLOOR
            and torch.backends.mkldnn.is_available()
            and platform.machine().lower() in ('x86_64', 'amd64'))


class Matrix:
    """A matrix (out, in) with an optional bias; a large one is kept packed alone, not twice."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._dense, self._bias, self._packed = weight, bias, None
        self._size = weight.numel()
        self._floor = _FLOOR.get(weight.dtype, 0)
        if _can_pack(weight):
            # Packed for few rows: as fast for many, and faster for one than packed for one.
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 16)
            if self._size >= self._floor:
                self._dense = None

    def _packs(self, x: torch.Tensor) -> bool:
        return self._packed is not None and x.shape[0] * self._size >= self._floor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (rows, in) times the matrix, plus the bias."""
        if self._packs(x):
            return torch.ops.mkldnn._linear_pointwise.default(
                x, self._packed, self._bias, 'none', [], '')
        return F.linear(x, self._dense, self._bias)

    def added_to(self, base: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return `base` (rows, out) plus x times the matrix, in one call; for one without bias."""
        if self._packs(x):
            return torch.ops.mkldnn._linear_pointwise.binary(x, base, self._packed, None, 'add')
        return torch.addmm(base, x, self._dense.t())
