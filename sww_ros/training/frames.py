"""
The frames of a sample: the pictures on screen at even times, in whole steps.

Video files are decoded picture by picture, and so are recorded image topics (rosbag2, SQLite or
MCAP), without ROS; only what is picked is converted and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import av
import numpy as np

from sww_ros.frames import CameraFrame

if TYPE_CHECKING:
    from sww_ros.bags import Bag


class VideoError(ValueError):
    """A video or bag that cannot be read; the message names it and says why."""


@dataclass(frozen=True)
class Sample:
    """
    A stretch of video, what is asked about it, and what is to be said.

    `prompt` is the standing question; `answer` the caption, or the answer to the question.
    `start_s`, `end_s` [s] are counted from the first picture; None: to the end of the video.
    `source` is where it was annotated, for messages: `file:line`.
    `duration_s` [s] is the length of the whole video, where the annotation says.
    `topic` is the image topic of a bag; '': `video` is a video file.
    `timed` are the answer's words, each with when it was heard [s] after `start_s`, where that is
    annotated.
    """

    video: Path
    prompt: str
    answer: str
    start_s: float = 0.0
    end_s: float | None = None
    source: str = ''
    duration_s: float | None = None
    topic: str = ''
    timed: tuple[tuple[float, str], ...] = ()

    @property
    def length_s(self) -> float | None:
        """Seconds from start to end; None where the annotation does not say."""
        end_s = self.duration_s if self.end_s is None else self.end_s
        return None if end_s is None else end_s - self.start_s


_SLACK_S = 1e-3
"""Time stamps of videos are rounded to milliseconds."""
Shrink = Callable[[np.ndarray], np.ndarray]
"""Makes (H, W, 3) uint8 RGB smaller, so that a whole video of it fits into memory."""


class Timed(NamedTuple):
    """A picture, when it comes and how long it lasts [s]; `load` returns (H, W, 3) uint8 RGB."""

    at_s: float
    lasts_s: float
    load: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Times:
    """
    When to look: every 1 / `rate` seconds from `start_s` until before `end_s`, and what is kept.

    `end_s` None: to the end of the video. `most`: how many pictures at most; None: all. Pictures
    of more than `max_pixels` are scaled down to about as many; then `shrink` is done at once.
    """

    rate: float
    start_s: float = 0.0
    end_s: float | None = None
    most: int | None = None
    max_pixels: int | None = None
    shrink: Shrink = np.asarray

    def __post_init__(self) -> None:
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise ValueError(f'frames per second must be a positive number, not {self.rate!r}')
        if self.most is not None and self.most < 1:
            raise ValueError(f'at least one frame must be read, not {self.most!r}')
        if self.end_s is not None and self.before(self.end_s) < 1:
            raise ValueError(f'the end, {self.end_s:g} s, is not after the start, '
                             f'{self.start_s:g} s')

    def before(self, until_s: float) -> int:
        """Return how many of the times are before `until_s` [s]."""
        until_s = until_s if self.end_s is None else min(until_s, self.end_s)
        count = max(0, math.ceil((until_s - self.start_s - _SLACK_S) * self.rate))
        return count if self.most is None else min(count, self.most)

    def over(self, at_s: float) -> bool:
        """Whether none of the times is at or after `at_s` [s]."""
        return (self.end_s is not None and at_s >= self.end_s - _SLACK_S
                or self.most is not None and self.before(at_s) >= self.most)


def pick(pictures: Iterable[Timed], times: Times) -> tuple[list[np.ndarray], float | None]:
    """
    Return the picture on screen at each time, and when the video ended [s], if it was seen to.

    On screen is the newest picture that is not later; before the first one, the first. A picture
    is loaded only if it is picked. Pictures whose times run backwards are passed over.
    """
    chosen: list[np.ndarray] = []
    shown: Timed | None = None
    for picture in pictures:
        if shown is not None:
            if picture.at_s <= shown.at_s:
                continue
            _show(chosen, shown, times.before(picture.at_s), times.shrink)
            if times.over(picture.at_s):
                return chosen, None
        shown = picture
    if shown is None:
        return [], 0.0
    end_s = shown.at_s + shown.lasts_s
    _show(chosen, shown, times.before(end_s), times.shrink)
    return chosen, end_s


def _show(chosen: list[np.ndarray], picture: Timed, count: int, shrink: Shrink) -> None:
    missing = count - len(chosen)
    if missing > 0:
        chosen += [shrink(picture.load())] * missing


_SEEK_FROM_S = 2.0
"""Nearer to the beginning, decoding from the first picture is as quick as seeking."""
_LOST_S = 1.0
"""A file may end this much before the length that it declares; more is a file cut off."""


def video_seconds(path: Path) -> float:
    """
    Return the length [s] that a video file declares.

    :raises VideoError: for a file that is no video, or does not say
    """
    with _open(path) as container:
        seconds = _pictures_s(container) or (container.duration or 0) / av.time_base
    if not seconds:
        raise VideoError(f'the video {path} does not say how long it is')
    return seconds


def read_video(path: Path, times: Times) -> list[np.ndarray]:
    """
    Return the picture on screen at each time, (H, W, 3) uint8 RGB, upright.

    :raises VideoError: for a file that is no video, breaks off, or has nothing at these times
    """
    with _open(path) as container:
        declared_s = _pictures_s(container)
        try:
            chosen, end_s = pick(_pictures(container, times), times)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f'the video {path} cannot be decoded: {_reason(error)}') from None
    if end_s == 0:
        raise VideoError(f'the video {path} has no pictures')
    wanted_s = min(declared_s, math.inf if times.end_s is None else times.end_s)
    if end_s is not None and end_s < wanted_s - _LOST_S:
        raise VideoError(f'the video {path} breaks off after {end_s:.2f} s of {declared_s:.2f} s')
    if not chosen:
        raise VideoError(f'the video {path} ends at {end_s:.2f} s, before the sample begins at '
                         f'{times.start_s:.2f} s')
    return chosen


def fit(height: int, width: int, max_pixels: int | None) -> tuple[int, int]:
    """Return the (height, width) of a picture with at most about `max_pixels`, shape kept."""
    if max_pixels is None or height * width <= max_pixels:
        return height, width
    scale = math.sqrt(max_pixels / (height * width))
    return max(2, math.floor(height * scale)), max(2, math.floor(width * scale))


def _open(path: Path):
    # To open a FIFO is to wait for whoever may write to it.
    if path.exists() and not path.is_file():
        raise VideoError(f'cannot read the video {path}: it is no file')
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f'cannot read the video {path}: {_reason(error)}') from None
    if not container.streams.video:
        container.close()
        raise VideoError(f'cannot read the video {path}: it has no picture')
    return container


def _pictures_s(container) -> float:
    """Return how long the pictures last by the file's own word, without the sound; 0: no word."""
    stream = container.streams.video[0]
    return float((stream.duration or 0) * stream.time_base)


def _pictures(container, times: Times) -> Iterator[Timed]:
    """Yield the pictures from the first, or from shortly before the start where one can seek."""
    stream = container.streams.video[0]
    stream.thread_type = 'AUTO'
    size = fit(stream.height, stream.width, times.max_pixels)
    usual_s = float(1 / (stream.average_rate or stream.guessed_rate or 25))
    decoded = _from(container, stream, times.start_s)
    zero = stream.start_time
    for index, picture in enumerate(decoded):
        if picture.pts is None:
            # Raw streams have no times; they have not been sought in either.
            at_s = index * usual_s
        else:
            zero = picture.pts if zero is None else zero
            at_s = float((picture.pts - zero) * picture.time_base)
        lasts_s = float(picture.duration * picture.time_base) if picture.duration else usual_s
        yield Timed(at_s, lasts_s, partial(_pixels, picture, *size))


def _from(container, stream, start_s: float) -> Iterator:
    """Decode from the last key picture that is not after `start_s`, or from the first."""
    if start_s < _SEEK_FROM_S or stream.start_time is None:
        yield from container.decode(stream)
        return
    wanted = stream.start_time + math.floor(start_s / stream.time_base)
    try:
        container.seek(wanted, stream=stream)
        decoded = container.decode(stream)
        first = next(decoded, None)
    except av.FFmpegError:
        first = None
    # Some files have no index, or a wrong one: what was asked for must not be missed.
    if first is not None and first.pts is not None and first.pts <= wanted:
        yield first
    else:
        container.seek(stream.start_time, stream=stream)
        decoded = container.decode(stream)
    yield from decoded


def _pixels(picture, height: int, width: int) -> np.ndarray:
    """Return a decoded picture upright: telephones film sideways and say so."""
    pixels = picture.reformat(width, height, 'rgb24', interpolation='AREA').to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, round(picture.rotation / 90)))


def _reason(error: Exception) -> str:
    return getattr(error, 'strerror', None) or str(error)


def read_bag(path: Path, topic: str, times: Times) -> list[np.ndarray]:
    """
    Return the picture that a topic showed at each time, (H, W, 3) uint8 RGB.

    Times count from the stamp of the topic's first picture, by the stamps in the headers.

    :raises VideoError: for what is no bag, has no such topic, or nothing at these times
    """
    from sww_ros.bags import Bag, BagError  # Here, as videos need neither rosbags nor OpenCV.

    try:
        chosen, end_s = pick(_bag_pictures(Bag(path, topic), times), times)
    except BagError as error:
        raise VideoError(str(error)) from None
    except Exception as error:  # noqa: BLE001 - each encoding has errors of its own kind
        raise VideoError(f'cannot read the bag {path}, topic {topic}: {error}') from None
    if not chosen:
        raise VideoError(f'the bag {path} has no pictures on {topic} from {times.start_s:.2f} s '
                         f'on; the last ends at {end_s:.2f} s')
    return chosen


def _bag_pictures(bag: Bag, times: Times) -> Iterator[Timed]:
    """Yield the pictures with the time to the one before as how long they last."""
    zero_ns = next(bag.pictures())[0].stamp_ns
    before_s, lasts_s = None, 1 / times.rate
    for frame, _ in bag.pictures(times.start_s):
        at_s = (frame.stamp_ns - zero_ns) / 1e9
        if before_s is not None and at_s > before_s:
            lasts_s = at_s - before_s
        before_s = at_s
        yield Timed(at_s, lasts_s, partial(_bag_pixels, frame, times.max_pixels))


def _bag_pixels(frame: CameraFrame, max_pixels: int | None) -> np.ndarray:
    import cv2

    pixels = frame.load()
    height, width = fit(*pixels.shape[:2], max_pixels)
    if pixels.shape[:2] == (height, width):
        return pixels
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


READ_FACTOR = 16
"""Pictures larger than this many times what is perceived are scaled down by their decoder."""


def read_frames(sample: Sample, frames_per_second: float = 2.0, *, frames_per_step: int = 2,
                max_pixels: int | None = None, shrink: Shrink = np.asarray,
                max_frames: int | None = None) -> np.ndarray:
    """
    Return the frames of a sample, (n, H, W, 3) uint8 RGB.

    Frame k is the picture on screen `k / frames_per_second` s after the sample's start, for the
    times before its end. The last one is repeated until n is a multiple of `frames_per_step`.

    :param max_pixels: larger pictures are scaled down to about this many as they are read
    :param shrink: what is kept of each picture as it is read
    :param max_frames: frames after these are left out, which bounds the memory
    :raises VideoError: for a video or bag that cannot be read, with its path and the reason
    """
    times = Times(frames_per_second, sample.start_s, sample.end_s, max_frames, max_pixels, shrink)
    frames = (read_bag(sample.video, sample.topic, times) if sample.topic
              else read_video(sample.video, times))
    frames += [frames[-1]] * (-len(frames) % frames_per_step)
    return np.stack(frames)
