"""Between camera and narrator: spoils frames, asks, hears what is said, and sees what is held."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable
import os
from pathlib import Path
import threading
import time
from typing import Any

from builtin_interfaces.msg import Time
import cv2
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from sww_interfaces.msg import StepLatency, TextChunk
from sww_interfaces.srv import Ask
from sww_ros.demo.processes import children, is_gone

PATIENCE_S = 120.0
"""How long anything may take before the run gives it up as lost."""
SIZES = ((336, 336), (640, 480), (101, 57))
"""Width and height [pixels]."""
BROKEN: tuple[dict[str, Any], ...] = (
    dict(encoding='nonsense'), dict(encoding='32FC1'), dict(data=array('B', [1] * 99)),
    dict(data=array('B')), dict(width=0), dict(height=0), dict(step=1), dict(step=2 ** 32 - 1),
    dict(width=2 ** 32 - 1, height=2 ** 32 - 1), dict(encoding='yuv422', width=335))


def living_children(pid: int) -> list[int]:
    """Return the process ids of the children of a process, those that have ended apart."""
    return [child for child in children(pid) if not is_gone(child)]


def held(pid: int) -> dict[str, int]:
    """Return what a process, or one that it has started, holds of what can leak."""
    family = [pid, *(deeper for child in living_children(pid)
                     for deeper in (child, *living_children(child)))]
    status = dict(line.split(':', 1) for line in _read(Path(f'/proc/{pid}/status')).splitlines())
    return dict(processes=len(family), shared_memory=len(shared_memory(family)),
                descriptors=len(os.listdir(f'/proc/{pid}/fd')), threads=int(status['Threads']),
                rss_mib=int(status['VmRSS'].split()[0]) // 1024)


def shared_memory(pids: Iterable[int]) -> set[str]:
    """Return the files in memory that processes have mapped."""
    return {line.split(None, 5)[5] for pid in pids
            for line in _read(Path(f'/proc/{pid}/maps')).splitlines()
            if '/dev/shm/' in line or 'memfd:' in line}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ''


class Watch:
    """A ROS node between camera and narrator: spoils frames, asks, and hears all that is said."""

    def __init__(self) -> None:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node('watch')
        self.offset_s, self.size, self.broken = 0.0, SIZES[0], False
        self.sent_s: dict[int, float] = {}
        self.told: deque[tuple[int, float]] = deque(maxlen=4096)
        self.seen: deque[tuple[int, float]] = deque(maxlen=4096)
        self.frames: dict[str, int] = {}
        self.restarts = self.asked = self.answered = self.refused = 0
        self.responses: set[str] = set()
        self.ends: dict[str, str] = {}
        deep = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
        self._images = self.node.create_publisher(Image, 'image', qos_profile_sensor_data)
        for kind, topic, take, qos in (
                (Image, 'eye', self._pass_on, qos_profile_sensor_data),
                (TextChunk, 'narrator/caption', self._hear, deep),
                (TextChunk, 'narrator/answer', self._hear_answer, deep),
                (StepLatency, 'narrator/latency', self._note_step, deep),
                (DiagnosticArray, '/diagnostics', self._note_health, 10)):
            self.node.create_subscription(kind, topic, take, qos)
        self._ask = self.node.create_client(Ask, 'narrator/ask', qos_profile=deep)
        self._change = self.node.create_client(ChangeState, 'narrator/change_state')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._stopping = False
        self._thread.start()

    def close(self) -> None:
        """Leave ROS."""
        self._stopping = True
        self._thread.join()
        self.node.destroy_node()
        rclpy.try_shutdown()

    def ask(self, question: str, wait: bool = False) -> None:
        """Ask; `asked` grows at once, and `ended` once there is an answer or a reason."""
        self.asked += 1
        self._ask.call_async(Ask.Request(question=question, wait=wait)).add_done_callback(
            self._note_response)

    @property
    def responded(self) -> int:
        """How many questions were taken or refused."""
        return len(self.responses) + self.refused

    @property
    def ended(self) -> int:
        """How many questions have ended, with an answer or with a reason."""
        return len(self.responses & {*self.ends}) + self.refused

    @property
    def unaccounted(self) -> int:
        """Frames that the narrator received and has neither perceived nor dropped."""
        counts = dict(self.frames)
        return counts.pop('received', 0) - sum(counts.values())

    def change(self, transition: int) -> None:
        """
        Take the narrator through a transition.

        :raises RuntimeError: when it is refused, fails, or lasts too long
        """
        done = threading.Event()
        future = self._change.call_async(ChangeState.Request(transition=Transition(id=transition)))
        future.add_done_callback(lambda _: done.set())
        if not done.wait(PATIENCE_S) or not future.result().success:
            raise RuntimeError(f'the transition {transition} failed')

    def _spin(self) -> None:
        while not self._stopping:
            self._executor.spin_once(timeout_sec=0.1)

    def _pass_on(self, image: Image) -> None:
        stamp_ns = _nanoseconds(image.header.stamp) + round(self.offset_s * 1e9)
        image.header.stamp = Time(sec=stamp_ns // 10 ** 9, nanosec=stamp_ns % 10 ** 9)
        if (image.width, image.height) != self.size:
            pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
            image.data = array('B', cv2.resize(pixels, self.size).tobytes())
            image.width, image.height = self.size
            image.step = 3 * image.width
        for field, value in (BROKEN[len(self.sent_s) % len(BROKEN)] if self.broken else {}).items():
            setattr(image, field, value)
        self.sent_s[stamp_ns] = time.monotonic()
        self._images.publish(image)

    def _hear(self, chunk: TextChunk) -> None:
        if chunk.delta:
            self.told.append((_nanoseconds(chunk.header.stamp), time.monotonic()))

    def _hear_answer(self, chunk: TextChunk) -> None:
        if chunk.is_final:
            self.ends[chunk.stream_id] = chunk.finish_reason

    def _note_step(self, step: StepLatency) -> None:
        if step.has_first_token:
            self.seen.append((_nanoseconds(step.header.stamp), time.monotonic()))

    def _note_response(self, done: rclpy.task.Future) -> None:
        response = done.result()
        if response.accepted:
            self.responses.add(response.question_id)
        elif response.reason:
            self.refused += 1

    def _note_health(self, health: DiagnosticArray) -> None:
        for status in health.status:
            values = {value.key: value.value for value in status.values}
            if status.name == 'narrator: camera':
                self.frames = {key.removeprefix('frames '): int(value)
                               for key, value in values.items() if key.startswith('frames ')}
            self.restarts = int(values.get('restarts', self.restarts))


def _nanoseconds(stamp: Time) -> int:
    return stamp.sec * 10 ** 9 + stamp.nanosec


def wait_until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> bool:
    """Wait until a condition holds; False after the time."""
    end = time.monotonic() + patience_s
    while not (holds := bool(condition())) and time.monotonic() < end:
        time.sleep(0.02)
    return holds
