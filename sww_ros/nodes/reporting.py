"""What the narrator tells the outside: messages, subtitles, counts, and lines of the log."""

from __future__ import annotations

from collections import Counter
import textwrap
import threading
import time

from builtin_interfaces.msg import Duration, Time
import cv2
import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNodeMixin
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

from sww_interfaces.msg import StepLatency, TextChunk
from sww_ros.engine.latency import Rate, StepBook, StepTimes, Window
from sww_ros.frames import NANOSECONDS
from sww_ros.nodes.camera import Arrival, Camera
from sww_ros.nodes.diagnostics import Health
from sww_ros.nodes.lifecycle import TEXT_QOS
from sww_ros.nodes.questions import AnswerBook
from sww_ros.streaming.events import (
    NARRATION,
    Event,
    FirstSight,
    FramesDropped,
    QuestionState,
    Restarted,
    StepPerceived,
    TextDelta,
    Trouble,
)

QUIET_S = 5.0
"""Least time between two log messages about troubles of the same kind."""

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


class Reporter:
    """Tells the outside what happens in the engine."""

    def __init__(self, node: Node, camera: Camera, text: TextPublisher, answers: AnswerBook,
                 subtitle: Subtitle) -> None:
        self._log = node.get_logger()
        self._camera, self._text, self._answers = camera, text, answers
        self._subtitle = subtitle
        self._lock = threading.Lock()
        self._handlers = {
            StepPerceived: self._step_perceived, FirstSight: self._step_seen,
            TextDelta: self._text_came, FramesDropped: self._frames_dropped,
            QuestionState: self._question_moved, Trouble: self._trouble_came,
            Restarted: self._restarted}
        self.begin()

    def begin(self) -> None:
        """Start counting from zero."""
        self._steps = StepBook()
        self._perceived_ms, self._first_token_ms = Window(), Window()
        self._caption_ms, self._overlap = Window(), Window()
        self._tokens = Rate()
        self._frames_perceived = 0
        self._dropped: Counter[str] = Counter()
        self._lately = {what: Rate() for what in ('perceived', 'bad', 'overrun')}
        self._camera.received = 0

    def take(self, event: Event) -> None:
        """Take one event of the engine; called by one thread at a time."""
        self._handlers[type(event)](event)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count frames that were left out; any thread may call this."""
        with self._lock:
            self._dropped[reason] += count
        if reason in self._lately:
            self._lately[reason].add(count)

    def health(self, health: Health) -> Health:
        """Return the moment with what is counted here filled in."""
        with self._lock:
            health.dropped = self._dropped.copy()
        camera = self._camera
        health.topic, health.watching, health.paused = camera.topic, camera.open, camera.paused
        health.camera_rate, health.received = camera.rate.value(), camera.received
        health.silent_s, health.stuck_s, health.age_s = (
            camera.silent_s, camera.stuck_s, camera.age_s)
        if health.watching and health.silent_s > health.camera_timeout:
            health.why_silent = camera.why_silent()
        health.perceived = self._frames_perceived
        health.lately = Counter({what: rate.count() for what, rate in self._lately.items()})
        health.tokens_rate = self._tokens.value()
        health.overlap_ratio = self._overlap.mean()
        for name, window in (('perceived_ms', self._perceived_ms),
                             ('first_token_ms', self._first_token_ms),
                             ('caption_ms', self._caption_ms)):
            setattr(health, name, (window.percentile(50), window.percentile(95)))
        return health

    def _step_perceived(self, event: StepPerceived) -> None:
        self._frames_perceived += event.frames
        self._lately['perceived'].add(event.frames)
        self._publish(self._steps.perceived(event))

    def _step_seen(self, event: FirstSight) -> None:
        self._steps.seen(event)

    def _text_came(self, event: TextDelta) -> None:
        chunk = self._text.publish_text(event)
        published_ns = time.monotonic_ns()
        if event.delta:
            self._tokens.add()
        if event.stream_id == NARRATION:
            self._subtitle.add(event)
            if event.delta and event.stamp_ns:
                self._caption_ms.add(chunk.latency.sec * 1e3 + chunk.latency.nanosec / 1e6)
        else:
            self._answers.add(chunk)
        self._publish(self._steps.published(event, published_ns))

    def _frames_dropped(self, event: FramesDropped) -> None:
        self.drop(event.reason, event.count)

    def _question_moved(self, event: QuestionState) -> None:
        self._log.debug(f'question {event.question_id}: {event.state} {event.reason}')
        if event.state == 'rejected':
            self._answers.explain(event.question_id, event.reason)

    def _trouble_came(self, event: Trouble) -> None:
        self._log.error(event.message, throttle_duration_sec=QUIET_S)
        if event.stream_id:
            self._answers.explain(event.stream_id, event.message)

    def _restarted(self, event: Restarted) -> None:
        if event.reason == 'relay':
            self._log.debug('another stream goes on with the video')
            return
        self._log.info(f'the stream begins anew ({event.reason})')
        self._publish(self._steps.clear())

    def _publish(self, settled: list[StepTimes]) -> None:
        for times in settled:
            self._perceived_ms.add(times.perceived_ns / 1e6)
            self._overlap.add(times.overlap_ratio)
            if times.has_first_token:
                self._first_token_ms.add(times.first_token_ns / 1e6)
            with self._lock:
                dropped = self._dropped.total()
            self._text.publish_latency(times, self._camera.received, self._frames_perceived,
                                       dropped)
