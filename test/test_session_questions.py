"""Questions that find nothing to see come to an end; long ones do not stop the narration."""

import threading
import time
from types import SimpleNamespace

import pytest
from session_kit import FRAME, feed, opened, speak_only, states, texts, until
from waiting import PATIENCE_S

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming.config import MAX_QUESTION_TOKENS, SessionConfig
from sww_ros.streaming.events import (
    NARRATION,
    QuestionState,
    Restarted,
    StepPerceived,
    TextDelta,
)
from sww_ros.streaming.positions import SCHEMES
from sww_ros.streaming.trace import replay

LONG = 'x' * MAX_QUESTION_TOKENS
"""As many tokens as a question may have: the random checkpoint's are bytes."""
PIECE_ROWS = 64


@pytest.fixture(scope='module')
def models():
    return random_checkpoint(SMALL, 3, silence_token='<|silence|>', max_steps=50)


@pytest.fixture
def checkpoint(models):
    return models[1]


def is_final(question: str):
    return lambda e: isinstance(e, TextDelta) and e.stream_id == question and e.final


@pytest.mark.parametrize('settings', [
    {}, {'overlap': 'serial'}, {'position_encoding': 'interleaved'}, {'narrate': False}])
def test_a_question_that_finds_nothing_to_see_ends(checkpoint, settings):
    with opened(checkpoint, question_timeout_s=0.2, **settings) as session:
        question = session.ask('what?')
        queued, *_, final = until(session, is_final(question))
        assert (queued.question_id, queued.state) == (question, 'queued')
        assert 'nothing has been seen' in queued.reason and '0.2 s' in queued.reason
        assert (final.finish_reason, final.seq) == ('no_video', 0)
        assert (final.delta, final.sentence, final.step, final.stamp_ns) == ('', '', -1, 0)
        assert session.wait_idle(30)
        # The session is as good as before, and so is the question's id.
        feed(session)
        session.ask('what?', question)
        assert session.wait_idle(PATIENCE_S)
        assert texts(session.drain(), question)[-1].finish_reason in ('stop', 'length')


def test_a_question_after_a_reset_while_paused_ends(checkpoint):
    with opened(checkpoint, question_timeout_s=0.2) as session:
        feed(session)
        session.pause(True)
        seen = session.ask('what was there?')
        until(session, is_final(seen))
        session.reset()
        session.feed(FRAME)
        unseen = session.ask('what is there?')
        assert until(session, is_final(unseen))[-1].finish_reason == 'no_video'


def test_each_of_several_questions_ends_and_none_twice(checkpoint):
    with opened(checkpoint, question_timeout_s=0.2, max_answers=1, max_queued=3) as session:
        with session._changed:  # None ends before one is cancelled.
            questions = [session.ask(f'what {number}?') for number in range(4)]
            session.cancel(questions[1])
        assert session.wait_idle(30)
        events = session.drain()
    ends = [[delta.finish_reason for delta in texts(events, question)] for question in questions]
    assert ends == [['no_video'], ['cancelled'], ['no_video'], ['no_video']]


def test_a_question_may_wait_for_ever(checkpoint):
    with opened(checkpoint, question_timeout_s=0.0, max_answer_tokens=2) as session:
        question = session.ask('what?')
        assert not session.wait_idle(0.3)
        feed(session)
        events = session.drain()
        assert states(events, question) == ['queued', 'answering']
        assert texts(events, question)[-1].finish_reason in ('stop', 'length')


def test_a_question_that_gets_something_to_see_in_time_is_answered_from_that_alone(
        models, checkpoint):
    """No frame from before the reset, or while paused, may slip into what it sees."""
    with opened(checkpoint, record_trace=True, max_answer_tokens=4) as session:
        session.feed(FRAME + 200)
        session.pause(True)
        session.feed(FRAME + 100)
        session.reset()
        question = session.ask('what?')
        session.feed(FRAME + 50)
        session.pause(False)
        session.feed(FRAME, stamp_ns=7)
        session.feed(FRAME, stamp_ns=8)
        assert session.wait_idle(30)
        answer, trace = texts(session.drain(), question), session.trace()
    assert {(d.steps_seen, d.frames_seen, d.stamp_ns) for d in answer} == {(1, 2, 8)}
    perception, side = checkpoint.perception, FRAME.shape[0]
    assert (trace.patches == perception.patches([FRAME, FRAME], side, side)).all()
    assert replay(trace, models[0]).differing == 0


@pytest.mark.parametrize('overlap', ['threads', 'serial'])
def test_a_step_on_its_way_is_something_to_see(checkpoint, monkeypatch, overlap):
    """A large model on a small machine takes longer for its first step than anyone should wait."""
    honest, slow = checkpoint.perception.embed, threading.Event()

    def embed(*arguments):
        slow.set()
        time.sleep(0.5)
        return honest(*arguments)

    monkeypatch.setattr(checkpoint.perception, 'embed', embed)
    with opened(checkpoint, question_timeout_s=0.1, overlap=overlap,
                max_answer_tokens=2) as session:
        session.feed(FRAME)
        session.feed(FRAME)
        assert slow.wait(30)
        question = session.ask('what?')
        assert session.wait_idle(30)
        assert texts(session.drain(), question)[-1].finish_reason in ('stop', 'length')


def test_waiting_for_ones_turn_is_not_waiting_for_something_to_see(checkpoint, monkeypatch):
    since_s, real = 0, time.monotonic_ns
    monkeypatch.setattr('sww_ros.streaming.session.time', SimpleNamespace(
        monotonic_ns=lambda: real() + since_s * 10 ** 9))
    monkeypatch.setattr('sww_ros.streaming.executors.time', SimpleNamespace(
        monotonic_ns=lambda: real() + since_s * 10 ** 9, sleep=time.sleep))
    with opened(checkpoint, question_timeout_s=1000.0, max_answers=1,
                max_answer_tokens=100_000) as session:
        feed(session)
        first = session.ask('long?')
        second = session.ask('short?')
        queued = until(session, lambda e: (
            isinstance(e, QuestionState) and e.state == 'queued'))[-1]
        assert queued.question_id == second and 'are being answered' in queued.reason
        since_s += 1200
        session.drain()
        for _ in range(2):  # The first may have been on its way.
            until(session, lambda e: isinstance(e, TextDelta))
        # Now the video is empty, and the whole time is left from here on.
        session.set_prompt('Something else.')
        until(session, lambda e: isinstance(e, Restarted))
        session.cancel(first)
        until(session, is_final(first))
        feed_one(session)
        events = until(session, lambda e: (
            isinstance(e, TextDelta) and e.stream_id == second))
        assert states(events, second) == ['answering']


def feed_one(session) -> None:
    session.feed(FRAME)
    session.feed(FRAME)


@pytest.mark.parametrize('value', [-1.0, float('nan'), float('inf')])
def test_a_bad_timeout_is_named(value):
    with pytest.raises(ValueError, match=f'question_timeout_s must be .*, not {value}'):
        SessionConfig(question_timeout_s=value)


# Long questions.


@pytest.fixture
def held(checkpoint, monkeypatch):
    """Hold decoding while `go` is not set; `calls` are the chunks of each pass, in order."""
    class Held:
        go, calls = threading.Event(), []

        @classmethod
        def take_step(cls, session) -> None:
            """Perceive a second step, of which nothing is said before `go` is set again."""
            cls.go.set()
            feed(session)
            session.drain()
            cls.go.clear()
            feed_one(session)
            until(session, lambda e: isinstance(e, StepPerceived))
            del cls.calls[:]

    honest = checkpoint.decoder.step

    def step(chunks):
        if any(chunk.predict for chunk in chunks):
            assert Held.go.wait(30)
        Held.calls.append([(chunk.rows, chunk.predict) for chunk in chunks])
        return honest(chunks)

    monkeypatch.setattr(checkpoint.decoder, 'step', step)
    yield Held
    Held.go.set()


def pieces(calls: list) -> list[list[int]]:
    """Of each pass that prefills a question, how many rows of which."""
    found = [[rows for rows, _ in call if rows > 3] for call in calls]
    return [rows for rows in found if rows]


def test_a_long_question_is_prefilled_between_the_tokens_of_the_narration(
        checkpoint, held, monkeypatch):
    speak_only(monkeypatch, checkpoint, 'a')
    with opened(checkpoint, overlap='threads', wait_k=9, max_answer_tokens=2) as session:
        held.take_step(session)
        question = session.ask(LONG)
        held.go.set()
        assert session.wait_idle(30)
        events = session.drain()
    assert texts(events, question)[-1].final
    heads = pieces(held.calls)
    assert max(map(sum, heads)) <= PIECE_ROWS and sum(map(sum, heads)) >= MAX_QUESTION_TOKENS
    narrated = [any(rows == 1 and predict for rows, predict in call)
                for call in held.calls if any(rows > 3 for rows, _ in call)]
    assert sum(narrated) >= 7


def test_all_long_questions_together_are_prefilled_in_pieces(checkpoint, held):
    with opened(checkpoint, overlap='threads', max_answer_tokens=2, max_answers=4) as session:
        held.take_step(session)
        questions = [session.ask(LONG) for _ in range(3)] + [session.ask('short?')]
        held.go.set()
        assert session.wait_idle(30)
        events = session.drain()
    assert all(texts(events, question)[-1].final for question in questions)
    assert max(map(sum, pieces(held.calls))) <= PIECE_ROWS


def test_a_long_question_can_be_taken_back_while_it_is_prefilled(checkpoint, held):
    with opened(checkpoint, overlap='threads', max_answer_tokens=2) as session:
        held.take_step(session)
        question = session.ask(LONG)
        session.cancel(question)
        held.go.set()
        assert session.wait_idle(30)
        answer = texts(session.drain(), question)
    assert [(d.delta, d.finish_reason) for d in answer] == [('', 'cancelled')]
    assert sum(map(sum, pieces(held.calls))) < MAX_QUESTION_TOKENS + PIECE_ROWS


@pytest.mark.parametrize('scheme', SCHEMES)
def test_long_questions_are_exact(models, scheme):
    """While they are prefilled, steps come: each piece sees those that are there."""
    with opened(models[1], position_encoding=scheme, record_trace=True, max_answers=3,
                max_answer_tokens=5) as session:
        feed(session, 2)
        asked = [session.ask('y' * length) for length in (500, 63, 129)]
        for _ in range(4):
            feed_one(session)
            session.poll(0.01)
        assert session.wait_idle(60)
        session.drain()
        trace = session.trace()
    assert set(asked) < set(trace.speakers)
    verdict = replay(trace, models[0])
    assert verdict.compared >= 3 + 18 - 5
    assert verdict.differing == 0
    assert float((trace.logits - verdict.logits).abs().max()) < 1e-4
    assert NARRATION in trace.speakers
