"""Runs a node until it ends itself or is told to, and turns its troubles into words."""

from __future__ import annotations

from collections.abc import Callable
import queue
import re
import signal
import sys
import threading

import rclpy
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import Executor, MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from sww_ros.parameters import check_qos, files_of_others, overrides, unknown_overrides

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SIGNAL_S = 0.2
"""The longest that a signal goes unnoticed."""


class EndingNode(Node):
    """A node that can end its process, from any thread."""

    def __init__(self, name: str) -> None:
        """
        Make the node.

        :raises ValueError: for a `qos_overrides` parameter that no topic can have
        """
        super().__init__(name)
        self._ends: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._warned_of: set[str] = set()
        check_qos(overrides(self))

    def warn_of_unknown_parameters(self) -> None:
        """Warn, once each, of parameters that were set from outside and that nobody reads."""
        for name, nearest in unknown_overrides(self).items():
            if name not in self._warned_of:
                self._warned_of.add(name)
                self.get_logger().warning(
                    f'the parameter {name} is set, but there is none of that name'
                    + (f': did you mean {nearest}?' if nearest else ''))

    def end(self, exit_code: int) -> None:
        """Have the process end."""
        self._ends.put(exit_code)

    def wait_for_end(self) -> int:
        """Wait for `end` and return the exit code."""
        while True:
            try:
                return self._ends.get(timeout=SIGNAL_S)
            except queue.Empty:
                # A signal that reached another thread, or this one just before it began to wait,
                # wakes nobody: Python handles it now, between two waits.
                pass

    def release(self) -> None:
        """Stop whatever the node started; called once, before it is destroyed."""


def run(name: str, make_node: Callable[[], EndingNode], args: list[str] | None = None, *,
        threads: int = 1) -> int:
    """
    Make a node and spin it to its end, or to SIGINT or SIGTERM; return the exit code.

    Arguments and parameters that cannot be (ValueError of `make_node`, or rclpy's own) are logged
    in one line, and the exit code is 1. A callback that fails is logged, and the others go on.

    :param make_node: makes an EndingNode
    :param threads: the most callbacks that run at once
    """
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # rclpy names no narrower public one.
        get_logger(name).fatal(_in_words(error))
        return 1
    # Until there is a node to end, the default is right: nothing needs to be undone.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        try:
            node = make_node()
        except (NameValidationException, ParameterException, ValueError) as error:
            get_logger(name).fatal(str(error))
            return 1
        _warn_of_files(node, sys.argv if args is None else args)
        node.warn_of_unknown_parameters()
        for number in SIGNALS:
            signal.signal(number, lambda *_: node.end(0))
        executor = MultiThreadedExecutor(threads) if threads > 1 else SingleThreadedExecutor()
        executor.add_node(node)
        stopping = threading.Event()
        spinning = threading.Thread(target=_spin, args=[executor, node, stopping], name='spin')
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
        # Python gives its handlers up before the process has ended; all there was to end is.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _warn_of_files(node: EndingNode, arguments: list[str]) -> None:
    name = node.get_fully_qualified_name()
    for path, others in files_of_others(arguments, name).items():
        node.get_logger().warning(
            f'the file {path} sets no parameter of {name}, only of {", ".join(others)}')


def _in_words(error: RuntimeError) -> str:
    """Return what rcl says, without the places in its own source."""
    words = re.sub(r',\s+at \S+:\d+', '', str(error)).removeprefix('failed to initialize rcl: ')
    return f'ROS cannot begin with these arguments: {words.strip()}'


def _spin(executor: Executor, node: Node, stopping: threading.Event) -> None:
    while not stopping.is_set():
        try:
            executor.spin_once()
        except Exception as error:  # A callback's mistake must not end all other callbacks.
            node.get_logger().error(f'a callback failed: {type(error).__name__}: {error}')
