"""What a user does while the narrator is busy with something else is not lost."""

from collections.abc import Callable
from pathlib import Path
import signal
import sys
import threading
from unittest.mock import MagicMock

from fake_session import SESSION
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from narrator_harness import NarratorProcess, probing
import pytest
from rclpy.action import CancelResponse, GoalResponse
from unique_identifier_msgs.msg import UUID
from waiting import PATIENCE_S, wait_until

from sww_interfaces.action import AnswerQuestion
from sww_interfaces.msg import TextChunk
from sww_ros.engine.client import EngineError
from sww_ros.nodes import questions as questions_module
from sww_ros.nodes.questions import Questions

CONFIGURES_LATE = f"""
import threading
from sww_ros.nodes import narrator

released = threading.Event()
read, release = narrator.read, narrator.Narrator.release

def read_late(*arguments):
    print('configuring', flush=True)
    released.wait(30.0)
    return read(*arguments)

def tell(node):
    release(node)
    released.set()

narrator.read, narrator.Narrator.release = read_late, tell
narrator.main(session={SESSION!r})
"""


def test_ctrl_c_before_the_engine_is_made_loads_no_model(ros_domain: int, tmp_path: Path):
    with NarratorProcess(tmp_path / 'log.txt', 'model:=until /never',
                         command=[sys.executable, '-c', CONFIGURES_LATE]) as narrator:
        narrator.wait_log('configuring')
        assert narrator.stop(signal.SIGINT) == 0
        assert 'the node ends' in narrator.log
        assert 'loading the model' not in narrator.log


def test_a_prompt_set_while_the_model_loads_is_kept(ros_domain: int, tmp_path: Path):
    go = tmp_path / 'go'
    with NarratorProcess(tmp_path / 'log.txt', f'model:=until {go}', 'prompt:=say nothing',
                         'autostart:=false') as narrator, probing() as probe:
        future = probe.begin_call(ChangeState, 'change_state',
                                  transition=Transition(id=Transition.TRANSITION_CONFIGURE))
        narrator.wait_log('loading the model')
        assert probe.state() == State.TRANSITION_STATE_CONFIGURING
        assert not probe.set_parameter('prompt', 'count the squares')
        assert not future.done()
        go.touch()
        assert probe.result(future).success
        assert probe.change(Transition.TRANSITION_ACTIVATE)
        assert probe.ask('prompt', wait=True).answer == 'count the squares'
        assert not probe.set_parameter('prompt', '')
        wait_until(lambda: probe.ask('prompt', wait=True).answer == 'Describe.')


class Goal:
    """A goal handle, as rclpy hands it to the server's callbacks."""

    request = AnswerQuestion.Goal(question='long')
    goal_id = UUID(uuid=[7] * 16)
    is_cancel_requested = False
    ended = ''

    def succeed(self) -> None:
        self.ended = 'succeeded'

    def canceled(self) -> None:
        self.ended = 'cancelled'

    def abort(self) -> None:
        self.ended = 'aborted'

    def publish_feedback(self, feedback: AnswerQuestion.Feedback) -> None:
        pass


@pytest.mark.parametrize('dies', [False, True])
def test_a_cancel_that_meets_the_start_of_its_goal_ends_it(
        monkeypatch: pytest.MonkeyPatch, dies: bool):
    served: dict[str, Callable] = {}
    monkeypatch.setattr(questions_module, 'ActionServer', lambda node, kind, name, execute, **by: (
        served.update(by, execute=execute)))
    goal, responses = Goal(), []

    class Engine:
        question_id, seen = '', True

        def ask(self, question: str, question_id: str) -> None:
            self.question_id = question_id
            # The question is asked, and not known yet to be this goal's.
            responses.append(served['cancel_callback'](goal))

        def cancel(self, question_id: str) -> None:
            goal.is_cancel_requested = True  # As rclpy does, but only after the callback.
            end(question_id, TextChunk.FINISH_CANCELLED)

    def end(question_id: str, reason: str) -> None:
        questions.answers.add(TextChunk(stream_id=question_id, is_final=True,
                                        finish_reason=reason))

    def running() -> Engine:
        if dies and engine.question_id:
            end(engine.question_id, TextChunk.FINISH_ERROR)
            raise EngineError('the narrator is deactivating')
        return engine

    engine, questions = Engine(), Questions(MagicMock(), running, MagicMock())
    assert served['goal_callback'](goal.request) == GoalResponse.ACCEPT
    serving = threading.Thread(target=served['execute'], args=[goal], daemon=True)
    serving.start()
    serving.join(PATIENCE_S)
    assert responses == [CancelResponse.ACCEPT]
    assert goal.ended == ('aborted' if dies else 'cancelled')
