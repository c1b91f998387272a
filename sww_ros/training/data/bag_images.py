"""Reads the pictures of a recorded image topic (rosbag2, SQLite or MCAP), without ROS."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
import math
from pathlib import Path
import sqlite3
import struct

import cv2
import numpy as np

from sww_ros.training.data.frames import Shrink, Timed, Times, fit, pick
from sww_ros.training.data.records import VideoError

_MARGIN_NS = 1_000_000_000
"""Messages are recorded later than they are stamped, by up to this much more than the first."""
_IMAGES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')


def read_bag(path: Path, topic: str, times: Times,
             max_pixels: int | None = None, shrink: Shrink | None = None) -> list[np.ndarray]:
    """
    Return the picture that a topic showed at each time, (H, W, 3) uint8 RGB.

    Times count from the stamp of the topic's first picture, by the stamps in the headers.

    :param max_pixels: larger pictures are scaled down to about this many
    :param shrink: what is kept of each picture, at once
    :raises VideoError: for what is no bag, has no such topic, or nothing at these times
    """
    try:
        from rosbags.highlevel import AnyReader, AnyReaderError
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise VideoError(f'reading the bag {path} needs rosbags (pip install rosbags): '
                         f'{error}') from None
    try:
        with AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
            pictures = _pictures(reader, _connection(reader, path, topic), times, max_pixels)
            chosen, end_s = pick(pictures, times, shrink)
    except VideoError:
        raise
    except (AnyReaderError, sqlite3.Error, OSError, ValueError, KeyError, struct.error) as error:
        raise VideoError(f'cannot read the bag {path}, topic {topic}: {error}') from None
    if not chosen:
        raise VideoError(f'the bag {path} has no pictures on {topic} from {times.start_s:.2f} s '
                         f'on; the last ends at {end_s:.2f} s')
    return chosen


def _connection(reader, path: Path, topic: str):
    if not reader.is2:
        raise VideoError(f'{path} is a bag of ROS 1; convert it: rosbags-convert --src ... '
                         '--dst ...')
    there = [c for c in reader.connections if c.msgtype in _IMAGES]
    for connection in there:
        if connection.topic == topic:
            return connection
    topics = ', '.join(sorted(c.topic for c in there)) or 'none'
    raise VideoError(f'the bag {path} has no image topic {topic}; it has {topics}')


def _pictures(reader, connection, times: Times, max_pixels: int | None) -> Iterator[Timed]:
    """Yield the pictures with the time to the one before as how long they last."""
    first = next(reader.messages([connection]), None)
    if first is None:
        return
    zero_ns, before_s, lasts_s = _stamp_ns(*first[1:]), None, 1 / times.rate
    for _, recorded_ns, raw in _from(reader, connection, first[1], zero_ns, times.start_s):
        at_s = (_stamp_ns(recorded_ns, raw) - zero_ns) / 1e9
        if before_s is not None and at_s > before_s:
            lasts_s = at_s - before_s
        before_s = at_s
        yield Timed(at_s, lasts_s, partial(_pixels, reader, connection, raw, max_pixels))


def _from(reader, connection, first_ns: int, zero_ns: int, start_s: float) -> Iterator:
    """Yield the messages from a little before `start_s` on, without reading all before."""
    skip_ns = max(0, math.floor(start_s * 1e9) - _MARGIN_NS)
    messages = reader.messages([connection], start=first_ns + skip_ns)
    first = next(messages, None)
    if first is not None and _stamp_ns(*first[1:]) - zero_ns <= start_s * 1e9:
        yield first
    else:
        # Pictures are rare, or stamped by another clock.
        messages = reader.messages([connection])
    yield from messages


def _stamp_ns(recorded_ns: int, raw: bytes) -> int:
    """Read the stamp that CDR has first; a driver that does not stamp leaves the recorder's."""
    seconds, nanoseconds = struct.unpack_from('<iI' if raw[1] & 1 else '>iI', raw, 4)
    return seconds * 1_000_000_000 + nanoseconds or recorded_ns


def _pixels(reader, connection, raw: bytes, max_pixels: int | None) -> np.ndarray:
    from sww_ros.images import compressed_to_rgb, image_to_rgb

    convert = image_to_rgb if connection.msgtype == _IMAGES[0] else compressed_to_rgb
    pixels = convert(reader.deserialize(raw, connection.msgtype))
    height, width = fit(*pixels.shape[:2], max_pixels)
    if pixels.shape[:2] == (height, width):
        return pixels
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
