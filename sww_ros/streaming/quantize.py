"""
Matrices of whole numbers: weights in 8 or 4 bits, for checkpoints that would not fit otherwise.

In 8 bits each row of a matrix has a scale, in 4 bits each group of neighbours in a row has a scale
and a middle: a weight is q * scale + middle. Rows are multiplied by what that gives, not by
something near it: the oracle is the stock model with these weights (`dequantized`). Few rows in
bf16 on a CPU go to PyTorch's kernels, those which torchao calls: they dequantize in registers.
Elsewhere it is done block by block, so that a block is still in the cache when it is multiplied.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, cast

import torch

from sww_ros.streaming.decoder import Matrix, Weights

GROUPS = (128, 64, 32)
"""How many neighbours share a scale in 4 bits: the first that divides a row, else all of it."""
_BLOCK = 1 << 18
"""How many weights are dequantized at a time."""
_CHUNK = 1 << 20
"""How many weights are quantized at a time, as that takes several copies of them in fp32."""
_FEW = 32
"""Up to how many rows PyTorch's kernel in 8 bits, which takes four at a time, is the faster."""
_TILE = 64
"""Rows of a matrix that are packed together at most."""


class Codes(NamedTuple):
    """
    What a matrix (out, in) is kept as.

    `q` int8 (out, in), -127 to 127 or -8 to 7; `scale` and `middle` (out, groups, 1) in the type of
    the weights; `middle` is None in 8 bits, where all of a row is one group.
    """

    q: torch.Tensor
    scale: torch.Tensor
    middle: torch.Tensor | None = None

    def weights(self) -> torch.Tensor:
        """Return the weights (out, in) that these stand for, in the type of the scales."""
        q = self.q.view(*self.scale.shape[:2], -1).to(self.scale.dtype)
        q = q.mul_(self.scale) if self.middle is None else torch.addcmul(
            self.middle, q, self.scale)
        return q.view(self.q.shape)


def group_of(columns: int) -> int:
    """Return how many neighbours in a row of so many weights share a scale in 4 bits."""
    return next((group for group in GROUPS if columns % group == 0), columns)


def codes_of(weight: torch.Tensor, kind: str) -> Codes:
    """
    Return the nearest whole numbers of a matrix (out, in).

    :param kind: 'int8' or 'int4'
    """
    find = _in_8_bits if kind == 'int8' else _in_4_bits
    q, scales, middles = zip(*map(find, weight.split(max(1, _CHUNK // weight.shape[1]))))
    return Codes(torch.cat(q), torch.cat(scales),
                 None if middles[0] is None else torch.cat(middles))


def _in_8_bits(weight: torch.Tensor) -> Codes:
    wide, least = _wide(weight)
    scale = (wide.abs().amax(1, keepdim=True) / 127).clamp_(min=least).to(weight.dtype)
    return Codes((wide / scale).round_().clamp_(-127, 127).to(torch.int8), scale[:, None])


def _in_4_bits(weight: torch.Tensor) -> Codes:
    wide, least = _wide(weight)
    parts = wide.view(len(wide), -1, group_of(wide.shape[1]))
    low, high = parts.aminmax(dim=-1, keepdim=True)
    # The whole numbers are those of scale and middle as they are kept.
    scale = ((high - low) / 15).clamp_(min=least).to(weight.dtype)
    middle = (low + 8 * scale).to(weight.dtype)
    q = ((parts - middle) / scale).round_().clamp_(-8, 7).to(torch.int8)
    return Codes(q.view(weight.shape), scale, middle)


def _wide(weight: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return a matrix in a type to compute in, and the least scale: a row may be all zeros."""
    return (weight.contiguous().to(torch.promote_types(weight.dtype, torch.float32)),
            torch.finfo(weight.dtype).tiny)


def dequantized(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """Return what a matrix (out, in) is after quantization, in its own type."""
    return weight if kind == 'none' else codes_of(weight, kind).weights()


def weights_of(weight: torch.Tensor, bias: torch.Tensor | None = None,
               kind: str = 'none') -> Weights:
    """
    Return a matrix (out, in) with an optional bias in the form in which it is multiplied.

    :raises ValueError: for one of odd width in 4 bits
    """
    if kind == 'none':
        return Matrix(weight, bias)
    return Int8(weight, bias) if kind == 'int8' else Int4(weight, bias)


class _Quantized(ABC):
    """What the two have in common: products by blocks, where no kernel takes few rows."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.numel, self._dtype, self._bias = weight.numel(), weight.dtype, bias
        self._rows, self._columns = weight.shape
        # The most rows that the kernel is given.
        self._few: float = 0

    @abstractmethod
    def _kernel(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (rows, in), contiguous, times the matrix."""

    @abstractmethod
    def _block(self, rows: slice) -> torch.Tensor:
        """Return some rows of the matrix, dequantized."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (rows, in) times the matrix, plus the bias."""
        y = self._kernel(x.contiguous()) if len(x) <= self._few else self._by_blocks(x)
        return y if self._bias is None else y.add_(self._bias)

    def added_to(self, base: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return `base` (rows, out) plus x times the matrix; for one without bias."""
        return self(x).add_(base)

    def _by_blocks(self, x: torch.Tensor) -> torch.Tensor:
        y = x.new_empty(len(x), self._rows)
        step = max(1, _BLOCK // self._columns) if x.device.type == 'cpu' else self._rows
        for start in range(0, self._rows, step):
            part = slice(start, start + step)
            torch.mm(x, self._block(part).t(), out=y[:, part])
        return y


class Int8(_Quantized):
    """A matrix in 8 bits; a row of it has one scale."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__(weight, bias)
        if not weight.is_meta:
            self._codes = codes_of(weight, 'int8')
            # It reads 16 numbers at a time, from where such a number of them begins.
            if _has_kernel(weight) and self._columns % 16 == 0:
                self._few, self._scales = _FEW, self._codes.scale.flatten()

    def bytes_on(self, device: torch.device) -> int:
        """Return what its weights take on a device [bytes]."""
        return self.numel + self._rows * self._dtype.itemsize

    def _kernel(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten._weight_int8pack_mm(x, self._codes.q, self._scales)

    def _block(self, rows: slice) -> torch.Tensor:
        return Codes(self._codes.q[rows], self._codes.scale[rows]).weights()


class Int4(_Quantized):
    """A matrix in 4 bits: as PyTorch's kernel wants it, or two in a byte, half a row apart."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__(weight, bias)
        self._group = group_of(self._columns)
        if self._columns % 2:
            raise ValueError(f'a matrix of {self._columns} columns cannot be quantized to int4: '
                             'take int8')
        if weight.is_meta:
            return
        q, self._scale, middle = codes_of(weight, 'int4')
        self._middle = cast(torch.Tensor, middle)
        if _has_kernel(weight) and self._group in GROUPS and self._rows % 16 == 0:
            self._few, pack = float('inf'), torch.ops.aten._convert_weight_to_int4pack_for_cpu
            tiles = q.split(_TILE * max(1, _CHUNK // self._columns // _TILE))
            self._packed = torch.cat([pack(tile.to(torch.int32).add_(8), 1) for tile in tiles])
            self._pairs = torch.cat([self._scale, self._middle], -1).transpose(0, 1).contiguous()
            del self._scale, self._middle
        else:
            half = self._columns // 2
            self._packed = (q[:, :half] & 15) | (q[:, half:] << 4)

    def bytes_on(self, device: torch.device) -> int:
        """Return what its weights take on a device [bytes]."""
        return self.numel // 2 + 2 * self.numel // self._group * self._dtype.itemsize

    def _kernel(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, self._packed, self._group, self._pairs)

    def _block(self, rows: slice) -> torch.Tensor:
        both = self._packed[rows]
        q = torch.cat([(both << 4) >> 4, both >> 4], 1)
        return Codes(q, self._scale[rows], self._middle[rows]).weights()


def _has_kernel(weight: torch.Tensor) -> bool:
    """Whether PyTorch has a kernel of use: on x86-64 those for fp32 are not vectorized."""
    return weight.device.type == 'cpu' and weight.dtype == torch.bfloat16
