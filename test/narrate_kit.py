"""Recordings of the shapes world, and the command `python -m sww_ros.narrate` in this process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
import runpy
from typing import Any

import cv2
import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from sww_ros import recordings
from sww_ros.models.loading import load
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import generate

COUNT, RATE = 79, 10
"""Pictures, and how many a second; the model takes two a second, so 16 of these."""
SECONDS = COUNT / RATE
START_NS = 1_700_000_000_000_000_123
LATE_NS = 30_000_007
"""How much later than its stamp a picture is recorded."""
QUESTION = 'How many shapes are there?'
STORE = get_typestore(Stores.ROS2_JAZZY)
Message = tuple[str, int, tuple[str, Any]]
"""Topic, when it is recorded [ns], type and message."""
# Run, not imported, as whoever gives the command does: imported it refuses to be.
COMMAND: dict[str, Any] = runpy.run_module('sww_ros.narrate', run_name='narrate')


@pytest.fixture(scope='session')
def pictures() -> list[np.ndarray]:
    """The pictures of a scene."""
    renderer = Renderer(generate(1001, SECONDS + 1.0, max_objects=2))
    return [renderer.frame(number / RATE) for number in range(COUNT)]


@pytest.fixture(scope='session')
def long_pictures() -> list[np.ndarray]:
    """Two pictures a second, in more steps than a stream has: another one relieves it."""
    renderer = Renderer(generate(1002, 56.0, max_objects=2))
    return [renderer.frame(number / 2) for number in range(110)]


@pytest.fixture(scope='session')
def checkpoint():
    return load()


@pytest.fixture
def narrate(checkpoint, monkeypatch):
    """Return the command, which finds the built-in checkpoint loaded."""
    monkeypatch.setattr(recordings, 'load', lambda *_, **__: checkpoint)
    return lambda *arguments: COMMAND['main']([str(argument) for argument in arguments])


def stamps(rate: int = RATE, count: int = COUNT) -> list[int]:
    return [START_NS + number * 10**9 // rate for number in range(count)]


def image(pixels: np.ndarray, stamp_ns: int, compressed: bool = False, encoding: str = 'rgb8'):
    """Return type and message of a picture."""
    header = STORE.types['std_msgs/msg/Header'](
        STORE.types['builtin_interfaces/msg/Time'](stamp_ns // 10**9, stamp_ns % 10**9), 'front')
    kind = 'sensor_msgs/msg/CompressedImage' if compressed else 'sensor_msgs/msg/Image'
    if compressed:
        data = cv2.imencode('.png', pixels[..., ::-1])[1].ravel()
        return kind, STORE.types[kind](header, 'png', data)
    height, width = pixels.shape[:2]
    return kind, STORE.types[kind](header, height, width, encoding, 0, 3 * width, pixels.ravel())


def write_bag(path: Path, messages: Iterable[Message],
              plugin: str = 'SQLITE3', compression: str = 'NONE') -> Path:
    """Write a bag of such messages."""
    topics = {}
    writer = Writer(path, version=9, storage_plugin=StoragePlugin[plugin])
    writer.set_compression(CompressionMode[compression], CompressionFormat.ZSTD)
    with writer:
        for topic, logged_ns, (kind, message) in messages:
            if topic not in topics:
                topics[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(topics[topic], logged_ns, STORE.serialize_cdr(message, kind))
    return path


def camera(pictures: Sequence[np.ndarray], topic: str = '/front/image', compressed: bool = False,
           stamps_ns: Sequence[int] = (), rate: int = RATE) -> list[Message]:
    """Return the messages of a camera, stamped at its rate if not otherwise."""
    recorded = stamps(rate, len(pictures))
    return [(topic, at_ns + LATE_NS, image(pixels, stamp_ns, compressed))
            for pixels, at_ns, stamp_ns in zip(pictures, recorded, stamps_ns or recorded)]


def read_bag(path: Path) -> list[tuple[str, int, Any]]:
    """Return (topic, recorded [ns], message) of all messages."""
    with AnyReader([path]) as reader:
        return [(connection.topic, at_ns, reader.deserialize(raw, connection.msgtype))
                for connection, at_ns, raw in reader.messages()]


def nanoseconds(time) -> int:
    return time.sec * 10**9 + time.nanosec
