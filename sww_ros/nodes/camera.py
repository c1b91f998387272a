"""The image topics: stores what comes and thins it out, says why none comes, draws subtitles."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
import threading
import time

import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.lifecycle import LifecycleNodeMixin
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image

from sww_ros.frames import CameraFrame, FrameChoice, FrameSampler
from sww_ros.images import compressed_to_rgb, draw_subtitle, image_to_rgb, rgb_to_image
from sww_ros.nodes.diagnostics import Rate
from sww_ros.streaming.events import TextDelta

REMEMBERED_FRAMES = 1024
WATCH_S = 0.5
TRANSPORTS = {'raw': (Image, '', image_to_rgb),
              'compressed': (CompressedImage, '/compressed', compressed_to_rgb)}


@dataclass(frozen=True)
class Arrival:
    """What is remembered of a frame: whose it is, and how long it took to come [ns]."""

    frame_id: str = ''
    capture_to_callback_ns: int = 0


class Camera:
    """
    Subscribes to `image` and hands over the frames that the model wants.

    The callback only stores: conversion is left to whoever calls `CameraFrame.load`.

    :param image: the topic's name, without the ending of its transport
    :param on_frame: takes each frame that the model wants
    :param on_drop: told the reason of each frame left out: rate | stamp | paused
    :param on_restart: told when stamps jump back, before the first frame after the jump
    """

    def __init__(self, node: Node, log: RcutilsLogger, image: str, *,
                 on_frame: Callable[[CameraFrame], None], on_drop: Callable[[str], None],
                 on_restart: Callable[[str], None]) -> None:
        self._node, self._log, self._image = node, log, image
        self._group = group = MutuallyExclusiveCallbackGroup()
        self._on_frame, self._on_drop, self._on_restart = on_frame, on_drop, on_restart
        self._subscription = None
        self._watch = node.create_timer(WATCH_S, self._warn_if_silent, group,
                                        clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._arrivals: OrderedDict[int, Arrival] = OrderedDict()
        self._lock = threading.Lock()
        self._warned_s = 0.0
        self._anew = False
        self.paused = False
        self.received = 0
        self.rate = Rate()
        self.last_s = self._newer_s = 0.0
        self.age_s = 0.0
        """How far the newest frame's stamp was behind the node's clock when it came [s]."""
        self.topic = ''
        self.newest: Image | CompressedImage | None = None

    @property
    def open(self) -> bool:
        """Whether the topic is subscribed to."""
        return self._subscription is not None

    @property
    def silent_s(self) -> float:
        """Time since the last frame, or since the subscription [s]."""
        return time.monotonic() - self.last_s

    @property
    def stuck_s(self) -> float:
        """For how long frames have come whose stamps were not newer than those before [s]."""
        return self.last_s - self._newer_s

    def subscribe(self, transport: str, frame_rate: float) -> None:
        """Subscribe; `transport` is raw or compressed, `frame_rate` what the model wants [Hz]."""
        kind, suffix, self._convert = TRANSPORTS[transport]
        # The base name is resolved first, so that remapping `image` moves both transports.
        self._base, self._transport = self._node.resolve_topic_name(self._image), transport
        self.topic = self._base + suffix
        self._type_name = f'sensor_msgs/msg/{kind.__name__}'
        self._sampler = FrameSampler(frame_rate)
        self.last_s = self._newer_s = self._warned_s = time.monotonic()
        self.paused, self.rate, self.age_s = False, Rate(), 0.0
        # Best effort receives from both kinds of publisher (REP-2003).
        qos = QoSProfile(reliability=ReliabilityPolicy.BEST_EFFORT, depth=1,
                         history=HistoryPolicy.KEEP_LAST)
        self._subscription = self._node.create_subscription(
            kind, self.topic, self._take, qos, callback_group=self._group,
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._warn_of_qos),
            qos_overriding_options=QoSOverridingOptions.with_default_policies())
        self._log.info(f'watching {self.topic} ({self._type_name})')

    def unsubscribe(self) -> None:
        """Leave the topic; harmless when not subscribed."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            self._node.destroy_subscription(subscription)
        self.newest = None

    def begin_anew(self) -> None:
        """Forget the stamps seen so far, before the next frame."""
        self._anew = True

    def arrival(self, stamp_ns: int) -> Arrival:
        """Return what is remembered of the frame of this stamp."""
        with self._lock:
            return self._arrivals.get(stamp_ns, Arrival())

    def newest_pixels(self) -> tuple[Image | CompressedImage, np.ndarray] | None:
        """
        Return the newest message and its pixels, (H, W, 3) uint8 RGB; None before the first.

        :raises ValueError: for an image that cannot be converted
        """
        message = self.newest
        return None if message is None else (message, self._convert(message))

    def _take(self, message: Image | CompressedImage) -> None:
        received_ns = time.monotonic_ns()
        self.last_s = received_ns / 1e9
        self.received += 1
        self.rate.add()
        self.newest = message
        if self.paused:
            self._newer_s = self.last_s
            self._on_drop('paused')
            return
        stamp = message.header.stamp
        stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
        now_ns = self._node.get_clock().now().nanoseconds
        if stamp_ns == 0:
            self._log.warning(f'the frames on {self.topic} have no stamp: the time of their '
                              'arrival is taken instead', once=True)
            stamp_ns = now_ns
        self.age_s = (now_ns - stamp_ns) / 1e9
        if self._anew:
            self._anew = False
            self._sampler.reset()
        choice = self._sampler.choose(stamp_ns)
        if choice is FrameChoice.OLD:
            self._on_drop('stamp')
            return
        self._newer_s = self.last_s
        if choice is FrameChoice.SKIP:
            self._on_drop('rate')
            return
        if choice is FrameChoice.RESTART:
            self._on_restart(f'the stamps on {self.topic} jumped back')
        with self._lock:
            self._arrivals[stamp_ns] = Arrival(message.header.frame_id, now_ns - stamp_ns)
            if len(self._arrivals) > REMEMBERED_FRAMES:
                self._arrivals.popitem(last=False)
        self._on_frame(CameraFrame(partial(self._convert, message), stamp_ns, received_ns))

    def _warn_of_qos(self, event) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        self._log.warning(
            f'a publisher of {self.topic} offers less than this node requests ({policy}): no '
            'frame of it will come. Set the parameters qos_overrides.'
            f'{self.topic}.subscription.* to what it offers')

    def _warn_if_silent(self) -> None:
        limit = self._node.get_parameter('camera_timeout').value
        now = time.monotonic()
        if not self.open or now - max(self.last_s, self._warned_s) < limit:
            return
        self._warned_s = now
        self._log.warning(
            f'no frame on {self.topic} for {self.silent_s:.0f} s: {self.why_silent()}')

    def why_silent(self) -> str:
        """Return, in words, why no frame comes, as far as it can be seen from here."""
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        if not publishers:
            return self._elsewhere() or (f'nobody publishes there (remap `{self._image}`, see '
                                         '`ros2 topic list`)')
        types = {publisher.topic_type for publisher in publishers}
        if self._type_name not in types:
            return (f'{", ".join(sorted(types))} is published, {self._type_name} is expected '
                    '(see the parameter image_transport)')
        return f'{len(publishers)} publisher(s) there, but nothing comes'

    def _elsewhere(self) -> str:
        """Say which other transport of the same images is published, if one is."""
        for transport, (_, suffix, _) in TRANSPORTS.items():
            topic = self._base + suffix
            if transport != self._transport and self._node.count_publishers(topic):
                return (f'nobody publishes there, but {topic} is published: set '
                        f'image_transport to {transport!r}')
        return ''


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


class Annotator:
    """Publishes image_annotated (rgb8) at a bounded rate, only while it is subscribed to."""

    def __init__(self, node: LifecycleNodeMixin, prefix: str, camera: Camera, rate: float) -> None:
        self._camera = camera
        self._published = None
        self.subtitle = Subtitle()
        self._publisher = node.create_lifecycle_publisher(
            Image, f'{prefix}image_annotated',
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
        self._publisher.publish(rgb_to_image(drawn, message.header))
