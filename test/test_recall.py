"""A longer memory: which steps a question is answered from, and that these too are the models."""

import gc
import os
import weakref

from core_kit import Play
import numpy as np
import pytest
import torch

from sww_ros.evaluation.random_model import SMALL, SMALL_QWEN3, random_checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import NARRATION, QuestionState, Restarted, TextDelta, Trouble
from sww_ros.streaming.generation import TextAssembler
from sww_ros.streaming.jobs import Asked, Carry, Decoded, Open, Spoken
from sww_ros.streaming.recall import Past, StepInfo, telling_words
from sww_ros.streaming.relay import Relay
from sww_ros.streaming.runner import ModelRunner
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import replay


def test_the_words_that_tell_what_a_question_is_about_are_left():
    assert telling_words('What colour was the big Circle?') == ['colour', 'big', 'circle']


def test_a_question_goes_to_the_newest_sentence_that_has_most_of_its_words():
    past = Past(limit=8, stretch=3)
    for step in range(1, 11):
        past.perceived(StepInfo(step, 2 * step))
        past.spoken(step % 4, step, True)
        past.spoken(9, step, False)
    found = past.find((3,), base=7)
    # Step 7 is the newest of which 3 was said; the three before it, of which two are gone.
    assert found == (3, tuple(StepInfo(step, 2 * step) for step in (4, 5, 6)))
    assert past.find((3,), base=6) is None, 'it is in the stream still'
    assert past.find((9,), base=7) is None, 'the newest sentence of those alike'
    assert past.find((3, 9), base=7) == found and past.find((77,), base=7) is None
    for _ in range(6):
        past.perceived(StepInfo(0, 0))
    past.spoken(0, 16, False)
    assert past.find((3,), base=15) is None, 'forgotten'


def recalling(**settings: object) -> Play:
    """A core that has told of seven steps, the token n of step n, in streams of 4 or 2 steps."""
    play = Play(relay=Relay(4, 2, 6), schedule='wait_k', wait_k=1, recall_steps=20,
                max_answer_tokens=1, **settings)
    for number in range(1, 8):
        play.feed()
        while job := play.take_perception() or play.core.next_piece():
            play.done(job)
        play.tell(Decoded(play.take_decode(), (Spoken('text', 'a', 'S.', token=number),)))
        while job := play.core.next_piece():
            play.done(job)
    assert play.core.video.base == 4
    return play


def pieces(play: Play) -> list:
    """Do what a stream for an answer is made of."""
    jobs = []
    while job := play.core.next_piece():
        jobs.append(job)
        play.done(job)
    return jobs


def test_an_answer_about_what_has_left_sees_the_steps_before_that_and_nothing_else():
    play = recalling()
    play.tell(Asked('q', (1,), (4,)))
    assert play.of(QuestionState)[-1].state == 'answering'
    assert play.take_decode() is None and not play.core.at_rest
    jobs = pieces(play)
    assert [type(job) for job in jobs] == [Open, Carry, Carry]
    recalled = weakref.ref(jobs[0].video)
    assert recalled().base == 1 and recalled() is not play.core.video
    del jobs
    play.speak()
    [text] = [event for event in play.of(TextDelta) if event.stream_id == 'q']
    assert (text.step, text.steps_seen, text.frames_seen, text.finish_reason) == (
        2, 3, 6, 'length')
    assert recalled() is None and play.core.at_rest


@pytest.mark.parametrize('about', [(), (7,), (77,), (1,)])
def test_an_answer_about_what_is_there_is_a_plain_one(about):
    play = recalling()
    play.tell(Asked('q', (1,), about))
    assert play.core.next_piece() is None
    assert play.take_decode().turns[0].video is play.core.video


@pytest.mark.parametrize('what', ['fails', 'begins anew'])
def test_what_cannot_be_recalled_is_answered_from_what_is_there(what):
    play = recalling()
    video = play.core.video
    play.tell(Asked('q', (1,), (4,)))
    play.done(play.core.next_piece())
    piece = play.core.next_piece()
    if what == 'fails':
        play.fail(piece)
        assert [event.fatal for event in play.of(Trouble)] == [False]
    else:
        play.core._switch('prompt')
        play.done(piece)
    assert play.core.next_piece() is None and play.core.open_questions == ['q']
    [turn] = play.take_decode().turns
    assert turn.video is video and turn.sees == len(video.steps)


def test_a_step_waits_for_a_few_pieces_of_an_answer_only():
    play = recalling()
    play.tell(Asked('q', (1,), (4,)))
    play.feed()
    kinds = []
    while isinstance(job := play.take_perception(), Open | Carry):
        kinds.append(type(job))
        play.done(job)
    assert len(kinds) <= Relay(4, 2, 6).pieces and job is not None


@pytest.fixture(scope='module')
def models(request):
    """A stock model and its checkpoint; of Qwen2.5-VL where a test does not ask for another."""
    return random_checkpoint(getattr(request, 'param', SMALL), 4, torch.float64,
                             silence_token='<|silence|>')


def ask_about_the_past(session: Session, monkeypatch, steps: int) -> list:
    """Every token is a sentence, and what it is known by is the number of its step."""
    spoken = Past.spoken
    monkeypatch.setattr(TextAssembler, 'add', lambda *_: ('a', 'S.'))
    monkeypatch.setattr(Past, 'spoken',
                        lambda past, _token, step, _open: spoken(past, step, step, False))
    rng, head = np.random.default_rng(0), session._checkpoint.encode('x')
    for step in range(steps):
        feed_step(session, rng, step)
        if step % 5 == 4:
            assert session.wait_idle(60)
            for back in (4, 8, 9):
                session._ask_core(Asked(f'{step}-{back}', head, (step - back,)))
            assert session.wait_idle(60)
    assert session.wait_idle(60)
    return session.drain()


def feed_step(session: Session, rng: np.random.Generator, step: int) -> None:
    for _half in range(2):
        session.feed(rng.integers(0, 256, (40, 48, 3), np.uint8), step)


CONFIG = dict(wait_k=2, max_steps=8, capacity=6, memory=3, max_pending_frames=64, recall_steps=40,
              max_answer_tokens=4)


@pytest.mark.parametrize(('models', 'overlap', 'scheme', 'still'), [
    *((SMALL, *case) for case in [
        ('serial', 'gdpe', 0.0), ('serial', 'ospe', 0.0), ('processes', 'gdpe', 0.0),
        ('processes', 'gipe', 0.9), ('threads', 'gdpe', 0.9), ('fused', 'gipe', 0.0)]),
    (SMALL_QWEN3, 'processes', 'gdpe', 0.9), (SMALL_QWEN3, 'fused', 'ospe', 0.0)],
    indirect=['models'])
def test_answers_from_recalled_steps_are_the_stock_models(
        models, monkeypatch, overlap, scheme, still):
    config = SessionConfig(overlap=overlap, position_encoding=scheme, still=still,
                           record_trace=True, **CONFIG)
    with Session(models[1], config) as session:
        events = ask_about_the_past(session, monkeypatch, 25)
        traces = session.traces()
    assert not [event for event in events if isinstance(event, Trouble)]
    recalled = [trace for trace in traces if trace.speakers and NARRATION not in trace.speakers]
    assert len(recalled) >= 5 and max(trace.steps for trace in recalled) == 3
    for trace in traces:
        verdict = replay(trace, models[0])
        assert verdict.differing == 0
        if trace.logits is not None:  # A stream may be relieved before anything is said in it.
            assert float((trace.logits - verdict.logits).abs().max()) < 1e-9
    asked = [event for event in events if isinstance(event, TextDelta)
             and event.stream_id != NARRATION and event.final]
    assert len(asked) == 15 and len({event.stream_id for event in asked}) == 15


@pytest.mark.parametrize('overlap', ['serial', 'processes'])
def test_the_lanes_of_answers_go_with_them(models, monkeypatch, overlap):
    def lanes(pid: int) -> int:
        with open(f'/proc/{pid}/maps') as maps:
            return sum('visual lane' in line for line in maps)

    made, new_lane = [], ModelRunner._new_video_lane
    monkeypatch.setattr(ModelRunner, '_new_video_lane',
                        lambda runner, rows: made.append(rows) or new_lane(runner, rows))
    gc.collect()
    before = lanes(os.getpid())
    with Session(models[1], SessionConfig(overlap=overlap, **CONFIG)) as session:
        events = ask_about_the_past(session, monkeypatch, 120)
        large = made.count(session._runner._rows)
        # Speaking may be a stream behind, whose lane is then one more until the next hand-overs.
        for step in range(120, 130):
            feed_step(session, np.random.default_rng(step), step)
            assert session.wait_idle(60)
        mine = lanes(os.getpid()) - before
        theirs = lanes(session._runner.pid) - before if overlap == 'processes' else 0
    assert sum(isinstance(event, Restarted) for event in events) > 20
    assert mine <= 2 and theirs <= 2
    assert overlap == 'processes' or large == 2, 'streams take turns in them, answers do not'


@pytest.mark.parametrize('settings', [dict(memory=0), dict(position_encoding='interleaved'),
                                      dict(schedule='offline')])
def test_where_no_stream_is_relieved_recalling_is_refused_in_words(models, settings):
    with pytest.raises(ValueError, match='recall_steps needs streams that relieve one another'):
        Session(models[1], SessionConfig(recall_steps=9, **settings))


def test_what_is_remembered_is_told_at_the_start(models):
    with Session(models[1], SessionConfig(**CONFIG)) as session:
        assert 'from the last 40 steps, which are remembered in up to' in session.info['relay']
    with Session(models[1], SessionConfig(**CONFIG | dict(recall_steps=0))) as session:
        assert 'questions' not in session.info['relay']
