"""A weight matrix kept in the form in which few rows are multiplied fastest."""

from __future__ import annotations

import platform

import torch

_LARGE = 250_000
_MANY = {torch.float32: 1_000_000, torch.bfloat16: 0}
"""
When oneDNN's packed weights are faster than what torch.mm calls: from so many weights, for smaller
matrices from so many multiply-adds a call, by type.

Measured on AMD EPYC, one thread, fp32: few rows times a matrix that exceeds the cache take 0.3 to
0.6 of the time of MKL, whose products reach 30 G/s where oneDNN's reach 70; but a call costs 10 µs
more, which for a small matrix is most of it. In bf16 both are oneDNN; packed spares a reordering.
"""


def _can_pack(weight: torch.Tensor) -> bool:
    if (weight.device.type != 'cpu' or weight.dtype not in _MANY
            or not torch.backends.mkldnn.is_available()
            or platform.machine().lower() not in ('x86_64', 'amd64')):
        return False
    # Processors without AVX-512 lack bf16 products.
    return weight.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Matrix:
    """A matrix (out, in) with an optional bias, in a plain form, a packed one, or both if small."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._plain, self._bias, self._packed = weight.t(), bias, None
        # The rows from which the packed form is used.
        self._from = 0
        if _can_pack(weight):
            # Packed for few rows: as fast for many, and faster for one than packed for one.
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 16)
            if weight.numel() >= _LARGE:
                self._plain = None
            else:
                self._from = _MANY[weight.dtype] / weight.numel()

    def _packs(self, x: torch.Tensor) -> bool:
        return self._packed is not None and x.shape[0] >= self._from

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (rows, in) times the matrix, plus the bias."""
        if self._packs(x):
            return torch.ops.mkldnn._linear_pointwise.default(
                x, self._packed, self._bias, 'none', [], '')
        if self._bias is None:
            return torch.mm(x, self._plain)
        return torch.addmm(self._bias, x, self._plain)

    def added_to(self, base: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return `base` (rows, out) plus x times the matrix, in one call; for one without bias."""
        if self._packs(x):
            return torch.ops.mkldnn._linear_pointwise.binary(x, base, self._packed, None, 'add')
        return torch.addmm(base, x, self._plain)
