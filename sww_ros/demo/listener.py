"""The demo in ROS: turns messages and responses into events for its main loop."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
import queue
import threading
import time
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import (
    DurabilityPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_profile_sensor_data,
)
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image
from std_msgs.msg import String

from sww_interfaces.msg import StepLatency, TextChunk
from sww_interfaces.srv import Ask

NARRATOR_TOPICS = {
    'narrator/caption': (TextChunk, 'text'),
    'narrator/answer': (TextChunk, 'text'),
    'narrator/latency': (StepLatency, 'step'),
}

LOOK_S = 1.0
"""Time between two looks at the camera's picture."""


@dataclass(frozen=True)
class DemoEvent:
    """What came: kind text | step | scene | picture | asked, its content, and when [ns]."""

    kind: str
    content: Any
    at_ns: int


class Listener:
    """Subscribes to the narrator and the camera; `events` holds what comes, in order."""

    def __init__(self) -> None:
        """Join ROS; signals stay with the main loop."""
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self.events: queue.SimpleQueue[DemoEvent] = queue.SimpleQueue()
        self._node = rclpy.create_node('demo')
        reliable = QoSProfile(depth=256, reliability=ReliabilityPolicy.RELIABLE)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        for topic, (kind, name) in NARRATOR_TOPICS.items():
            self._subscribe(kind, name, topic, reliable)
        self._subscribe(String, 'scene', 'shapes_camera/scene', latched)
        self._ask = self._node.create_client(Ask, 'narrator/ask')
        self._pictures: Subscription | None = None
        self._next_look_s = 0.0
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin, name='listener', daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether all that the narrator says will be heard."""
        return self._ask.service_is_ready() and all(
            self._node.count_publishers(topic) for topic in NARRATOR_TOPICS)

    def now_ns(self) -> int:
        """Return the time on the clock of the stamps [ns]."""
        return self._node.get_clock().now().nanoseconds

    def tell(self, kind: str, content: Any) -> None:
        """Put an event into the queue; any thread may."""
        self.events.put(DemoEvent(kind, content, self.now_ns()))

    def ask(self, number: int, question: str) -> None:
        """Ask the narrator; the event `asked` brings (number, response)."""
        future = self._ask.call_async(Ask.Request(question=question))
        future.add_done_callback(lambda done: self.tell('asked', (number, done.result())))

    def look(self) -> None:
        """Begin to look at what the camera shows: an event `picture` each LOOK_S."""
        self._pictures = self._node.create_subscription(
            Image, 'image', self._see, qos_profile_sensor_data)

    def look_away(self) -> None:
        """Look no more; images cost time."""
        pictures, self._pictures = self._pictures, None
        if pictures is not None:
            self._node.destroy_subscription(pictures)

    def close(self) -> None:
        """Leave ROS."""
        self._stopping.set()
        self._executor.create_task(lambda: None)  # Wakes it.
        self._thread.join(2.0)
        self._executor.shutdown(1.0)
        self._node.destroy_node()
        rclpy.try_shutdown()

    def _subscribe(self, kind: type, name: str, topic: str, qos: QoSProfile) -> None:
        self._node.create_subscription(kind, topic, partial(self.tell, name), qos)

    def _see(self, image: Image) -> None:
        if time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + LOOK_S
            self.tell('picture', image)

    def _spin(self) -> None:
        while not self._stopping.is_set():
            self._executor.spin_once()
