"""Decodes video files, picture by picture: only what is picked is converted and kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
import math
from pathlib import Path

import av
import numpy as np

from sww_ros.training.data.errors import VideoError
from sww_ros.training.data.picking import Shrink, Timed, Times, pick

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


def read_video(path: Path, times: Times, max_pixels: int | None = None,
               shrink: Shrink | None = None) -> list[np.ndarray]:
    """
    Return the picture on screen at each time, (H, W, 3) uint8 RGB, upright.

    :param max_pixels: larger pictures are scaled down to about this many
    :param shrink: what is kept of each picture, at once
    :raises VideoError: for a file that is no video, breaks off, or has nothing at these times
    """
    with _open(path) as container:
        declared_s = _pictures_s(container)
        try:
            chosen, end_s = pick(_pictures(container, times.start_s, max_pixels), times, shrink)
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


def _pictures(container, start_s: float, max_pixels: int | None) -> Iterator[Timed]:
    """Yield the pictures from the first, or from shortly before `start_s` where one can seek."""
    stream = container.streams.video[0]
    stream.thread_type = 'AUTO'
    size = fit(stream.height, stream.width, max_pixels)
    usual_s = float(1 / (stream.average_rate or stream.guessed_rate or 25))
    decoded = _from(container, stream, start_s)
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
