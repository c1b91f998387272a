"""An engine that hangs: what is a hang and what is not, and what becomes of what was open."""

from __future__ import annotations

import os
import signal
import threading

from engine_harness import frame, listening
import hanging_session
import numpy as np
import pytest
from supervision_kit import DELTA, SECOND, STEP, Play
from supervision_kit import frame as a_frame
from waiting import PATIENCE_S, wait_until

from sww_ros.demo.processes import children, is_gone
from sww_ros.engine import client as client_module
from sww_ros.engine.supervision import Limits
from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.frames import CameraFrame
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import NARRATION, FramesDropped, StepPerceived
from sww_ros.streaming.session import Session

LIMITS = Limits(load=600.0, silence=10.0, work=20.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, 'BACKOFF_S', (0.05,))


@pytest.fixture
def play() -> Play:
    play = Play(limits=LIMITS)
    play.run()
    return play


# In virtual time.

def test_an_engine_without_a_sign_of_life_is_killed_once_and_all_it_held_ends(play: Play):
    play.machine.ask('what?', 'q')
    play.machine.feed(a_frame())
    play.sent()
    play.say(DELTA)
    assert play.wait(9.9) is None
    assert play.wait(0.2) is None, 'this process may have been stopped itself'
    assert play.machine.doing == 'no sign of life for 10 s'
    assert play.wait(0.9) is None
    assert play.wait(0.2) == play.engines
    assert play.wait(99.0) is None, 'once is enough'
    play.die('killed by SIGKILL')
    play.listen()
    lost, = [what for how, what in play.told if how == 'lost']
    assert lost.splitlines() == [
        'the engine hung and was killed: it gave no sign of life for 10 s', 'killed by SIGKILL']
    assert play.ends() == [('q', 'error'), (NARRATION, 'error')]
    assert play.dropped() == {'engine': 1}
    assert play.machine.doing == 'starts again in 1 s'
    play.run(1.0)
    assert play.machine.lives == 2
    assert play.wait(9.0) is None, 'the new one has its own time'
    play.die('by itself')
    play.listen()
    assert play.told[-1] == ('lost', 'by itself')


def test_an_engine_that_was_stopped_for_less_than_the_limit_goes_on(play: Play):
    assert play.wait(9.9) is None
    play.beat()
    assert play.wait(9.9) is None
    play.say(STEP)
    assert play.wait(9.9) is None, 'events are signs of life too'


def test_signs_of_life_that_wait_to_be_read_are_read_first(play: Play):
    """As after this process was stopped, or its computer slept."""
    assert play.wait(30.0) is None
    play.beat()
    assert play.wait(1.0) is None
    assert play.wait(8.0) is None
    assert play.wait(2.0) is None
    assert play.wait(1.0) == play.engines, 'and then it does hang'


def test_a_job_that_never_returns_is_a_hang_though_the_process_is_alive(play: Play):
    began_ns = play.machine.now_ns
    for _ in range(20):
        play.beat('perceive', began_ns)
        assert play.wait(1.0) is None
    assert play.machine.doing == 'the job perceive for 20 s'
    play.beat('perceive', began_ns)
    assert play.wait(1.0) == play.engines
    play.die()
    play.listen()
    assert play.told[-2 if play.told[-1][0] == 'event' else -1][1].startswith(
        'the engine hung and was killed: the job perceive took longer than 20 s')


def test_a_job_that_returns_late_is_no_hang(play: Play):
    play.beat('perceive', play.machine.now_ns)
    for _ in range(19):
        play.beat('perceive', play.machine.now_ns - 19 * SECOND)
        assert play.wait(0.5) is None
    play.beat('decode', play.machine.now_ns)
    assert play.wait(2.0) is None


def test_a_job_may_take_ten_times_what_a_step_took_at_load():
    play = Play(limits=LIMITS)
    play.launch()
    play.machine.became_ready({'default_prompt': '', 'step_seconds': 5.0})
    began_ns = play.machine.now_ns
    for _ in range(49):
        play.beat('perceive', began_ns)
        assert play.wait(1.0) is None
    play.beat('perceive', began_ns)
    play.wait(1.0)
    play.beat('perceive', began_ns)
    assert play.wait(1.0) == play.engines


def test_loading_is_no_hang_until_its_own_limit_and_says_how_long_it_takes():
    play = Play(limits=LIMITS)
    play.launch()
    assert play.wait(599.0) is None
    assert play.machine.doing == 'loading the model for 599 s'
    play.wait(1.0)
    assert play.wait(1.0) == play.engines
    play.die()
    assert 'the model was not loaded within 600 s' in play.machine.failure


def test_without_limits_nothing_is_a_hang():
    play = Play()
    play.run()
    play.beat('perceive', 0)
    assert play.wait(1e6) is None and play.machine.wait_s is None
    assert play.wait(1e6) is None


def test_whoever_waits_is_woken_when_an_engine_begins_to_hang_and_when_that_is_sure(play: Play):
    assert play.machine.wait_s == 10.0
    play.beat('perceive', play.machine.now_ns - 15 * SECOND)
    assert play.machine.wait_s == 5.0
    assert play.wait(5.0) is None
    assert play.machine.wait_s == 1.0
    assert play.wait(1.0) == play.engines
    assert play.machine.wait_s is None


def test_an_engine_that_is_ending_or_closed_is_left_to_whoever_ends_it(play: Play):
    play.machine.lost()
    assert play.wait(99.0) is None and play.wait(99.0) is None
    play.machine.ended('it died')
    play.run(99.0)
    play.machine.close()
    assert play.wait(99.0) is None and play.wait(99.0) is None and play.machine.doing == ''


# With processes.

LIMIT_S = 4.0
"""A busy machine may keep an engine from a sign of life, or its work, for a second or two."""

def test_an_engine_stopped_for_ever_is_killed_and_another_takes_its_place():
    with listening(limits=Limits(silence=LIMIT_S)) as listener:
        client, pid = listener.client, listener.client.pid
        listener.wait(lambda: client.restarts == 0)
        long = client.ask('long')
        os.kill(pid, signal.SIGSTOP)
        for stamp in range(40):  # More than a socket holds: the sender waits, and nobody else.
            client.feed(CameraFrame(lambda: np.zeros((480, 640, 3), np.uint8), stamp, 0))
        assert listener.wait_final(long).finish_reason == 'error'
        listener.wait(lambda: len(listener.ready) == 2)
        assert listener.lost[0].startswith(
            f'the engine hung and was killed: it gave no sign of life for {LIMIT_S:g} s')
        assert is_gone(pid)
        for stamp in range(2):
            client.feed(frame(stamp))
        listener.wait(lambda: listener.of(StepPerceived))
        assert listener.wait_final(client.ask('again?')).finish_reason == 'stop'


def test_a_perceiving_process_that_hangs_ends_with_its_engine():
    config = SessionConfig(overlap='processes')
    with listening(limits=Limits(work=LIMIT_S), config=config,
                   session=hanging_session.SESSION) as listener:
        client, pid = listener.client, listener.client.pid
        perceiver, = children(pid)
        for life in (1, 2):
            for stamp in range(2):
                client.feed(frame(stamp))
            listener.wait(lambda life=life: len(listener.of(StepPerceived)) == life)
            if life == 1:
                os.kill(perceiver, signal.SIGSTOP)
                for stamp in range(2, 4):
                    client.feed(frame(stamp))
                listener.wait(lambda: len(listener.ready) == 2)
        assert f'the job perceive took longer than {LIMIT_S:g} s' in listener.lost[0]
        assert FramesDropped('engine', 2) in listener.events
        wait_until(lambda: is_gone(perceiver) and is_gone(pid))


def test_a_stopped_perceiving_process_does_not_outlive_its_killed_engine():
    config = SessionConfig(overlap='processes')
    with listening(config=config, session=hanging_session.SESSION) as listener:
        pid = listener.client.pid
        perceiver, = children(pid)
        os.kill(perceiver, signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: is_gone(perceiver))


@pytest.mark.parametrize('overlap', ['serial', 'threads', 'fused'])
def test_a_session_says_which_job_is_in_progress_and_since_when(
        overlap: str, monkeypatch: pytest.MonkeyPatch):
    checkpoint = random_checkpoint(SMALL, 11, silence_token='<|silence|>', max_steps=200)[1]
    embed, entered, go_on = checkpoint.perception.embed, threading.Event(), threading.Event()

    def hangs(*arguments: object) -> object:
        entered.set()
        assert go_on.wait(PATIENCE_S)
        return embed(*arguments)

    monkeypatch.setattr(checkpoint.perception, 'embed', hangs)
    with Session(checkpoint, SessionConfig(overlap=overlap)) as session:
        for _ in range(2):
            session.feed(np.zeros((84, 84, 3), np.uint8))
        assert entered.wait(PATIENCE_S)
        what, since_ns = session.work
        assert 'perceive' in what
        assert session.work == (what, since_ns), 'it is the same piece of work'
        go_on.set()
        assert session.wait_idle(PATIENCE_S)
        wait_until(lambda: session.work is None)
