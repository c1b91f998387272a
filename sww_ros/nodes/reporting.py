"""Takes the engine's events: publishes text and latencies, counts, and logs troubles."""

from __future__ import annotations

from collections import Counter
import threading
import time

from rclpy.node import Node

from sww_ros.engine.latency import Rate, StepBook, StepTimes, Window
from sww_ros.nodes.camera import Camera
from sww_ros.nodes.diagnostics import Health
from sww_ros.nodes.publishing import Subtitle, TextPublisher
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
