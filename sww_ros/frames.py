"""Frames before they are pixels: those of a source, those of a camera, and which are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
import math
import struct
from typing import TypeVar

import numpy as np

NANOSECONDS = 1_000_000_000
"""In a second."""

Item = TypeVar('Item')


@dataclass(frozen=True)
class CameraFrame:
    """
    A frame of a camera that is not converted yet, on its way to the engine.

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


@dataclass(frozen=True)
class SourceFrame:
    """
    A frame of a source: its time after the start [ns], None for right now, and its pixels.

    `load` returns (height, width, 3) uint8 RGB; it is not called for a frame that is skipped.
    """

    offset_ns: int | None
    load: Callable[[], np.ndarray]


class FrameChoice(Enum):
    """
    What to do with a frame: perceive it, leave it out, or begin anew and perceive it.

    One is left out because it comes too early (SKIP), or is not newer than one before (OLD).
    """

    TAKE = 'take'
    SKIP = 'skip'
    OLD = 'old'
    RESTART = 'restart'


class FrameSampler:
    """
    Thins a camera's frames to the model's frame rate.

    Frames are due at a steady beat, and a frame that is up to a quarter of a period early is
    taken, so that a camera of just that rate loses none to jitter. Two taken frames are at least
    half a period apart. A slower camera loses nothing.

    :param rate: frames per second that the model wants
    """

    def __init__(self, rate: float) -> None:
        if not rate > 0:
            raise ValueError(f'the frame rate must be positive, not {rate}')
        self._period = round(NANOSECONDS / rate)
        self._due: int | None = None
        self._last = 0

    def choose(self, stamp_ns: int) -> FrameChoice:
        """
        Return what to do with the frame of this stamp [ns].

        A stamp older than the last one by more than a period means that the clock was set back
        or a recording began anew: RESTART. One older by less is a straggler: OLD.
        """
        if self._due is None:
            return self._begin(stamp_ns, FrameChoice.TAKE)
        if stamp_ns < self._last - self._period:
            return self._begin(stamp_ns, FrameChoice.RESTART)
        if stamp_ns <= self._last:
            return FrameChoice.OLD
        self._last = stamp_ns
        if stamp_ns < self._due - self._period // 4:
            return FrameChoice.SKIP
        self._due = max(self._due + self._period, stamp_ns + self._period * 3 // 4)
        return FrameChoice.TAKE

    def reset(self) -> None:
        """Forget the stamps seen so far: the next frame is taken."""
        self._due = None

    def _begin(self, stamp_ns: int, choice: FrameChoice) -> FrameChoice:
        self._last = stamp_ns
        self._due = stamp_ns + self._period
        return choice


def fitted_size(height: int, width: int, unit: int, least: int, most: int) -> tuple[int, int]:
    """
    Return the (height, width) a frame is scaled to: multiples of the unit within the pixel range.

    The rule is Qwen2-VL's own (its `smart_resize`).

    :param least: the fewest pixels, `most` the most
    :raises ValueError: for a frame that is too narrow
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f'a frame of {width}x{height} pixels is too narrow to be perceived')
    h, w = (max(unit, round(side / unit) * unit) for side in (height, width))
    if h * w > most:
        scale = math.sqrt(height * width / most)
        h, w = (max(unit, math.floor(side / scale / unit) * unit) for side in (height, width))
    elif h * w < least:
        scale = math.sqrt(least / (height * width))
        h, w = (math.ceil(side * scale / unit) * unit for side in (height, width))
    return h, w


def header_of(raw: bytes) -> tuple[int, str]:
    """Return stamp [ns] and frame_id of a message, in CDR, that begins with a std_msgs/Header."""
    seconds, nanoseconds, length = struct.unpack_from('<iII' if raw[1] & 1 else '>iII', raw, 4)
    frame_id = bytes(raw[16:16 + length]).rstrip(b'\0').decode(errors='replace')
    return seconds * NANOSECONDS + nanoseconds, frame_id


def with_last(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """Yield each item, and whether it is the last one; reads one item ahead."""
    waiting: list[Item] = []
    for item in items:
        if waiting:
            yield waiting.pop(), False
        waiting.append(item)
    if waiting:
        yield waiting.pop(), True
