"""
A lifecycle node that always responds: in transitions, and to clients not discovered yet.

A request may come before its sender's own end for the response is known here, on a busy machine
seconds before. The middleware then waits a tenth of a second, drops the response, and all there is
to see is a Python warning ("client will not receive response"): the caller would wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import functools
import threading
import traceback
import warnings

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.service import Service

from sww_ros.node import EndingNode

LAST_TRANSITION_S = 10.0
"""How long the node's end waits for a transition under way."""
STATES = {'cleaningup': 'cleaning up', 'shuttingdown': 'shutting down',
          'errorprocessing': 'recovering from an error'}
"""What is not a word in the lifecycle's own labels."""

SERVICE_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
"""With ROS' own depth of 10, an eleventh request at once is lost, and its caller never told."""

TRIES = 100
"""Of a response that is dropped; each takes the middleware a tenth of a second."""
WORKERS = 4
_MESSAGE = 'failed to send response'
_lost = threading.local()


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


class ManagedNode(LifecycleNodeMixin, EndingNode):
    """
    A lifecycle node whose transitions may take long.

    Differs from rclpy's LifecycleNode in this: the state can be asked for during a transition
    (its services do not share the default callback group); a transition that is not possible, or
    requested during another one, is refused instead of ending the executor; and the error of a
    transition is logged.
    """

    def __init__(self, name: str) -> None:
        EndingNode.__init__(self, name)
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self._transition = threading.Lock()
        change_state = self._service_change_state
        change_state.callback = self._guarded(change_state.callback)

    @property
    def state(self) -> str:
        """The state of the lifecycle, in words."""
        label = self._state_machine.current_state[1]
        return STATES.get(label, label)

    def destroy_node(self) -> None:
        # The executor's end does not wait for it, and it could no more tell of its own.
        ended = self._transition.acquire(timeout=LAST_TRANSITION_S)
        try:
            super().destroy_node()
        finally:
            if ended:
                self._transition.release()

    def change(self, trigger: Callable[[], TransitionCallbackReturn]) -> bool:
        """Run a transition, such as `self.trigger_configure`; False if it fails."""
        with self._transition:
            return trigger() == TransitionCallbackReturn.SUCCESS

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


def _notice(message: Warning | str, *arguments: object, **named: object) -> None:
    """Note, for the thread that sends, that a response was dropped; show other warnings."""
    if str(message).startswith(_MESSAGE):
        _lost.happened = True
    else:
        _show(message, *arguments, **named)


_show, warnings.showwarning = warnings.showwarning, _notice
warnings.filterwarnings('always', message=_MESSAGE, category=RuntimeWarning)


class Responder:
    """Sends again what was dropped, on threads of its own, so that no callback waits for it."""

    def __init__(self, node: Node) -> None:
        self._log, self._closed = node.get_logger(), threading.Event()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix='late response')

    def attend(self, service: Service) -> None:
        """Take care of the responses of a service; what is lost for good is logged."""
        send = service.send_response

        def send_response(response: object, header: object) -> None:
            if not _arrives(send, response, header) and not self._closed.is_set():
                self._pool.submit(self._try_again, send, response, header, service.srv_name)

        service.send_response = send_response

    def close(self) -> None:
        """Give up what is still tried; called before the services are destroyed."""
        self._closed.set()
        self._pool.shutdown(cancel_futures=True)

    def _try_again(self, send, response: object, header: object, name: str) -> None:
        for _ in range(TRIES):
            if self._closed.is_set() or _arrives(send, response, header):
                return
        self._log.warning(f'a response of {name} is lost: its caller is gone, or was not '
                          f'discovered within {TRIES / 10:g} s')


def _arrives(send, response: object, header: object) -> bool:
    _lost.happened = False
    send(response, header)
    return not _lost.happened
