"""What the engine says as messages: text, step latencies, and the newest frame with subtitles."""

from __future__ import annotations

import textwrap

from builtin_interfaces.msg import Duration, Time
import cv2
import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNodeMixin
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

from sww_interfaces.msg import StepLatency, TextChunk
from sww_ros.engine.latency import StepTimes
from sww_ros.frames import NANOSECONDS
from sww_ros.nodes.camera import Arrival, Camera
from sww_ros.streaming.events import NARRATION, TextDelta

TEXT_QOS = QoSProfile(depth=256, reliability=ReliabilityPolicy.RELIABLE)
"""Deep enough for a slow reader of a fast model: text must not have holes."""

FONT = cv2.FONT_HERSHEY_SIMPLEX
MAX_LINES = 3
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


class TextPublisher:
    """Publishes text and step latencies, while the node is active."""

    def __init__(self, node: LifecycleNodeMixin, camera: Camera) -> None:
        self._clock, self._camera = node.get_clock(), camera
        create = node.create_lifecycle_publisher
        self._caption = create(TextChunk, '~/caption', TEXT_QOS)
        self._sentence = create(String, '~/caption/text', TEXT_QOS)
        self._answer = create(TextChunk, '~/answer', TEXT_QOS)
        self._latency = create(StepLatency, '~/latency', TEXT_QOS)

    def publish_text(self, delta: TextDelta) -> TextChunk:
        """Publish a piece of text and return its message."""
        now_ns = self._clock.now().nanoseconds
        chunk = TextChunk(
            header=_header(delta.stamp_ns, self._camera.arrival(delta.stamp_ns)),
            stream_id=delta.stream_id, seq=delta.seq, delta=delta.delta, sentence=delta.sentence,
            is_final=delta.final, finish_reason=delta.finish_reason, video=delta.video,
            steps_seen=delta.steps_seen, frames_seen=delta.frames_seen, emitted=_time(now_ns),
            latency=_duration(now_ns - delta.stamp_ns if delta.stamp_ns else 0))
        if delta.stream_id != NARRATION:
            self._answer.publish(chunk)
            return chunk
        self._caption.publish(chunk)
        if delta.sentence:
            self._sentence.publish(String(data=delta.sentence))
        return chunk

    def publish_latency(self, times: StepTimes, received: int, perceived: int,
                        dropped: int) -> None:
        """Publish the stages of a step, with the numbers of frames so far."""
        step = times.step
        arrival = self._camera.arrival(step.stamp_ns)
        self._latency.publish(StepLatency(
            header=_header(step.stamp_ns, arrival), video=step.video, step=step.index,
            frames=step.frames,
            capture_to_callback=_duration(arrival.capture_to_callback_ns),
            callback_to_engine=_duration(step.started_ns - step.received_ns),
            preprocess=_duration(step.preprocessed_ns - step.started_ns),
            vision=_duration(step.vision_ns - step.preprocessed_ns),
            prefill=_duration(step.perceived_ns - step.vision_ns),
            perceived=_duration(times.perceived_ns), has_first_token=times.has_first_token,
            first_token=_duration(times.first_token_ns), publish=_duration(times.publish_ns),
            overlap_ratio=times.overlap_ratio, frames_received=received,
            frames_perceived=perceived, frames_dropped=dropped))


def _header(stamp_ns: int, arrival: Arrival) -> Header:
    return Header(stamp=_time(stamp_ns), frame_id=arrival.frame_id)


def _time(nanoseconds: int) -> Time:
    return Time(sec=nanoseconds // NANOSECONDS, nanosec=nanoseconds % NANOSECONDS)


def _duration(nanoseconds: int) -> Duration:
    return Duration(sec=nanoseconds // NANOSECONDS, nanosec=nanoseconds % NANOSECONDS)


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
