"""Questions from outside: the service ~/ask, the action ~/answer_question, and their answers."""

from __future__ import annotations

from collections.abc import Callable
import threading
import time
import uuid

from builtin_interfaces.msg import Duration
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.node import Node

from sww_interfaces.action import AnswerQuestion
from sww_interfaces.msg import TextChunk
from sww_interfaces.srv import Ask
from sww_ros.engine.client import EngineClient, EngineError
from sww_ros.node import TEXT_QOS
from sww_ros.nodes.lifecycle import SERVICE_QOS, Responder
from sww_ros.streaming.config import check_question

MAX_WAITERS = 16
"""Callers that may wait for an answer at once: each holds a thread of the executor, because
rclpy's executor polls without a pause while a coroutine of its own waits."""

CANCEL_S = 1.0
"""How long the engine may take to end what was taken back."""

QUIET_S = 5.0
"""Least time between two log messages of the same kind."""

ENDS = {
    TextChunk.FINISH_DEACTIVATED: 'the narrator was deactivated',
    TextChunk.FINISH_NO_VIDEO: 'nothing was seen in time: does the camera run, and is the '
                               'narrator paused?',
}
"""Why an answer is not complete, where the finish_reason alone does not say it."""


def unseen_notice(timeout_s: float) -> str:
    """Say what becomes of a question that is asked before anything has been seen."""
    notice = 'nothing has been seen yet: the answer begins with the first frames'
    if timeout_s:
        notice += f', or ends with {TextChunk.FINISH_NO_VIDEO} after {timeout_s:g} s'
    return notice


class Answer:
    """
    One question's answer as it grows; `done` is set when its last chunk has come.

    `notice` is what the asker should know at once, `trouble` why there will be no answer.
    """

    def __init__(self, on_chunk: Callable[[TextChunk], None]) -> None:
        self.question_id = f'q{uuid.uuid4().hex[:8]}'
        self.tokens = 0
        self.finish_reason = ''
        self.notice = self.trouble = ''
        self.done = threading.Event()
        self.on_chunk = on_chunk
        self._deltas: list[str] = []

    @property
    def text(self) -> str:
        """The answer as far as it has come."""
        return ''.join(self._deltas).strip()

    def add(self, chunk: TextChunk) -> None:
        self._deltas.append(chunk.delta)
        self.tokens += bool(chunk.delta)
        self.on_chunk(chunk)
        if chunk.is_final:
            self.finish_reason = chunk.finish_reason
            self.done.set()


class AnswerBook:
    """All answers that have not ended; any thread may use it."""

    def __init__(self) -> None:
        self._answers: dict[str, Answer] = {}
        self._changed = threading.Condition()

    def begin(self, on_chunk: Callable[[TextChunk], None] = lambda _: None) -> Answer:
        """Make room for an answer, before its question is asked."""
        answer = Answer(on_chunk)
        with self._changed:
            self._answers[answer.question_id] = answer
        return answer

    def forget(self, answer: Answer) -> None:
        """Take back `begin`: the question was not taken."""
        with self._changed:
            self._answers.pop(answer.question_id, None)
            self._changed.notify_all()

    def add(self, chunk: TextChunk) -> None:
        """Add a chunk to its answer."""
        with self._changed:
            answer = self._answers.get(chunk.stream_id)
        if answer is not None:
            answer.add(chunk)
            if chunk.is_final:
                self.forget(answer)

    def explain(self, question_id: str, reason: str) -> None:
        """Note, in words, why an answer will not come."""
        with self._changed:
            if answer := self._answers.get(question_id):
                answer.trouble = reason

    @property
    def question_ids(self) -> list[str]:
        """The questions whose answers have not ended."""
        with self._changed:
            return list(self._answers)

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until all answers have ended; False after the time [s]."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._answers, timeout_s)

    def __len__(self) -> int:
        """How many answers have not ended."""
        return len(self._answers)


class Questions:
    """
    Passes questions to the engine, and answers back to whoever waits for them.

    :param engine: returns the running engine, or raises EngineError saying why there is none
    :param responder: sees to it that responses arrive
    :param prefix: what the names of service and action begin with
    :param waiters: lets in as many callers as may wait at once, of all cameras
    """

    def __init__(self, node: Node, engine: Callable[[], EngineClient], responder: Responder,
                 prefix: str = '~/', log: RcutilsLogger | None = None,
                 waiters: threading.BoundedSemaphore | None = None) -> None:
        self.answers = AnswerBook()
        self._node, self._engine, self._log = node, engine, log or node.get_logger()
        self._waiters = waiters or threading.BoundedSemaphore(MAX_WAITERS)
        self._asked_by: dict[bytes, Answer] = {}
        self._cancelled: set[bytes] = set()
        group = ReentrantCallbackGroup()
        responder.attend(node.create_service(
            Ask, f'{prefix}ask', self._serve, qos_profile=SERVICE_QOS, callback_group=group))
        self._action = ActionServer(
            node, AnswerQuestion, f'{prefix}answer_question', self._execute, callback_group=group,
            goal_callback=self._accept, cancel_callback=self._cancel,
            goal_service_qos_profile=SERVICE_QOS, result_service_qos_profile=SERVICE_QOS,
            cancel_service_qos_profile=SERVICE_QOS, feedback_pub_qos_profile=TEXT_QOS)

    def close(self) -> None:
        """Stop taking goals; called before the node is destroyed."""
        self._action.destroy()

    def end_all(self, engine: EngineClient, reason: str) -> None:
        """End all answers with a reason, in a moment, even if the engine hangs."""
        engine.cancel_all(reason)
        if not self.answers.wait_empty(CANCEL_S):
            engine.abandon(self.answers.question_ids, reason)
            self.answers.wait_empty(CANCEL_S)  # For their ends to be published.

    def _ask(self, question: str,
             on_chunk: Callable[[TextChunk], None] = lambda _: None) -> Answer:
        answer = self.answers.begin(on_chunk)
        try:
            engine = self._engine()
            if not engine.seen:
                answer.notice = unseen_notice(engine.question_timeout_s)
            engine.ask(question, answer.question_id)
        except (ValueError, EngineError):
            self.answers.forget(answer)
            raise
        if answer.notice:
            self._log.warning(f'question {answer.question_id}: {answer.notice}',
                              throttle_duration_sec=QUIET_S)
        return answer

    def _refuse(self, what: str, reason: object) -> None:
        self._log.warning(f'{what} refused: {reason}', throttle_duration_sec=QUIET_S)

    def _serve(self, request: Ask.Request, response: Ask.Response) -> Ask.Response:
        try:
            answer = self._ask(request.question)
        except (ValueError, EngineError) as error:
            response.reason = str(error)
            self._refuse('question', error)
            return response
        response.accepted, response.question_id = True, answer.question_id
        response.reason = answer.notice
        if request.wait:
            self._wait(answer, request, response)
        return response

    def _wait(self, answer: Answer, request: Ask.Request, response: Ask.Response) -> None:
        timeout_s = request.timeout.sec + request.timeout.nanosec / 1e9
        if timeout_s <= 0:
            timeout_s = self._node.get_parameter('ask_timeout').value
        if not self._waiters.acquire(blocking=False):
            response.reason = (f'{MAX_WAITERS} callers wait for answers already: '
                               'follow ~/answer instead')
            return
        try:
            ended = answer.done.wait(timeout_s)
        finally:
            self._waiters.release()
        response.answer = answer.text
        response.complete = answer.finish_reason == TextChunk.FINISH_STOP
        response.reason = ''
        if not ended:
            response.reason = (f'the answer was not complete after {timeout_s:g} s: '
                               'it goes on at ~/answer')
        elif not response.complete:
            response.reason = answer.trouble or ENDS.get(
                answer.finish_reason, f'the answer ended with: {answer.finish_reason}')

    def _accept(self, goal: AnswerQuestion.Goal) -> GoalResponse:
        try:
            check_question(goal.question)
            self._engine()
        except (ValueError, EngineError) as error:
            self._refuse('goal', error)
            return GoalResponse.REJECT
        if not self._waiters.acquire(blocking=False):
            self._refuse('goal', f'{MAX_WAITERS} callers wait for answers already')
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _execute(self, goal_handle) -> AnswerQuestion.Result:
        try:
            return self._answer_goal(goal_handle)
        finally:
            goal = bytes(goal_handle.goal_id.uuid)
            self._asked_by.pop(goal, None)
            self._cancelled.discard(goal)
            self._waiters.release()

    def _answer_goal(self, goal_handle) -> AnswerQuestion.Result:
        began_ns = time.monotonic_ns()
        result = AnswerQuestion.Result()
        try:
            answer = self._ask(goal_handle.request.question, lambda chunk: (
                goal_handle.publish_feedback(AnswerQuestion.Feedback(chunk=chunk))))
        except (ValueError, EngineError) as error:
            self._refuse('goal', error)
            result.finish_reason = TextChunk.FINISH_ERROR
            goal_handle.abort()
            return result
        goal = bytes(goal_handle.goal_id.uuid)
        self._asked_by[goal] = answer
        # Each side notes first and looks then, so that one of them sees the other. rclpy's own
        # note (is_cancel_requested) comes too late for that: after our callback.
        if goal in self._cancelled:
            self._take_back(answer)
        if not answer.done.wait(self._node.get_parameter('ask_timeout').value):
            self._end_late(answer)
        result.question_id, result.answer = answer.question_id, answer.text
        result.finish_reason, result.tokens = answer.finish_reason, answer.tokens
        seconds, nanoseconds = divmod(time.monotonic_ns() - began_ns, 1_000_000_000)
        result.latency = Duration(sec=seconds, nanosec=nanoseconds)
        self._conclude(goal_handle, answer.finish_reason)
        return result

    def _conclude(self, goal_handle, finish_reason: str) -> None:
        if finish_reason in (TextChunk.FINISH_STOP, TextChunk.FINISH_LENGTH):
            goal_handle.succeed()
            return
        if finish_reason == TextChunk.FINISH_CANCELLED:
            # The engine may be faster than rclpy, which notes the request after our callback.
            limit = time.monotonic() + CANCEL_S
            while not goal_handle.is_cancel_requested and time.monotonic() < limit:
                time.sleep(0.001)
        if goal_handle.is_cancel_requested:
            goal_handle.canceled()
        else:
            goal_handle.abort()

    def _cancel(self, goal_handle) -> CancelResponse:
        goal = bytes(goal_handle.goal_id.uuid)
        self._cancelled.add(goal)
        answer = self._asked_by.get(goal)
        if answer is None or self._take_back(answer):
            return CancelResponse.ACCEPT
        return CancelResponse.REJECT

    def _take_back(self, answer: Answer) -> bool:
        """Cancel a question; False where there is no engine, and its end is on its way."""
        try:
            self._engine().cancel(answer.question_id)
        except EngineError:
            return False
        return True

    def _end_late(self, answer: Answer) -> None:
        """End the answer of a goal whose time is over, and wait for its end."""
        try:
            engine = self._engine()
            engine.cancel(answer.question_id, TextChunk.FINISH_TIMEOUT)
            if not answer.done.wait(CANCEL_S):
                engine.abandon([answer.question_id], TextChunk.FINISH_TIMEOUT)
        except EngineError:
            pass  # There is no engine any more: its end is on its way.
        answer.done.wait()
