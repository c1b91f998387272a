"""Frames that wait for perception: bounded, taken a step at a time, whole steps give way."""

from __future__ import annotations

from collections import deque

from sww_ros.streaming.jobs import Frame


class PendingFrames:
    """
    A queue of steps, the newest of which may be incomplete.

    A step is complete with `per_step` frames, or with the last frame of a video. `cut` says that
    the next step begins another video, because the end of the one before was dropped.
    """

    def __init__(self, per_step: int, limit: int) -> None:
        """:param limit: the most frames that wait, at least a step's"""
        self._per_step, self._limit = per_step, max(limit, per_step)
        self._steps: deque[list[Frame]] = deque()
        self.cut = False

    @property
    def complete(self) -> bool:
        """Whether the frames of a step are all there."""
        return bool(self._steps) and self._is_complete(self._steps[0])

    def __len__(self) -> int:
        return sum(map(len, self._steps))

    def put(self, frame: Frame) -> int:
        """Add a frame; return how many were dropped to make room: those of the oldest step."""
        dropped = 0
        if len(self) >= self._limit:
            oldest = self._steps.popleft()
            self.cut |= oldest[-1].last
            dropped = len(oldest)
        if not self._steps or self._is_complete(self._steps[-1]):
            self._steps.append([])
        self._steps[-1].append(frame)
        return dropped

    def take(self) -> tuple[Frame, ...]:
        """Take the frames of the next step, which is complete."""
        self.cut = False
        return tuple(self._steps.popleft())

    def clear(self) -> int:
        """Throw all frames away; return how many they were."""
        count = len(self)
        self.cut |= any(step[-1].last for step in self._steps)
        self._steps.clear()
        return count

    def _is_complete(self, step: list[Frame]) -> bool:
        return len(step) == self._per_step or step[-1].last
