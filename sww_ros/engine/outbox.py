"""What the engine is sent beside commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Frame:
    """
    A camera frame on its way to the engine.

    `load` returns the pixels, (H, W, 3) uint8 RGB, or raises ValueError; it is called on the
    sender's thread, and not at all if the frame is dropped before. `stamp_ns` is the camera's
    stamp, `received_ns` the `time.monotonic_ns()` of its arrival.
    """

    load: Callable[[], np.ndarray]
    stamp_ns: int
    received_ns: int
