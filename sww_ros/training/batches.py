"""Batches: clips side by side, padded, or several in one row, packed; never seeing each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sww_ros.streaming.layout import IGNORE
from sww_ros.streaming.visibility import VISUAL_LANE, Rows
from sww_ros.training.clips import Clip

_PADDED = -1
"""The clip of rows that only fill; they see each other, as a softmax needs something."""


@dataclass(frozen=True)
class Batch:
    """
    B rows of L columns, made of clips.

    `ids`, `labels`, `clip`, `lane`, `step`, `sees` (B, L) int64, `positions` (3, B, L);
    `patches` (all, pixels) and `grids` (clips, 3), in patches, in the order in which the clips
    stand. `ids` is VIDEO, -1, where a merged visual token goes.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    clip: torch.Tensor
    lane: torch.Tensor
    step: torch.Tensor
    sees: torch.Tensor
    patches: torch.Tensor
    grids: torch.Tensor

    @property
    def answer_tokens(self) -> int:
        return int((self.labels != IGNORE).sum())

    @property
    def rows(self) -> int:
        """Rows that are not padding."""
        return int((self.clip != _PADDED).sum())

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: value.to(device, non_blocking=True)
                        for name, value in vars(self).items()})

    def mask(self) -> torch.Tensor:
        """The dense mask, (B, 1, L, L) bool: True where row i attends to row j."""
        found = []
        for clip, *rows in zip(*(part.cpu().numpy()
                                 for part in (self.clip, self.lane, self.step, self.sees))):
            found.append(Rows(*rows).mask() & (clip[:, None] == clip))
        return torch.from_numpy(np.stack(found))[:, None].to(self.ids.device)


def pad(clips: Sequence[Clip], whole: int = 1) -> Batch:
    """Put each clip into a row of its own, filled up to a multiple of `whole` columns."""
    return _batch([[clip] for clip in clips], whole)


def pack(clips: Sequence[Clip], whole: int = 1) -> Batch:
    """Put all clips into one row, one after the other, filled up likewise."""
    return _batch([clips], whole)


def packed(clips: Iterable[Clip], max_rows: int, whole: int = 1) -> Iterator[Batch]:
    """Yield packed batches of at most `max_rows` rows of clips each; a clip is never cut."""
    waiting: list[Clip] = []
    filled = 0
    for clip in clips:
        if waiting and filled + len(clip.rows) > max_rows:
            yield pack(waiting, whole)
            waiting, filled = [], 0
        waiting.append(clip)
        filled += len(clip.rows)
    if waiting:
        yield pack(waiting, whole)


def padded(clips: Iterable[Clip], count: int, whole: int = 1) -> Iterator[Batch]:
    """Yield padded batches of `count` clips, the last one of what is left."""
    waiting: list[Clip] = []
    for clip in clips:
        waiting.append(clip)
        if len(waiting) == count:
            yield pad(waiting, whole)
            waiting = []
    if waiting:
        yield pad(waiting, whole)


def _batch(lines: Sequence[Sequence[Clip]], whole: int) -> Batch:
    """Put each list of clips into one row."""
    length = max(sum(len(clip.rows) for clip in line) for line in lines)
    length += -length % whole
    shape = len(lines), length
    columns = dict(ids=np.zeros(shape, np.int64), labels=np.full(shape, IGNORE),
                   clip=np.full(shape, _PADDED), lane=np.full(shape, VISUAL_LANE),
                   step=np.zeros(shape, np.int64), sees=np.zeros(shape, np.int64))
    positions = np.zeros((3, *shape), np.int64)
    for row, line in enumerate(lines):
        at = 0
        for number, clip in enumerate(line):
            laid = clip.rows
            here = slice(at, at + len(laid))
            for name, value in (('ids', laid.ids), ('labels', laid.labels), ('clip', number),
                                ('lane', laid.rows.lane), ('step', laid.rows.step),
                                ('sees', laid.rows.sees)):
                columns[name][row, here] = value
            positions[:, row, here] = laid.positions
            at += len(laid)
    clips = [clip for line in lines for clip in line]
    # The tower counts patches, 2 x 2 of them in a merged token.
    grids = [(steps, 2 * height, 2 * width) for steps, height, width in
             (clip.grid for clip in clips)]
    return Batch(**{name: torch.from_numpy(value) for name, value in columns.items()},
                 positions=torch.from_numpy(positions),
                 patches=torch.cat([clip.patches for clip in clips]), grids=torch.tensor(grids))
