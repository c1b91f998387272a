"""Append-only lanes of keys and values with a published length, alone or pooled in one storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch

Allocate = Callable[[Sequence[int], torch.dtype], torch.Tensor]
"""Makes a buffer of a shape and type, in shared memory say."""


class LaneView(NamedTuple):
    """What a reader may use: the first `length` rows of `kv`, (2, layers, heads, rows, dim)."""

    kv: torch.Tensor
    length: int
    whole: torch.Tensor | None = None
    """The buffer that `kv` is the end of, where there is room before it for a `SideLane`."""

    @property
    def margin(self) -> int:
        """How many rows of the whole buffer are before `kv`."""
        return 0 if self.whole is None else self.whole.shape[3] - self.kv.shape[3]

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
                 device: torch.device | str = 'cpu', allocate: Allocate | None = None,
                 margin: int = 0) -> None:
        """
        Allocate room for `rows` tokens; it doubles when they are used up.

        :param allocate: makes its buffers, which are then never pooled with others
        :param margin: rows of room before its own for a `SideLane` that sees it
        """
        self.fixed = allocate is not None or margin > 0
        self._allocate = allocate or (
            lambda shape, dtype: _made(shape, dtype, torch.device(device)))
        margin, rows = (_room(count, torch.device(device)) for count in (margin, max(rows, 1)))
        whole = self._allocate((2, layers, heads, margin + rows, head_dim), dtype)
        self._view = _behind(margin, whole, 0)
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
        kv, length, _ = self._view
        if length + count > kv.shape[3]:
            rows = _room(max(2 * kv.shape[3], length + count), kv.device)
            margin = self._view.margin
            # A tensor that is made in a forward pass could not be written outside of one, as a
            # lane that lies in its margin is when a stream is carried over.
            with torch.inference_mode(False):
                whole = self._allocate((*kv.shape[:3], margin + rows, kv.shape[4]), kv.dtype)
            grown = _behind(margin, whole, length)
            _moved(kv, length, grown.kv)
            if kv.is_cuda:  # Who reads the new one may do so on another stream.
                torch.cuda.current_stream(kv.device).synchronize()
            self._view, self._pool = grown, None
        return self._view._replace(length=length + count)

    def clear(self) -> None:
        """Begin anew in the same buffer, for another sequence; once nobody reads this one."""
        self._view = self._view._replace(length=0)

    def follow(self, buffer: torch.Tensor, margin: int = 0) -> None:
        """Take the buffer of a lane that another process writes, which has moved there."""
        self._view = _behind(margin, buffer, len(self))

    def publish(self, length: int) -> None:
        """Let readers see the first `length` rows; all their layers must have been written."""
        kv, before, _ = self._view
        if not before <= length <= kv.shape[3]:
            raise ValueError(f'cannot publish {length} rows: {before} are published, '
                             f'{kv.shape[3]} are there')
        self._view = self._view._replace(length=length)


class SideLane(Lane):
    """
    A lane that lies before the rows that it sees, so that one call reads both without a gap.

    New rows go in front of older ones: attention does not ask in which order keys lie. It moves
    after the context when that grows, and lies by itself where there is no room. The margin of a
    lane is for one such lane, and its writer alone touches it.
    """

    _beside: torch.Tensor | None = None

    def beside(self, context: LaneView, count: int) -> torch.Tensor | None:
        """
        Make room for `count` rows before those of `context`; for the writer only.

        Returns the whole buffer, which this lane's rows end at the margin of, or None where they
        do not fit: the lane is then one like others.
        """
        length, whole, margin = len(self), context.whole, context.margin
        if whole is None or length + count > margin:
            self.leave()
            return None
        if whole is not self._beside:
            rows = self._rows()
            self._beside = whole
            self._view = LaneView(whole[:, :, :, :margin], length)
            whole[:, :, :, margin - length:margin] = rows
        return whole

    def follow_beside(self, context: LaneView, length: int) -> None:
        """Take over rows that another process has written before those of `context`."""
        # As that one keeps a margin, so does the buffer that was received.
        self._beside = whole = cast(torch.Tensor, context.whole)
        self._view = LaneView(whole[:, :, :, :context.margin], length)

    def leave(self) -> None:
        """Lie by itself, as other lanes do."""
        if self._beside is not None:
            rows = self._rows()
            shape = (*rows.shape[:3], 2 * max(len(self), 32), rows.shape[4])
            kv = _made(shape, rows.dtype, rows.device)
            self._view, self._beside = LaneView(_moved(rows, len(self), kv), len(self)), None

    def _rows(self) -> torch.Tensor:
        kv, length, _ = self._view
        first = 0 if self._beside is None else kv.shape[3] - length
        return kv[:, :, :, first:first + length]


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
    if pool is None or not there:
        kv = lanes[0]._view.kv
        # Zeros: what lies past a lane's end is masked, but NaN times nothing would be NaN.
        pool = kv.new_zeros(*kv.shape[:2], len(lanes), kv.shape[2], max(64, 2 * needed),
                            kv.shape[4])
        for slot, lane in enumerate(lanes):
            kv, length, _ = lane._view
            lane._view = LaneView(_moved(kv, length, pool[:, :, slot]), length)
            lane._pool, lane._slot = pool, slot
        slot = 0
    return pool[:, :, slot:slot + len(lanes)]


PART = 256
"""On a GPU, buffers have room for whole parts, which several of its processors read at a time."""


def _room(rows: int, device: torch.device) -> int:
    """Return how many rows a buffer gets that has to hold so many."""
    return rows if device.type == 'cpu' else -(-rows // PART) * PART


def _made(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """
    Return a buffer that nothing is written to yet.

    Zeros on a GPU, where a step reads more of it than its rows see: the rest is masked, but NaN
    times nothing would be NaN.
    """
    make = torch.empty if device.type == 'cpu' else torch.zeros
    return make(*shape, dtype=dtype, device=device)


def _behind(margin: int, whole: torch.Tensor, length: int) -> LaneView:
    """The view of a buffer that begins with a margin, if any."""
    return LaneView(whole[:, :, :, margin:], length, whole) if margin else LaneView(whole, length)


def _moved(kv: torch.Tensor, used: int, to: torch.Tensor) -> torch.Tensor:
    to[:, :, :, :used] = kv[:, :, :, :used]
    return to
