"""
The node video_source: publishes a video file, a folder of pictures or a camera.

`SourceNode` is what every image source does: publish its frames on `image`, each at its time.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
import threading
from typing import Any

import cv2
import numpy as np
from rclpy.qos import qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from sww_ros.frames import NANOSECONDS, SourceFrame
from sww_ros.images import WRITABLE_ENCODINGS, jpeg_of, rgb_to_image
from sww_ros.node import EndingNode, declare, run
from sww_ros.settings import Setting
from sww_ros.sources import open_reader

POLL_S = 0.05
LINGER_S = 0.3
"""How long a source stays after its last frame, so that it arrives."""

SOURCE_SETTINGS = (
    Setting('transport', 'raw', "'raw' (sensor_msgs/Image on `image`) or 'compressed' "
            '(sensor_msgs/CompressedImage, jpeg, on `image`/compressed).',
            choices=('raw', 'compressed')),
    Setting('encoding', 'rgb8', 'Encoding of raw images.', choices=WRITABLE_ENCODINGS),
    Setting('jpeg_quality', 90, 'Quality of compressed images.', low=1, high=100),
    Setting('frame_id', 'camera', 'frame_id of the images.'),
    Setting('wait_for_subscriber', False, 'Whether to begin only when someone subscribes.'),
    Setting('start_delay', 0.0, 'Time to wait before the first frame [s].', low=0.0, high=3600.0),
)


class SourceNode(EndingNode):
    """
    Publishes frames from a thread of its own, each prepared ahead and stamped with its due time.

    A frame is skipped when it is late by more than `patience_ns`: nothing is queued. Where
    `falls_behind_ns` is set, a source that is later than that goes on from there instead.
    """

    falls_behind_ns = 0

    def __init__(self, name: str, settings: Iterable[Setting]) -> None:
        """
        Declare the parameters and the publisher; frames come once `start` is called.

        :raises ValueError: for a parameter of another type or out of its range
        """
        super().__init__(name)
        self.values: dict[str, Any] = declare(self, settings)
        kind, suffix = Image, ''
        if self.values['transport'] == 'compressed':
            kind, suffix = CompressedImage, '/compressed'
        # The base name is resolved first, so that remapping `image` moves both transports.
        self._publisher = self.create_publisher(
            kind, self.resolve_topic_name('image') + suffix, qos_profile_sensor_data,
            qos_overriding_options=QoSOverridingOptions.with_default_policies())
        self.patience_ns = NANOSECONDS // 10
        self.published = self.skipped = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name='frames', daemon=True)

    @abstractmethod
    def frames(self) -> Iterator[SourceFrame]:
        """
        Yield the frames in order.

        :raises ValueError: for a source that breaks; the process ends with exit code 1
        """

    def started(self, start_ns: int) -> None:
        """Take note that the time 0 of the frames is `start_ns` on the node's clock."""

    def due(self, offset_ns: int) -> None:
        """Take note that the time `offset_ns` has come."""

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def release(self) -> None:
        """Stop publishing."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def message(self, pixels: np.ndarray, stamp_ns: int) -> Image | CompressedImage:
        """Return the message of (height, width, 3) uint8 RGB pixels for the chosen transport."""
        if self.values['transport'] == 'raw':
            return rgb_to_image(pixels, self._header(stamp_ns), self.values['encoding'])
        data = array('B', jpeg_of(pixels, self.values['jpeg_quality']))
        return CompressedImage(header=self._header(stamp_ns), format='rgb8; jpeg compressed bgr8',
                               data=data)

    def _header(self, stamp_ns: int) -> Header:
        return Header(stamp=Time(nanoseconds=stamp_ns).to_msg(), frame_id=self.values['frame_id'])

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds

    def _work(self) -> None:
        code = 0
        try:
            if self._wait_for_start():
                self._publish_all()
                self._stopping.wait(LINGER_S)
        except ValueError as error:
            self.get_logger().fatal(str(error))
            code = 1
        except Exception as error:
            # Shutting down takes the publisher away under our feet; else it is a mistake.
            if not self._stopping.is_set():
                self.get_logger().fatal(f'{type(error).__name__}: {error}')
                code = 1
        self.end(code)

    def _wait_for_start(self) -> bool:
        topic = self._publisher.topic_name
        if self.values['wait_for_subscriber'] and not self._publisher.get_subscription_count():
            self.get_logger().info(f'waiting for a subscriber of {topic}')
            while not self._publisher.get_subscription_count():
                if self._stopping.wait(POLL_S):
                    return False
        if self._stopping.wait(self.values['start_delay']):
            return False
        # With simulated time, 0 means that no clock has been heard yet.
        while self._now() == 0:
            if self._stopping.wait(POLL_S):
                return False
        self.get_logger().info(f'publishing on {topic}')
        return True

    def _publish_all(self) -> None:
        start_ns = self._now()
        self.started(start_ns)
        for frame in self.frames():
            stamp_ns = self._now() if frame.offset_ns is None else start_ns + frame.offset_ns
            late_ns = self._now() - stamp_ns
            if self.falls_behind_ns and late_ns > self.falls_behind_ns:
                self.get_logger().warning(
                    f'{late_ns / 1e9:.1f} s behind: going on from here',
                    throttle_duration_sec=10.0)
                start_ns += late_ns
                stamp_ns += late_ns
            elif late_ns > self.patience_ns:
                self._skip()
                continue
            message = self.message(frame.load(), stamp_ns)
            if not self._sleep_until(stamp_ns):
                return
            self._publisher.publish(message)
            self.published += 1
            if frame.offset_ns is not None:
                self.due(frame.offset_ns)

    def _skip(self) -> None:
        self.skipped += 1
        self.get_logger().warning(
            f'this machine is too slow or busy: {self.skipped} frames skipped so far, '
            f'{self.published} published', throttle_duration_sec=10.0)

    def _sleep_until(self, stamp_ns: int) -> bool:
        """Wait for a time on the node's clock; False if the node is to stop instead."""
        while (left_ns := stamp_ns - self._now()) > 0:
            # Simulated time may run at any speed: look often.
            longest_s = 0.005 if self.get_clock().ros_time_is_active else 0.5
            if self._stopping.wait(min(left_ns / NANOSECONDS, longest_s)):
                return False
        return not self._stopping.is_set()


NAME = 'video_source'
SETTINGS = (
    Setting('source', '', 'A video file, a folder of pictures, or a camera: /dev/videoN or N.'),
    Setting('rate', 0.0, "Frames per second [Hz]; 0: a video's or camera's own, 2 for pictures. "
            'A video keeps its speed: a lower rate leaves frames out.', low=0.0, high=240.0),
    Setting('loop', False, 'Whether to begin again at the end; if not, the node ends there.'),
    Setting('width', 0, "Width of the images [pixels]; 0: the source's own.", high=8192),
    Setting('height', 0, "Height of the images [pixels]; 0: the source's own.", high=8192),
    *SOURCE_SETTINGS,
)


class VideoSource(SourceNode):
    """Publishes what a reader reads; a reader that is too slow plays slower, in steps."""

    falls_behind_ns = NANOSECONDS

    def __init__(self) -> None:
        """
        Open the source and begin.

        :raises ValueError: for a bad parameter, or a source that cannot be read
        """
        super().__init__(NAME, SETTINGS)
        values = self.values
        if bool(values['width']) != bool(values['height']):
            raise ValueError('width and height must be given together, or both be 0')
        self._reader = open_reader(values['source'], values['rate'], values['loop'])
        self.patience_ns = round(NANOSECONDS / (values['rate'] or self._reader.frame_rate))
        self.get_logger().info(self._reader.description)
        self.start()

    def frames(self) -> Iterator[SourceFrame]:
        """Yield the frames of the source, resized if asked for."""
        size = (self.values['width'], self.values['height'])
        for frame in self._reader.frames():
            yield replace(frame, load=partial(_resized, frame, size)) if any(size) else frame


def _resized(frame: SourceFrame, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(frame.load(), size, interpolation=cv2.INTER_AREA)


def main(args: list[str] | None = None) -> int:
    """Run the node; return the exit code."""
    return run(NAME, VideoSource, args)


if __name__ == '__main__':
    raise SystemExit(main())
