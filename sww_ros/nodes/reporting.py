"""What the narrator tells the outside: text, where the time of each step goes, counts, the log."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
import threading
import time

from builtin_interfaces.msg import Duration, Time
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.lifecycle import LifecycleNodeMixin
from std_msgs.msg import Header, String

from sww_interfaces.msg import StepLatency, TextChunk
from sww_ros.frames import NANOSECONDS
from sww_ros.node import TEXT_QOS
from sww_ros.nodes.camera import Arrival, Camera, Subtitle
from sww_ros.nodes.diagnostics import Health, Rate, Window
from sww_ros.nodes.questions import QUIET_S, AnswerBook
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

UNSEEN_STEPS = 64
"""Steps that may wait for a token that sees them; older ones are reported without."""


@dataclass(frozen=True)
class StepTimes:
    """
    A perceived step with the first token that could see it, if any.

    `first_token_ns` is from perceived to that token, `publish_ns` from the token to its message
    (0 for silence).
    """

    step: StepPerceived
    has_first_token: bool = False
    first_token_ns: int = 0
    publish_ns: int = 0

    @property
    def perceived_ns(self) -> int:
        """From the image callback until a token could see the step."""
        return self.step.stages_ns['perceived']

    @property
    def overlap_ratio(self) -> float:
        """Share of the step's perception during which decoding ran too."""
        return self.step.overlap_ratio


class StepBook:
    """
    Brings the events of a session together, step by step.

    Each method returns the steps whose times are known now. The text of a decode step follows
    its sights at once, so a sight is settled by the event after it.
    """

    def __init__(self) -> None:
        self._unseen: dict[tuple[int, int], StepPerceived] = {}
        self._seen: list[StepTimes] = []

    def perceived(self, step: StepPerceived) -> list[StepTimes]:
        settled = self.settle()
        self._unseen[step.video, step.index] = step
        while len(self._unseen) > UNSEEN_STEPS:
            settled.append(StepTimes(self._unseen.pop(next(iter(self._unseen)))))
        return settled

    def seen(self, sight: FirstSight) -> None:
        step = self._unseen.pop((sight.video, sight.index), None)
        if step is not None:
            self._seen.append(StepTimes(step, True, sight.decoded_ns - step.perceived_ns))

    def published(self, delta: TextDelta, published_ns: int) -> list[StepTimes]:
        """Note that a text's message went out at `published_ns` [monotonic]."""
        if delta.first_sight:
            publish_ns = published_ns - delta.emitted_ns
            self._seen = [replace(times, publish_ns=publish_ns) for times in self._seen]
        return self.settle()

    def settle(self) -> list[StepTimes]:
        """Return the steps that were seen, whose token turned out to be silence."""
        seen, self._seen = self._seen, []
        return seen

    def clear(self) -> list[StepTimes]:
        """Return what is known, as the stream begins anew."""
        unseen, self._unseen = self._unseen, {}
        return [*self.settle(), *(StepTimes(step) for step in unseen.values())]


class TextPublisher:
    """Publishes text and step latencies under a prefix, while the node is active."""

    def __init__(self, node: LifecycleNodeMixin, prefix: str, camera: Camera) -> None:
        self._clock, self._camera = node.get_clock(), camera
        create = node.create_lifecycle_publisher
        self._caption = create(TextChunk, f'{prefix}caption', TEXT_QOS)
        self._sentence = create(String, f'{prefix}caption/text', TEXT_QOS)
        self._answer = create(TextChunk, f'{prefix}answer', TEXT_QOS)
        self._latency = create(StepLatency, f'{prefix}latency', TEXT_QOS)

    def publish_text(self, delta: TextDelta) -> TextChunk:
        """Publish a piece of text and return its message."""
        now_ns = self._clock.now().nanoseconds
        chunk = TextChunk(
            header=_header(delta.stamp_ns, self._camera.arrival(delta.stamp_ns)),
            emitted=_time(now_ns),
            latency=_duration(now_ns - delta.stamp_ns if delta.stamp_ns else 0),
            **delta.published)
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
            has_first_token=times.has_first_token,
            first_token=_duration(times.first_token_ns), publish=_duration(times.publish_ns),
            overlap_ratio=times.overlap_ratio, frames_received=received,
            frames_perceived=perceived, frames_dropped=dropped,
            **{name: _duration(lasted_ns) for name, lasted_ns in step.stages_ns.items()}))


def _header(stamp_ns: int, arrival: Arrival) -> Header:
    return Header(stamp=_time(stamp_ns), frame_id=arrival.frame_id)


def _time(nanoseconds: int) -> Time:
    return Time(sec=nanoseconds // NANOSECONDS, nanosec=nanoseconds % NANOSECONDS)


def _duration(nanoseconds: int) -> Duration:
    return Duration(sec=nanoseconds // NANOSECONDS, nanosec=nanoseconds % NANOSECONDS)


class Reporter:
    """Tells the outside what happens in the engine."""

    def __init__(self, log: RcutilsLogger, camera: Camera, text: TextPublisher,
                 answers: AnswerBook, subtitle: Subtitle) -> None:
        self._log = log
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
