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
class Rows:
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


def wait_k_sees(answer_index: np.ndarray, wait_k: int, steps: int) -> np.ndarray:
    """
    Steps visible to the rows that predict answer tokens `answer_index` under wait-K.

    Row j sees steps 0..min(floor(j / K), F - 1); rows before the answer (negative) step 0 only;
    rows of the last step's tokens see the tail too.
    """
    last = np.maximum(answer_index, 0) // wait_k
    return np.where(last >= steps - 1, SEES_TAIL, np.minimum(last, steps - 1) + 1)


def wait_k_rows(prefix_tokens: int, steps: int, step_tokens: int, wait_k: int,
                assistant_tokens: int, answer_tokens: int, tail_tokens: int) -> Rows:
    """Rows of one video with one text lane under wait-K, as the paper trains it."""
    visual = prefix_tokens + steps * step_tokens + tail_tokens
    text = assistant_tokens + answer_tokens
    lane = np.repeat([VISUAL_LANE, 0], [visual, text])
    step = np.concatenate([
        np.full(prefix_tokens, PREFIX_STEP), np.repeat(np.arange(steps), step_tokens),
        np.full(tail_tokens, TAIL_STEP), np.zeros(text, int)])
    # The last row of the assistant prefix predicts answer token 0.
    predicts = np.arange(text) - (assistant_tokens - 1)
    sees = np.concatenate([np.zeros(visual, int), wait_k_sees(predicts, wait_k, steps)])
    return Rows(lane, step, sees)


def ranges(mask_row: np.ndarray) -> list[list[int]]:
    """The True stretches of one mask row as [start, end) pairs."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask_row.astype(np.int8), [0]])))
    return [[int(a), int(b)] for a, b in zip(edges[::2], edges[1::2])]
