"""
What the rows of a step read and write, told by tensors: a recorded step does others of its form.

Where rows go and which columns of a buffer they see is data (`Fixed.numbers`); the form says no
more than how many rows there are, of which buffers, and a window of columns that is wide enough. A
row that goes to the buffer that it sees sees one stretch of columns there: a step of video those
before it and itself; narration, which grows leftwards from where the video begins, itself, what was
said before, and the video. An answer sees a stretch of it and a lane of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from sww_ros.streaming.attention import Rows, attend, check_ahead
from sww_ros.streaming.kv import PART, Lane, LaneView, SideLane, pooled

LEAST = 2048
"""
Columns of the smallest window on either side of where the video begins; others double it.

On an H100 the attention of one row over 2048 masked columns takes 2 µs more than over 512 columns,
and to record a form of a 3B model 0.2 s.
"""
HIDDEN = -1e4
"""Added to the score of a column that is not seen: its share is 0, also where a part sees none."""


class _Row(NamedTuple):
    """A row of a step: the buffer that it sees, from which column to which, and where it goes."""

    buffer: torch.Tensor
    margin: int
    at: int
    start: int
    end: int
    own: Lane | None = None
    """The lane that it goes to, beside the buffer; None: it goes to column `at` of that."""

    @property
    def where(self) -> int:
        """The buffer, by its address."""
        return self.buffer.data_ptr()


@dataclass(frozen=True)
class _Part:
    """Rows `start` to `stop` that see one buffer; those from `split` on go to lanes of a pool."""

    start: int
    split: int
    stop: int
    buffer: torch.Tensor
    window: tuple[int, int]
    pool: torch.Tensor | None = None

    @property
    def form(self) -> Hashable:
        pool = None if self.pool is None else (
            self.pool.data_ptr(), self.pool.shape, self.pool.stride())
        return (self.start, self.split, self.stop, self.buffer.data_ptr(), self.buffer.shape,
                self.window, pool)


@dataclass(frozen=True)
class Fixed:
    """Rows of a step; `numbers` int64 (3, rows): each one's column, the first it sees, the end."""

    parts: Sequence[_Part]
    numbers: np.ndarray
    lengths: Sequence[tuple[Lane, int]]

    @property
    def form(self) -> Hashable:
        """What it does not have in common with steps that it can be recorded for."""
        return tuple(part.form for part in self.parts)

    def publish(self) -> None:
        """Let readers see what has been written."""
        for lane, length in self.lengths:
            lane.publish(length)


def fixed_of(rows: Sequence[Rows]) -> Fixed | None:
    """
    Reserve what `rows` append; None for what has no such form, as the head of a question has.

    :raises ValueError: for a context that is ahead of its lane by more than this step adds
    """
    check_ahead(rows)
    lengths = [(each.lane, len(each.lane) + each.count) for each in rows]
    contexts = {id(each.context.kv) for each in rows if each.context is not None}
    found: list[_Row] = []
    for each in rows:
        placed = _placed(each, contexts)
        if not placed:
            return None
        found += placed
    parts, start = [], 0
    for _, group in groupby(found, attrgetter('where')):
        own = [*group]
        part = _part(own, start)
        if part is None:
            return None
        parts.append(part)
        start += len(own)
    numbers = np.array([(row.at, row.start, row.end) for row in found], dtype=np.int64)
    return Fixed(parts, np.ascontiguousarray(numbers.T), lengths)


def _placed(rows: Rows, contexts: set[int]) -> list[_Row]:
    """Return where rows go and what they see; none where that is no stretch of one buffer."""
    lane, context = rows.lane, rows.context
    if context is None:
        if isinstance(lane, SideLane):
            lane.leave()
        view = lane.reserve(rows.count)
        buffer, margin = _whole(view)
        first = margin + view.length - rows.count
        return [_Row(buffer, margin, at, margin, at + 1)
                for at in range(first, first + rows.count)]
    if rows.count > 1:
        return []
    buffer, margin = _whole(context)
    end = margin + context.length
    if isinstance(lane, SideLane) and lane.beside(context, 1) is not None:
        at = margin - len(lane) - 1
        return [_Row(buffer, margin, at, at, end)]
    if lane.fixed or id(lane.view().kv) in contexts:
        return []
    return [_Row(buffer, margin, len(lane), margin, end, lane)]


def _whole(view: LaneView) -> tuple[torch.Tensor, int]:
    return view.kv if view.whole is None else view.whole, view.margin


def _part(rows: Sequence[_Row], start: int) -> _Part | None:
    buffer, margin = rows[0].buffer, rows[0].margin
    lanes = [row.own for row in rows if row.own is not None]
    split = start + len(rows) - len(lanes)
    if any(row.own is not None for row in rows[:split - start]):
        return None
    first = max(0, margin - _width(margin - min(row.start for row in rows)))
    last = min(buffer.shape[3], margin + _width(max(row.end for row in rows) - margin))
    if not lanes:
        return _Part(start, split, split, buffer, (first, last))
    pool = pooled(lanes) if len(lanes) > 1 else lanes[0].reserve(1).kv[:, :, None]
    return _Part(start, split, start + len(rows), buffer, (first, last), pool)


def _width(columns: int) -> int:
    """Return how wide a window is that has so many columns at least."""
    return max(LEAST, 1 << (columns - 1).bit_length()) if columns > 0 else 0


class FixedPlan:
    """A step of some form, as `attention.Plan` is a step, whose `numbers` a device holds."""

    def __init__(self, fixed: Fixed, numbers: torch.Tensor, group: int,
                 dtype: torch.dtype) -> None:
        """
        Lay out what rows see, once for all layers.

        :param numbers: those of this step, or of another one of its form
        :param group: queries per key
        """
        self._readers = [_Reader(part, numbers, group, dtype) for part in fixed.parts]

    def write(self, layer: int, kv: torch.Tensor) -> None:
        """Write new keys and values (rows, 2, kv heads, dim); all of a layer before any is read."""
        for reader in self._readers:
            reader.write(layer, kv)

    def read(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """Return what all rows read, (rows, heads * dim)."""
        return torch.cat([rows for reader in self._readers for rows in reader.read(layer, q)])


class _Reader:
    """A part of a step, with what each of its rows sees as masks."""

    def __init__(self, part: _Part, numbers: torch.Tensor, group: int,
                 dtype: torch.dtype) -> None:
        self._part, self._dtype = part, dtype
        self._at, start, end = numbers[:, part.start:part.stop].unbind()
        self._before = part.split - part.start
        columns = torch.arange(*part.window, device=numbers.device)
        self._mask = self._added((columns >= start[:, None]) & (columns < end[:, None]))
        if part.pool is not None:
            room = torch.arange(part.pool.shape[4], device=numbers.device)
            self._own_mask = self._added(room <= self._at[self._before:, None])[:, None, None]
            self._slots = torch.arange(part.stop - part.split, device=numbers.device)
            # (parts, 1, lanes * group, columns of a part), in the order of folded queries.
            width = part.window[1] - part.window[0]
            parts = 1 if width % PART else width // PART
            shared = self._mask[self._before:].unflatten(1, (parts, -1)).transpose(0, 1)
            self._shared_mask = shared.repeat_interleave(group, 1)[:, None]

    def _added(self, seen: torch.Tensor) -> torch.Tensor:
        """Return what is added to scores: nothing where it is seen."""
        mask = torch.zeros(seen.shape, dtype=self._dtype, device=seen.device)
        return mask.masked_fill_(~seen, HIDDEN)

    def write(self, layer: int, kv: torch.Tensor) -> None:
        part = self._part
        if self._before:
            part.buffer[:, layer].index_copy_(
                2, self._at[:self._before], kv[part.start:part.split].permute(1, 2, 0, 3))
        if part.pool is not None:
            lanes = part.pool[:, layer].permute(1, 3, 0, 2, 4)
            lanes.index_put_((self._slots, self._at[self._before:]), kv[part.split:part.stop])

    def read(self, layer: int, q: torch.Tensor) -> list[torch.Tensor]:
        part, found = self._part, list[torch.Tensor]()
        keys, values = part.buffer[:, layer, :, part.window[0]:part.window[1]]
        if self._before:
            mine = q[part.start:part.split].permute(1, 2, 0, 3)
            # Keys are the batch, and their queries heads that share them: no key is copied.
            shared = (-1, mine.shape[1], -1, -1)
            out = F.scaled_dot_product_attention(
                mine, keys[:, None].expand(shared), values[:, None].expand(shared),
                self._mask[:self._before])
            found.append(out.permute(2, 0, 1, 3).reshape(self._before, -1))
        if part.pool is not None:
            mine, (own_keys, own_values) = q[part.split:part.stop], part.pool[:, layer]
            near = attend(mine, own_keys, own_values, self._own_mask)
            found.append(self._merged(mine, near, keys, values))
        return found

    def _merged(self, q: torch.Tensor, near: tuple[torch.Tensor, torch.Tensor],
                keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """
        Return what answers (lanes, kv heads, group, dim) read of their lanes and of the buffer.

        The buffer is read in parts at a time, which with their lanes are merged as one softmax.
        """
        lanes, heads, group, _ = q.shape
        parts = len(self._shared_mask)
        folded, near_out, near_lse = (
            each.transpose(0, 1).reshape(1, heads, lanes * group, *each.shape[3:])
            for each in (q, *near))
        keys, values = (each.unflatten(1, (parts, -1)).transpose(0, 1) for each in (keys, values))
        far_out, far_lse = attend(folded.expand(parts, -1, -1, -1), keys, values,
                                  self._shared_mask)
        shares = torch.softmax(torch.cat([far_lse, near_lse]), 0)[..., None]
        read = (torch.cat([far_out, near_out]) * shares).sum(0).to(q.dtype)
        return read.view(heads, lanes, group, -1).transpose(0, 1).reshape(lanes, -1)
