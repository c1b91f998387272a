"""The newest frame with the running sentence drawn on it, while someone looks."""

from __future__ import annotations

import textwrap

import cv2
import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNodeMixin
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from sww_ros.nodes.camera import Camera
from sww_ros.streaming.events import TextDelta

FONT = cv2.FONT_HERSHEY_SIMPLEX
MAX_LINES = 3
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


class Subtitle:
    """The sentence being spoken; the last whole one until the next begins."""

    def __init__(self) -> None:
        self.text = ''
        self._ended = False

    def add(self, delta: TextDelta) -> None:
        """Follow the narration by one piece."""
        if self._ended and delta.delta.strip():
            self.text, self._ended = '', False
        self.text += delta.delta
        if delta.sentence or delta.final:
            self.text, self._ended = delta.sentence or self.text, True


def draw_subtitle(pixels: np.ndarray, text: str) -> np.ndarray:
    """Return a copy of the picture, (H, W, 3) uint8, with the text at its foot; ASCII only."""
    drawn = pixels.copy()
    height, width = drawn.shape[:2]
    scale = max(width / 640, 0.3)
    advance, line = cv2.getTextSize('n' * 10, FONT, scale, 1)[0]
    columns = max(int(width * 10 / advance) - 2, 8)
    lines = textwrap.wrap(text.strip(), columns)[-MAX_LINES:]
    for i, words in enumerate(reversed(lines)):
        at = (int(line / 2), height - int(line * (0.7 + 1.7 * i)))
        cv2.putText(drawn, words, at, FONT, scale, BLACK, max(3, round(4 * scale)), cv2.LINE_AA)
        cv2.putText(drawn, words, at, FONT, scale, WHITE, max(1, round(scale)), cv2.LINE_AA)
    return drawn


class Annotator:
    """Publishes ~/image_annotated (rgb8) at a bounded rate, only while it is subscribed to."""

    def __init__(self, node: LifecycleNodeMixin, camera: Camera, rate: float) -> None:
        self._camera = camera
        self._published = None
        self.subtitle = Subtitle()
        self._publisher = node.create_lifecycle_publisher(
            Image, '~/image_annotated',
            QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE))
        node.create_timer(1.0 / rate, self._publish, MutuallyExclusiveCallbackGroup(),
                          clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _publish(self) -> None:
        if self._camera.newest is self._published or not self._publisher.get_subscription_count():
            return
        try:
            newest = self._camera.newest_pixels()
        except ValueError:
            return  # The engine's side tells of bad images.
        if newest is None:
            return
        message, pixels = newest
        self._published = message
        drawn = draw_subtitle(pixels, self.subtitle.text)
        height, width = drawn.shape[:2]
        # Bytes: an array would be copied element by element.
        self._publisher.publish(Image(
            header=message.header, height=height, width=width, encoding='rgb8', is_bigendian=0,
            step=3 * width, data=drawn.tobytes()))
