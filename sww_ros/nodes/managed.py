"""A lifecycle node that stays responsive in transitions, and the way to run it to its end."""

from __future__ import annotations

from collections.abc import Callable
import functools
import queue
import signal
import threading
import traceback

import rclpy
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.exceptions import ParameterException
from rclpy.executors import MultiThreadedExecutor
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def logged(transition: Callable) -> Callable:
    """Decorate an `on_...` method, whose exceptions rclpy would swallow."""
    @functools.wraps(transition)
    def run_logged(self: ManagedNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            self.get_logger().error(f'{transition.__name__} failed: {error}\n'
                                    f'{traceback.format_exc()}')
            return TransitionCallbackReturn.ERROR
    return run_logged


class ManagedNode(LifecycleNodeMixin, Node):
    """
    A lifecycle node whose transitions may take long.

    Differs from rclpy's LifecycleNode in this: the state can be asked for during a transition
    (its services do not share the default callback group); a transition that is not possible, or
    requested during another one, is refused instead of ending the executor; and the error of a
    transition is logged.
    """

    def __init__(self, name: str, **options) -> None:
        Node.__init__(self, name, **options)
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self._transition = threading.Lock()
        change_state = self._service_change_state
        change_state.callback = self._guarded(change_state.callback)
        self.ends: queue.SimpleQueue[int] = queue.SimpleQueue()

    def change(self, trigger: Callable[[], TransitionCallbackReturn]) -> bool:
        """Run a transition, such as `self.trigger_configure`; False if it fails."""
        with self._transition:
            return trigger() == TransitionCallbackReturn.SUCCESS

    def end(self, exit_code: int) -> None:
        """Have the process end; any thread may call this."""
        self.ends.put(exit_code)

    def release(self) -> None:
        """Give up, before the node is destroyed, all that callbacks might wait for."""

    def _guarded(self, change_state: Callable) -> Callable:
        def answer(request, response):
            if not self._transition.acquire(blocking=False):
                self.get_logger().warning('a transition is under way: another one was refused')
                response.success = False
                return response
            try:
                return change_state(request, response)
            except Exception as error:  # rclpy names no narrower public one.
                self.get_logger().warning(f'transition refused: {error}')
                response.success = False
                return response
            finally:
                self._transition.release()
        return answer


def run(name: str, make_node: Callable[[], ManagedNode], threads: int,
        args: list[str] | None = None) -> int:
    """
    Make a node, spin it until it ends or SIGINT or SIGTERM comes, and return the exit code.

    A parameter that cannot be is logged in one line, and the exit code is 1.

    :param threads: the most callbacks that run at once
    """
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    ends: queue.SimpleQueue[int] = queue.SimpleQueue()
    # A second signal during the shutdown only adds to a queue that nobody reads any more.
    for number in SIGNALS:
        signal.signal(number, lambda *_: ends.put(0))
    try:
        try:
            node = make_node()
        except (ParameterException, ValueError) as error:
            get_logger(name).fatal(str(error))
            return 1
        node.ends = ends
        executor = MultiThreadedExecutor(threads)
        executor.add_node(node)
        stopping = threading.Event()
        spinning = threading.Thread(target=_spin, args=[executor, node, stopping], name='spin')
        spinning.start()
        try:
            return ends.get()
        finally:
            node.release()
            stopping.set()
            executor.create_task(lambda: None)
            spinning.join()
            executor.shutdown()
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
        # Python gives the handlers up before its process has ended; all there was to end is.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _spin(executor: MultiThreadedExecutor, node: Node, stopping: threading.Event) -> None:
    while not stopping.is_set():
        try:
            executor.spin_once()
        except Exception as error:  # A callback's mistake must not end all other callbacks.
            node.get_logger().error(f'a callback failed: {type(error).__name__}: {error}')
