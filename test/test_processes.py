"""Perception in a process of its own: what crosses, and what happens when the child is gone."""

import contextlib
import gc
import os
import select
import signal
import threading
import time

import numpy as np
import pytest
import torch
from waiting import PATIENCE_S

from sww_ros.demo.processes import is_gone
from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming import processes
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import FramesDropped, StepPerceived, TextDelta, Trouble
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import replay


@pytest.fixture(scope='module')
def models():
    return random_checkpoint(SMALL, 11, silence_token='<|silence|>', max_steps=200)


def open_session(models, **settings) -> Session:
    return Session(models[1], SessionConfig(**{
        'overlap': 'processes', 'max_pending_frames': 400, **settings}))


def feed(session: Session, steps: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(2 * steps):
        session.feed(rng.integers(0, 256, (84, 84, 3), np.uint8))


def open_files() -> set[str]:
    """What this process has open, each by a name of its own, such as "socket:[4711]"."""
    found = set()
    for fd in os.listdir('/proc/self/fd'):
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return found


def let_go(before: set[str], limit_s: float = PATIENCE_S) -> set[str]:
    """
    Return what was opened since and is not closed.

    Not a number is compared: this process ran other tests before, whose last threads may close
    what they had, or open a file for a moment, while a session of these lives.
    """
    end = time.monotonic() + limit_s
    while (left := open_files() - before) and time.monotonic() < end:
        gc.collect()
        time.sleep(0.05)
    return left


def test_a_lane_that_moves_in_shared_memory_stays_exact(models):
    """A hundred steps outgrow the first buffers several times, while they are read."""
    with open_session(models, record_trace=True, schedule='wait_k') as session:
        feed(session, 100)
        session.ask('what?')
        assert session.wait_idle(60)
        trace = session.trace()
    assert trace.steps == 100
    verdict = replay(trace, models[0])
    assert verdict.compared > 300
    assert not verdict.differing


def test_the_words_are_those_of_one_process(models):
    said = []
    for overlap in ('serial', 'processes'):
        with open_session(models, overlap=overlap, schedule='wait_k') as session:
            feed(session, 6)
            assert session.wait_idle(30)
            said.append([(e.delta, e.step) for e in session.drain() if isinstance(e, TextDelta)])
    assert said[0] == said[1]


def test_a_child_that_does_not_come_to_compute_is_replaced(models, monkeypatch):
    """As where its fork has copied a lock of a native library while that was held."""
    stuck: list[int] = []
    prove = processes._Child._prove

    def fork(runner) -> None:
        real(runner)
        stuck.append(runner.pid)

    def stand_still(child) -> None:
        if not stuck:
            threading.Event().wait()
        prove(child)

    real = processes.ForkingRunner._fork
    monkeypatch.setattr(processes.ForkingRunner, '_fork', fork)
    monkeypatch.setattr(processes._Child, '_prove', stand_still)
    monkeypatch.setattr(processes, 'PROOFS_S', (0.3, PATIENCE_S))
    with open_session(models, schedule='wait_k') as session:
        first, second = stuck
        assert is_gone(first) and not is_gone(second)
        feed(session, 3)
        assert session.wait_idle(30)
        assert sum(isinstance(event, StepPerceived) for event in session.drain()) == 3


def test_a_child_that_never_comes_to_compute_ends_in_words(models, monkeypatch):
    monkeypatch.setattr(processes._Child, '_prove', lambda child: threading.Event().wait())
    monkeypatch.setattr(processes, 'PROOFS_S', (0.1, 0.2))
    before = open_files()
    with pytest.raises(RuntimeError, match='in 2 tries of up to 0.2 s: set overlap to fused'):
        open_session(models)
    assert not let_go(before)


def test_what_fails_in_the_child_is_told_in_its_words_and_survived(models):
    with open_session(models) as session:
        feed(session, 1)
        session.feed(np.zeros((84, 84, 3), np.uint8))
        session.feed(np.zeros((42, 1000, 3), np.uint8))
        session.set_prompt('Anew.')  # The next size is fitted anew, to a frame that cannot be.
        session.feed(np.zeros((2, 1000, 3), np.uint8))
        session.feed(np.zeros((2, 1000, 3), np.uint8))
        assert session.wait_idle(30)
        events = session.drain()
        assert [e.message for e in events if isinstance(e, Trouble)] == [
            'ValueError: a frame of 1000x2 pixels is too narrow to be perceived']
        feed(session, 2)
        assert session.wait_idle(30)
        assert sum(isinstance(e, StepPerceived) for e in session.drain()) == 2


def test_a_child_that_is_gone_ends_the_session_and_all_that_was_asked(models):
    with open_session(models, max_answer_tokens=100_000) as session:
        feed(session, 1)
        question = session.ask('what?')
        while not isinstance(session.poll(30), TextDelta):
            pass
        os.kill(session._runner.pid, signal.SIGKILL)
        feed(session, 1)
        events = list(session.events())
    assert [(e.message, e.fatal) for e in events if isinstance(e, Trouble)] == [
        ('the perceiving process has ended', True)]
    assert FramesDropped('bad', 2) in events
    assert [e.finish_reason for e in events
            if isinstance(e, TextDelta) and e.stream_id == question and e.final] == ['error']


def test_nothing_is_left_of_a_session_that_is_closed(models):
    before = open_files()
    for _ in range(5):
        with open_session(models) as session:
            pid = session._runner.pid
            feed(session, 3)
            assert session.wait_idle(30)
            session.reset()
            feed(session, 3)
            assert session.wait_idle(30)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not let_go(before)


def test_a_child_whose_parent_is_killed_ends(models, tmp_path):
    told = tmp_path / 'pid'
    parent = os.fork()
    if not parent:
        try:
            torch.set_num_threads(1)
            session = open_session(models)
            told.write_text(str(session._runner.pid))
            signal.pause()
        finally:
            os._exit(1)
    while not (told.exists() and told.read_text()):
        time.sleep(0.01)
    child = os.pidfd_open(int(told.read_text()))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert select.select([child], [], [], PATIENCE_S)[0], 'the child lives on'
    os.close(child)
