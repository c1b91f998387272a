"""One frame of an image source, and when it is due."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NANOSECONDS = 1_000_000_000
"""In a second."""


@dataclass(frozen=True)
class Frame:
    """
    A frame to publish: its time after the start [ns], None for right now, and its pixels.

    `load` returns (height, width, 3) uint8 RGB; it is not called for a frame that is skipped.
    """

    offset_ns: int | None
    load: Callable[[], np.ndarray]
