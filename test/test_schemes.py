"""Sessions in every position scheme: who runs in turn, how a video ends, what is told of it."""

import numpy as np
import pytest

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.decoder import Decoder
from sww_ros.streaming.events import NARRATION, Restarted, StepPerceived, TextDelta
from sww_ros.streaming.positions import SCHEMES
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import VIDEO, replay


@pytest.fixture(scope='module')
def models():
    return random_checkpoint(SMALL, 5, silence_token='<|silence|>', max_steps=40)


def watch(session: Session, steps: int, ends: bool = False) -> None:
    for frame in range(2 * steps):
        session.feed(np.full((56, 56, 3), 20 * frame % 255, np.uint8), stamp_ns=frame,
                     last=ends and frame == 2 * steps - 1)
        assert session.wait_idle(30)


@pytest.mark.parametrize('scheme', SCHEMES)
def test_only_interleaved_positions_have_to_take_turns(models, scheme):
    with Session(models[1], SessionConfig(position_encoding=scheme)) as session:
        assert session.info['position_encoding'] == scheme
        assert session.info['overlap'] == ('serial' if scheme == 'interleaved' else 'fused')


@pytest.mark.parametrize('scheme', SCHEMES)
def test_every_row_is_computed_once(models, scheme, monkeypatch):
    rows = []
    honest = Decoder.step

    def count(self, chunks):
        rows.append(sum(chunk.rows for chunk in chunks))
        return honest(self, chunks)

    monkeypatch.setattr(Decoder, 'step', count)
    config = SessionConfig(position_encoding=scheme, schedule='wait_k', record_trace=True)
    with Session(models[1], config) as session:
        watch(session, 4)
        assert sum(rows) == len(session.trace().ids)


def test_the_last_word_rides_on_the_next_step(models):
    """The serial baseline pays K - 1 forward passes a step for its K tokens, and one to see."""
    config = SessionConfig(position_encoding='interleaved', schedule='wait_k', wait_k=3,
                           record_trace=True)
    with Session(models[1], config) as session:
        watch(session, 5)
        trace = session.trace()
    assert (trace.predicted >= 0).sum() == 15
    video = trace.ids == -1
    assert (trace.predicted[video] >= 0).sum() == 4, 'the steps after the first give a token each'
    assert replay(trace, models[0]).differing == 0


@pytest.mark.parametrize('scheme', SCHEMES)
def test_answers_come_beside_the_narration_in_every_scheme(models, scheme):
    config = SessionConfig(position_encoding=scheme, record_trace=True, max_answer_tokens=6)
    with Session(models[1], config) as session:
        watch(session, 2)
        ids = [session.ask('who?'), session.ask('what?')]
        watch(session, 2)
        trace = session.trace()
        final = [e.stream_id for e in session.drain() if isinstance(e, TextDelta) and e.final]
    assert sorted(final) == sorted(ids)
    assert trace.speakers == [NARRATION, *ids]
    assert replay(trace, models[0]).differing == 0


@pytest.mark.parametrize('schedule', ['live', 'wait_k', 'random_wait_k'])
@pytest.mark.parametrize('scheme', SCHEMES)
def test_a_video_that_ends_lets_the_rest_be_said(models, scheme, schedule):
    config = SessionConfig(position_encoding=scheme, schedule=schedule, max_rest_tokens=7,
                           record_trace=True)
    with Session(models[1], config) as session:
        watch(session, 3, ends=True)
        trace = session.trace()
        assert replay(trace, models[0]).differing == 0
        tail = models[1].encode('<|vision_end|><|im_end|>\n')
        at = np.flatnonzero(trace.ids == tail[0])[-1]
        assert trace.ids[at:at + 3].tolist() == tail
        assert trace.ids[at - 1] == -1, 'the tail follows the last step'
        watch(session, 1)
        events = session.drain()
    assert [e.reason for e in events if isinstance(e, Restarted)] == ['ended']
    assert [(e.video, e.index) for e in events if isinstance(e, StepPerceived)] == [
        (0, 0), (0, 1), (0, 2), (1, 0)]


def test_a_last_frame_alone_makes_a_step(models):
    with Session(models[1], SessionConfig()) as session:
        session.feed(np.zeros((56, 56, 3), np.uint8), stamp_ns=1)
        session.feed(np.zeros((56, 56, 3), np.uint8), stamp_ns=2)
        session.feed(np.zeros((56, 56, 3), np.uint8), stamp_ns=3, last=True)
        assert session.wait_idle(30)
        steps = [e for e in session.drain() if isinstance(e, StepPerceived)]
    assert [(e.index, e.stamp_ns) for e in steps] == [(0, 2), (1, 3)]


@pytest.mark.parametrize('scheme', SCHEMES)
def test_offline_nothing_is_said_before_the_end(models, scheme):
    config = SessionConfig(position_encoding=scheme, schedule='offline', record_trace=True)
    with Session(models[1], config) as session:
        watch(session, 3)
        assert not any(isinstance(e, TextDelta) for e in session.drain())
        watch(session, 1, ends=True)
        trace = session.trace()
        assert replay(trace, models[0]).differing == 0
    first = int(np.flatnonzero(trace.predicted >= 0)[0])
    assert trace.rows().mask()[first, :first].all(), 'the first word sees all that was before'


def test_a_checkpoint_says_what_it_was_trained_for():
    _, trained = random_checkpoint(SMALL, 6, position_encoding='gipe', position_gap=500,
                                   wait_k=2)
    with Session(trained, SessionConfig()) as session:
        assert session.info['mismatch'] == ''
        assert session.scheme.gap == 500
    with Session(trained, SessionConfig(position_gap=600)) as session:
        assert 'position_gap 600 but was trained with 500' in session.info['mismatch']
    with Session(trained, SessionConfig(position_encoding='ospe', schedule='offline')) as session:
        told = session.info['mismatch']
    assert "position_encoding 'ospe' but was trained with 'gipe'" in told
    assert "schedule 'offline' but was trained with 'wait_k'" in told


def test_a_checkpoint_never_trained_to_stream_has_no_mismatch(models):
    with Session(models[1], SessionConfig(position_encoding='interleaved')) as session:
        assert session.info['mismatch'] == ''


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('rate', [1.0, 4.0, 16.0])
def test_positions_follow_the_time_of_shorter_and_longer_steps(models, scheme, rate):
    """Trained with two frames a second and two positions a second: tau(f) = floor(4 f / rate)."""
    config = SessionConfig(position_encoding=scheme, schedule='wait_k', record_trace=True,
                           frame_rate=rate)
    with Session(models[1], config) as session:
        assert session.info['frame_rate'] == rate
        assert session.info['seconds_per_step'] == 2 / rate
        watch(session, 6)
        trace = session.trace()
    verdict = replay(trace, models[0])
    assert verdict.compared > 10 and not verdict.differing
    if scheme not in ('interleaved', 'ospe'):  # In which text moves what comes after it.
        times = trace.positions[0, trace.ids == VIDEO].reshape(6, -1)
        assert (times - times[0, 0] == np.floor(4 / rate * np.arange(6))[:, None]).all()


def test_another_frame_rate_than_the_trained_one_is_told():
    trained = random_checkpoint(SMALL, 6, position_encoding='gdpe')[1]
    with Session(trained, SessionConfig(frame_rate=2.0)) as session:
        assert session.info['mismatch'] == ''
    with Session(trained, SessionConfig(frame_rate=8.0)) as session:
        assert 'frame_rate 8 but was trained with 2' in session.info['mismatch']
    with pytest.raises(ValueError, match='seconds_per_step must be above 0 and at most 3600'):
        Session(trained, SessionConfig(frame_rate=1e-4))
