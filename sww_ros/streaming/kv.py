"""Append-only lanes of keys and values with a published length, alone or pooled in one storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Allocate = Callable[[Sequence[int], torch.dtype], torch.Tensor]
"""Makes a buffer of a shape and type, in shared memory say."""


class LaneView(NamedTuple):
    """What a reader may use: the first `length` rows of `kv`, (2, layers, heads, rows, dim)."""

    kv: torch.Tensor
    length: int

    @property
    def keys(self) -> torch.Tensor:
        """The keys (layers, heads, rows, dim)."""
        return self.kv[0]

    @property
    def values(self) -> torch.Tensor:
        """The values (layers, heads, rows, dim)."""
        return self.kv[1]


class AheadView(LaneView):
    """A view that counts rows in which the very call that it is given to has yet to write."""


class Lane:
    """
    Keys and values of one sequence, for one writer and any number of readers.

    The writer appends rows past the published length and publishes them once their last layer is
    written; a reader takes `view()` once per step. Rows below a published length never change,
    and a grown buffer is a new tensor, so nothing else needs a lock.
    """

    def __init__(self, layers: int, heads: int, head_dim: int, rows: int, dtype: torch.dtype,
                 device: torch.device | str = 'cpu', allocate: Allocate | None = None) -> None:
        """
        Allocate room for `rows` tokens; it doubles when they are used up.

        :param allocate: makes its buffers, which are then never pooled with others
        """
        self.fixed = allocate is not None
        self._allocate = allocate or (
            lambda shape, dtype: torch.empty(*shape, dtype=dtype, device=device))
        kv = self._allocate((2, layers, heads, max(rows, 1), head_dim), dtype)
        self._view = LaneView(kv, 0)
        # The storage it shares with others, and its place there; see `pooled`.
        self._pool, self._slot = None, 0

    def __len__(self) -> int:
        return self._view.length

    def view(self) -> LaneView:
        """The buffer and the published length, taken together."""
        return self._view

    def ahead(self, rows: int) -> AheadView:
        """
        Return a view that counts the next `rows` rows too; for the writer only.

        It may be the context of a chunk in the very call that appends those rows: a layer's keys
        are all written before its attention reads them.
        """
        return AheadView(*self.reserve(rows))

    def reserve(self, count: int) -> LaneView:
        """
        Make room for `count` rows past the published length; for the writer only.

        Returns the buffer to write to, with `length` as it will be once published.
        """
        kv, length = self._view
        if length + count > kv.shape[3]:
            rows = max(2 * kv.shape[3], length + count)
            grown = self._allocate((*kv.shape[:3], rows, kv.shape[4]), kv.dtype)
            kv = _moved(kv, length, grown)
            self._view, self._pool = LaneView(kv, length), None
        return LaneView(kv, length + count)

    def follow(self, kv: torch.Tensor) -> None:
        """Take the buffer of a lane that another process writes, which has moved there."""
        self._view = LaneView(kv, len(self))

    def publish(self, length: int) -> None:
        """Let readers see the first `length` rows; all their layers must have been written."""
        kv, before = self._view
        if not before <= length <= kv.shape[3]:
            raise ValueError(f'cannot publish {length} rows: {before} are published, '
                             f'{kv.shape[3]} are there')
        self._view = LaneView(kv, length)


def pooled(lanes: Sequence[Lane]) -> torch.Tensor:
    """
    Make room for one row in each of several lanes, side by side; for their writer only.

    Returns their one storage (2, layers, lanes, heads, rows, dim), in which a single call reads
    and writes them all. Lanes move there as a lane moves when it grows: older views stay valid.
    Those that are neighbours already, as most steps find them, stay where they are.
    """
    pool, slot, needed = lanes[0]._pool, lanes[0]._slot, 1 + max(map(len, lanes))
    there = pool is not None and needed <= pool.shape[4] and all(
        lane._pool is pool and lane._slot == slot + i for i, lane in enumerate(lanes))
    if not there:
        kv = lanes[0]._view.kv
        # Zeros: what lies past a lane's end is masked, but NaN times nothing would be NaN.
        pool = kv.new_zeros(*kv.shape[:2], len(lanes), kv.shape[2], max(64, 2 * needed),
                            kv.shape[4])
        for slot, lane in enumerate(lanes):
            kv, length = lane._view
            lane._view = LaneView(_moved(kv, length, pool[:, :, slot]), length)
            lane._pool, lane._slot = pool, slot
        slot = 0
    return pool[:, :, slot:slot + len(lanes)]


def _moved(kv: torch.Tensor, used: int, to: torch.Tensor) -> torch.Tensor:
    to[:, :, :, :used] = kv[:, :, :, :used]
    return to
