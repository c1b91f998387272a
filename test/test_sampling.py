"""Sampling: tokens are drawn as transformers draws them, alike on every executor, and replayed."""

from dataclasses import replace

import numpy as np
import pytest
from session_kit import texts
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import NARRATION
from sww_ros.streaming.rules import RULES
from sww_ros.streaming.sampling import Sampling
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import Trace, Verdict, replay

FRAMES = np.random.default_rng(0).integers(0, 256, (12, 56, 84, 3), np.uint8)
DRAWN = dict(temperature=8.0, top_k=50, top_p=0.95, repetition_penalty=1.05, sampling_seed=7)


@pytest.fixture(scope='module')
def exact():
    """The stock model in fp64, and the checkpoint."""
    return random_checkpoint(SMALL, 3, torch.float64, silence_token='<|silence|>', max_steps=40)


def played(checkpoint, **settings):
    """Texts by speaker, and the traces, of six steps with three questions about the first three."""
    config = SessionConfig(**{
        'record_trace': True, 'schedule': 'wait_k', 'wait_k': 3, 'max_answer_tokens': 9,
        'max_pending_frames': len(FRAMES), **DRAWN, **settings})
    with Session(checkpoint, config) as session:
        for frame in FRAMES[:6]:
            session.feed(frame)
        assert session.wait_idle(60)
        for number in range(3):
            session.ask('what?', f'q{number}')
        assert session.wait_idle(60)
        for frame in FRAMES[6:]:
            session.feed(frame)
        assert session.wait_idle(60)
        told = session.drain()
        return ({name: ''.join(event.delta for event in texts(told, name))
                 for name in (NARRATION, 'q0', 'q1', 'q2')}, session.traces())


# What is drawn.

@pytest.mark.parametrize('sampling', [
    Sampling(0.9, repetition_penalty=1.05), Sampling(0.3), Sampling(1.0, top_p=0.7),
    Sampling(2.0, top_k=5), Sampling(1.5, 20, 0.5, 1.3), Sampling(0.7, top_p=0.0),
    Sampling(1.0, top_k=1), Sampling(1.0, 500, 1.0)])
def test_the_shares_are_those_of_transformers(sampling):
    generator, said = torch.Generator().manual_seed(1), [3, 3, 17, 39]
    ids = torch.tensor([said])
    for _ in range(30):
        logits = torch.randn(40, generator=generator) * 3
        wanted = TemperatureLogitsWarper(sampling.temperature)(
            ids, RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(ids, logits[None]))
        if sampling.top_k:
            wanted = TopKLogitsWarper(sampling.top_k)(ids, wanted)
        if sampling.top_p < 1:
            wanted = TopPLogitsWarper(sampling.top_p)(ids, wanted)
        found = sampling.shares(sampling.penalized(logits, {*said}))
        assert torch.allclose(found, wanted[0].double().softmax(0), rtol=1e-5, atol=1e-12)


def test_tokens_are_drawn_as_often_as_their_shares_say():
    sampling, logits = Sampling(1.0, 4), torch.tensor([2.0, 1.0, -1.0, 0.0, 1.5, -9.0])
    count = 4000
    drawn = [sampling.choose(logits, sampling.draw('a', 0, index)) for index in range(count)]
    often = torch.bincount(torch.tensor(drawn), minlength=6) / count
    # Five standard deviations.
    assert (often - sampling.shares(logits)).abs().max() < 5 * 0.5 / count ** 0.5
    assert not often[2] and not often[5]


def test_the_edges_of_draws_are_tokens_that_can_be_drawn():
    sampling, logits = Sampling(1.0, top_k=2), torch.tensor([0.0, 3.0, 2.0, 0.0])
    assert sampling.choose(logits, 0.0) == 1
    assert sampling.choose(logits, 1 - 2 ** -53) == 2


def test_draws_are_told_apart_by_seed_speaker_stream_and_token():
    draws = {Sampling(seed=seed).draw(speaker, first, index) for seed in range(2)
             for speaker in ('narration', 'q1') for first in (0, 24) for index in range(50)}
    assert len(draws) == 400 and all(0 <= draw < 1 for draw in draws)


# Who draws.

def test_it_says_the_same_whatever_the_executor(exact):
    said, _ = played(exact[1], overlap='serial')
    for overlap in {*RULES} - {'serial'}:
        assert played(exact[1], overlap=overlap)[0] == said, overlap
    assert len({said[f'q{number}'] for number in range(3)}) == 3
    assert played(exact[1], overlap='serial', sampling_seed=8)[0] != said


def test_an_answer_is_the_same_with_and_without_others_beside_it(exact):
    def answered(*names):
        config = SessionConfig(**DRAWN, overlap='fused', max_answer_tokens=12, narrate=False)
        with Session(exact[1], config) as session:
            for frame in FRAMES[:2]:
                session.feed(frame)
            assert session.wait_idle(60)
            for name in names:
                session.ask('what?', name)
            assert session.wait_idle(60)
            return ''.join(event.delta for event in texts(session.drain(), 'b'))
    assert answered('b') == answered('a', 'b', 'c') == answered('b', 'a')


def test_greedily_nothing_is_drawn(exact):
    _, [trace] = played(exact[1], temperature=0.0, top_k=1, top_p=0.5)
    assert not trace.sampling.temperature and set(trace.draws) == {-1.0}
    assert replay(trace, exact[0]).differing == 0


# Replay.

@pytest.mark.parametrize('settings', [
    dict(position_encoding='gdpe'), dict(position_encoding='ospe', temperature=0.0),
    dict(position_encoding='interleaved'),
    dict(position_encoding='gdpe', capacity=3, memory=1, max_steps=5, previous_sentences=1),
    dict(position_encoding='gipe', repetition_penalty=1.5, top_k=0)])
def test_a_run_with_draws_and_a_penalty_is_replayed(exact, tmp_path, settings):
    _, traces = played(exact[1], **settings)
    compared = 0
    for trace in traces:
        trace.save(tmp_path / 'run.safetensors')
        found = Trace.load(tmp_path / 'run.safetensors')
        assert found.sampling == trace.sampling and found.silence == trace.silence > 0
        verdict = replay(found, exact[0])
        assert verdict.differing == 0
        assert (verdict.logits - trace.logits).abs().max() < 1e-9
        compared += verdict.compared
    assert compared > 30


@pytest.mark.parametrize('changes', [
    dict(repetition_penalty=1.0), dict(temperature=2.0), dict(temperature=0.0), dict(top_k=3)])
def test_a_replay_that_chooses_otherwise_is_found(exact, changes):
    _, [trace] = played(exact[1], repetition_penalty=1.5)
    assert replay(trace, exact[0]).differing == 0
    changed = replay(replace(trace, sampling=replace(trace.sampling, **changes)), exact[0])
    assert changed.differing - changed.rounding > 3


def test_a_replay_with_other_draws_is_found(exact):
    _, [trace] = played(exact[1])
    shifted = np.where(trace.draws >= 0, (trace.draws + 0.5) % 1, -1.0)
    found = replay(replace(trace, draws=shifted), exact[0])
    assert found.differing - found.rounding > 0.5 * found.compared


def test_a_draw_on_an_edge_is_told_from_a_wrong_one():
    sampling, logits = Sampling(1.0), torch.zeros(3, 4)
    spoken, draws = torch.tensor([1, 0, 3]), np.array([0.5 + 1e-12, 0.25, 0.5])
    logits[:, 0] = 1e-12  # Sums round.
    found = Verdict.of_draws(spoken, logits + 8, torch.float32, draws, sampling)
    assert (found.differing, found.rounding) == (3, 2)


# Settings.

@pytest.mark.parametrize('values, words', [
    (dict(temperature=-0.5), 'temperature must be at least 0.0, not -0.5; -1 means'),
    (dict(temperature=11.0), 'temperature must be -1 to 10'), (dict(top_k=-2), 'top_k must be'),
    (dict(top_p=1.5), 'top_p must be 0 to 1'), (dict(sampling_seed=-1), 'sampling_seed must be')])
def test_what_makes_no_sense_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        SessionConfig(**values)


def test_a_checkpoint_without_a_profile_is_greedy(exact):
    with Session(exact[1], SessionConfig()) as session:
        assert session.info['temperature'] == 0.0
    sampling = SessionConfig(**DRAWN).resolved(exact[1]).sampling
    assert sampling == Sampling(8.0, 50, 0.95, 1.05, 7)
