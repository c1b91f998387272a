"""A camera frame on its way to the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Frame:
    """
    A frame that is not converted yet.

    `load` returns the pixels, (H, W, 3) uint8 RGB, or raises ValueError; it is called on the
    sender's thread, and not at all if the frame is dropped before. `stamp_ns` is the camera's
    stamp, `received_ns` the `time.monotonic_ns()` of its arrival.
    """

    load: Callable[[], np.ndarray]
    stamp_ns: int
    received_ns: int

    def message(self) -> tuple[dict, memoryview]:
        """Return header and payload of the message that feeds it; raises what `load` does."""
        pixels = self.load()
        return {'command': 'feed', 'shape': pixels.shape, 'stamp_ns': self.stamp_ns,
                'received_ns': self.received_ns}, pixels.data
