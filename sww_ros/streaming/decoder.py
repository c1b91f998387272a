"""
The one primitive: `Decoder.step(chunks)`, a forward pass over chunks of several lanes.

Prefill, decode, several answers at once and piggybacking are the same call with other chunks. The
linear layers run once over all rows; `attention.py` reads each row's context and own lane. What a
layer computes, and how positions turn into rotations, is the family's (`LanguageModel`), whose
weights are each a `Matrix`. On a GPU steps whose form comes again are recorded (`graphs.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import math
import platform
from typing import Protocol

import torch
import torch.nn.functional as F

from sww_ros.streaming.attention import Plan, Rows
from sww_ros.streaming.family import Seen
from sww_ros.streaming.fixed import Fixed, FixedPlan, fixed_of
from sww_ros.streaming.graphs import Runs, graphs_for
from sww_ros.streaming.kv import Allocate, Lane, LaneView, SideLane


@dataclass(frozen=True)
class Chunk:
    """
    Rows to append to a lane.

    `embeds` (n, hidden); `positions` int64 (3, n). All rows see the rows of `context`, a view of
    another lane, and, causally, their own lane. The step returns the logits of the last `predict`
    rows. The context may be ahead of its lane (`Lane.ahead`) by what another chunk of the
    same step appends. `deep` (layers, n, hidden) is added to the rows after each of the first
    layers.
    """

    lane: Lane
    embeds: torch.Tensor
    positions: torch.Tensor
    context: LaneView | None = None
    predict: int = 0
    deep: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        return self.embeds.shape[0]


class LanguageModel(Protocol):
    """
    The language model of a family, cut where its rows are cached; n is the rows of a step.

    `heads` queries share `kv_heads` keys and values of `head_dim` numbers. Tensors are of `dtype`,
    but for the matrices of layers where these are quantized. `fused` is how many weights of a layer
    are put together in matrices, beside their own places, while it is made. On a GPU what it does
    is recorded: it must not wait for the device, and what it calls must not depend on what tensors
    hold.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    layer_count: int
    dtype: torch.dtype
    device: torch.device
    quantize: str
    fused: int

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of int64 token ids, (n, hidden)."""

    def rotary(self, positions: torch.Tensor) -> torch.Tensor:
        """Return what `project` turns rows by, of int64 positions (3, n); once for all layers."""

    def project(self, layer: int, x: torch.Tensor,
                turn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries (n, kv heads, group, dim) and keys with values (n, 2, kv heads, dim)."""

    def finish(self, layer: int, x: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """Return a layer's output (n, hidden) of its input and what was read, (n, heads * dim)."""

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, vocabulary) of the last layer's output."""

    def matrices(self) -> Sequence[Weights]:
        """Return all matrices of all layers."""


class Decoder:
    """A language model over append-only lanes."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.hidden, self.layer_count = model.hidden, model.layer_count
        self.heads, self.kv_heads, self.head_dim = model.heads, model.kv_heads, model.head_dim
        self.dtype, self.device, self.quantize = model.dtype, model.device, model.quantize
        self.graphs: Runs | None = graphs_for(model.device)

    def settle(self) -> None:
        """Wait until the device has computed what it was given by this thread."""
        if self.device.type == 'cuda':
            torch.cuda.current_stream(self.device).synchronize()

    @property
    def precision(self) -> str:
        """The types of its weights, in words."""
        dtype = str(self.dtype).removeprefix('torch.')
        return dtype if self.quantize == 'none' else f'{self.quantize} with {dtype}'

    def new_lane(self, rows: int, allocate: Allocate | None = None, margin: int = 0) -> Lane:
        """
        Return an empty lane with room for `rows` tokens, in buffers of `allocate` if given.

        :param margin: rows of room for a lane of `new_side_lane` that sees this one
        """
        return Lane(self.layer_count, self.kv_heads, self.head_dim, rows, self.dtype, self.device,
                    allocate, margin)

    def new_side_lane(self, rows: int) -> SideLane:
        """Return an empty lane that lies beside what it sees, once there is room for it."""
        return SideLane(self.layer_count, self.kv_heads, self.head_dim, rows, self.dtype,
                        self.device)

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the embeddings of token ids, (n, hidden)."""
        return self.model.embed(torch.as_tensor(ids, dtype=torch.long, device=self.device))

    def rows_of(self, before: Sequence[int], seen: Seen, after: Sequence[int] = (),
                ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return `embeds` and `deep` of a chunk: what is seen of a step between token ids."""
        rows, deep = seen.rows, seen.deep
        if seen.places is not None:
            rows, deep = rows[seen.places], deep if deep is None else deep[:, seen.places]
        if deep is not None:
            deep = F.pad(deep, (0, 0, len(before), len(after)))  # Nothing is added to text.
        parts = [self.embed(before)] * bool(before) + [rows]
        return torch.cat(parts + [self.embed(after)] * bool(after)), deep

    @torch.inference_mode()
    def step(self, chunks: Sequence[Chunk]) -> list[torch.Tensor | None]:
        """
        Run one forward pass and publish every chunk's rows.

        Returns, per chunk, the logits of its last row (vocabulary,), of its last rows (rows,
        vocabulary) if it asks for more, or None. No two chunks of one call may extend the same
        lane.
        """
        if len({id(chunk.lane) for chunk in chunks}) != len(chunks):
            raise ValueError('two chunks of one step extend the same lane')
        rows = _rows(chunks)
        x = _joined([chunk.embeds for chunk in chunks], 0)
        positions = _joined([chunk.positions for chunk in chunks], 1)
        deep = [(each.start, each.stop, chunk.deep) for chunk, each in zip(chunks, rows)
                if chunk.deep is not None]
        last = [row for chunk, each in zip(chunks, rows)
                for row in range(each.stop - chunk.predict, each.stop)]
        plan: Plan | Fixed
        if self.graphs and (fixed := fixed_of(rows)):
            plan, logits = fixed, self._replayed(self.graphs, fixed, x, positions, deep, last)
        else:
            plan = Plan(rows, self.heads // self.kv_heads)
            x = self._layers(plan, x, self.model.rotary(positions), deep)
            logits = self.model.logits(x if len(last) == len(x) else x[last]) if last else None
        plan.publish()  # Last, so that a step that fails can be computed again, in parts too.
        return _parted(chunks, logits)

    def _layers(self, plan: Plan | FixedPlan, x: torch.Tensor, turn: torch.Tensor,
                deep: Sequence[_Deep]) -> torch.Tensor:
        """Return what the last layer makes of rows x (n, hidden)."""
        for layer in range(self.layer_count):
            q, kv = self.model.project(layer, x, turn)
            plan.write(layer, kv)
            x = self.model.finish(layer, x, plan.read(layer, q))
            for start, stop, added in deep:
                if layer < len(added):
                    x[start:stop] += added[layer]
        return x

    def _replayed(self, graphs: Runs, fixed: Fixed, x: torch.Tensor, positions: torch.Tensor,
                  deep: Sequence[_Deep], last: Sequence[int]) -> torch.Tensor | None:
        """Return the logits of rows `last` of a step that may have been recorded."""
        spans = tuple((start, stop) for start, stop, _ in deep)

        def work(x: torch.Tensor, numbers: torch.Tensor, last: torch.Tensor,
                 *added: torch.Tensor) -> Sequence[torch.Tensor]:
            plan = FixedPlan(fixed, numbers[3:], self.heads // self.kv_heads, self.dtype)
            x = self._layers(plan, x, self.model.rotary(numbers[:3]),
                             [(*span, each) for span, each in zip(spans, added)])
            return [self.model.logits(x.index_select(0, last))] if len(last) else []

        numbers = torch.cat([positions, torch.from_numpy(fixed.numbers)])
        found = graphs.run((fixed.form, spans), work, [
            x, numbers.to(self.device), torch.tensor(last, dtype=torch.long, device=self.device),
            *(added for _, _, added in deep)])
        return found[0] if last else None


_Deep = tuple[int, int, torch.Tensor]
"""From which row to which of a step something is added after each of the first layers, and what."""


def _parted(chunks: Sequence[Chunk],
            logits: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Return of the logits of all rows that predict those of each chunk."""
    if logits is None:
        return [None] * len(chunks)
    found = iter(logits.split([int(chunk.predict) for chunk in chunks if chunk.predict]))
    return [None if not chunk.predict else next(found) if chunk.predict > 1 else next(found)[0]
            for chunk in chunks]


def _rows(chunks: Sequence[Chunk]) -> list[Rows]:
    """Number the rows of a step through; an empty context is none."""
    rows, start = [], 0
    for chunk in chunks:
        context = chunk.context if chunk.context and chunk.context.length else None
        rows.append(Rows(start, start + chunk.rows, chunk.lane, context))
        start += chunk.rows
    return rows


def _joined(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


_LARGE = 250_000
_MANY = {torch.float32: 1_000_000, torch.bfloat16: 0}
"""
When oneDNN's packed weights are faster than what torch.mm calls: from so many weights, for smaller
matrices from so many multiply-adds a call, by type.

Measured on AMD EPYC, one thread, fp32: few rows times a matrix that exceeds the cache take 0.3 to
0.6 of the time of MKL, whose products reach 30 G/s where oneDNN's reach 70; but a call costs 10 µs
more, which for a small matrix is most of it. In bf16 both are oneDNN; packed spares a reordering.
"""


def _packed_from(numel: int, dtype: torch.dtype, device: torch.device) -> float:
    """
    Return from how many rows on the packed form of a matrix is used; infinity: there is none.

    Beside it there is the plain form, for fewer rows.
    """
    if (device.type != 'cpu' or dtype not in _MANY or not torch.backends.mkldnn.is_available()
            or platform.machine().lower() not in ('x86_64', 'amd64')):
        return math.inf
    # Processors without AVX-512 lack bf16 products.
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return math.inf
    return 0 if numel >= _LARGE else _MANY[dtype] / numel


class Weights(Protocol):
    """What rows are multiplied by: a `Matrix`, or one of whole numbers (`quantize.py`)."""

    numel: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (rows, in) times the matrix, plus the bias if there is one."""

    def added_to(self, base: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return `base` (rows, out) plus x times the matrix; for one without bias."""

    def bytes_on(self, device: torch.device) -> int:
        """Return what its weights take on a device, in all forms that they have there [bytes]."""


class Matrix:
    """A matrix (out, in) with an optional bias, in a plain form, a packed one, or both if small."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.numel, self._dtype, self._bias = weight.numel(), weight.dtype, bias
        self._from = _packed_from(self.numel, weight.dtype, weight.device)
        self._plain = weight.t() if self._from else None
        # Packed for few rows: as fast for many, and faster for one than packed for one.
        self._packed = (torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 16)
                        if self._from < math.inf else None)

    def bytes_on(self, device: torch.device) -> int:
        """Return what its weights take on a device, in all forms that they have there [bytes]."""
        both = 0 < _packed_from(self.numel, self._dtype, device) < math.inf
        return self.numel * self._dtype.itemsize * (2 if both else 1)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (rows, in) times the matrix, plus the bias."""
        if x.shape[0] >= self._from:
            return torch.ops.mkldnn._linear_pointwise.default(
                x, self._packed, self._bias, 'none', [], '')
        if self._bias is None:
            return torch.mm(x, self._plain)
        return torch.addmm(self._bias, x, self._plain)

    def added_to(self, base: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return `base` (rows, out) plus x times the matrix, in one call; for one without bias."""
        if x.shape[0] >= self._from:
            return torch.ops.mkldnn._linear_pointwise.binary(x, base, self._packed, None, 'add')
        return torch.addmm(base, x, self._plain)
