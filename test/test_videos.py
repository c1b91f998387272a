"""Videos that end: what is still said, what comes next, and turns that end in between."""

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming import rules
from sww_ros.streaming.config import OVERLAPS, SessionConfig
from sww_ros.streaming.events import (
    NARRATION,
    QuestionState,
    Restarted,
    StepPerceived,
    TextDelta,
    Trouble,
)
from sww_ros.streaming.generation import TextLane
from sww_ros.streaming.positions import SCHEMES, Track
from sww_ros.streaming.sampling import Sampling
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import replay


@pytest.fixture(scope='module')
def models():
    return random_checkpoint(SMALL, 7, max_steps=40)


def feed(session: Session, steps: int, ends: bool = True, wait: bool = False) -> None:
    for frame in range(2 * steps):
        session.feed(np.full((56, 56, 3), 25 * frame % 255, np.uint8),
                     last=ends and frame == 2 * steps - 1)
        assert not wait or session.wait_idle(30)


def narrated(events: list) -> list[TextDelta]:
    return [e for e in events if isinstance(e, TextDelta) and e.stream_id == NARRATION]


@pytest.fixture
def scripted(models, monkeypatch):
    """Let the narrator say letters, and end its turn where the test says."""
    stop = next(iter(models[1].vocabulary.stop))
    letter = models[1].encode('a')[0]

    def script(ends) -> None:
        honest = TextLane.choose

        def choose(self, logits, *of):
            logits = logits.clone()
            logits[stop if ends(self.spoken) else letter] = 1e6
            return honest(self, logits, *of)

        monkeypatch.setattr(TextLane, 'choose', choose)

    return script


@pytest.mark.parametrize('schedule', ['wait_k', 'random_wait_k'])
@pytest.mark.parametrize('scheme', SCHEMES)
def test_a_turn_that_ends_costs_no_later_step_its_words(models, scripted, scheme, schedule):
    """However far perception is ahead, the same tokens are spoken and see the same steps."""
    scripted(lambda spoken: spoken % 5 == 1)
    found = []
    for wait in (True, False):
        config = SessionConfig(position_encoding=scheme, schedule=schedule, wait_k=4,
                               record_trace=True, max_pending_frames=64, max_rest_tokens=3)
        with Session(models[1], config) as session:
            feed(session, 6, wait=wait)
            assert session.wait_idle(30)
            trace = session.trace()
        spoken = trace.predicted >= 0
        found.append((trace.predicted[spoken].tolist(), trace.sees[spoken].tolist(),
                      trace.positions[0, spoken].tolist()))
        assert spoken.sum() >= 6, 'each step speaks'
    assert found[0] == found[1]


@pytest.mark.parametrize('overlap', OVERLAPS)
def test_all_is_said_of_a_video_before_the_next_begins(models, scripted, overlap):
    scripted(lambda spoken: False)
    config = SessionConfig(schedule='offline', overlap=overlap, max_rest_tokens=30,
                           max_pending_frames=64)
    with Session(models[1], config) as session:
        feed(session, 3)
        feed(session, 2)
        assert session.wait_idle(60)
        events = session.drain()
    begins = next(i for i, e in enumerate(events) if isinstance(e, Restarted))
    for part, steps in ((events[:begins], 3), (events[begins:], 2)):
        assert ''.join(delta.delta for delta in narrated(part)) == 'a' * 30
        final = [(d.final, d.finish_reason, d.steps_seen) for d in narrated(part) if d.final]
        assert final == [(True, 'length', steps)]
        assert narrated(part)[-1].sentence == 'a' * 30, 'what was not finished is told too'


def test_answers_go_on_about_the_video_they_were_asked_of(models, scripted):
    scripted(lambda spoken: False)
    config = SessionConfig(max_rest_tokens=1, max_answer_tokens=40, max_pending_frames=64)
    with Session(models[1], config) as session:
        feed(session, 2, wait=True)
        question, events = session.ask('what?'), []
        while not any(isinstance(e, QuestionState) and e.state == 'answering' for e in events):
            events.append(session.poll(30))
        feed(session, 3)
        assert session.wait_idle(60)
        events += session.drain()
    answers = [e for e in events if isinstance(e, TextDelta) and e.stream_id == question]
    assert {(e.video, e.steps_seen) for e in answers} == {(0, 2)}
    assert [e.video for e in events if isinstance(e, StepPerceived)] == [0, 0, 1, 1, 1]
    assert {e.video for e in narrated(events)} == {0, 1}


def test_a_turn_that_ends_after_the_video_ends_the_narration(models, scripted):
    scripted(lambda spoken: spoken == 4)
    with Session(models[1], SessionConfig(schedule='offline')) as session:
        feed(session, 2)
        assert session.wait_idle(30)
        deltas = narrated(session.drain())
    assert ''.join(d.delta for d in deltas) == 'aaaa'
    assert [d.finish_reason for d in deltas if d.final] == ['stop']


def test_one_turn_is_all_that_is_said_where_that_is_asked(models, scripted):
    scripted(lambda spoken: spoken == 4)
    config = SessionConfig(schedule='wait_k', wait_k=3, single_turn=True)
    with Session(models[1], config) as session:
        feed(session, 4, ends=False, wait=True)
        feed(session, 2, wait=True)
        events = session.drain()
    assert ''.join(d.delta for d in narrated(events)) == 'aaaa'
    assert [d.finish_reason for d in narrated(events) if d.final] == ['stop']


def test_offline_a_long_video_is_told_in_pieces(models, scripted):
    scripted(lambda spoken: spoken == 2)
    config = SessionConfig(schedule='offline', max_steps=3, max_pending_frames=64)
    with Session(models[1], config) as session:
        feed(session, 7)
        assert session.wait_idle(30)
        events = session.drain()
    assert [d.steps_seen for d in narrated(events) if d.final] == [3, 3, 1]


def test_a_video_that_ends_in_a_pause_is_over(models):
    with Session(models[1], SessionConfig()) as session:
        feed(session, 1, ends=False, wait=True)
        session.pause(True)
        feed(session, 1)
        session.pause(False)
        feed(session, 1, ends=False, wait=True)
        events = session.drain()
    assert [e.reason for e in events if isinstance(e, Restarted)] == ['ended']


def test_an_answer_outlives_its_video(models, scripted):
    scripted(lambda spoken: False)
    config = SessionConfig(schedule='offline', max_rest_tokens=2, max_answer_tokens=40,
                           max_pending_frames=64)
    with Session(models[1], config) as session:
        feed(session, 1)
        question = session.ask('who?')
        feed(session, 4)
        assert session.wait_idle(60)
        events = session.drain()
    said = ''.join(e.delta for e in events
                   if isinstance(e, TextDelta) and e.stream_id == question)
    assert said == 'a' * 40
    assert not [e for e in events if isinstance(e, Trouble)]


def test_interleaved_a_step_may_follow_a_step_of_which_nothing_was_said(models):
    config = SessionConfig(position_encoding='interleaved', schedule='wait_k', record_trace=True,
                           max_pending_frames=64)
    with Session(models[1], config) as session:
        feed(session, 1, ends=False, wait=True)
        # Both at once, so that there is nothing to say when the second step is looked for.
        with session._changed:
            feed(session, 1, ends=False)
            jobs = session._scheduler.take(rules.perception)
            session.pause(True)
        session._scheduler.hand_in(session._runner.run(jobs))
        session.pause(False)
        feed(session, 1, ends=False, wait=True)
        trace = session.trace()
        assert not [e for e in session.drain() if isinstance(e, Trouble)]
    assert replay(trace, models[0]).differing == 0


def test_the_repetition_penalty_is_that_of_transformers(models):
    checkpoint = models[1]
    prefix, head = [5, 7, 9], [11, 13]
    stock = RepetitionPenaltyLogitsProcessor(1.15)
    lane = TextLane('a', checkpoint.decoder, checkpoint.decoder.new_lane(8), Track(0), head,
                    checkpoint.assembler(), Sampling(repetition_penalty=1.15), before=prefix)
    said, generator = [], torch.Generator().manual_seed(1)
    for _ in range(50):
        logits = torch.randn(40, generator=generator)
        wanted = stock(torch.tensor([prefix + head + said]), logits[None])[0].argmax()
        lane.chunk(None, 0, 1)  # What is fed counts.
        said.append(lane.choose(logits, silence=-1))
        assert said[-1] == int(wanted)
    assert len(set(said)) > 20
