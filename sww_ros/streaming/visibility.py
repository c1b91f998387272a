"""
Who attends to whom: one rule for training masks, the live run and the oracle.

Rows stand in the order prefix, visual steps, tail, text lanes. Prefix, visual and tail rows are
causal among themselves and never see text. A text row sees the prefix, the first `sees` steps
whole, the tail where it says so, and the earlier rows of its own lane (paper section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VISUAL_LANE = -1
"""The lane of prefix, visual and tail rows; text lanes count from 0."""
PREFIX_STEP = -1
"""The step of prefix rows, which everyone sees."""
TAIL_STEP = np.iinfo(np.int32).max
"""The step of tail rows, seen only by rows with `sees` = `SEES_TAIL`."""
SEES_TAIL = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Visibility:
    """
    What the rule needs to know of each row; integer arrays of shape (n,).

    `lane` is `VISUAL_LANE` or a text lane; `step` counts for visual rows; `sees` is the number
    of steps visible to a text row, shape (n,) or (batch, n).
    """

    lane: np.ndarray
    step: np.ndarray
    sees: np.ndarray

    def mask(self) -> np.ndarray:
        """Boolean visibility, shape (n, n) or (batch, n, n): True where row i attends to j."""
        index = np.arange(len(self.lane))
        causal = index[None, :] <= index[:, None]
        same_lane = self.lane[None, :] == self.lane[:, None]
        is_visual = self.lane == VISUAL_LANE
        across = ~is_visual[:, None] & is_visual[None, :]
        shown = self.step[None, :] < self.sees[..., :, None]
        return (causal & same_lane) | (across & shown)


def ranges(mask_row: np.ndarray) -> list[list[int]]:
    """The True stretches of one mask row as [start, end) pairs."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask_row.astype(np.int8), [0]])))
    return [[int(a), int(b)] for a, b in zip(edges[::2], edges[1::2])]
