"""
Recordings of ROS topics (rosbag2, SQLite or MCAP), read and written without ROS, by rosbags.

One image topic is read, in the order in which it was recorded. What was said of it is written as
the narrator would have published it, in its own messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from heapq import merge
import math
from operator import itemgetter
import os
from pathlib import Path
import re
from typing import Any, NamedTuple, cast

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection, ConnectionExtRosbag2
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from tqdm import tqdm

from sww_ros.frames import NANOSECONDS, CameraFrame, header_of
from sww_ros.images import IMAGE_TYPES
from sww_ros.streaming.events import NARRATION, Event, FirstSight, StepPerceived, TextDelta

STORAGES = ('mcap', 'sqlite3')
CAPTION, SENTENCE = '/narrator/caption', '/narrator/caption/text'
ANSWER, LATENCY = '/narrator/answer', '/narrator/latency'
TOPICS = {CAPTION: 'sww_interfaces/msg/TextChunk', SENTENCE: 'std_msgs/msg/String',
          ANSWER: 'sww_interfaces/msg/TextChunk', LATENCY: 'sww_interfaces/msg/StepLatency'}
"""What is written, under the names that the node `narrator` has for it."""
_FILES = ('.mcap', '.db3', '.bag')
_MARGIN_NS = 1_000_000_000
"""Messages are recorded later than they are stamped, by up to this much more than the first."""


class BagError(ValueError):
    """A bag that cannot be read or written; the message names it and says why."""


class Capture(NamedTuple):
    """
    When a picture came.

    `at_ns` counts from the recording's first picture; `logged_ns` is when the recorder got it;
    `received` counts the pictures of its topic up to it, `video` those times that its stamps have
    jumped back.
    """

    at_ns: int
    logged_ns: int = 0
    frame_id: str = ''
    received: int = 0
    video: int = 0


def is_bag(path: Path) -> bool:
    """Whether a path looks like a bag: a folder with its metadata, or a file."""
    return path.suffix in _FILES or (path / 'metadata.yaml').exists()


class Bag:
    """
    A bag, of which one image topic is looked at.

    `frame_rate` is how many pictures of that it has a second, `messages` and `duration_s` how many
    messages and seconds the whole bag has, and `storage` how it is stored: one of STORAGES.
    """

    def __init__(self, path: Path, topic: str = '') -> None:
        """
        Open the bag, and choose its image topic.

        :param topic: the topic; '': the only one that has pictures
        :raises BagError: for what is no bag, or does not have just such a topic
        """
        self.path = path
        stored = [path] if path.is_file() else list(path.iterdir())
        self.storage = STORAGES[not any('.mcap' in each.suffixes for each in stored)]
        with self._reading() as reader:
            found = Counter[str]()
            for connection in reader.connections:
                if connection.msgtype in IMAGE_TYPES:
                    found[connection.topic] += connection.msgcount
            self.topic = self._choose(found, topic)
            self.messages, self.duration_s = reader.message_count, reader.duration / NANOSECONDS
            self.frame_rate = found[self.topic] / max(self.duration_s, 1.0)

    def pictures(self, start_s: float = 0.0) -> Iterator[tuple[CameraFrame, str]]:
        """
        Yield the pictures, and the frame_id of each, in the order of their recording.

        `received_ns` is when one was recorded; one without a stamp is stamped with that.

        :param start_s: from when on, by the stamps, counted from the first picture [s]; the first
            one that is yielded is not later, and what comes before it is not read
        :raises BagError: for a bag that breaks off
        """
        with self._reading() as reader:
            mine = [connection for connection in reader.connections
                    if connection.topic == self.topic and connection.msgtype in IMAGE_TYPES]
            for connection, logged_ns, raw in _from(reader, mine, start_s):
                _, frame_id = header_of(raw)
                load = partial(_pixels, reader.typestore, connection.msgtype, raw)
                yield CameraFrame(load, _stamp_ns(logged_ns, raw), logged_ns), frame_id

    def copied(self, writer: Writer) -> Iterator[tuple[int, Connection, bytes]]:
        """
        Yield all messages, of topics that the narrator does not write, as `writer` takes them.

        :raises BagError: for a bag that breaks off, or lacks the definition of a type
        """
        with self._reading() as reader:
            kept = [each for each in reader.connections if each.topic not in TOPICS]
            to = {}
            for each in kept:
                ext = cast(ConnectionExtRosbag2, each.ext)  # Bags of ROS 1 are not read.
                to[each.id] = writer.add_connection(
                    each.topic, each.msgtype, typestore=reader.typestore,
                    serialization_format=ext.serialization_format,
                    offered_qos_profiles=ext.offered_qos_profiles)
            for connection, logged_ns, raw in reader.messages(kept):
                yield logged_ns, to[connection.id], raw

    @contextmanager
    def _reading(self) -> Iterator[AnyReader]:
        if self.path.suffix == '.bag':
            raise BagError(f'{self.path} is a bag of ROS 1: convert it with `rosbags-convert --src '
                           f'{self.path} --dst FOLDER`')
        try:
            with AnyReader([self.path],
                           default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
                yield reader
        except BagError:
            raise
        except Exception as error:  # noqa: BLE001 - each storage has errors of its own kind
            raise BagError(f'cannot read the bag {self.path}: {error} (`ros2 bag reindex` mends a '
                           'recording that was cut off)') from error

    def _choose(self, found: Counter[str], topic: str) -> str:
        listed = ', '.join(f'{name} ({count} pictures)' for name, count in sorted(found.items()))
        if topic and topic not in found:
            raise BagError(f'the bag {self.path} has no image topic {topic}; it has '
                           f'{listed or "none"}')
        filled = [topic] if topic else [name for name, count in found.items() if count]
        if not sum(found[name] for name in filled):
            raise BagError(f'the bag {self.path} has no pictures; its image topics: '
                           f'{listed or "none"}')
        if len(filled) > 1:
            raise BagError(f'the bag {self.path} has {len(filled)} image topics, {listed}: choose '
                           'one with --topic')
        return filled[0]


def _from(reader: AnyReader, connections: list[Connection], start_s: float,
          ) -> Iterator[tuple[Connection, int, bytes]]:
    begin = None
    first = next(reader.messages(connections), None) if start_s else None
    if first is not None:
        skip_ns = max(0, math.floor(start_s * NANOSECONDS) - _MARGIN_NS)
        begin, wanted_ns = first[1] + skip_ns, _stamp_ns(*first[1:]) + start_s * NANOSECONDS
        found = next(reader.messages(connections, start=begin), None)
        if found is None or _stamp_ns(*found[1:]) > wanted_ns:
            begin = None  # Pictures are rare, or stamped by another clock.
    yield from reader.messages(connections, start=begin)


def _stamp_ns(logged_ns: int, raw: bytes) -> int:
    """Return the stamp of a picture; a driver that does not stamp leaves the recorder's."""
    return header_of(raw)[0] or logged_ns


def _pixels(typestore: Any, msgtype: str, raw: bytes) -> np.ndarray:
    pixels = IMAGE_TYPES[msgtype](typestore.deserialize_cdr(raw, msgtype))
    return np.require(pixels, requirements='W')  # PyTorch warns of what lies in a message.


def write_bag(path: Path, told: Sequence[tuple[Event, Capture]], *, storage: str = STORAGES[0],
              carried: Bag | None = None, latency: bool = True) -> None:
    """
    Write a bag of what was told, each message stamped with the picture that it is about.

    The clock is the recorder's: what is said of a picture is published when that was recorded.

    :param carried: a bag whose other topics are written too
    :param latency: whether to write how long the steps took, which differs from run to run
    :raises BagError: where it cannot be written
    """
    typestore = _typestore()
    messages = _Messages(typestore.types, told)
    said = sorted((message for event, capture in told for message in messages.of(event, capture)
                   if latency or message[1] != LATENCY), key=itemgetter(0))
    with Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()]) as writer:
        to = {topic: writer.add_connection(topic, kind, typestore=typestore)
              for topic, kind in TOPICS.items() if latency or topic != LATENCY}
        ours = ((logged_ns, to[topic], typestore.serialize_cdr(message, TOPICS[topic]))
                for logged_ns, topic, message in said)
        theirs = carried.copied(writer) if carried else ()
        for logged_ns, connection, raw in tqdm(
                merge(theirs, ours, key=itemgetter(0)), unit='message', disable=None, leave=False,
                total=len(said) + (carried.messages if carried else 0), desc=path.name):
            writer.write(connection, logged_ns, raw)


def _typestore() -> Any:
    """Return the types of ROS and those of sww_interfaces, from its own files."""
    places = [Path(__file__).parents[1] / 'sww_interfaces', *(
        Path(prefix, 'share/sww_interfaces')
        for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep))]
    for place in places:
        if files := sorted(place.glob('msg/*.msg')):
            break
    else:
        raise BagError('the messages of sww_interfaces are not found: source the workspace that '
                       'it is built in (install/setup.bash)')
    typestore = get_typestore(Stores.ROS2_JAZZY)
    types = {}
    for file in files:
        # rosbags takes a comment behind a text constant for a part of it.
        definition = re.sub(r'#.*', '', file.read_text())
        types.update(get_types_from_msg(definition, f'sww_interfaces/msg/{file.stem}'))
    typestore.register(types)
    return typestore


class _Messages:
    """Makes the narrator's messages of its events, as (recorder's time [ns], topic, message)."""

    def __init__(self, types: dict[str, Any], told: Sequence[tuple[Event, Capture]]) -> None:
        self._types, self._perceived = types, 0
        self._seen_ns = {(event.video, event.index): event.decoded_ns for event, _ in told
                         if isinstance(event, FirstSight)}

    def of(self, event: Event, capture: Capture) -> Iterator[tuple[int, str, Any]]:
        if isinstance(event, StepPerceived):
            self._perceived += event.frames
            yield capture.logged_ns, LATENCY, self._latency(event, capture)
        elif isinstance(event, TextDelta):
            yield from self._text(event, capture)

    def _text(self, delta: TextDelta, capture: Capture) -> Iterator[tuple[int, str, Any]]:
        chunk = self._make(
            'sww_interfaces/msg/TextChunk', header=self._header(delta.stamp_ns, capture),
            emitted=self._time('Time', capture.logged_ns),
            latency=self._time(
                'Duration', capture.logged_ns - delta.stamp_ns if delta.stamp_ns else 0),
            **delta.published)
        yield capture.logged_ns, CAPTION if delta.stream_id == NARRATION else ANSWER, chunk
        if delta.stream_id == NARRATION and delta.sentence:
            yield capture.logged_ns, SENTENCE, self._make('std_msgs/msg/String',
                                                          data=delta.sentence)

    def _latency(self, step: StepPerceived, capture: Capture) -> Any:
        seen_ns = self._seen_ns.get((step.video, step.index))
        lasted = {name: self._time('Duration', nanoseconds) for name, nanoseconds in dict(
            capture_to_callback=capture.logged_ns - step.stamp_ns,
            first_token=0 if seen_ns is None else seen_ns - step.perceived_ns,
            publish=0, **step.stages_ns).items()}
        return self._make(
            'sww_interfaces/msg/StepLatency', header=self._header(step.stamp_ns, capture),
            video=step.video, step=step.index, frames=step.frames,
            has_first_token=seen_ns is not None,
            overlap_ratio=step.overlap_ratio,
            frames_received=capture.received, frames_perceived=self._perceived,
            frames_dropped=capture.received - self._perceived, **lasted)

    def _header(self, stamp_ns: int, capture: Capture) -> Any:
        return self._make('std_msgs/msg/Header', stamp=self._time('Time', stamp_ns),
                          frame_id=capture.frame_id)

    def _time(self, kind: str, nanoseconds: int) -> Any:
        return self._make(f'builtin_interfaces/msg/{kind}', sec=nanoseconds // NANOSECONDS,
                          nanosec=nanoseconds % NANOSECONDS)

    def _make(self, kind: str, **fields: Any) -> Any:
        return self._types[kind](**fields)
