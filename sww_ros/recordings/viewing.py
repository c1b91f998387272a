"""Recordings, played to a session step by step, with questions on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sww_ros.bags import Bag, Capture, is_bag
from sww_ros.frames import NANOSECONDS, CameraFrame, FrameChoice, FrameSampler
from sww_ros.library import Asker, play_steps
from sww_ros.sources import PictureFolder, open_video
from sww_ros.streaming.events import (
    Event,
    FirstSight,
    QuestionState,
    Restarted,
    StepPerceived,
    TextDelta,
)
from sww_ros.streaming.session import Session


class Recorded:
    """What is narrated: pictures, with their times on one clock."""

    def __init__(self, path: Path, topic: str = '') -> None:
        """
        Open it.

        :param topic: the image topic of a bag; '': its only one
        :raises ValueError: for what is neither bag, video nor folder of pictures
        """
        if topic and not is_bag(path):
            raise ValueError(f'--topic {topic}: {path} is no bag')
        self._source = source = Bag(path, topic) if is_bag(path) else open_video(path)
        self.path, self.bag = path, source if isinstance(source, Bag) else None
        self.duration_s, self.frame_rate = source.duration_s, source.frame_rate

    def pictures(self, rate: float) -> Iterator[tuple[bool, Capture, CameraFrame]]:
        """
        Yield the pictures in order, and whether a model that takes `rate` of them a second does.

        It is decided as in the node. Stragglers are left out; where stamps jump back another video
        begins, and the clock of the captures goes on.
        """
        sampler, shift_ns, at_ns, video = FrameSampler(rate), 0, -1, 0
        for received, (frame, frame_id) in enumerate(self._read(rate), 1):
            choice = sampler.choose(frame.stamp_ns)
            if choice is FrameChoice.OLD:
                continue
            if at_ns < 0:
                shift_ns = frame.stamp_ns
            elif choice is FrameChoice.RESTART:
                video += 1
                shift_ns = frame.stamp_ns - at_ns - round(NANOSECONDS / rate)
            at_ns = frame.stamp_ns - shift_ns
            yield (choice is not FrameChoice.SKIP,
                   Capture(at_ns, frame.received_ns, frame_id, received, video), frame)

    def _read(self, rate: float) -> Iterator[tuple[CameraFrame, str]]:
        source = self._source
        if isinstance(source, Bag):
            yield from source.pictures()
            return
        if isinstance(source, PictureFolder):  # Each of them is one that is wanted.
            source = open_video(self.path, rate)
        for frame in source.frames():
            at_ns = frame.offset_ns or 0
            yield CameraFrame(frame.load, at_ns, at_ns), ''


class Account(NamedTuple):
    """All that was told of a recording, each with the picture it is about; questions by id."""

    told: list[tuple[Event, Capture]]
    asked: dict[str, str]


class Viewing:
    """One recording, played to a session step by step, with questions on the way."""

    def __init__(self, session: Session, recording: Recorded,
                 questions: Iterable[tuple[float, str]], note: Callable[[str], None]) -> None:
        """
        Prepare it.

        :param questions: seconds from the start, and what to ask
        :param note: is told, in words, what was left out
        """
        self._session, self._recording, self._note = session, recording, note
        self._rate, self._asker = session.info['frame_rate'], Asker(session, questions)
        self._captures: dict[int, Capture] = {}
        self._unread: list[str] = []
        self._told: list[tuple[Event, Capture]] = []

    def run(self, progress: Callable[[], object] = lambda: None) -> Account:
        """
        Play all of it; `progress` is called after each step.

        :raises ValueError: for a recording that breaks off, or of which nothing can be seen
        :raises ClipError: for trouble in the engine
        """
        path, seen_s = self._recording.path, -1.0
        taken = ((capture, frame) for wanted, capture, frame
                 in self._recording.pictures(self._rate) if wanted)
        # Before another video begins, the one before is spoken of to its end.
        for _, video in groupby(taken, key=lambda each: each[0].video):
            for events in play_steps(self._session, self._load(video), patience_s=math.inf):
                now_s = self._keep(events)
                seen_s = max(seen_s, now_s)
                self._keep(self._asker.due(now_s))
                progress()
        if self._unread:
            self._note(f'{path}: {len(self._unread)} pictures were left out: {self._unread[0]}')
        if seen_s < 0:
            raise ValueError(f'nothing of {path} could be seen: '
                             f'{self._unread[0] if self._unread else "it has no pictures"}')
        self._keep(self._asker.due(max(self._recording.duration_s, seen_s + 1 / self._rate)))
        for at_s, question in self._asker.left:
            self._note(f'{path} ends at {seen_s:g} s: not asked at {at_s:g} s: {question}')
        return Account(self._told, self._asker.asked)

    def _load(self, video: Iterable[tuple[Capture, CameraFrame]]
              ) -> Iterator[tuple[np.ndarray, int]]:
        for capture, frame in video:
            try:
                pixels = frame.load()
            except ValueError as error:  # As in the node, others may be better.
                self._unread.append(f'{error} (at {capture.at_ns / NANOSECONDS:.3f} s)')
                continue
            self._captures[frame.stamp_ns] = capture
            yield pixels, frame.stamp_ns

    def _keep(self, events: Iterable[Event]) -> float:
        """Return until when there is something to ask about [s]; -1: there is nothing."""
        seen_s = -1.0
        for event in events:
            if isinstance(event, TextDelta | StepPerceived | FirstSight):
                newest = next(reversed(self._captures.values()))
                self._told.append((event, self._captures.get(event.stamp_ns, newest)))
            if isinstance(event, StepPerceived):
                seen_s = self._captures[event.stamp_ns].at_ns / NANOSECONDS
            elif isinstance(event, Restarted) and event.reason != 'relay':
                seen_s = -1.0
            elif isinstance(event, QuestionState) and event.state == 'rejected':
                question = self._asker.asked[event.question_id]
                self._note(f'not answered: {question!r}: {event.reason}')
        return seen_s
