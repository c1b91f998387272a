"""
Moments between inputs and the ends of jobs that once went wrong, each given to the core.

Random and exhaustive schedules are the simulation's part; these are the ones with a history.
"""

from core_kit import Play
import pytest
from session_kit import FRAME

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.core import MAX_FAILURES
from sww_ros.streaming.events import (
    NARRATION,
    FramesDropped,
    QuestionState,
    Restarted,
    StepPerceived,
    TextDelta,
    Trouble,
)
from sww_ros.streaming.jobs import Cancelled, Closed, Open, Paused, Perceive, Prompted, Reset
from sww_ros.streaming.runner import ModelRunner
from sww_ros.streaming.session import Session


@pytest.fixture(scope='module')
def checkpoint():
    return random_checkpoint(SMALL, 3, silence_token='<|silence|>', max_steps=50)[1]


def test_a_step_fed_during_the_last_word_of_the_video_before_is_perceived():
    play = Play(schedule='offline', max_rest_tokens=1)
    play.feed(last=True)
    play.perceive()
    word = play.take_decode()
    play.feed()
    assert play.take_perception() is None, 'first all is said of the video before'
    play.done(word)
    play.rest()
    assert play.steps() == [(0, 0), (1, 0)]


def test_a_step_completed_while_a_video_is_told_of_cuts_nothing_short():
    play = Play(schedule='offline', max_rest_tokens=9)
    play.feed(last=True)
    play.feed(1)
    play.perceive()
    play.speak(steps=1)
    play.feed(1)
    play.rest()
    assert play.finals() == ['length']
    assert [type(e) for e in play.events if isinstance(e, (Restarted, StepPerceived))] == [
        StepPerceived, Restarted, StepPerceived]


def test_an_error_of_perception_silences_no_later_stream():
    play = Play()
    play.feed()
    play.perceive()
    word = play.take_decode()
    play.feed()
    play.fail(play.take_perception())
    play.done(word)
    play.feed()
    told = play.rest()
    assert [e.video for e in told if isinstance(e, TextDelta)] == [1, 1]


def test_a_pause_parts_two_videos_whose_end_it_throws_away():
    play = Play(max_rest_tokens=4)
    play.feed()
    play.perceive()
    play.feed()
    out = play.take_perception()
    play.feed(last=True)
    play.tell(Paused(True))
    play.tell(Paused(False))
    play.done(out)
    play.rest()
    play.feed()
    play.rest()
    assert [e.reason for e in play.of(Restarted)] == ['ended']
    assert play.of(FramesDropped) == [FramesDropped('paused', 2)]


def test_a_video_that_ends_while_perception_lags_is_parted_though_its_end_was_dropped():
    play = Play(max_pending_frames=2)
    play.feed()
    play.rest()
    play.feed(last=True)
    play.feed()
    play.rest()
    assert play.of(FramesDropped) == [FramesDropped('overrun', 2)]
    assert [e.reason for e in play.of(Restarted)] == ['ended']
    assert play.steps() == [(0, 0), (1, 0)]


def test_frames_that_wait_too_long_give_way_a_step_at_a_time():
    play = Play(max_pending_frames=4)
    play.perceive()
    play.feed(7)
    assert play.of(FramesDropped) == [FramesDropped('overrun', 2)] * 2
    play.rest()
    assert play.steps() == [(0, 0)], 'the half step still waits'


def test_nothing_slips_in_behind_a_pause():
    play = Play()
    play.tell(Paused(True))
    play.feed(1)
    assert play.of(FramesDropped) == [FramesDropped('paused', 1)]


def test_a_prompt_set_while_the_last_one_takes_effect_is_not_lost():
    play = Play()
    play.tell(Prompted('One.'))
    out = play.take_perception()
    assert isinstance(out, Open) and out.video.prompt == 'One.'
    play.tell(Prompted('Two.'))
    assert play.take_perception() is None, 'one at a time'
    play.done(out)
    again = play.take_perception()
    assert isinstance(again, Open) and again.video.prompt == 'Two.'
    assert [e.reason for e in play.of(Restarted)] == ['prompt'] * 2


def test_a_question_that_meets_a_reset_is_not_answered_about_what_was_forgotten():
    play = Play()
    play.feed()
    play.perceive()
    play.ask()
    step = play.take_decode()
    assert len(step.turns) == 2
    play.tell(Reset())
    assert play.done(step) == []
    assert play.finals('q') == ['reset']
    play.ask('r')
    assert [e.question_id for e in play.of(QuestionState) if e.state == 'queued'] == ['r']
    play.feed()
    play.rest()
    assert {e.video for e in play.of(TextDelta) if e.stream_id == 'r'} == {1}


def test_a_step_that_is_being_perceived_at_a_reset_is_dropped_and_not_told():
    play = Play()
    play.perceive()
    play.feed(3)
    step = play.take_perception()
    assert isinstance(step, Perceive)
    play.tell(Reset())
    assert sum(e.count for e in play.of(FramesDropped)) == 3
    assert play.done(step) == []
    play.feed()
    play.rest()
    assert play.steps() == [(1, 0)]


def test_a_cancel_that_meets_the_end_of_its_answer_changes_nothing():
    play = Play(max_answer_tokens=1)
    play.feed()
    play.perceive()
    play.ask()
    play.speak()
    assert play.finals('q') == ['length']
    assert play.tell(Cancelled('q')) == []


def test_a_pause_between_two_steps_breaks_no_interleaved_stream():
    play = Play(serial=True)
    play.feed()
    play.perceive()
    play.feed()
    play.tell(Paused(True))
    assert play.take_decode() is None and play.take_perception() is None
    play.tell(Paused(False))
    assert play.take_perception() is None, 'what may be said comes first'
    play.feed()
    play.rest()
    assert play.steps() == [(0, 0), (0, 1)]


@pytest.mark.parametrize('side', ['perception', 'decoding'])
def test_a_side_that_always_fails_is_given_up_though_the_other_goes_on(side):
    play = Play()
    for _ in range(MAX_FAILURES + 1):
        play.feed()
        play.ask()
        play.done(play.take_perception())
        if side == 'decoding':
            play.done(play.take_perception())
            play.fail(play.take_decode())
        else:
            play.fail(play.take_perception())
    assert [e.fatal for e in play.of(Trouble)] == [False] * MAX_FAILURES + [True]
    assert play.finals('q') == ['error'] * (MAX_FAILURES + 1)
    assert play.core.closed and play.core.at_rest
    assert play.feed() == []


def test_what_fails_now_and_then_is_not_given_up():
    play = Play()
    for _ in range(3 * MAX_FAILURES):
        play.feed()
        play.perceive()
        play.fail(play.take_decode())
        play.feed()
        play.rest()
    assert not play.core.closed


def test_the_failure_of_a_job_about_a_forgotten_video_costs_the_new_one_nothing():
    play = Play()
    play.perceive()
    play.feed()
    step = play.take_perception()
    play.tell(Reset())
    play.feed()
    play.fail(step)
    play.rest()
    assert [e.reason for e in play.of(Restarted)] == ['reset']
    assert play.steps() == [(1, 0)]
    assert sum(e.count for e in play.of(FramesDropped)) == 2


def test_closing_ends_what_was_asked_and_drops_what_waits():
    play = Play(max_answers=1)
    play.feed()
    play.perceive()
    play.ask('a')
    play.ask('b')
    play.feed(3)
    out = play.take_perception(), play.take_decode()
    play.tell(Closed())
    assert play.finals('a') == play.finals('b') == ['cancelled']
    assert play.events[-1] == FramesDropped('closed', 3)
    assert [told for job in out for told in play.done(job)] == []


@pytest.mark.parametrize('how', ['closed', 'failed'])
def test_no_question_is_left_open_by_a_session(checkpoint, monkeypatch, how):
    config = SessionConfig(max_answer_tokens=100_000, max_answers=1)
    with Session(checkpoint, config) as session:
        session.feed(FRAME)
        session.feed(FRAME)
        questions = [session.ask('a?'), session.ask('b?')]
        while not isinstance(event := session.poll(30), TextDelta):
            assert event is not None
        if how == 'closed':
            session.close()
            events = list(session.events())
        else:
            for job in ('_open', '_decode'):
                monkeypatch.setattr(ModelRunner, job, lambda *_: 1 / 0)
            events = list(session.events())
            troubles = [e.fatal for e in events if isinstance(e, Trouble)]
            # One failure in speaking, and as many of beginning anew as a side may have.
            assert troubles == [False] * (MAX_FAILURES + 1) + [True]
        for question in questions:
            assert sum(e.final for e in events if isinstance(e, TextDelta)
                       and e.stream_id == question) == 1, how
        with pytest.raises(ValueError, match='is closed'):
            session.ask('c?')


def test_a_narration_ends_with_the_reason_of_what_cut_it():
    for given, reason in ((Reset(), 'reset'), (Prompted('Else.'), 'prompt')):
        play = Play()
        play.feed()
        play.perceive()
        play.speak(steps=1)
        told = play.tell(given)
        final = next(e for e in told if isinstance(e, TextDelta))
        assert (final.stream_id, final.finish_reason, final.sentence) == (NARRATION, reason, '')
    play = Play(max_steps=1)
    play.feed()
    play.perceive()
    play.feed()
    assert play.finals() == ['capacity']


def test_one_thread_perceives_in_mid_sentence_unless_it_is_behind():
    play = Play(wait_k=3)
    play.feed()
    play.perceive()
    play.speak(steps=1)
    play.feed()
    assert play.core.prefers_perception, 'a hazard is not kept waiting by a sentence'
    play.feed()
    play.done(play.take_perception())
    assert not play.core.prefers_perception, 'each step gets its tokens'
    play.speak(steps=3)
    assert play.core.prefers_perception


def ahead(**settings: object) -> Play:
    """A core whose executor takes two steps before the first comes back; the prefix is there."""
    play = Play(perceptions=2, **settings)
    play.done(play.take_perception())
    return play


def test_a_second_step_is_handed_out_before_the_first_is_back_and_no_third():
    play = ahead()
    play.feed(6)
    first, second = play.take_perception(), play.take_perception()
    assert play.take_perception() is None
    play.done(first)
    third = play.take_perception()
    told = play.done(second) + play.done(third)
    assert [event.index for event in told if isinstance(event, StepPerceived)] == [1, 2]


def test_nothing_is_taken_ahead_of_a_prefix_an_end_a_lost_end_or_a_full_video():
    play = Play(perceptions=2)
    play.feed(2)
    assert play.take_perception() and not play.take_perception(), 'the prefix comes first'
    play = ahead()
    play.feed(2, last=True)
    play.feed(2)
    assert play.take_perception() and not play.take_perception(), 'the clip ends with this step'
    play = ahead(max_steps=1)
    play.feed(4)
    assert play.take_perception() and not play.take_perception(), 'the video is full with it'
    play = ahead(max_pending_frames=2)
    play.feed(2)
    assert play.take_perception()
    play.feed(2, last=True)
    play.feed(2)
    assert not play.take_perception(), 'the end of the clip was dropped'


def test_all_frames_that_are_out_are_dropped_with_their_video_and_come_back_to_nothing():
    play = ahead()
    play.feed(4)
    out = [play.take_perception(), play.take_perception()]
    dropped = [event for event in play.tell(Reset()) if isinstance(event, FramesDropped)]
    assert [(event.reason, event.count) for event in dropped] == [('reset', 4)]
    assert not any(isinstance(event, StepPerceived) for job in out for event in play.done(job))


def test_offline_the_step_that_fills_the_video_ends_it_though_another_is_out():
    play = ahead(schedule='offline', max_steps=2)
    play.feed(4)
    assert [play.take_perception().last, play.take_perception().last] == [False, True]
