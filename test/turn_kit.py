"""Positions of a turn with whole videos in it, as the stock model lays it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sww_ros.streaming.positions import VideoClock, step_positions, text_positions


@dataclass(frozen=True)
class VideoPart:
    """A whole video in a turn: merged tokens are laid out as steps x height x width."""

    steps: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        return self.steps * self.height * self.width


def turn_positions(parts: Sequence[int | VideoPart], clock: VideoClock | None = None,
                   first: int = 0) -> np.ndarray:
    """
    Positions of text (a number of tokens) and whole videos, one after the other from `first` on.

    Those of the stock model: each part begins after the largest position before it.
    """
    clock, found = clock or VideoClock(), [text_positions(0, 0)]
    for part in parts:
        if isinstance(part, VideoPart):
            found += [step_positions(first, int(clock.tau(step)), part.height, part.width)
                      for step in range(part.steps)]
            first += max(int(clock.tau(part.steps - 1)), part.height - 1, part.width - 1) + 1
        else:
            found.append(text_positions(first, part))
            first += part
    return np.concatenate(found, axis=1)
