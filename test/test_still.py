"""Still scenes: what has barely changed is left out, and what is left is the stock model's."""

import random
import time

import numpy as np
import pytest
import torch

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import Restarted, StepPerceived, Trouble
from sww_ros.streaming.family import Seen
from sww_ros.streaming.perception import without_still
from sww_ros.streaming.positions import SCHEMES
from sww_ros.streaming.rules import RULES
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import Trace, replay

STEPS = 12
SIDE = 112
TOKENS = 16


def seen(*angles: float) -> Seen:
    """A step whose tokens point into these directions [degrees]."""
    turned = torch.deg2rad(torch.tensor(angles))
    return Seen(torch.stack([turned.cos(), turned.sin()], dim=1))


def test_what_has_barely_changed_is_left_out_and_what_changes_slowly_is_not_missed():
    first, looks = without_still(seen(0, 0, 0), None, 0.99)
    assert first.places is None, 'the first step is whole'
    kept = []
    for number, angle in enumerate(range(2, 22, 2), 1):
        step, looks = without_still(seen(0, angle, 90 * (number % 2)), looks, 0.99)
        kept.append(step.places.tolist())
    # 0.99 is the cosine of 8 degrees, by which the second token has turned after five steps.
    assert kept == [[2]] * 4 + [[1, 2]] + [[2]] * 4 + [[1, 2]]
    assert without_still(seen(0, 21, 0), looks, 0.99)[0].places.tolist() == [1], 'one is left'


@pytest.fixture(scope='module')
def models():
    return random_checkpoint(SMALL, 4, torch.float64, silence_token='<|silence|>')


def frames(steps: int):
    """A picture in one corner of which something moves; every fourth step all has changed."""
    rng = np.random.default_rng(3)
    picture = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    for step in range(steps):
        if step % 4 == 3:
            picture = rng.integers(0, 256, picture.shape, np.uint8)
        picture = picture.copy()
        picture[:28, :28] = rng.integers(0, 256, (28, 28, 3), np.uint8)
        yield from (picture, picture)


def watch(checkpoint, **settings):
    """Return the events of a run and the traces of its streams."""
    config = SessionConfig(
        record_trace=True, frame_width=SIDE, frame_height=SIDE, wait_k=2, max_pending_frames=64,
        max_answer_tokens=6, **settings)
    chance = random.Random(settings['overlap'])
    with Session(checkpoint, config) as session:
        for number, frame in enumerate(frames(STEPS)):
            session.feed(frame, last=number == 2 * STEPS - 1)
            time.sleep(chance.choice((0, 0, 0.004)))
            if number == 9:
                session.ask('what?')
        assert session.wait_idle(60)
        return session.drain(), session.traces()


@pytest.mark.parametrize('overlap', RULES)
@pytest.mark.parametrize('scheme', SCHEMES)
def test_a_run_with_tokens_left_out_is_the_stock_models(models, tmp_path, scheme, overlap):
    oracle, checkpoint = models
    relay = {} if SCHEMES[scheme].serial else dict(max_steps=6, capacity=4, memory=2)
    events, traces = watch(checkpoint, position_encoding=scheme, overlap=overlap, still=0.96,
                           **relay)
    assert not [event for event in events if isinstance(event, Trouble)]
    steps = [event.tokens for event in events if isinstance(event, StepPerceived)]
    assert len(steps) == STEPS and steps[0] == TOKENS
    assert min(steps) < TOKENS / 2 and 0 not in steps and sum(steps[3::4]) > sum(steps[2::4])
    assert len(traces) > 2 or SCHEMES[scheme].serial
    compared = []
    for trace in traces:
        assert (trace.places[:TOKENS] == np.arange(TOKENS)).all(), 'the first step of each is whole'
        assert len(trace.places) < trace.steps * TOKENS
        trace.save(tmp_path / 'trace')
        verdict = replay(Trace.load(tmp_path / 'trace'), oracle)
        compared.append(verdict.compared)
        assert not verdict.differing
        assert not compared[-1] or float((trace.logits - verdict.logits).abs().max()) < 1e-9
    assert sum(compared) > STEPS
    if relay:
        assert any(isinstance(event, Restarted) for event in events)


def test_without_it_every_step_is_whole(models):
    events, traces = watch(models[1], overlap='fused')
    assert {event.tokens for event in events if isinstance(event, StepPerceived)} == {TOKENS}
    assert len(traces[0].places) == STEPS * TOKENS
