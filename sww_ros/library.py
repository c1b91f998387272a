"""The simplest way to use the package without ROS: what is said of a video, as it is said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sww_ros.frames import NANOSECONDS
from sww_ros.streaming.clip_loop import play_steps
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import NARRATION, TextDelta
from sww_ros.streaming.session import Session

if TYPE_CHECKING:
    from sww_ros.sources import PictureFolder, VideoFile


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
