"""Runs a node until it ends itself or is told to, and turns its troubles into words."""

from __future__ import annotations

from collections.abc import Callable
import queue
import signal
import threading

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions


class EndingNode(Node):
    """A node that can end its process, from any thread."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._ends: queue.SimpleQueue[int] = queue.SimpleQueue()

    def end(self, exit_code: int) -> None:
        """Have the process end."""
        self._ends.put(exit_code)

    def wait_for_end(self) -> int:
        """Wait for `end` and return the exit code."""
        return self._ends.get()

    def release(self) -> None:
        """Stop whatever the node started; called once, before it is destroyed."""


def run(name: str, make_node: Callable[[], EndingNode], args: list[str] | None = None) -> int:
    """
    Make a node and spin it to its end, or to SIGINT or SIGTERM; return the exit code.

    A ValueError of `make_node` is logged in one line, and the exit code is 1.
    """
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    # Until there is a node to end, the default is right: nothing needs to be undone.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        try:
            node = make_node()
        except ValueError as error:
            get_logger(name).fatal(str(error))
            return 1
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: node.end(0))
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        stopping = threading.Event()
        spinning = threading.Thread(target=_spin, args=[executor, stopping], name='spin')
        spinning.start()
        try:
            return node.wait_for_end()
        finally:
            node.release()
            stopping.set()
            executor.create_task(lambda: None)  # Wakes it.
            spinning.join()
            executor.shutdown()
            node.destroy_node()
    finally:
        rclpy.try_shutdown()


def _spin(executor: SingleThreadedExecutor, stopping: threading.Event) -> None:
    while not stopping.is_set():
        executor.spin_once()
