"""What is said at load: how fast a checkpoint runs here, and that it was not trained to stream."""

import dataclasses
import json
import math
from pathlib import Path
import sys
import threading

from narrator_harness import NarratorProcess
import pytest

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming import pace
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.pace import Pace, advice, working_size
from sww_ros.streaming.perception import Perception
from sww_ros.streaming.session import Session


@pytest.fixture(scope='module')
def stock(folder):
    return str(folder)


def test_a_stock_checkpoint_is_told_apart_loudly(stock):
    with Session.open(stock, SessionConfig(overlap='fused')) as session:
        info = session.info
    assert 'was not trained to stream' in info['warning'] and stock in info['warning']
    assert 'docs/training.md' in info['warning']
    assert 0 < info['token_seconds'] and 0 < info['step_seconds']
    json.dumps(info)


def test_the_built_in_checkpoint_is_told_without_a_warning():
    with Session.open('builtin') as session:
        info = session.info
        assert session.drain() == [], 'nothing of the measurement is left'
    assert info['warning'] == '' and 0 < info['step_seconds']


def test_a_step_is_measured_at_the_size_that_is_perceived(monkeypatch):
    _, checkpoint = random_checkpoint(SMALL, 1)
    sizes, honest = [], Perception.embed

    def noted(self, patches, height, width):
        sizes.append((height, width))
        return honest(self, patches, height, width)

    monkeypatch.setattr(Perception, 'embed', noted)
    found = pace.measure(checkpoint, SessionConfig())
    assert set(sizes) == {working_size(checkpoint, SessionConfig())} == {(420, 560)}
    assert found.visual_tokens == 300
    sizes.clear()
    config = SessionConfig(frame_width=100, frame_height=60)
    assert pace.measure(checkpoint, config).visual_tokens == 6 and set(sizes) == {(56, 84)}


def test_a_slow_machine_measures_once(monkeypatch):
    """A step that takes a minute is not run three times to know it better."""
    _, checkpoint = random_checkpoint(SMALL, 1)
    runs, honest = [], Perception.embed
    monkeypatch.setattr(Perception, 'embed', lambda *a: runs.append(1) or honest(*a))
    monkeypatch.setattr(pace, 'QUICK_S', math.inf)
    pace.measure(checkpoint, SessionConfig())
    assert len(runs) > 1
    monkeypatch.setattr(pace, 'QUICK_S', 0.0)
    runs.clear()
    pace.measure(checkpoint, SessionConfig())
    assert len(runs) == 1


def test_a_machine_that_is_too_slow_is_told_in_seconds():
    _, checkpoint = random_checkpoint(SMALL, 1)
    trained = dataclasses.replace(checkpoint, trained=True)
    assert advice(trained, 3, Pace(0.2, 0.1, 300)) == ''
    told = advice(trained, 3, Pace(62.0, 0.5, 300))
    assert '62 s' in told and '1 s of video' in told and 'trained' not in told
    assert '1.5 s' in advice(trained, 3, Pace(0.2, 0.5, 300)), 'three tokens a step'
    assert 'was not trained' in advice(checkpoint, 3, None)


def test_a_model_too_large_at_its_full_size_is_told_and_let_go(monkeypatch):
    def exhausted(*_):
        raise RuntimeError('not enough memory')

    monkeypatch.setattr('sww_ros.streaming.session.measure', exhausted)
    before = threading.enumerate()
    with pytest.raises(ValueError, match='cannot run at its full size: not enough memory'):
        Session.open('builtin')
    # The progress bar of loading a model has a thread, which stays.
    assert not [thread for thread in threading.enumerate()
                if thread not in before and type(thread).__name__ != 'TMonitor']


def test_the_narrator_says_it_in_its_log(stock, ros_domain: int, tmp_path: Path):
    with NarratorProcess(tmp_path / 'log.txt', f'model:={stock}', 'overlap:=fused',
                         command=[sys.executable, '-m', 'sww_ros.nodes.narrator']) as narrator:
        narrator.wait_log('was not trained to stream')
        assert '[WARN]' in next(line for line in narrator.log.splitlines()
                                if 'was not trained to stream' in line)
        assert 'a step takes about' in narrator.log
