"""What a checkpoint takes of memory: planned without its weights, and measured with them."""

from __future__ import annotations

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import Qwen2_5_VLConfig

from sww_ros.evaluation.random_model import (
    QWEN2_5_VL_3B,
    save_random,
    shape,
    shape_qwen3,
)
from sww_ros.models import __main__ as command
from sww_ros.models.loading import Described, builtin_path, load
from sww_ros.models.plan import plan_of
from sww_ros.models.qwen2_5_vl import Qwen25VL
from sww_ros.streaming import decoder as decoder_module
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.decoder import Matrix
from sww_ros.streaming.session import Session

THIN = dict(depth=2, hidden_size=160, intermediate_size=424, num_heads=2, window_size=112,
            fullatt_block_indexes=[1])
CUTS = {
    'two layers of Qwen2.5-VL-3B': shape(2048, 11008, 2, 16, 2, **THIN),
    'two layers of Qwen3-VL-2B': shape_qwen3(
        2048, 6144, 2, 16, 8, 128, depth=2, hidden_size=160, intermediate_size=424, num_heads=2,
        num_position_embeddings=2304, deepstack_visual_indexes=[0, 1])}
SQUARE = dict(frame_width=84, frame_height=84, max_steps=48)
LARGER = dict(frame_width=160, frame_height=160, max_steps=10)
CASES = {
    ('builtin', 'float32'): SQUARE,
    ('two layers of Qwen2.5-VL-3B', 'bfloat16'): LARGER,
    ('two layers of Qwen2.5-VL-3B', 'int4 with bfloat16'): LARGER,
    ('two layers of Qwen3-VL-2B', 'int8 with float32'): LARGER}

MEASURE = '''
import ctypes, gc, json, sys
import numpy as np
import torch
import sww_ros.models.qwen2_5_vl.language as language
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.session import Session

def anonymous():
    """What the process holds, code and files apart."""
    lines = open('/proc/self/smaps_rollup').readlines()[1:]
    return 1024 * int(dict(line.split(':', 1) for line in lines)['Anonymous'].split()[0])

loading = []
def watched_over(work):
    def done(*given, **named):
        found = work(*given, **named)
        loading.append(anonymous())
        return found
    return done

def watch(model, settings):
    """Return what the process holds once a video was watched, and at most while it was loaded."""
    loading.clear()
    plain = torch.cat, language.weights_of
    torch.cat, language.weights_of = map(watched_over, plain)
    with Session.open(model, SessionConfig(overlap='fused', max_pending_frames=1000, **settings)
                      ) as session:
        torch.cat, language.weights_of = plain
        rng, sides = np.random.default_rng(0), (settings['frame_height'], settings['frame_width'])
        for _ in range(4 * settings['max_steps']):
            session.feed(rng.integers(0, 256, (*sides, 3), np.uint8))
        assert session.wait_idle(600)
        gc.collect()
        ctypes.CDLL('libc.so.6').malloc_trim(0)  # What is freed by then is not held.
        return anonymous(), max(loading)

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # No huge pages, of which a thread's stack takes one.
small, *models = json.loads(sys.argv[1])
watch(*small)  # What is made once, of libraries too, is there from now on.
before, found = watch(*small), []
for each in models:
    held, most = watch(*each)
    after = watch(*small)
    found.append([held - after[0], most - before[0]])
    before = after
print(json.dumps(found))
'''


@pytest.fixture(scope='module')
def small(folder):
    return str(folder)


def settings_of(precision: str, **settings) -> dict:
    """Return the settings of a session in a precision."""
    quantize, _, dtype = precision.rpartition(' with ')
    return dict(settings, dtype=dtype, quantize=quantize or 'none')


def planned(model: str, precision: str, **settings) -> dict:
    plan = command.planned(model, SessionConfig(**settings))
    return next(each for each in plan['precisions'] if each['precision'] == precision)


@pytest.fixture(scope='module')
def measured(small, tmp_path_factory):
    """
    Of each of CASES its plan, and what a process holds that has watched a video with it, at most
    while it was loaded too.

    That is beside what it holds once it has watched one with the small model instead: kernels that
    libraries compile for each shape stay for good (5 MB for the built-in, 20 to 30 for a cut), and
    are no part of a plan. One arena, which gives large blocks back at once, so that what is held
    is what is in use.
    """
    folders = {}
    for name, cut in CUTS.items():
        folders[name] = str(tmp_path_factory.mktemp('cut'))
        save_random(Path(folders[name]), cut, 1)
    models = [(folders.get(name, name), settings_of(precision, **settings))
              for (name, precision), settings in CASES.items()]
    small = (small, SQUARE)
    found = subprocess.run(
        [sys.executable, '-c', MEASURE, json.dumps([small, *models])], capture_output=True,
        text=True, timeout=1700,
        env=dict(os.environ, MALLOC_ARENA_MAX='1', MALLOC_MMAP_THRESHOLD_='65536'))
    assert found.returncode == 0, found.stderr
    held = json.loads(found.stdout.splitlines()[-1])
    plans = [planned(model, precision, **settings) for (model, _), (_, precision), settings in zip(
        models, CASES, CASES.values())]
    yield {case: (plan, *each) for case, plan, each in zip(CASES, plans, held)}
    for folder in folders.values():
        shutil.rmtree(folder)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('outs', [40, 900])
def test_a_matrix_takes_what_is_planned(dtype, outs):
    matrix = Matrix(torch.randn(outs, 500).to(dtype))
    held = sum(form.numel() * dtype.itemsize for form in (matrix._plain, matrix._packed)
               if form is not None)
    outline = Matrix(torch.empty(outs, 500, dtype=dtype, device='meta'))
    assert outline.bytes_on(torch.device('cpu')) == held
    assert outline.bytes_on(torch.device('cuda')) == outs * 500 * dtype.itemsize


@pytest.mark.parametrize('case', CASES, ids=' in '.join)
def test_a_checkpoint_takes_what_is_planned(measured, case):
    plan, growth, peak = measured[case]
    assert plan['total'] == pytest.approx(growth, rel=0.1)
    assert plan['peak'] == pytest.approx(max(growth, peak), rel=0.1)


def test_the_real_3b_is_planned_of_its_config_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Qwen25VL, 'stock', lambda *_, **__: pytest.fail('weights were read'))
    config = Qwen2_5_VLConfig(
        text_config=dict(QWEN2_5_VL_3B['text'], vocab_size=151936, tie_word_embeddings=True),
        vision_config=dict(QWEN2_5_VL_3B['vision'], out_hidden_size=2048),
        tie_word_embeddings=True)
    (tmp_path / 'config.json').write_text(json.dumps(config.to_dict()))
    assert command.main([str(tmp_path / 'config.json'), '--plan',
                         '--json', str(tmp_path / 'plan.json')]) == 0
    plan = json.loads((tmp_path / 'plan.json').read_text())
    assert 3.75e9 < plan['parameters'] < 3.76e9, 'as its publishers say'
    assert plan['saved'] == dict(bytes=0, types=[])
    rows = {each['precision']: each for each in plan['precisions']}
    assert 7.5e9 < rows['bfloat16']['weights'] + rows['bfloat16']['vision'] < 7.52e9
    assert rows['float32']['vision'] == 2 * rows['bfloat16']['vision']
    assert rows['int4 with bfloat16']['total'] - rows['int4 with bfloat16']['lanes'] <= 3.5e9
    # 300 visual tokens a second and 3 of text, 36 layers of 2 heads of 128, keys and values.
    assert rows['bfloat16']['minute'] == 60 * 303 * 36 * 2 * 2 * 128 * 2
    assert 'of whose weights no file is here' in capsys.readouterr().out


def test_a_plan_is_printed_and_written_without_reading_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Qwen25VL, 'stock', lambda *_, **__: pytest.fail('weights were read'))
    monkeypatch.setenv('COLUMNS', '200')
    assert command.main(['builtin', '--plan', '--max-steps', '96',
                         '--json', str(tmp_path / 'plan.json')]) == 0
    plan = json.loads((tmp_path / 'plan.json').read_text())
    outline = Described('builtin', str(builtin_path())).outline(torch.float32)
    expected = plan_of(outline, 'cpu', SessionConfig(max_steps=96))
    first = plan['precisions'][0]
    assert (first['weights'], first['lanes']) == (expected.weights, expected.lanes)
    assert first['total'] == first['weights'] + first['vision'] + first['lanes']
    assert plan['frame_rate'] == 2 and plan['rows_per_step'] == 6 and plan['max_steps'] == 96
    assert plan['saved']['types'] == ['F32'] and plan['program'] > 50e6
    printed = capsys.readouterr().out
    for words in ('builtin: 1.8 M weights, saved as F32 in 7 MB', 'float32', 'bfloat16',
                  '2 frames a second of 84x56 pixels, 6 tokens a step',
                  f'{first["total"] / 1e6:.1f} MB'):
        assert words in printed, printed


def test_lanes_are_those_that_a_session_tells():
    config = SessionConfig(overlap='fused')
    with Session(load(), config) as session:
        assert planned('builtin', 'float32')['lanes'] == session.info['lane_bytes']


@pytest.mark.parametrize('model, words', [
    ('/no/such/folder', 'the folder does not exist'),
    ('no-such-user/no-such-model', 'neither a folder nor in the local cache')])
def test_what_cannot_be_planned_is_told(model, words, capsys):
    assert command.main([model, '--plan']) == 1
    told = capsys.readouterr().err
    assert words in told and model in told and 'Traceback' not in told


def test_one_side_of_a_frame_is_refused(capsys):
    assert command.main(['builtin', '--plan', '--frame-width', '84']) == 1
    assert 'must be given together' in capsys.readouterr().err


def test_small_matrices_are_counted_twice_where_they_are_there_twice(monkeypatch):
    small = planned('builtin', 'float32')['weights']
    monkeypatch.setattr(decoder_module, '_LARGE', 0)
    once = planned('builtin', 'float32')['weights']
    assert once < small < 2 * once


def test_the_folder_of_a_checkpoint_may_be_a_relative_path(small, monkeypatch, capsys):
    monkeypatch.chdir(Path(small).parent)
    assert command.main([Path(small).name, '--plan']) == 0
    monkeypatch.chdir(small)
    assert command.main(['config.json', '--plan']) == 0
    assert 'BF16' in capsys.readouterr().out
