"""Replay: in the type of the recorded run, with a promise that is kept for each type."""

from dataclasses import replace
import json
import resource

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
import torch
from training_kit import noise
from video_kit import write_video

from sww_ros.__main__ import main as watch
from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.evaluation.replay import main
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import Trace, Verdict, replay

EXACT, ROUNDED = ('float32', 'float64'), ('bfloat16', 'float16')


def recorded(video, tmp_path, dtype):
    trace = tmp_path / 'run.safetensors'
    assert watch([str(video), '--dtype', dtype, '--trace', str(trace),
                  '--ask', '2: What colour is the square?']) == 0
    return trace


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp('video') / 'a.mp4', range(0, 4000, 500))


@pytest.fixture(scope='module')
def honest(video, tmp_path_factory):
    """A trace in float32, to be read only."""
    return recorded(video, tmp_path_factory.mktemp('honest'), 'float32')


@pytest.mark.parametrize('dtype', [*EXACT, *ROUNDED])
def test_a_run_is_replayed_in_its_own_type_and_a_false_token_found(video, tmp_path, capsys, dtype):
    trace = recorded(video, tmp_path, dtype)
    content = Trace.load(trace)
    assert content.dtype == dtype
    capsys.readouterr()
    assert main([str(trace)]) == 0
    said = capsys.readouterr().out
    assert f'compared in {dtype}' in said
    if dtype in EXACT:
        assert ' 0 differ' in said
    else:
        assert 'rounds' in said
    at = np.flatnonzero(content.predicted >= 0)[3]
    content.predicted[at] = (content.predicted[at] + 200) % 400
    content.save(trace)
    assert main([str(trace)]) == 1


def test_another_type_than_that_of_the_run_is_told(video, tmp_path, capsys):
    trace = recorded(video, tmp_path, 'bfloat16')
    capsys.readouterr()
    main([str(trace), '--dtype', 'float32'])
    assert 'recorded in bfloat16, compared in float32' in capsys.readouterr().out
    assert main([str(trace), '--dtype', 'int3']) == 2
    assert 'float32' in capsys.readouterr().err


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_in_narrow_types_tokens_differ_by_rounding_alone(dtype):
    compared = 0
    for seed in range(4):
        model, checkpoint = random_checkpoint(SMALL, seed, dtype, max_steps=40)
        config = SessionConfig(record_trace=True, max_answer_tokens=30, max_pending_frames=64)
        with Session(checkpoint, config) as session:
            for frame in noise(8, seed=seed):
                session.feed(frame)
            session.ask('What?')
            assert session.wait_idle(60)
            trace = session.trace()
        verdict = replay(trace, model)
        assert verdict.differing == verdict.rounding
        compared += verdict.compared
        wrong = replace(trace, predicted=np.where(trace.predicted >= 0,
                                                  (trace.predicted + 1) % 256, -1))
        found = replay(wrong, model)
        assert found.differing - found.rounding > 0.8 * found.compared
    assert compared > 120


def test_a_tie_counts_as_rounding_in_narrow_types_alone():
    logits = torch.tensor([[8.0, 8.01, 1.0], [8.0, 1.0, 9.0]])
    spoken = torch.tensor([0, 0])
    narrow = Verdict.of(spoken, logits, torch.bfloat16)
    assert (narrow.differing, narrow.rounding) == (2, 1)
    exact = Verdict.of(spoken, logits, torch.float32)
    assert (exact.differing, exact.rounding) == (2, 0)


def test_a_trace_of_another_checkpoint_is_told(tmp_path, honest, capsys):
    trace, content = tmp_path / 'other.safetensors', Trace.load(honest)
    replace(content, ids=content.ids + 10 ** 6).save(trace)
    assert main([str(trace)]) == 2
    assert 'another checkpoint' in capsys.readouterr().err


def test_a_trace_without_a_type_is_of_float32(tmp_path, honest):
    trace, content = tmp_path / 'old.safetensors', Trace.load(honest)
    save_file(load_file(honest), trace, metadata=dict(trace=json.dumps(dict(
        grid=content.grid, steps=content.steps, speakers=content.speakers))))
    assert Trace.load(trace).dtype == 'float32' and main([str(trace)]) == 0


def test_a_trace_may_be_read_by_whoever_may_read_its_folder(tmp_path, honest):
    plain = tmp_path / 'plain'
    plain.touch()
    assert honest.stat().st_mode == plain.stat().st_mode


def test_a_trace_that_cannot_be_written_is_told(tmp_path, video, monkeypatch, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    honest = Trace.save

    def limited(self, file):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            honest(self, file)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(Trace, 'save', limited)
    assert watch([str(video), '--trace', str(tmp_path / 'run.safetensors')]) == 1
    said = capsys.readouterr().err
    assert 'cannot write the trace' in said and 'File too large' in said
