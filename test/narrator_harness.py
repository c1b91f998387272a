"""A narrator in a process of its own, and a probe that talks to it as a user's nodes would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

from fake_session import SESSION
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
import numpy as np
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters
import rclpy
from rclpy.action import ActionClient
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from waiting import PATIENCE_S, wait_until

from sww_interfaces.action import AnswerQuestion
from sww_interfaces.msg import StepLatency, TextChunk
from sww_interfaces.srv import Ask
from sww_ros.demo.processes import children, is_gone

FAKE = [sys.executable, '-c',
        f'from sww_ros.nodes.narrator import main; main(session={SESSION!r})']


class NarratorProcess:
    """A narrator; `log` is what it has written so far."""

    def __init__(self, log_file: Path, *parameters: str, command: list[str] | None = None,
                 arguments: tuple[str, ...] = ()) -> None:
        settings = [part for text in parameters for part in ('-p', text)]
        self._log_file = log_file
        with log_file.open('wb') as output:
            self.process = subprocess.Popen(
                [*(command or FAKE), '--ros-args', *arguments, *settings],
                stdout=output, stderr=subprocess.STDOUT)

    @property
    def log(self) -> str:
        return self._log_file.read_text(errors='replace')

    def wait_log(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        wait_until(lambda: text in self.log or self.process.poll() is not None, timeout_s,
                   lambda: self.log)
        assert text in self.log, self.log

    def children(self) -> list[int]:
        """Return the process ids of the engines."""
        return [pid for pid in children(self.process.pid) if not is_gone(pid)]

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def __enter__(self) -> NarratorProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Probe:
    """
    Publishes frames, collects what the narrator says, and calls its services.

    :param narrator: what comes before the names of topics and services
    :param named: the name of the node, where that is another
    """

    def __init__(self, narrator: str = '/narrator', named: str = '') -> None:
        self._context = Context()
        rclpy.init(context=self._context)
        self.node = Node('probe', context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.narrator, self._named = narrator, named or narrator
        self.captions: list[TextChunk] = []
        self.answers: list[TextChunk] = []
        self.latencies: list[StepLatency] = []
        for kind, name, bucket in ((TextChunk, 'caption', self.captions),
                                   (TextChunk, 'answer', self.answers),
                                   (StepLatency, 'latency', self.latencies)):
            self.listen(kind, f'{narrator}/{name}', bucket)
        self._publishers = {}
        self._clients = {}
        self.goals = ActionClient(self.node, AnswerQuestion, f'{narrator}/answer_question')
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._stopping = False
        self._thread.start()

    def _spin(self) -> None:
        while not self._stopping:
            self._executor.spin_once(timeout_sec=0.1)

    def close(self) -> None:
        self._stopping = True
        self._thread.join()
        self.goals.destroy()
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    def listen(self, kind: type, topic: str, bucket: list) -> list:
        """Collect the messages of a topic."""
        self.node.create_subscription(
            kind, topic, bucket.append, QoSProfile(depth=500, reliability=(
                ReliabilityPolicy.RELIABLE)))
        return bucket

    def call(self, kind: type, name: str, timeout_s: float = PATIENCE_S, **fields):
        """Call a service of the narrator and return its response."""
        return self.result(self.begin_call(kind, name, **fields), timeout_s)

    def begin_call(self, kind: type, name: str, **fields):
        """Call a service of the narrator and return the future of its response."""
        is_new = name not in self._clients
        if is_new:
            self._clients[name] = self.node.create_client(kind, f'{self.narrator}/{name}')
        client = self._clients[name]
        assert client.wait_for_service(PATIENCE_S), name
        if is_new:
            self.meet()
        return client.call_async(kind.Request(**fields))

    def meet(self) -> None:
        """
        Return once the narrator knows all clients made so far.

        That a client knows its server does not mean that the server knows it, and DDS loses what it
        is sent before. It hears of clients in their order: who answers a later one knows those.
        """
        later = self.node.create_client(GetParameters, f'{self._named}/get_parameters')
        assert later.wait_for_service(PATIENCE_S), 'get_parameters'
        for _ in range(8):
            with suppress(AssertionError):
                self.result(later.call_async(GetParameters.Request()), PATIENCE_S / 8)
                return

    def run(self, work: Callable):
        """
        Do something on the thread that takes responses.

        rclpy's action client ignores a response that comes before the request has been noted.
        """
        return self.result(self._executor.create_task(work))

    def result(self, future, timeout_s: float = PATIENCE_S):
        """Wait for a future of the probe's node."""
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        assert done.wait(timeout_s), 'no answer'
        return future.result()

    def ask(self, question: str, **fields) -> Ask.Response:
        return self.call(Ask, 'ask', question=question, **fields)

    def state(self) -> int:
        return self.call(GetState, 'get_state').current_state.id

    def change(self, transition: int) -> bool:
        request = Transition(id=transition)
        return self.call(ChangeState, 'change_state', transition=request).success

    def wait_active(self) -> None:
        wait_until(lambda: self.state() == State.PRIMARY_STATE_ACTIVE)

    def set_parameter(self, name: str, value) -> str:
        """Set a parameter and return why not; empty if it was set."""
        parameter = Parameter(name, value=value).to_parameter_msg()
        result = self.call(SetParameters, 'set_parameters', parameters=[parameter]).results[0]
        assert result.successful == (not result.reason), result
        return result.reason

    def get_parameters(self, names: list[str]):
        return self.call(GetParameters, 'get_parameters', names=names).values

    def describe_parameters(self, names: list[str]):
        return self.call(DescribeParameters, 'describe_parameters', names=names).descriptors

    def reconfigure(self, **parameters) -> None:
        """Take the node down, set parameters, and bring it up again."""
        assert self.change(Transition.TRANSITION_DEACTIVATE)
        assert self.change(Transition.TRANSITION_CLEANUP)
        for name, value in parameters.items():
            assert not self.set_parameter(name, value)
        assert self.change(Transition.TRANSITION_CONFIGURE)
        assert self.change(Transition.TRANSITION_ACTIVATE)

    def publish(self, message, topic: str = 'image') -> int:
        """Stamp a message, if it is not, publish it, and return its stamp [ns]."""
        key = (type(message), topic)
        if key not in self._publishers:
            publisher = self.node.create_publisher(
                type(message), topic,
                QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
            self._publishers[key] = publisher
            wait_until(publisher.get_subscription_count)
        if not message.header.frame_id:
            message.header.frame_id = 'eye'
            message.header.stamp = self.node.get_clock().now().to_msg()
        self._publishers[key].publish(message)
        return stamp_of(message)

    def film(self, make: Callable[[], object], until: Callable[[], object],
             topic: str = 'image', period_s: float = 0.1) -> set[int]:
        """Publish frames until a condition holds, and return their stamps [ns]."""
        stamps = set()

        def one_more() -> object:
            stamps.add(self.publish(make(), topic))
            time.sleep(period_s)
            return until()
        wait_until(one_more)
        return stamps

    def answer(self, question_id: str) -> list[TextChunk]:
        return [chunk for chunk in list(self.answers) if chunk.stream_id == question_id]

    def wait_answer(self, question_id: str) -> list[TextChunk]:
        wait_until(lambda: any(chunk.is_final for chunk in self.answer(question_id)))
        return self.answer(question_id)


@contextmanager
def probing(narrator: str = '/narrator', named: str = '') -> Iterator[Probe]:
    probe = Probe(narrator, named)
    try:
        yield probe
    finally:
        probe.close()


def picture(height: int = 48, width: int = 64) -> Image:
    """Return an rgb8 image, not stamped."""
    data = np.full((height, width, 3), 90, np.uint8).tobytes()
    return Image(height=height, width=width, encoding='rgb8', step=3 * width, data=data)


def stamp_of(message) -> int:
    """Return the stamp of a message with a header [ns]."""
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
