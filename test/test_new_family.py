"""
A family is one folder: a checkpoint of it is found by its `model_type`, streams and is replayed.

The one of these tests (families/toy_vl) has text in every step of video.
"""

import importlib
import json
from pathlib import Path

from family_kit import STEPS, check_ids, check_replay, relieved, turn_of, watch
import numpy as np
import pytest
import torch
from turn_kit import turn_positions

from sww_ros import models
from sww_ros.evaluation import replay as command
from sww_ros.evaluation.random_model import SMALL, save_random
from sww_ros.models.files import CheckpointError
from sww_ros.models.loading import load, load_stock
from sww_ros.streaming.positions import SCHEMES
from sww_ros.streaming.trace import replay

FAMILIES = Path(__file__).parent / 'families'


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


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('schedule, overlap', [
    ('wait_k', 'threads'), ('live', 'fused'), ('live', 'processes'), ('offline', 'serial')])
def test_it_streams_as_its_oracle_has_it(folder, scheme, schedule, overlap):
    checkpoint = load(str(folder), dtype='float64')
    trace = watch(checkpoint, position_encoding=scheme, schedule=schedule, overlap=overlap)
    check_replay([trace], load_stock(str(folder), torch.float64), 5)


@pytest.mark.parametrize('scheme, overlap', [
    ('gdpe', 'serial'), ('gdpe', 'processes'), ('gipe', 'threads'), ('ospe', 'fused')])
def test_its_streams_relieve_one_another(folder, scheme, overlap):
    checkpoint = load(str(folder), dtype='float64')
    traces = relieved(checkpoint, position_encoding=scheme, overlap=overlap)
    assert len(traces) >= 3
    check_ids(traces, checkpoint)
    check_replay(traces, load_stock(str(folder), torch.float64), 10)


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
    second, _ = checkpoint.text_of_step(1)
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
