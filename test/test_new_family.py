"""
A family is one folder: a checkpoint of it is found by its `model_type`, streams and is replayed.

The one of these tests (families/toy_vl) has text in every step of video.
"""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sww_ros import models
from sww_ros.evaluation import replay as command
from sww_ros.evaluation.random_model import SMALL, save_random
from sww_ros.models.files import CheckpointError
from sww_ros.models.loading import load, load_stock
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.positions import SCHEMES, VideoPart, turn_positions
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import VIDEO, replay

FAMILIES = Path(__file__).parent / 'families'
STEPS = 4


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A random checkpoint of the toy family."""
    folder = tmp_path_factory.mktemp('toy')
    save_random(folder, SMALL, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, '__path__', [*models.__path__, str(FAMILIES)])
        kind = importlib.import_module('sww_ros.models.toy_vl')
    weights = load_stock(str(folder), torch.float32).state_dict()
    config = json.loads((folder / 'config.json').read_text())
    net = kind.ToyModel(kind.ToyConfig(**config | dict(model_type='toy_vl')))
    net.load_state_dict(weights)
    net.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(models, '__path__', [*models.__path__, str(FAMILIES)])


def watch(checkpoint, **settings):
    frames = np.random.default_rng(0).integers(0, 256, (2 * STEPS, 56, 84, 3), np.uint8)
    config = SessionConfig(record_trace=True, max_rest_tokens=5, max_answer_tokens=4,
                           max_pending_frames=2 * STEPS, **settings)
    with Session(checkpoint, config) as session:
        for index, frame in enumerate(frames):
            session.feed(frame, last=index == len(frames) - 1)
            if index == 3:
                assert session.wait_idle()
                session.ask('what?')
        assert session.wait_idle()
        return session.trace()


def turn_of(checkpoint, steps):
    """Token ids of prefix, steps and tail, and the same as the parts of a turn."""
    turns, encode = checkpoint.turns, checkpoint.encode
    ids = encode(*turns.prefix(checkpoint.defaults.system, checkpoint.defaults.prompt))
    parts = [len(ids)]
    for index in range(steps):
        before, after = map(encode, turns.around_step(index, checkpoint.defaults.seconds_per_step))
        ids += [*before, *[VIDEO] * 6, *after]
        parts += [len(before), VideoPart(1, 2, 3), len(after)]
    tail = encode(turns.tail)
    return ids + tail, [*parts, len(tail)]


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('schedule, overlap', [
    ('wait_k', 'threads'), ('live', 'fused'), ('live', 'processes'), ('offline', 'serial')])
def test_it_streams_as_its_oracle_has_it(folder, scheme, schedule, overlap):
    checkpoint = load(str(folder), dtype='float64')
    trace = watch(checkpoint, position_encoding=scheme, schedule=schedule, overlap=overlap)
    verdict = replay(trace, load_stock(str(folder), torch.float64))
    assert verdict.compared >= 5 and not verdict.differing
    assert (verdict.logits - trace.logits).abs().max() < 1e-9


@pytest.mark.parametrize('scheme, overlap', [
    ('gdpe', 'serial'), ('gdpe', 'processes'), ('gipe', 'threads'), ('ospe', 'fused')])
def test_its_streams_relieve_one_another(folder, scheme, overlap):
    checkpoint = load(str(folder), dtype='float64')
    frames = np.random.default_rng(1).integers(0, 256, (24, 56, 84, 3), np.uint8)
    config = SessionConfig(record_trace=True, position_encoding=scheme, overlap=overlap, wait_k=2,
                           capacity=5, memory=2, max_steps=7, max_pending_frames=len(frames))
    with Session(checkpoint, config) as session:
        for index, frame in enumerate(frames):
            session.feed(frame)
            if index == 13:
                session.ask('what?')
            assert session.wait_idle()
        traces = session.traces()
    assert len(traces) >= 3
    stock = load_stock(str(folder), torch.float64)
    for trace in traces:
        # Each stream counts its steps from 0, and so does the text in them.
        ids, _ = turn_of(checkpoint, trace.steps)
        tail = len(checkpoint.encode(checkpoint.turns.tail))
        assert trace.ids[trace.lane == -1].tolist() == ids[:-tail]
        verdict = replay(trace, stock)
        assert not verdict.differing and (verdict.logits - trace.logits).abs().max() < 1e-9


@pytest.mark.parametrize('scheme', ['gdpe', 'gipe', 'offline'])
def test_its_steps_stand_in_the_visual_lane_with_their_text(folder, scheme):
    checkpoint = load(str(folder))
    trace = watch(checkpoint, position_encoding=scheme, overlap='threads')
    ids, parts = turn_of(checkpoint, STEPS)
    visual = trace.lane == -1
    assert trace.ids[visual].tolist() == ids
    assert np.array_equal(trace.positions[:, visual], turn_positions(parts))


def test_interleaved_text_follows_the_text_after_its_step(folder):
    checkpoint = load(str(folder))
    trace = watch(checkpoint, position_encoding='interleaved', schedule='wait_k')
    running = trace.ids[trace.lane == -1].tolist()
    first_step, _ = turn_of(checkpoint, 1)
    first_step = first_step[:-len(checkpoint.encode(checkpoint.turns.tail))]
    assert running[:len(first_step)] == first_step
    assert running[len(first_step):][:1] == checkpoint.encode(checkpoint.turns.assistant)[:1]
    # The row that ends a step, not that of a visual token, predicts what is said about it.
    second = checkpoint.encode(*checkpoint.turns.around_step(1, 1.0)[:1])
    begin = next(at for at in range(len(first_step), len(running))
                 if running[at:at + len(second)] == second)
    last = begin + len(second) + 6
    assert running[last] == checkpoint.encode('<|vision_end|>')[0]
    assert trace.predicted[last] >= 0 > trace.predicted[last - 1]
    assert not replay(trace, load_stock(str(folder), torch.float32)).differing


def test_its_run_is_replayed_by_the_command(folder, tmp_path, capsys):
    watch(load(str(folder))).save(tmp_path / 'trace')
    assert command.main([str(tmp_path / 'trace'), '--model', str(folder)]) == 0
    assert ' 0 differ' in capsys.readouterr().out


def test_without_its_folder_it_is_refused(folder, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"'toy_vl' model; only .*Qwen2.5-VL \(qwen2_5_vl\)"):
        load(str(folder))
