"""What goes wrong around the engine: nothing of it may silence the client."""

from collections.abc import Callable, Iterator
from contextlib import suppress
import os
import signal
import socket
import subprocess
import threading

from engine_harness import START_S, Listener, frame, listening
from fake_session import SESSION
from narrator_harness import is_gone
import numpy as np
import pytest
from waiting import PATIENCE_S, wait_until

from sww_ros import wire
from sww_ros.engine import client as client_module
from sww_ros.engine.client import EngineClient, EngineError
from sww_ros.engine.supervision import OpenAnswers
from sww_ros.frames import CameraFrame
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import Event, FramesDropped, StepPerceived, Trouble
from sww_ros.wire import Channel


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, 'BACKOFF_S', (0.05,))


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as listener:
        yield listener


def no_memory() -> np.ndarray:
    raise MemoryError('Unable to allocate 9 GiB')


@pytest.mark.parametrize('load, words', [
    (lambda: np.zeros((48, 64, 3), np.uint8), 'too large'), (no_memory, 'Unable to allocate')])
def test_a_frame_that_cannot_be_sent_is_told_and_the_next_thing_is_sent(
        listener: Listener, monkeypatch: pytest.MonkeyPatch, load, words: str):
    monkeypatch.setattr(wire, 'MAX_PAYLOAD_BYTES', 1000)
    listener.client.feed(CameraFrame(load, 1, 0))
    listener.wait(lambda: listener.of(Trouble))
    assert words in listener.of(Trouble)[0].message
    assert FramesDropped('bad', 1) in listener.events
    assert listener.wait_final(listener.client.ask('are you there?')).finish_reason == 'stop'


def test_feeding_waits_for_no_listener():
    released, held = threading.Event(), threading.Event()

    def hold(event: Event) -> None:
        held.set()
        released.wait(PATIENCE_S)

    client = EngineClient('fake', SessionConfig(), session=SESSION, on_event=hold)
    client.start(START_S)
    feeder = threading.Thread(target=lambda: [client.feed(frame(stamp)) for stamp in range(100)])
    try:
        client.ask('what?')
        assert held.wait(PATIENCE_S)
        feeder.start()
        feeder.join(PATIENCE_S / 2)
        assert not feeder.is_alive(), 'the thread of the camera waits'
    finally:
        released.set()
        client.close()


def test_all_that_is_told_is_told_on_one_thread(monkeypatch: pytest.MonkeyPatch):
    threads, into = set(), Listener._into

    def noted(self: Listener, bucket: list):
        def note(item: object) -> None:
            if bucket is not self.lines:
                threads.add(threading.get_ident())
            into(self, bucket)(item)
        return note

    monkeypatch.setattr(Listener, '_into', noted)
    with listening() as listener:
        for stamp in range(10):
            listener.client.feed(frame(stamp))
        listener.client.abandon([listener.client.ask('long')], 'timeout')
        os.kill(listener.client.pid, signal.SIGKILL)
        listener.wait(lambda: len(listener.ready) == 2)
        question = listener.client.ask('long')
    assert listener.text(question)[-1].finish_reason == 'error', 'it is told before the close ends'
    assert len(threads) == 1 and threading.get_ident() not in threads


def no_process(*_: object, **__: object) -> None:
    raise OSError(12, 'Cannot allocate memory')


def test_a_restart_that_fails_for_want_of_memory_is_told_and_tried_again(
        listener: Listener, monkeypatch: pytest.MonkeyPatch):
    client = listener.client
    tries = iter([no_process])
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, 'Popen', lambda *args, **options: (
        next(tries, popen)(*args, **options)))
    os.kill(client.pid, signal.SIGKILL)
    listener.wait(lambda: len(listener.ready) == 2)
    assert 'killed by SIGKILL' in listener.lost[0]
    assert 'could not be restarted' in listener.lost[1]
    assert 'Cannot allocate memory' in listener.lost[1]
    assert listener.wait_final(client.ask('back again')).finish_reason == 'stop'


def test_a_start_that_fails_for_want_of_memory_is_refused_in_words(
        monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subprocess, 'Popen', no_process)
    ends, socketpair = [], socket.socketpair
    monkeypatch.setattr(socket, 'socketpair', lambda: ends.extend(socketpair()) or ends)
    with pytest.raises(EngineError, match='could not be started: .*Cannot allocate memory'):
        Listener('fake').client.start(START_S)
    assert [end.fileno() for end in ends] == [-1, -1]


def test_a_listener_that_fails_costs_what_it_was_told_and_nothing_else(
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    take, failed = Listener._into, set()

    def clumsy(self: Listener, bucket: list):
        def fail_once(item: object) -> None:
            if id(bucket) not in failed:
                failed.add(id(bucket))
                raise RuntimeError('a slip of the listener')
            take(self, bucket)(item)
        return fail_once

    monkeypatch.setattr(Listener, '_into', clumsy)
    with listening() as listener:
        assert listener.wait_final(listener.client.ask('are you there?')).finish_reason == 'stop'
        for life in range(2):  # That the engine was lost, and is back, is told in vain once.
            os.kill(listener.client.pid, signal.SIGKILL)
            listener.wait(lambda life=life: len(listener.ready) == life + 1)
        assert 'killed by SIGKILL' in listener.lost[0]
        listener.wait(lambda: listener.lines)
    assert len(failed) == caplog.text.count('a slip of the listener\n') == 4


def test_a_question_taken_while_the_engine_dies_ends(
        listener: Listener, monkeypatch: pytest.MonkeyPatch):
    def preempted() -> None:
        os.kill(listener.client.pid, signal.SIGKILL)
        with suppress(AssertionError):  # Only if the death is dealt with in between.
            listener.wait(lambda: listener.lost, 1.5)

    admit_late(monkeypatch, preempted)
    assert listener.wait_final(listener.client.ask('what?')).finish_reason == 'error'
    listener.wait(lambda: len(listener.ready) == 2)
    assert listener.wait_final(listener.client.ask('and now?')).finish_reason == 'stop'


def test_a_question_taken_while_the_engine_is_closed_ends(
        listener: Listener, monkeypatch: pytest.MonkeyPatch):
    closer = threading.Thread(target=listener.client.close)

    def preempted() -> None:
        closer.start()
        closer.join(1.5)

    admit_late(monkeypatch, preempted)
    question = listener.client.ask('what?')
    closer.join()
    assert listener.wait_final(question).finish_reason == 'error'


def admit_late(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """Have something happen between the look whether an engine runs and the first question."""
    admit, happens = OpenAnswers.admit, iter([meanwhile])

    def late(streams: OpenAnswers, *asked: str) -> bool:
        next(happens, lambda: None)()
        return admit(streams, *asked)

    monkeypatch.setattr(OpenAnswers, 'admit', late)


def test_a_resume_while_the_engine_restarts_is_not_undone(
        listener: Listener, monkeypatch: pytest.MonkeyPatch):
    client, send, resumed = listener.client, Channel.send, threading.Event()
    client.pause(True)
    os.kill(client.pid, signal.SIGKILL)
    listener.wait(lambda: listener.lost)
    resumer = threading.Thread(target=client.pause, args=[False])

    def late(channel: Channel, header: dict, payload: bytes = b'') -> None:
        if header == {'command': 'pause', 'paused': True} and resumer.ident is None:
            resumer.start()
            resumed.wait(1.0)  # Only if the resume can be sent in between.
        send(channel, header, payload)
        if header == {'command': 'pause', 'paused': False}:
            resumed.set()

    monkeypatch.setattr(Channel, 'send', late)
    listener.wait(lambda: len(listener.ready) == 2)
    assert resumed.wait(PATIENCE_S)
    for stamp in range(2):
        client.feed(frame(stamp))
    listener.wait(lambda: listener.of(StepPerceived))


def test_a_restarted_engine_is_paused_before_it_gets_a_frame(listener: Listener):
    client, restarted, loading = listener.client, threading.Event(), threading.Event()

    def slow() -> np.ndarray:
        loading.set()
        restarted.wait(PATIENCE_S)
        return np.zeros((48, 64, 3), np.uint8)

    client.feed(CameraFrame(slow, 1, 0))
    assert loading.wait(PATIENCE_S)
    client.pause(True)
    os.kill(client.pid, signal.SIGKILL)
    listener.wait(lambda: len(listener.ready) == 2)
    client.feed(frame(2))
    restarted.set()
    listener.wait(lambda: FramesDropped('paused', 1) in listener.events)
    client.pause(False)
    client.feed(frame(3))  # A first frame alone is no step yet.
    assert listener.wait_final(client.ask('what was seen?')).finish_reason == 'stop'
    assert not listener.of(StepPerceived)


def test_an_engine_that_dies_once_it_is_loaded_is_restarted_paused(
        listener: Listener, monkeypatch: pytest.MonkeyPatch):
    client, receive, mortal = listener.client, Channel.receive, iter([True])
    client.pause(True)

    def then_dies(channel: Channel) -> tuple[dict, bytearray] | None:
        message = receive(channel)
        if message and message[0]['type'] == 'ready' and next(mortal, False):
            os.kill(client.pid, signal.SIGKILL)
            wait_until(lambda pid=client.pid: is_gone(pid))
        return message

    monkeypatch.setattr(Channel, 'receive', then_dies)
    os.kill(client.pid, signal.SIGKILL)
    listener.wait(lambda: len(listener.lost) == 2 and len(listener.ready) == 3)
    client.feed(frame())
    listener.wait(lambda: FramesDropped('paused', 1) in listener.events)


@pytest.mark.parametrize('prompt, answer', [
    (' count the squares ', 'count the squares'), ('', 'Describe.')])
@pytest.mark.parametrize('moment', ['dead', 'loaded'])
def test_a_prompt_set_while_the_engine_restarts_is_kept(
        monkeypatch: pytest.MonkeyPatch, moment: str, prompt: str, answer: str):
    receive, once = Channel.receive, iter([True])
    with listening(config=SessionConfig(prompt='say nothing')) as listener:
        client = listener.client

        def set_late(channel: Channel) -> tuple[dict, bytearray] | None:
            message = receive(channel)
            if message and message[0]['type'] == 'ready' and next(once, False):
                client.keep_prompt(prompt)
            return message

        os.kill(client.pid, signal.SIGKILL)
        listener.wait(lambda: listener.lost)
        if moment == 'dead':
            client.keep_prompt(prompt)
        else:
            monkeypatch.setattr(Channel, 'receive', set_late)
        listener.wait(lambda: len(listener.ready) == 2)
        assert listener.wait_final(client.ask('prompt')).sentence == answer
        client.keep_prompt('and now?')
        assert listener.wait_final(client.ask('prompt')).sentence == 'and now?'
