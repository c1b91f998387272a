"""
Hand-overs between threads, each held at the one moment that once went wrong.

Random interleavings are the proof's part (test_proof.py); these were too rare for it.
"""

import threading
import time

import numpy as np
import pytest

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import (
    NARRATION,
    FramesDropped,
    Restarted,
    StepPerceived,
    TextDelta,
    Trouble,
)
from sww_ros.streaming.session import MAX_FAILURES, Session
from sww_ros.streaming.speaking import Speaker
from sww_ros.streaming.stream import FrameQueue
from sww_ros.streaming.watching import Watcher

FRAME = np.zeros((56, 56, 3), np.uint8)


@pytest.fixture(scope='module')
def checkpoint():
    return random_checkpoint(SMALL, 3, silence_token='<|silence|>', max_steps=50)[1]


@pytest.fixture
def hold(monkeypatch):
    """Return a function that holds the next call of a method; gives (reached, release) events."""
    released = []

    def hold_next(kind: type, name: str) -> tuple[threading.Event, threading.Event]:
        honest, reached, release = getattr(kind, name), threading.Event(), threading.Event()

        def held(self, *arguments):
            monkeypatch.setattr(kind, name, honest)
            reached.set()
            release.wait(30)
            return honest(self, *arguments)

        monkeypatch.setattr(kind, name, held)
        released.append(release)
        return reached, release

    yield hold_next
    for release in released:
        release.set()


def feed(session: Session, frames: int = 2, last: bool = False) -> None:
    for left in reversed(range(frames)):
        session.feed(FRAME, last=last and not left)


def until(session: Session, kind: type) -> list:
    """All events up to the first of a kind."""
    events = []
    while not events or not isinstance(events[-1], kind):
        events.append(session.poll(30))
        assert events[-1] is not None, f'no {kind.__name__} among {events}'
    return events


def finals(events: list, stream_id: str) -> list[str]:
    return [e.finish_reason for e in events
            if isinstance(e, TextDelta) and e.stream_id == stream_id and e.final]


def test_a_step_fed_during_the_last_word_of_the_video_before_is_perceived(checkpoint, hold):
    """Perception finds that it has to wait, and sleeps; the end of the word has to wake it."""
    with Session(checkpoint, SessionConfig(schedule='offline', max_rest_tokens=1)) as session:
        speaking, go_on = hold(Speaker, '_narrate')
        feed(session, last=True)
        assert speaking.wait(30)
        looked, look = hold(Watcher, 'work')
        feed(session)
        assert looked.wait(30)
        look.set()
        while session._perceiving._count % 2:
            time.sleep(0.001)
        go_on.set()
        assert session.wait_idle(10)
        assert sum(isinstance(e, StepPerceived) for e in session.drain()) == 2


def test_a_step_completed_while_perception_looks_cuts_nothing_short(checkpoint, monkeypatch, hold):
    honest = FrameQueue.complete

    def complete(frames):
        found = honest.fget(frames)
        if not found and threading.current_thread().name == 'perception':
            monkeypatch.setattr(FrameQueue, 'complete', honest)
            feed(session, 1)
        return found

    with Session(checkpoint, SessionConfig(schedule='offline', max_rest_tokens=9)) as session:
        speaking, go_on = hold(Speaker, '_narrate')
        feed(session, last=True)
        assert speaking.wait(30)
        monkeypatch.setattr(FrameQueue, 'complete', property(complete))
        feed(session, 1)
        while FrameQueue.complete is not honest:
            time.sleep(0.001)
        go_on.set()
        assert session.wait_idle(30)
        assert 'reset' not in finals(events := session.drain(), NARRATION)
    assert [type(e) for e in events if isinstance(e, (Restarted, StepPerceived))] == [
        StepPerceived, Restarted, StepPerceived]


def test_an_error_of_perception_silences_no_later_stream(checkpoint, monkeypatch, hold):
    """The speaker is held between its inbox and the new stream, which is not the one to halt."""
    with Session(checkpoint, SessionConfig(wait_k=2)) as session:
        feed(session)
        assert session.wait_idle(30)
        following, follow = hold(Speaker, '_follow')
        session.cancel('nobody')
        assert following.wait(30)
        with monkeypatch.context() as broken:
            broken.setattr(type(checkpoint.perception), 'patches', lambda *_: 1 / 0)
            feed(session)
            until(session, Restarted)
        follow.set()
        assert session.wait_idle(30)
        session.drain()
        before = session.decode_steps
        feed(session)
        assert session.wait_idle(30)
        assert session.decode_steps == before + 2


def test_a_pause_parts_two_videos_whose_end_it_throws_away(checkpoint, hold):
    with Session(checkpoint, SessionConfig(wait_k=2, max_rest_tokens=4)) as session:
        perceiving, perceive = hold(Watcher, '_perceive')
        feed(session)
        assert perceiving.wait(30)
        feed(session, last=True)
        session.pause(True)
        session.pause(False)
        perceive.set()
        assert session.wait_idle(30)
        feed(session)
        assert session.wait_idle(30)
        events = session.drain()
    assert [e.reason for e in events if isinstance(e, Restarted)] == ['ended']
    assert [e.reason for e in events if isinstance(e, FramesDropped)] == ['paused']


def test_no_frame_slips_in_behind_a_pause(checkpoint, hold):
    with Session(checkpoint, SessionConfig()) as session:
        putting, put = hold(FrameQueue, 'put')
        feeding = threading.Thread(target=feed, args=[session, 1])
        pausing = threading.Thread(target=session.pause, args=[True])
        feeding.start()
        assert putting.wait(30)
        pausing.start()
        pausing.join(0.2)  # It has to wait for the frame; else it is done by now.
        put.set()
        feeding.join(30)
        pausing.join(30)
        assert [(e.reason, e.count) for e in session.drain()] == [('paused', 1)]


@pytest.mark.parametrize('how', ['closed', 'failed'])
def test_no_question_is_left_open(checkpoint, monkeypatch, how):
    config = SessionConfig(max_answer_tokens=100_000, max_answers=1)
    with Session(checkpoint, config) as session:
        feed(session)
        questions = [session.ask('a?'), session.ask('b?')]
        events = until(session, TextDelta)
        if how == 'closed':
            session.close()
            events += session.events()
        else:
            monkeypatch.setattr(Watcher, '_switch', lambda *_: 1 / 0)
            monkeypatch.setattr(Speaker, '_give_up', lambda *_: None)
            session.reset()
            events += session.events()
            troubles = [e.fatal for e in events if isinstance(e, Trouble)]
            assert troubles == [False] * MAX_FAILURES + [True]
        for question in questions:
            assert len(finals(events, question)) == 1, how
        with pytest.raises(ValueError, match='is closed'):
            session.ask('c?')
