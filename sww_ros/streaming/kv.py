"""An append-only lane of keys and values with a published length."""

from __future__ import annotations

from typing import NamedTuple

import torch


class LaneView(NamedTuple):
    """What a reader may use: the first `length` rows of both (layers, heads, rows, dim) buffers."""

    keys: torch.Tensor
    values: torch.Tensor
    length: int


class Lane:
    """
    Keys and values of one sequence, for one writer and any number of readers.

    The writer appends rows past the published length and publishes them once their last layer is
    written; a reader takes `view()` once per step. Rows below a published length never change,
    and a grown buffer is a new tensor, so nothing else needs a lock.
    """

    def __init__(self, layers: int, heads: int, head_dim: int, rows: int,
                 dtype: torch.dtype, device: torch.device | str = 'cpu') -> None:
        """Allocate room for `rows` tokens; it doubles when they are used up."""
        shape = (layers, heads, max(rows, 1), head_dim)
        self._view = LaneView(torch.empty(shape, dtype=dtype, device=device),
                              torch.empty(shape, dtype=dtype, device=device), 0)

    def __len__(self) -> int:
        return self._view.length

    def view(self) -> LaneView:
        """The buffers and the published length, taken together."""
        return self._view

    def reserve(self, count: int) -> LaneView:
        """
        Make room for `count` rows past the published length; for the writer only.

        Returns the buffers to write to, with `length` as it will be once published.
        """
        keys, values, length = self._view
        if length + count > keys.shape[2]:
            keys, values = (_grown(buffer, length, length + count) for buffer in (keys, values))
            self._view = LaneView(keys, values, length)
        return LaneView(keys, values, length + count)

    def publish(self, length: int) -> None:
        """Let readers see the first `length` rows; all their layers must have been written."""
        keys, values, before = self._view
        if not before <= length <= keys.shape[2]:
            raise ValueError(f'cannot publish {length} rows: {before} are published, '
                             f'{keys.shape[2]} are there')
        self._view = LaneView(keys, values, length)


def _grown(buffer: torch.Tensor, used: int, needed: int) -> torch.Tensor:
    layers, heads, rows, dim = buffer.shape
    grown = buffer.new_empty(layers, heads, max(2 * rows, needed), dim)
    grown[:, :, :used] = buffer[:, :, :used]
    return grown
