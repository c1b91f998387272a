"""Turns what the engine says into messages."""

from __future__ import annotations

from builtin_interfaces.msg import Duration, Time
from rclpy.lifecycle import LifecycleNodeMixin
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import Header, String

from sww_interfaces.msg import StepLatency, TextChunk
from sww_ros.nodes.camera import Arrival, Camera
from sww_ros.nodes.latency import StepTimes
from sww_ros.streaming.events import NARRATION, TextDelta

SECOND_NS = 1_000_000_000
TEXT_QOS = QoSProfile(depth=256, reliability=ReliabilityPolicy.RELIABLE)
"""Deep enough for a slow reader of a fast model: text must not have holes."""


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
    return Time(sec=nanoseconds // SECOND_NS, nanosec=nanoseconds % SECOND_NS)


def _duration(nanoseconds: int) -> Duration:
    return Duration(sec=nanoseconds // SECOND_NS, nanosec=nanoseconds % SECOND_NS)
