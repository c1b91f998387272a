"""The engine in its process: starting, talking, dying, restarting, ending."""

from collections.abc import Iterator
import os
import signal
import subprocess
import sys
import threading

from engine_harness import START_S, Listener, frame, listening
from fake_session import SESSION
import numpy as np
import pytest
from waiting import PATIENCE_S, wait_until

from sww_ros.demo.processes import is_gone
from sww_ros.engine import client as client_module
from sww_ros.engine.client import EngineError
from sww_ros.frames import CameraFrame
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import FramesDropped, QuestionState, Restarted, StepPerceived


@pytest.fixture
def listener(request: pytest.FixtureRequest) -> Iterator[Listener]:
    model, options = getattr(request, 'param', ('fake', {}))
    with listening(model, **options) as listener:
        yield listener


def test_frames_go_in_and_events_come_out(listener: Listener):
    client = listener.client
    assert client.info['frame_rate'] == 10.0
    # Lines and events come by different ways.
    listener.wait(lambda: listener.lines)
    assert listener.lines == ['loading fake']
    for last in (2, 4):
        client.feed(frame(last - 1))
        client.feed(frame(last))
        listener.wait(lambda last=last: len(listener.text('narration')) == 3 * last / 2)
    steps = listener.of(StepPerceived)
    assert [(step.index, step.stamp_ns) for step in steps] == [(0, 2), (1, 4)]
    assert all(step.received_ns <= step.fed_ns <= step.perceived_ns for step in steps)
    assert ''.join(delta.delta for delta in listener.text('narration')) == 'step 0. step 1. '

    question = client.ask(' what is it? ')
    assert listener.wait_final(question).finish_reason == 'stop'
    assert [delta.seq for delta in listener.text(question)] == [0, 1, 2, 3]

    question = client.ask('long')
    listener.wait(lambda: listener.text(question))
    assert client.cancel(question)
    assert listener.wait_final(question).finish_reason == 'cancelled'
    assert not client.cancel(question)

    question = client.ask('reject')
    assert listener.wait_final(question).finish_reason == 'error'
    assert [state.reason for state in listener.of(QuestionState) if state.reason] == ['no room']

    client.pause(True)
    client.feed(frame())
    listener.wait(lambda: FramesDropped('paused', 1) in listener.events)


def test_bad_questions_prompts_and_frames_are_refused_in_words(listener: Listener):
    client = listener.client
    for question, words in (('  ', 'empty'), ('x' * 100_000, 'at most 2000')):
        with pytest.raises(ValueError, match=words):
            client.ask(question)
    with pytest.raises(ValueError, match='empty'):
        client.set_prompt(' ')

    def bad():
        raise ValueError('the encoding yuv9 is not known')

    client.feed(CameraFrame(bad, 0, 0))
    listener.wait(lambda: FramesDropped('bad', 1) in listener.events)
    assert [event.message for event in listener.events if event.type == 'trouble'] == [
        'the encoding yuv9 is not known']


def test_a_prompt_that_is_kept_already_does_not_begin_the_stream_anew(listener: Listener):
    client = listener.client
    for prompt in ('', '  ', 'Describe.', ''):  # The checkpoint's own says the same as ''.
        client.keep_prompt(prompt)
    client.reset()
    listener.wait(lambda: listener.of(Restarted))
    client.keep_prompt('Look.')
    client.keep_prompt(' Look. ')
    client.set_prompt('Look.')  # Asked for: as a reset.
    client.keep_prompt('')
    client.reset()
    listener.wait(lambda: len(listener.of(Restarted)) >= 5)
    assert [event.reason for event in listener.of(Restarted)] == [
        'reset', 'prompt', 'prompt', 'prompt', 'reset']


@pytest.mark.parametrize(
    'listener', [('fake', {'config': SessionConfig(max_answers=1, max_queued=1)})], indirect=True)
def test_a_full_house_is_told_at_once(listener: Listener):
    first = listener.client.ask('long')
    listener.client.ask('long')
    with pytest.raises(EngineError, match='ask again later'):
        listener.client.ask('long')
    listener.client.cancel(first)
    listener.wait_final(first)
    listener.client.ask('room again?')


def test_a_slow_converter_costs_frames_and_no_time(listener: Listener):
    all_fed, converted = threading.Event(), []

    def slow():
        assert all_fed.wait(PATIENCE_S)
        converted.append(np.zeros((48, 64, 3), np.uint8))
        return converted[-1]

    for _ in range(10):
        listener.client.feed(CameraFrame(slow, 0, 0))
    assert not converted, 'no conversion is waited for'
    all_fed.set()
    listener.wait(lambda: sum(e.count for e in listener.of(FramesDropped)
                              if e.reason == 'overrun') >= 7)


def test_a_dead_engine_is_reported_and_restarted(
        listener: Listener, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_module, 'BACKOFF_S', (0.05,))
    client = listener.client
    question, first_pid = client.ask('long'), client.pid
    listener.wait(lambda: listener.text(question))
    client.ask('die')
    final = listener.wait_final(question)
    assert final.finish_reason == 'error'
    assert final.seq == len(listener.text(question)) - 1
    listener.wait(lambda: len(listener.ready) == 2)
    assert 'killed by SIGKILL' in listener.lost[0]
    assert 'dying as told' in listener.lost[0]
    assert client.pid != first_pid
    assert client.restarts == 1
    assert listener.wait_final(client.ask('back again')).finish_reason == 'stop'


@pytest.mark.parametrize('listener', [('fake', {'restart': False})], indirect=True)
def test_without_restart_a_dead_engine_refuses_in_words(listener: Listener):
    os.kill(listener.client.pid, signal.SIGKILL)
    listener.wait(lambda: listener.lost)
    with pytest.raises(EngineError, match='not running'):
        listener.client.ask('anyone?')
    listener.client.feed(frame())
    listener.wait(lambda: FramesDropped('engine', 1) in listener.events)


def test_sigint_leaves_the_engine_to_its_parent(listener: Listener):
    os.kill(listener.client.pid, signal.SIGINT)
    assert listener.wait_final(listener.client.ask('still there?')).finish_reason == 'stop'


def test_the_words_of_a_bad_checkpoint_come_through():
    listener = Listener('bad')
    with pytest.raises(EngineError, match='^the checkpoint bad has no config.json$'):
        listener.client.start(START_S)
    assert listener.client.pid == 0


def test_loading_has_a_deadline_and_can_be_broken_off():
    with pytest.raises(EngineError, match='was not loaded within'):
        Listener('until /never').client.start(0.3)
    client = Listener('until /never').client
    closer = threading.Timer(0.5, client.close)
    closer.start()
    with pytest.raises(EngineError, match='closed'):
        client.start(START_S)
    closer.join()


def test_close_ends_a_stuck_engine():
    listener = Listener('stuck')
    listener.client.start(START_S)
    pid = listener.client.pid
    listener.client.close()
    listener.client.close()
    assert is_gone(pid)


def test_the_engine_ends_when_its_parent_is_killed():
    code = (
        'from sww_ros.engine.client import EngineClient\n'
        'from sww_ros.streaming.config import SessionConfig\n'
        'import time\n'
        f'client = EngineClient("fake", SessionConfig(), session={SESSION!r},\n'
        '                      on_event=lambda event: None)\n'
        'client.start(60.0)\n'
        'print(client.pid, flush=True)\n'
        'time.sleep(60)\n')
    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE,
                          text=True) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: is_gone(pid))
