"""The loop that plays a whole clip: feed a step, wait until all is said of it, take the events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import time

import numpy as np

from sww_ros.frames import with_last
from sww_ros.streaming.events import Event, FramesDropped, Trouble
from sww_ros.streaming.session import Session

SETTLE_S = 900.0
"""How long the engine may take to come to rest after a step."""
_POLL_S = 0.1


class ClipError(RuntimeError):
    """A clip whose run is no fair one, with the reason; its text must not be scored."""


def play_steps(session: Session, frames: Iterable[tuple[np.ndarray, int]], *, ends: bool = True,
               patience_s: float = SETTLE_S, lossless: bool = True) -> Iterator[Iterator[Event]]:
    """
    Feed frames; yield, for each step, the events until all is said that is owed to it.

    So nothing depends on how fast the machine is; perception, budget and decoding are those of the
    live engine. The events of a step are to be taken before the next step is asked for.

    :param frames: (H, W, 3) uint8 RGB each, with their stamps [ns]
    :param ends: whether the video ends with the last of them
    :raises ClipError: as `settle` does, which says what the other parameters are
    """
    per_step = session.info['frames_per_step']
    for index, ((pixels, stamp_ns), last) in enumerate(with_last(frames)):
        session.feed(pixels, stamp_ns=stamp_ns, last=last and ends)
        if last or index % per_step == per_step - 1:
            yield settle(session, patience_s, lossless)


def settle(session: Session, patience_s: float = SETTLE_S,
           lossless: bool = True) -> Iterator[Event]:
    """
    Yield events, as they come, until the session rests.

    :param patience_s: how long that may take
    :param lossless: whether a frame that is dropped makes the run an unfair one
    :raises ClipError: for trouble in the engine, a dropped frame, or where it does not rest
    """
    end, rests, dropped = time.monotonic() + patience_s, False, None
    while not rests:
        rests = session.wait_idle(_POLL_S)
        if not rests and time.monotonic() > end:
            raise ClipError(f'the engine did not come to rest within {patience_s:.0f} s')
        events = session.drain()
        for event in events:
            if isinstance(event, Trouble):
                raise ClipError(f'trouble in the engine: {event.message}')
            if lossless and isinstance(event, FramesDropped):
                dropped = dropped or event
        # Frames are reported as dropped before the trouble that is the reason: wait for that one.
        if dropped is None:
            yield from events
    if dropped is not None:
        raise ClipError(f'{dropped.count} frames were dropped ({dropped.reason})')
