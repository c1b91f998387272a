"""Picks the pictures that are on screen at even times, whatever times they have themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
import math
from typing import NamedTuple

import numpy as np

_SLACK_S = 1e-3
"""Time stamps of videos are rounded to milliseconds."""
Shrink = Callable[[np.ndarray], np.ndarray]
"""Makes (H, W, 3) uint8 RGB smaller, so that a whole video of it fits into memory."""


class Timed(NamedTuple):
    """A picture, when it comes and how long it lasts [s]; `load` returns (H, W, 3) uint8 RGB."""

    at_s: float
    lasts_s: float
    load: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Times:
    """
    When to look: every 1 / `rate` seconds from `start_s` until before `end_s`.

    `end_s` None: to the end of the video. `most`: how many pictures at most; None: all.
    """

    rate: float
    start_s: float = 0.0
    end_s: float | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise ValueError(f'frames per second must be a positive number, not {self.rate!r}')
        if self.most is not None and self.most < 1:
            raise ValueError(f'at least one frame must be read, not {self.most!r}')
        if self.end_s is not None and self.before(self.end_s) < 1:
            raise ValueError(f'the end, {self.end_s:g} s, is not after the start, '
                             f'{self.start_s:g} s')

    def before(self, until_s: float) -> int:
        """Return how many of the times are before `until_s` [s]."""
        until_s = until_s if self.end_s is None else min(until_s, self.end_s)
        count = max(0, math.ceil((until_s - self.start_s - _SLACK_S) * self.rate))
        return count if self.most is None else min(count, self.most)

    def over(self, at_s: float) -> bool:
        """Whether none of the times is at or after `at_s` [s]."""
        return (self.end_s is not None and at_s >= self.end_s - _SLACK_S
                or self.most is not None and self.before(at_s) >= self.most)


def pick(pictures: Iterable[Timed], times: Times, shrink: Shrink | None = None,
         ) -> tuple[list[np.ndarray], float | None]:
    """
    Return the picture on screen at each time, and when the video ended [s], if it was seen to.

    On screen is the newest picture that is not later; before the first one, the first. A picture
    is loaded only if it is picked. Pictures whose times run backwards are passed over.

    :param shrink: what is kept of each picture, at once
    """
    chosen: list[np.ndarray] = []
    shown: Timed | None = None
    for picture in pictures:
        if shown is not None:
            if picture.at_s <= shown.at_s:
                continue
            _show(chosen, shown, times.before(picture.at_s), shrink)
            if times.over(picture.at_s):
                return chosen, None
        shown = picture
    if shown is None:
        return [], 0.0
    end_s = shown.at_s + shown.lasts_s
    _show(chosen, shown, times.before(end_s), shrink)
    return chosen, end_s


def _show(chosen: list[np.ndarray], picture: Timed, count: int, shrink: Shrink | None) -> None:
    missing = count - len(chosen)
    if missing > 0:
        pixels = picture.load()
        chosen += [shrink(pixels) if shrink else pixels] * missing
