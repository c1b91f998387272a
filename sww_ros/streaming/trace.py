"""The record of a run: what every row was fed, saw and predicted; enough to run it again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sww_ros.streaming.generation import LaneRecord
from sww_ros.streaming.stream import Stream
from sww_ros.streaming.visibility import PREFIX_STEP, VISUAL_LANE, Rows


@dataclass
class Trace:
    """
    One stream and its speakers.

    `patches` (steps * 4 * tokens, pixels) are what the vision tower was given; `grid` is in
    merged tokens; `lanes` are the text lanes in the order they were opened.
    """

    prefix: list[int]
    grid: tuple[int, int]
    patches: torch.Tensor
    steps: int
    positions: np.ndarray
    lanes: list[LaneRecord]

    @staticmethod
    def of(stream: Stream, records: list[LaneRecord]) -> Trace:
        steps = len(stream.patches)
        used = [record for record in records if record.fed]
        parts = [stream.scheme.prefix(len(stream.prefix))]
        parts += [stream.scheme.visual(len(stream.prefix), step, *stream.grid)
                  for step in range(steps)]
        parts += [stream.scheme.text(0, len(record.fed)) for record in used]
        return Trace(list(stream.prefix), stream.grid, torch.cat(stream.patches), steps,
                     np.concatenate(parts, axis=1), used)

    def rows(self) -> Rows:
        """The rows of the whole run in one sequence: prefix, steps, then lane after lane."""
        tokens = self.grid[0] * self.grid[1]
        visual = len(self.prefix) + self.steps * tokens
        lengths = [len(record.fed) for record in self.lanes]
        lane = np.repeat([VISUAL_LANE, *range(len(lengths))], [visual, *lengths])
        step = np.concatenate([np.full(len(self.prefix), PREFIX_STEP),
                               np.repeat(np.arange(self.steps), tokens),
                               np.zeros(sum(lengths), int)])
        sees = np.concatenate([np.zeros(visual, int), *(record.sees for record in self.lanes)])
        return Rows(lane, step, sees.astype(int))

    def predictions(self) -> np.ndarray:
        """For each row of `rows()`, the token the live run chose from it, or -1."""
        visual = len(self.prefix) + self.steps * self.grid[0] * self.grid[1]
        return np.concatenate([np.full(visual, -1),
                               *(record.predicted for record in self.lanes)]).astype(int)
