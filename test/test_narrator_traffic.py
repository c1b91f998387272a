"""Many who ask at once, goals without end, questions to the blind: each is answered, in words."""

from collections import Counter
from collections.abc import Iterator
import os
import signal

from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Duration
from fake_session import LONG_ANSWER_TOKENS
from lifecycle_msgs.msg import Transition
from narrator_harness import NarratorProcess, Probe, picture, probing
import pytest
from rclpy.action import ActionClient
from rclpy.qos import QoSProfile
from std_srvs.srv import SetBool, Trigger
from waiting import PATIENCE_S, wait_until

from sww_interfaces.action import AnswerQuestion
from sww_interfaces.msg import TextChunk
from sww_interfaces.srv import Ask

UNSEEN = 'nothing has been seen yet'
DEEP = QoSProfile(depth=1000)
"""A client of ROS' own depth keeps ten responses, others' included, and loses those before."""


@pytest.fixture
def narrator(ros_domain: int, tmp_path) -> Iterator[NarratorProcess]:
    with NarratorProcess(tmp_path / 'log.txt', 'model:=fake') as narrator:
        narrator.wait_log('watching /image')
        yield narrator


@pytest.fixture
def probe(narrator: NarratorProcess) -> Iterator[Probe]:
    with probing() as probe:
        probe.wait_active()
        yield probe
        assert 'Traceback' not in narrator.log, narrator.log


@pytest.mark.parametrize('calls', [30, 300])
def test_every_one_of_many_who_ask_at_once_gets_a_response(probe: Probe, calls: int):
    clients = [probe.node.create_client(Ask, '/narrator/ask', qos_profile=DEEP)
               for _ in range(30)]
    assert all(client.wait_for_service(PATIENCE_S) for client in clients)
    probe.meet()
    request = Ask.Request(question='what is it', wait=True)
    futures = [clients[i % len(clients)].call_async(request) for i in range(calls)]
    responses = [probe.result(future) for future in futures]
    assert all(response.accepted or response.reason for response in responses)
    answered = [response for response in responses if response.complete]
    assert {response.answer for response in answered} == {'what is it'}
    assert len(answered) >= 12, Counter(response.reason for response in responses)


@pytest.mark.parametrize('goals', [30, 300])
def test_every_one_of_many_goals_at_once_is_rejected_or_comes_to_its_end(
        narrator: NarratorProcess, probe: Probe, goals: int):
    client = ActionClient(probe.node, AnswerQuestion, '/narrator/answer_question',
                          goal_service_qos_profile=DEEP, result_service_qos_profile=DEEP)
    assert client.wait_for_server(PATIENCE_S)
    probe.meet()
    goal = AnswerQuestion.Goal(question='what is it')
    futures = probe.run(lambda: [client.send_goal_async(goal) for _ in range(goals)])
    handles = [handle for future in futures if (handle := probe.result(future)).accepted]
    assert handles
    ends = probe.run(lambda: [handle.get_result_async() for handle in handles])
    results = [probe.result(future) for future in ends]
    succeeded = [r for r in results if r.status == GoalStatus.STATUS_SUCCEEDED]
    assert len(succeeded) >= 12
    assert {r.result.answer for r in succeeded} == {'what is it'}
    assert {r.result.finish_reason for r in results if r not in succeeded} <= {'error'}


def test_a_goal_has_a_time_limit(probe: Probe):
    for seconds in (0.5, 5.0, 50.0):  # Until the machine is fast enough for a first token.
        assert not probe.set_parameter('ask_timeout', seconds)
        handle = probe.result(probe.goals.send_goal_async(AnswerQuestion.Goal(question='long')))
        response = probe.result(handle.get_result_async())
        assert response.status == GoalStatus.STATUS_ABORTED
        result = response.result
        assert result.finish_reason == TextChunk.FINISH_TIMEOUT
        assert result.answer.split() == ['on'] * result.tokens
        if result.tokens:
            break
    assert 0 < result.tokens < LONG_ANSWER_TOKENS
    assert probe.wait_answer(result.question_id)[-1].finish_reason == TextChunk.FINISH_TIMEOUT


def test_a_goal_whose_engine_hangs_has_a_time_limit_too(narrator: NarratorProcess, probe: Probe):
    assert not probe.set_parameter('ask_timeout', 0.5)
    engine, = narrator.children()
    os.kill(engine, signal.SIGSTOP)
    try:
        handle = probe.result(probe.goals.send_goal_async(AnswerQuestion.Goal(question='what?')))
        response = probe.result(handle.get_result_async())
        assert response.status == GoalStatus.STATUS_ABORTED
        assert response.result.finish_reason == TextChunk.FINISH_TIMEOUT
    finally:
        os.kill(engine, signal.SIGCONT)


def test_refusals_are_logged_seldom(narrator: NarratorProcess, probe: Probe):
    for _ in range(30):
        assert 'empty' in probe.ask('').reason
        refused = probe.result(probe.goals.send_goal_async(AnswerQuestion.Goal(question='')))
        assert not refused.accepted
    # Of 60 one in five seconds.
    assert 1 <= narrator.log.count('refused: the question is empty') <= 20, narrator.log


def test_deactivation_is_told_as_such_to_all_who_wait(narrator: NarratorProcess, probe: Probe):
    waiting = probe.begin_call(Ask, 'ask', question='long', wait=True)
    handle = probe.result(probe.goals.send_goal_async(AnswerQuestion.Goal(question='long')))
    result = handle.get_result_async()
    asked = probe.ask('long').question_id
    wait_until(lambda: len({chunk.stream_id for chunk in list(probe.answers)}) == 3)
    assert probe.change(Transition.TRANSITION_DEACTIVATE)
    response = probe.result(waiting)
    assert not response.complete and 'deactivated' in response.reason
    assert probe.wait_answer(asked)[-1].finish_reason == TextChunk.FINISH_DEACTIVATED
    ended = probe.result(result)
    assert ended.status == GoalStatus.STATUS_ABORTED
    assert ended.result.finish_reason == TextChunk.FINISH_DEACTIVATED


def test_deactivation_ends_the_answers_of_an_engine_that_hangs(
        narrator: NarratorProcess, probe: Probe):
    engine, = narrator.children()
    os.kill(engine, signal.SIGSTOP)
    try:
        waiting = probe.begin_call(Ask, 'ask', question='what?', wait=True)
        narrator.wait_log(UNSEEN)
        assert probe.change(Transition.TRANSITION_DEACTIVATE)
        assert 'deactivated' in probe.result(waiting).reason
    finally:
        os.kill(engine, signal.SIGCONT)


def test_a_question_about_nothing_seen_is_told_so_at_once(
        narrator: NarratorProcess, probe: Probe):
    response = probe.ask('what?')
    assert response.accepted and UNSEEN in response.reason and '10 s' in response.reason
    narrator.wait_log(UNSEEN)
    # Who waits for the answer, and gets the whole of it, needs no excuse.
    assert probe.ask('what?', wait=True).reason == ''
    probe.film(picture, lambda: probe.captions)
    assert probe.ask('what?').reason == ''
    assert probe.call(SetBool, 'pause', data=True).success
    assert probe.call(Trigger, 'reset').success
    assert UNSEEN in probe.ask('what?').reason


def test_a_question_that_sees_nothing_ends_in_words(probe: Probe):
    response = probe.ask('unseen', wait=True)
    assert response.accepted and not response.complete
    assert 'nothing was seen' in response.reason
    handle = probe.result(probe.goals.send_goal_async(AnswerQuestion.Goal(question='unseen')))
    ended = probe.result(handle.get_result_async())
    assert ended.status == GoalStatus.STATUS_ABORTED
    assert ended.result.finish_reason == TextChunk.FINISH_NO_VIDEO


def test_a_wait_of_its_own_length_is_told_in_words(probe: Probe):
    response = probe.ask('long', wait=True, timeout=Duration(nanosec=200_000_000))
    assert response.accepted and 'not complete after 0.2 s' in response.reason
