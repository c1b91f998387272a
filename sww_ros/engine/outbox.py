"""What waits to be sent to the engine: commands in order, frames newest first to stay."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
import threading

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


class Outbox:
    """
    Commands and frames for one sender; putting never waits.

    Commands go first and are never lost. At most `max_frames` frames wait, and a newer one
    pushes the oldest out.
    """

    def __init__(self, max_frames: int) -> None:
        self._commands: deque[dict] = deque()
        self._frames: deque[Frame] = deque()
        self._max_frames = max_frames
        self._closed = False
        self._changed = threading.Condition()

    def put_command(self, command: dict) -> None:
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def put_frame(self, frame: Frame) -> int:
        """Add a frame and return how many were pushed out by it."""
        with self._changed:
            self._frames.append(frame)
            dropped = len(self._frames) - self._max_frames
            for _ in range(dropped):
                self._frames.popleft()
            self._changed.notify()
        return max(dropped, 0)

    def clear_frames(self) -> int:
        """Drop the frames that wait and return how many."""
        with self._changed:
            count = len(self._frames)
            self._frames.clear()
        return count

    def clear(self) -> int:
        """Drop everything that waits and return how many of it were frames."""
        with self._changed:
            self._commands.clear()
            return self.clear_frames()

    def take(self) -> dict | Frame | None:
        """Wait for the next thing to send; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._commands or self._frames)
            if self._closed:
                return None
            return self._commands.popleft() if self._commands else self._frames.popleft()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
