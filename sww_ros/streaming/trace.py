"""The record of a run: what every row was fed, saw and predicted; enough to run it again."""

from __future__ import annotations

from dataclasses import dataclass
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
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

    def save(self, file: Path) -> None:
        """Write the trace as safetensors; what is not a tensor goes into the metadata as JSON."""
        lanes = [dict(stream_id=r.stream_id, fed=r.fed, sees=r.sees, predicted=r.predicted)
                 for r in self.lanes]
        about = dict(prefix=self.prefix, grid=self.grid, steps=self.steps, lanes=lanes)
        save_file({'patches': self.patches, 'positions': torch.from_numpy(self.positions)},
                  file, metadata={'trace': json.dumps(about)})

    @staticmethod
    def load(file: Path) -> Trace:
        """
        Read a trace written by `save`.

        :raises ValueError: for a file that is no trace
        """
        try:
            with safe_open(file, 'pt') as content:
                about = json.loads((content.metadata() or {})['trace'])
                patches, positions = (content.get_tensor(k) for k in ('patches', 'positions'))
        except (OSError, KeyError, SafetensorError) as error:
            raise ValueError(f'{file} is not a trace: {error}') from error
        return Trace(about['prefix'], tuple(about['grid']), patches, about['steps'],
                     positions.numpy(), [LaneRecord(**lane) for lane in about['lanes']])

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
