"""
The package without ROS: what is said of a video, as it is said; several videos on one model.

`play_steps` is the loop that plays any clip: feed a step, wait until all is said of it, take the
events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
import math
import os
from pathlib import Path
import time
from typing import TYPE_CHECKING, NamedTuple, overload
import weakref

import numpy as np

from sww_ros.frames import NANOSECONDS, with_last
from sww_ros.streaming.config import BY_NAME, OF_ENGINE, SessionConfig
from sww_ros.streaming.events import (
    NARRATION,
    Event,
    FramesDropped,
    SessionClosed,
    TextDelta,
    Trouble,
)
from sww_ros.streaming.executors import Scheduler
from sww_ros.streaming.session import Loaded, Session, load_for, take_threads

if TYPE_CHECKING:
    from sww_ros.engine.far import FarEngine
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


class Engine:
    """
    A model that is loaded once, for any number of sessions at a time.

    Each session has a video, a prompt, settings, questions and lanes of its own. What they say is
    decoded together, in one pass for all; to perceive, they take turns, so that none waits longer
    than one step of each of the others takes. Words are those that each would have alone, and what
    fails in one leaves the others alone.

        with Engine.open('builtin') as engine:
            front, rear = engine.session(), engine.session()
    """

    def __init__(self, loaded: Loaded) -> None:
        """Make an engine of what `load_for` returns with `shared`."""
        self._loaded, config = loaded, loaded.config
        self._overlap = 'fused' if config.overlap == 'auto' else config.overlap
        self._scheduler = Scheduler(
            self._overlap, partial(take_threads, loaded.checkpoint, config), lasts=True)
        # One that is open is held by the scheduler.
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._closed = False

    @overload
    @classmethod
    def open(cls, model: str | os.PathLike = ..., config: SessionConfig | None = ...) -> Engine: ...

    @overload
    @classmethod
    def open(cls, model: str | os.PathLike = ..., config: SessionConfig | None = ..., *,
             engine: str, token: str = ..., authority: str = ...) -> FarEngine: ...

    @classmethod
    def open(cls, model: str | os.PathLike = 'builtin', config: SessionConfig | None = None, *,
             engine: str = '', token: str = '', authority: str = '') -> Engine | FarEngine:
        """
        Load a checkpoint ('builtin', a folder, a hub id), or use one that is loaded far away.

        :param config: what holds for all sessions, and for the rest what they have by default
        :param engine: wss://host:port of a pool (docs/scale.md), whose model it is then
        :param token: what the pool knows whoever calls this by
        :param authority: file of the certificate that vouches for the pool; empty: those that this
            machine trusts
        :raises ValueError: in words, for a checkpoint, an address or a setting that cannot be used
        """
        config = config or SessionConfig()
        if engine:
            from sww_ros.engine.far import FarEngine
            from sww_ros.engine.link import Link
            return FarEngine(Link(engine, token, authority=authority), config)
        if config.overlap == 'processes':
            raise ValueError("overlap 'processes' perceives for one session alone: several share "
                             'fused, threads or serial')
        return cls(load_for(os.fspath(model), config, shared=True))

    @property
    def decode_steps(self) -> int:
        """How many passes there were in which was decoded."""
        return self._scheduler.decode_steps

    @property
    def shared_steps(self) -> int:
        """How many of them were for more than one session."""
        return self._scheduler.shared_steps

    def session(self, config: SessionConfig | None = None) -> Session:
        """
        Begin to watch one more video.

        :param config: its settings, those in `OF_ENGINE` left out; the engine's if not given
        :raises ValueError: for a setting that it cannot have
        :raises SessionClosed: once the engine is closed
        """
        if self._closed:
            raise SessionClosed('the engine is closed: open another one')
        shared, config = self._loaded.config, config or self._loaded.config
        own = {name: getattr(shared, name) for name in OF_ENGINE}
        for name, value in own.items():
            if getattr(config, name) not in (value, BY_NAME[name].default):
                raise ValueError(f'{name} is {value!r} for all sessions of this engine, and cannot '
                                 f'be {getattr(config, name)!r} for one of them')
        own['overlap'] = self._overlap
        session = Session(self._loaded.checkpoint, replace(config, **own), self._scheduler)
        with self._scheduler.changed:
            self._sessions.add(session)
        return session.begun(self._loaded)

    def close(self) -> None:
        """Close all sessions, and end; what is computed just now is finished first."""
        with self._scheduler.changed:
            self._closed, sessions = True, [*self._sessions]
        for session in sessions:
            session.close()
        self._scheduler.end()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
