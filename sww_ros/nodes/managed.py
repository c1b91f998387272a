"""A lifecycle node that stays responsive in transitions."""

from __future__ import annotations

from collections.abc import Callable
import functools
import threading
import traceback

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn

from sww_ros.nodes.running import EndingNode

LAST_TRANSITION_S = 10.0
"""How long the node's end waits for a transition under way."""
STATES = {'cleaningup': 'cleaning up', 'shuttingdown': 'shutting down',
          'errorprocessing': 'recovering from an error'}
"""What is not a word in the lifecycle's own labels."""


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
