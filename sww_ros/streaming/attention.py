"""
Attention over lanes: what the rows of one step read and write, laid out once for all layers.

A row sees a context, which it may share with others, and its own lane. A lane that lies beside its
context is read with it in one call. Else each part is read where it lies by a kernel that also
gives the log-sum-exp of its scores; by these the two results merge to what one softmax over both
parts gives. Queries come as (rows, kv heads, group, dim).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sww_ros.streaming.kv import AheadView, Lane, LaneView, SideLane, pooled

_Part = tuple[torch.Tensor, torch.Tensor]
"""The result of a part (rows, kv heads, group, dim) and its log-sum-exp (rows, kv heads, group)."""


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of a step: they go to `lane` and see `context` too."""

    start: int
    stop: int
    lane: Lane
    context: LaneView | None

    @property
    def count(self) -> int:
        return self.stop - self.start


class Plan:
    """Where the rows of one step are written, and what they read; made once, used by each layer."""

    def __init__(self, rows: Sequence[Rows], group: int) -> None:
        """
        Reserve what `rows` append.

        :param group: queries per key
        :raises ValueError: for a context that is ahead of its lane by more than this step adds
        """
        check_ahead(rows)
        runs = [_make_run(run, whole, group) for run, whole in _split(rows)]
        self._lanes = [(each.lane, len(each.lane) + each.count) for each in rows]
        self._writers = runs
        self._readers = _share_contexts(runs, group)

    def write(self, layer: int, kv: torch.Tensor) -> None:
        """Write new keys and values (rows, 2, kv heads, dim); all of a layer before any is read."""
        for run in self._writers:
            run.write(layer, kv)

    def read(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """Return what all rows read, (rows, heads * dim)."""
        parts = [reader.read(layer, q).reshape(reader.stop - reader.start, -1)
                 for reader in self._readers]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def publish(self) -> None:
        for lane, length in self._lanes:
            lane.publish(length)


class _Run:
    """Neighbouring rows whose own lanes one call reads."""

    start: int
    stop: int
    contexts: list[LaneView | None]
    _to: Sequence[torch.Tensor]
    _keys: Sequence[torch.Tensor]
    _values: Sequence[torch.Tensor]
    _mask: torch.Tensor | None

    def write(self, layer: int, kv: torch.Tensor) -> None:
        self._to[layer].copy_(_part(kv, self.start, self.stop))

    def read(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """Return what the rows read if they see their own lanes alone."""
        out = F.scaled_dot_product_attention(
            self._arranged(q), self._keys[layer], self._values[layer], self._mask)
        return self._in_rows(out)

    def part(self, layer: int, q: torch.Tensor) -> _Part:
        """Return what they read of their own lanes, to be merged."""
        out, lse = attend(self._arranged(q), self._keys[layer], self._values[layer], self._mask)
        return self._in_rows(out), self._in_rows(lse)

    def _arranged(self, q: torch.Tensor) -> torch.Tensor:
        """The queries of these rows as the kernel wants them."""
        return _part(q, self.start, self.stop)

    def _in_rows(self, out: torch.Tensor) -> torch.Tensor:
        """What the kernel returns, rows first."""
        return out


class _ChunkRun(_Run):
    """Several rows of one lane, causally."""

    def __init__(self, rows: Rows, group: int) -> None:
        self.start, self.stop, self.contexts = rows.start, rows.stop, [rows.context] * rows.count
        kv, length, _ = rows.lane.reserve(rows.count)
        self._to = _written(kv, length - rows.count, length)
        self._see(kv[:, :, :, :length], group)
        self._mask = _causal(kv, rows.count, length)

    def _see(self, kv: torch.Tensor, group: int) -> None:
        # Keys are the batch, and their queries heads that share them: no key is copied.
        seen = kv.unsqueeze(3).expand(-1, -1, -1, group, -1, -1)
        self._keys, self._values = seen[0].unbind(), seen[1].unbind()

    def _arranged(self, q: torch.Tensor) -> torch.Tensor:
        return _part(q, self.start, self.stop).permute(1, 2, 0, 3)

    def _in_rows(self, out: torch.Tensor) -> torch.Tensor:
        return out.movedim(2, 0)


class _SideRow(_Run):
    """One row of a lane beside its context: both are read as one."""

    def __init__(self, rows: Rows, context: LaneView, whole: torch.Tensor) -> None:
        self.start, self.stop, self.contexts = rows.start, rows.stop, [None]
        margin = context.margin
        at = margin - len(rows.lane) - 1
        self._to = whole[:, :, :, at].permute(1, 0, 2, 3).unsqueeze(1).unbind()
        seen = whole[:, :, None, :, at:margin + context.length]
        self._keys, self._values = seen[0].unbind(), seen[1].unbind()
        self._mask = None


class _SideRun(_ChunkRun):
    """
    Rows of a lane beside its context, after those that the context's own lane gets, if any.

    What lies in memory is the new rows of the side lane, its older rows, the context, its new rows.
    """

    def __init__(self, rows: Rows, context: LaneView, whole: torch.Tensor, group: int,
                 before: Rows | None = None) -> None:
        self.start, self.stop = (before or rows).start, rows.stop
        self.contexts = [None] * (self.stop - self.start)
        margin, seen = context.margin, context.length
        first = margin - len(rows.lane) - rows.count
        self._to = _written(whole, first, first + rows.count)
        mask = whole.new_zeros(rows.count, margin - first + seen)
        mask[:, :rows.count] = _causal(whole, rows.count, rows.count)
        self._to_context: Sequence[torch.Tensor] = ()
        self._ahead = 0
        if before is not None:
            kv, length, _ = before.lane.reserve(before.count)
            self._to_context = _written(kv, length - before.count, length)
            self._ahead = before.count
            mask = F.pad(mask, (0, length - seen, before.count, 0), value=-torch.inf)
            mask[:before.count, margin - first:] = _causal(whole, before.count, length)
        self._mask = mask
        self._see(whole[:, :, :, first:first + mask.shape[1]], group)

    def write(self, layer: int, kv: torch.Tensor) -> None:
        split = self.start + self._ahead
        if self._ahead:
            self._to_context[layer].copy_(kv[self.start:split])
        self._to[layer].copy_(kv[split:self.stop])


class _LanesRun(_Run):
    """One row in each of several lanes, padded to the longest; or in one."""

    def __init__(self, rows: Sequence[Rows]) -> None:
        self.start, self.stop = rows[0].start, rows[-1].stop
        self.contexts = [each.context for each in rows]
        lengths = [len(each.lane) + 1 for each in rows]
        kv = (pooled([each.lane for each in rows]) if len(rows) > 1
              else rows[0].lane.reserve(1).kv[:, :, None])
        seen = kv[:, :, :, :, :max(lengths)]
        self._keys, self._values = seen[0].unbind(), seen[1].unbind()
        self._mask, self._at = None, None
        if min(lengths) == max(lengths):
            self._to = kv[:, :, :, :, lengths[0] - 1].permute(1, 2, 0, 3, 4).unbind()
        else:
            self._to = kv.permute(1, 2, 4, 0, 3, 5).unbind()
            at = torch.tensor(lengths, device=kv.device)
            self._at = (torch.arange(len(rows), device=kv.device), at - 1)
            self._mask = _padding(at, max(lengths), kv.dtype)[:, None, None]

    def write(self, layer: int, kv: torch.Tensor) -> None:
        if self._at is None:
            super().write(layer, kv)
        else:
            self._to[layer].index_put_(self._at, _part(kv, self.start, self.stop))


class _Shared:
    """Neighbouring runs that see one context: it is read once for all their rows."""

    def __init__(self, runs: Sequence[_Run], group: int) -> None:
        self._runs = runs
        self.start, self.stop = runs[0].start, runs[-1].stop
        contexts = [context for run in runs for context in run.contexts if context is not None]
        lengths = [context.length for context in contexts]
        seen = contexts[0].kv[:, :, None, :, :max(lengths)]
        self._keys, self._values = seen[0].unbind(), seen[1].unbind()
        self._mask = None
        if min(lengths) < max(lengths):
            ends = torch.tensor(lengths, device=seen.device)
            self._mask = _padding(ends, max(lengths), seen.dtype).repeat_interleave(group, 0)

    def read(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        near = [run.part(layer, q) for run in self._runs]
        near_out, near_lse = near[0] if len(near) == 1 else map(torch.cat, zip(*near))
        far_out, far_lse = self._far(layer, _part(q, self.start, self.stop))
        share = torch.sigmoid(near_lse - far_lse).unsqueeze(-1)
        if share.dtype == q.dtype:
            return torch.lerp(far_out, near_out, share)
        return torch.lerp(far_out.to(share.dtype), near_out.to(share.dtype), share).to(q.dtype)

    def _far(self, layer: int, q: torch.Tensor) -> _Part:
        rows, heads, group, dim = q.shape
        if rows == 1:
            return attend(q, self._keys[layer], self._values[layer], None)
        # All rows and their groups of queries as rows of one product: keys are read once.
        folded = q.transpose(0, 1).reshape(1, heads, rows * group, dim)
        out, lse = attend(folded, self._keys[layer], self._values[layer], self._mask)
        return (out.view(heads, rows, group, dim).transpose(0, 1),
                lse.view(heads, rows, group).transpose(0, 1))


def _split(rows: Sequence[Rows]) -> list[tuple[list[Rows], torch.Tensor | None]]:
    """
    Cut the rows of a step into runs, each with the buffer in which its last lane lies beside what
    it sees, if it does.

    Lanes with one row each, over one context, make a run while padding does not outweigh what
    is saved. A lane that others of this step see must stay where they look for it. A lane beside
    its context makes a run with the rows that go to the context's lane, where it comes next.
    """
    contexts = {id(each.context.kv) for each in rows if each.context is not None}
    runs: list[tuple[list[Rows], torch.Tensor | None]] = []
    shortest = longest = 0
    before = None
    for each in rows:
        kv, beside = each.context and each.context.kv, _beside(each)
        free = (each.count == 1 and kv is not None and not each.lane.fixed
                and beside is None and id(each.lane.view().kv) not in contexts)
        length = len(each.lane)
        low, high = min(shortest, length), max(longest, length)
        if free and before is kv and high <= 4 * low + 64:
            runs[-1][0].append(each)
        elif beside is not None and runs and _buffer(runs[-1][0][-1]) is beside:
            runs[-1] = [*runs[-1][0], each], beside
        else:
            runs.append(([each], beside))
            low = high = length
        shortest, longest = low, high
        before = kv if free else None
    return runs


def _buffer(rows: Rows) -> torch.Tensor | None:
    """The buffer with a margin that these rows will be written to; None if it has none."""
    return rows.lane.reserve(rows.count).whole


def _beside(rows: Rows) -> torch.Tensor | None:
    """The buffer in which these rows' lane lies beside what it sees; None if it does not."""
    if not isinstance(rows.lane, SideLane):
        return None
    if rows.context is None:
        rows.lane.leave()
        return None
    return rows.lane.beside(rows.context, rows.count)


def _make_run(rows: Sequence[Rows], whole: torch.Tensor | None, group: int) -> _Run:
    last = rows[-1]
    if last.context is not None and whole is not None:
        return (_SideRow(last, last.context, whole) if len(rows) == last.count == 1
                else _SideRun(last, last.context, whole, group,
                              rows[0] if len(rows) > 1 else None))
    return _LanesRun(rows) if rows[0].count == 1 else _ChunkRun(rows[0], group)


def _share_contexts(runs: Sequence[_Run], group: int) -> list[_Run | _Shared]:
    """Put neighbouring runs together that see the same context."""
    readers: list[_Run | list[_Run]] = []
    before, together = None, list[_Run]()
    for run in runs:
        kv = run.contexts[0] and run.contexts[0].kv
        if kv is None:
            readers.append(run)
        elif kv is before:
            together.append(run)
        else:
            together = [run]
            readers.append(together)
        before = kv
    return [_Shared(reader, group) if isinstance(reader, list) else reader for reader in readers]


def check_ahead(rows: Sequence[Rows]) -> None:
    """A context that is ahead must be what this step writes, or unwritten rows would be read."""
    written = {id(each.lane.view().kv): len(each.lane) + each.count for each in rows}
    for each in rows:
        view = each.context
        if isinstance(view, AheadView) and view.length > written.get(id(view.kv), 0):
            raise ValueError(f'a context of {view.length} rows is ahead of its lane, and no chunk '
                             f'of this step appends them to it')


def _written(kv: torch.Tensor, first: int, stop: int) -> Sequence[torch.Tensor]:
    """Each layer's rows of a buffer in the order (rows, 2, heads, dim) of what is written there."""
    return kv[:, :, :, first:stop].permute(1, 3, 0, 2, 4).unbind()


def _causal(like: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    """Return a mask (rows, length) to add to scores: of `length` keys the rows are the last."""
    return like.new_full((rows, length), -torch.inf).triu_(length - rows + 1)


def _part(x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Return x[start:stop], without the cost of slicing where that is all of it."""
    return x if stop - start == len(x) else x[start:stop]


def _padding(lengths: torch.Tensor, longest: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a mask (lanes, longest) to add to scores: nothing past each lane's end."""
    past = torch.arange(longest, device=lengths.device) >= lengths[:, None]
    return torch.zeros(past.shape, dtype=dtype, device=past.device).masked_fill_(past, -torch.inf)


def attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
           mask: torch.Tensor | None) -> _Part:
    """
    Return attention (batch, heads, rows, dim) and the log-sum-exp of its scores.

    `mask` is added to the scores. These are kernels behind F.scaled_dot_product_attention, which
    keeps the log-sum-exp to itself.
    """
    if q.device.type == 'cpu':
        return torch._scaled_dot_product_flash_attention_for_cpu(q, keys, values, attn_mask=mask)
    if q.device.type != 'cuda' or q.dtype == torch.float64 or q.shape[-1] % 8:
        return attend_plainly(q, keys, values, mask)
    if mask is not None:
        mask = _aligned(mask).expand(*q.shape[:3], -1)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, keys, values, mask, compute_log_sumexp=True)
    return out, lse[..., :q.shape[2]]  # It is padded.


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    """Return a mask (..., length) whose rows begin where the kernel can read them from."""
    length = mask.shape[-1]
    return F.pad(mask, (0, -length % 8))[..., :length] if length % 8 else mask


def attend_plainly(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
                   mask: torch.Tensor | None) -> _Part:
    """`attend` in three steps that every device has."""
    scores = (q * q.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    scores = scores.to(torch.promote_types(q.dtype, torch.float32))
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores, dim=-1)
    return torch.exp(scores - lse[..., None]).to(q.dtype) @ values, lse
