"""
The one primitive: `Decoder.step(chunks)`, a forward pass over chunks of several lanes.

Prefill, decode, several answers at once and piggybacking are the same call with other chunks. The
linear layers run once over all rows; `attention.py` reads each row's context and own lane. What a
layer computes, and how positions turn into rotations, is the family's (`LanguageModel`), whose
weights are each a `Matrix`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import platform
from typing import Protocol

import torch

from sww_ros.streaming.attention import Plan, Rows
from sww_ros.streaming.kv import Allocate, Lane, LaneView, SideLane


@dataclass(frozen=True)
class Chunk:
    """
    Rows to append to a lane.

    `embeds` (n, hidden); `positions` int64 (3, n). All rows see the rows of `context`, a view of
    another lane, and, causally, their own lane. With `predict` the step returns the logits of the
    last row. The context may be ahead of its lane (`Lane.ahead`) by what another chunk of the
    same step appends.
    """

    lane: Lane
    embeds: torch.Tensor
    positions: torch.Tensor
    context: LaneView | None = None
    predict: bool = False

    @property
    def rows(self) -> int:
        return self.embeds.shape[0]


class LanguageModel(Protocol):
    """
    The language model of a family, cut where its rows are cached; n is the rows of a step.

    `heads` queries share `kv_heads` keys and values of `head_dim` numbers. Tensors are of `dtype`.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    layer_count: int
    dtype: torch.dtype
    device: torch.device

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


class Decoder:
    """A language model over append-only lanes."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.hidden, self.layer_count = model.hidden, model.layer_count
        self.heads, self.kv_heads, self.head_dim = model.heads, model.kv_heads, model.head_dim
        self.dtype, self.device = model.dtype, model.device

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

    @torch.inference_mode()
    def step(self, chunks: Sequence[Chunk]) -> list[torch.Tensor | None]:
        """
        Run one forward pass and publish every chunk's rows.

        Returns, per chunk, the logits of its last row (vocabulary,) or None. No two chunks of
        one call may extend the same lane.
        """
        if len({id(chunk.lane) for chunk in chunks}) != len(chunks):
            raise ValueError('two chunks of one step extend the same lane')
        rows = _rows(chunks)
        plan = Plan(rows, self.heads // self.kv_heads)
        x = _joined([chunk.embeds for chunk in chunks], 0)
        turn = self.model.rotary(_joined([chunk.positions for chunk in chunks], 1))
        for layer in range(self.layer_count):
            q, kv = self.model.project(layer, x, turn)
            plan.write(layer, kv)
            x = self.model.finish(layer, x, plan.read(layer, q))
        logits = self._logits(chunks, rows, x)
        plan.publish()  # Last, so that a step that fails can be computed again, in parts too.
        return logits

    def _logits(self, chunks: Sequence[Chunk], rows: Sequence[Rows],
                x: torch.Tensor) -> list[torch.Tensor | None]:
        last = [each.stop - 1 for chunk, each in zip(chunks, rows) if chunk.predict]
        if not last:
            return [None] * len(chunks)
        x = x if len(last) == len(x) else x[last]
        logits = iter(self.model.logits(x).unbind())
        return [next(logits) if chunk.predict else None for chunk in chunks]

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
