"""
The simplest way to use the package without ROS: what is said of a video, as it is said.

`play_steps` is the loop that plays any clip: feed a step, wait until all is said of it, take the
events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import math
import os
from pathlib import Path
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sww_ros.frames import NANOSECONDS, with_last
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import NARRATION, Event, FramesDropped, TextDelta, Trouble
from sww_ros.streaming.session import Session

if TYPE_CHECKING:
    from sww_ros.sources import PictureFolder, VideoFile

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


class Asker:
    """
    Asks questions at their times of a clip, and knows by their ids which it has asked.

    :param questions: when to ask [s], and what
    """

    def __init__(self, session: Session, questions: Iterable[tuple[float, str]]) -> None:
        self._session, self.left = session, sorted(questions)
        self.asked: dict[str, str] = {}

    def due(self, now_s: float) -> Iterator[Event]:
        """
        Ask what is due, one question after the other; yield the events until all is answered.

        :raises ValueError: for words that cannot be asked
        :raises ClipError: as `settle` does
        """
        while self.left and self.left[0][0] <= now_s:
            question = self.left.pop(0)[1]
            self.asked[self._session.ask(question)] = question
            yield from settle(self._session, lossless=False)


class Sentence(NamedTuple):
    """A sentence, and how many seconds of the video had been seen at its end."""

    seconds: float
    text: str


def narrate(video: str | os.PathLike | Iterable[np.ndarray], model: str | os.PathLike = 'builtin',
            config: SessionConfig | None = None) -> Iterator[Sentence]:
    """
    Yield what is said of a video, sentence by sentence.

    Each step of video waits for the words it is owed, so that no frame is dropped however slow
    the machine is. Leaving the iteration (`close()` of the iterator) ends the session.

    :param video: a video file or a folder of pictures, or frames, (H, W, 3) uint8 RGB, at the
        rate at which the model perceives (two a second, unless it says otherwise)
    :param model: 'builtin', a folder, or a hub id
    :raises ValueError: for a video that cannot be read, at once; for a model, a setting or a
        frame that cannot be used, on the way
    :raises RuntimeError: when the model fails, on the way
    """
    if isinstance(video, (str, os.PathLike)):
        _open(video)
    elif not isinstance(video, Iterable):
        raise ValueError('video must be a video file, a folder of pictures, or frames, '
                         f'not {video!r}')
    return _narrate(video, model, config)


def _narrate(video: str | os.PathLike | Iterable[np.ndarray], model: str | os.PathLike,
             config: SessionConfig | None) -> Iterator[Sentence]:
    with Session.open(model, config) as session:
        frames = _frames(video, session.info['frame_rate'])
        for events in play_steps(session, frames, patience_s=math.inf, lossless=False):
            for event in events:
                if (isinstance(event, TextDelta) and event.stream_id == NARRATION
                        and event.sentence):
                    yield Sentence(event.stamp_ns / NANOSECONDS, event.sentence)


def _frames(video: str | os.PathLike | Iterable[np.ndarray],
            rate: float) -> Iterator[tuple[np.ndarray, int]]:
    """Yield frames and their times from the start [ns]."""
    if isinstance(video, (str, os.PathLike)):
        for frame in _open(video, rate).frames():
            yield frame.load(), frame.offset_ns
    else:
        for index, pixels in enumerate(video):
            yield pixels, round(index * NANOSECONDS / rate)


def _open(video: str | os.PathLike, rate: float = 0.0) -> VideoFile | PictureFolder:
    from sww_ros.sources import open_video  # Frames that are given need no OpenCV.
    return open_video(Path(video).expanduser(), rate)
