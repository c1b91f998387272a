"""
What the paper's released code gets wrong, each pinned right here.

`Speak-While-Watching` evaluates all its position schemes alike, with a mask off by one row,
leaves OSPE out, counts interleaved time twice, fails on a video of one step, loses its mask to
flash attention, recomputes the whole prefix for every step, and needs a package without arm64.
"""

import ast
from dataclasses import replace
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import Qwen2_5_VLForConditionalGeneration

from sww_ros.evaluation.random_model import SMALL, random_checkpoint, save_random
from sww_ros.models.loading import load
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.decoder import Decoder
from sww_ros.streaming.generation import Vocabulary
from sww_ros.streaming.layout import ClipShape, Layout, lay_out
from sww_ros.streaming.positions import SCHEMES, VideoClock, make_scheme
from sww_ros.streaming.schedule import WaitK
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import Trace, replay
from sww_ros.streaming.visibility import ranges

PACKAGE = Path(__file__).resolve().parents[1] / 'sww_ros'
STEPS, WAIT_K, REST, GAP = 4, 2, 3, 500
ANSWER = STEPS * WAIT_K + REST


@pytest.fixture(scope='module')
def models():
    oracle, checkpoint = random_checkpoint(SMALL, 3, max_steps=50)
    # Nothing ends a turn, so that a run has the tokens that its schedule says.
    return oracle, replace(checkpoint, vocabulary=Vocabulary(frozenset()))


def play(checkpoint, scheme: str) -> Trace:
    """A video of 2 x 3 merged tokens a step, narrated live and to its end."""
    unit = checkpoint.perception.settings.unit
    config = SessionConfig(
        position_encoding=scheme, position_gap=GAP, wait_k=WAIT_K, record_trace=True,
        schedule='offline' if scheme == 'offline' else 'wait_k', max_pending_frames=2 * STEPS,
        frame_height=2 * unit, frame_width=3 * unit,
        max_rest_tokens=ANSWER if scheme == 'offline' else REST)
    rng = np.random.default_rng(1)
    with Session(checkpoint, config) as session:
        for frame in range(2 * STEPS):
            session.feed(rng.integers(0, 256, (56, 84, 3), np.uint8),
                         last=frame == 2 * STEPS - 1)
        assert session.wait_idle(60)
        return session.trace()


@pytest.fixture(scope='module')
def traces(models) -> dict[str, Trace]:
    return {name: play(models[1], name) for name in SCHEMES}


def planned(checkpoint, trace: Trace, scheme: str) -> Layout:
    """The layout that a run should have had."""
    clock = VideoClock(checkpoint.defaults.tokens_per_second, checkpoint.defaults.seconds_per_step)
    head = len(checkpoint.encode(checkpoint.turns.assistant))
    return lay_out(make_scheme(scheme, clock, GAP), WaitK(WAIT_K), ClipShape(
        prefix_of(trace), [trace.grid] * STEPS, head, STEPS * WAIT_K + REST))


def prefix_of(trace: Trace) -> int:
    return int(np.flatnonzero(trace.ids == -1)[0])


# "position_ids is reset to None in streaming evaluation, so that all variants decode alike."

@pytest.mark.parametrize('name', SCHEMES)
def test_a_live_run_sits_where_its_scheme_says(models, traces, name):
    trace, layout = traces[name], planned(models[1], traces[name], name)
    # The last token spoken is never fed.
    assert (trace.positions == layout.positions[:, :-1]).all()
    assert (trace.predicted >= 0).sum() == ANSWER


def test_live_runs_of_two_schemes_differ(models, traces):
    for one, other in itertools.combinations(SCHEMES, 2):
        assert traces[one].positions.shape == traces[other].positions.shape
        assert (traces[one].positions != traces[other].positions).any(), (one, other)
    # Not only as noted: each run equals the stock model at its own positions, and no other's.
    honest = traces['gdpe']
    assert replay(honest, models[0]).differing == 0
    gap = float((honest.logits - replay(honest, models[0]).logits).abs().max())
    for other in set(SCHEMES) - {'gdpe', 'interleaved'}:
        moved = replay(replace(honest, positions=traces[other].positions), models[0])
        assert float((honest.logits - moved.logits).abs().max()) > 100 * gap, other


# "The mask of streaming evaluation is off by one row."

@pytest.mark.parametrize('name', ['gdpe', 'gipe', 'ospe'])
def test_the_live_mask_is_the_training_mask(models, traces, name):
    trace, head = traces[name], len(models[1].encode(models[1].turns.assistant))
    answer = len(trace.ids) - int((trace.lane == -1).sum()) - head
    training = lay_out(make_scheme(name), WaitK(WAIT_K), ClipShape(
        prefix_of(trace), [trace.grid] * STEPS, head, answer)).rows
    assert answer == ANSWER - 1
    assert (trace.rows().mask() == training.mask()).all()
    for shift in (-1, 1):
        moved = replace(training, sees=np.roll(training.sees, shift))
        assert (trace.rows().mask() != moved.mask()).any()
        # And it would matter: the tokens of such a run have other logits.
        wrong = replay(replace(trace, sees=np.minimum(moved.sees, STEPS)), models[0])
        assert float((trace.logits - wrong.logits).abs().max()) > 1e-2


def test_the_row_that_predicts_token_j_sees_its_step(models, traces):
    """By numbers: the head's rows see step 0; the last of them predicts token 0."""
    trace, head = traces['gdpe'], len(models[1].encode(models[1].turns.assistant))
    sees = trace.sees[trace.lane == 0].tolist()
    assert sees == [1] * head + [1] + [2] * 2 + [3] * 2 + [4] * 5
    assert trace.predicted[trace.lane == 0].tolist()[:head - 1] == [-1] * (head - 1)


# "OSPE is not implemented."

def test_ospe_is_a_scheme_of_its_own(models, traces):
    video = np.flatnonzero(traces['ospe'].lane == -1)
    placed = {name: planned(models[1], trace, name).positions for name, trace in traces.items()}
    for name in set(SCHEMES) - {'ospe'}:
        differs = (placed[name] != placed['ospe']).any(axis=0)
        assert differs[video].any(), name
        assert differs[len(video):].any(), name


# "'interleave' counts time twice."

def test_interleaved_time_advances_by_the_extent_once():
    """Prefix 4, steps of 2 x 3, K = 2, head 3: V_1 4-6, A_1 7-11, V_2 12-14, A_2 15-16, ..."""
    layout = lay_out(make_scheme('interleaved', VideoClock(2.0, 1.0)), WaitK(2),
                     ClipShape(4, [(2, 3)] * 3, 3, 6, tail=False))
    assert layout.positions[0, layout.video_first].tolist() == [
        0, 1, 2, 3, *[4] * 6, *[12] * 6, *[17] * 6, *range(7, 12), 15, 16, 20, 21]


# "The training mask fails at F = 1."

@pytest.mark.parametrize('name, tail, text', [
    ('gdpe', 4, 0), ('gipe', 4, 500), ('offline', 4, 7), ('ospe', 4, 4), ('interleaved', 4, 7)])
def test_a_video_of_one_step(name, tail, text):
    """Prefix 2, one step of 1 x 2, head 2, three answer tokens."""
    layout = lay_out(make_scheme(name, gap=500), WaitK(3), ClipShape(2, [(1, 2)], 2, 3))
    t, rows, columns = layout.positions
    said = list(range(text, text + 5))
    assert t.tolist() == rows.tolist() == [0, 1, 2, 2, *range(tail, tail + 3), *said]
    assert columns.tolist() == [0, 1, 2, 3, *range(tail, tail + 3), *said]
    assert layout.video_first.tolist() == list(range(12))


@pytest.mark.parametrize('wait_k', [1, 3, 100])
def test_the_mask_of_a_video_of_one_step(wait_k):
    mask = lay_out(make_scheme('gdpe'), WaitK(wait_k), ClipShape(2, [(1, 2)], 2, 3)).rows.mask()
    assert [ranges(row) for row in mask] == [[[0, row + 1]] for row in range(12)]


@pytest.mark.parametrize('name', SCHEMES)
def test_a_live_video_of_one_step(models, name):
    config = SessionConfig(position_encoding=name, position_gap=GAP, wait_k=2, record_trace=True,
                           schedule='offline' if name == 'offline' else 'wait_k',
                           max_rest_tokens=2)
    with Session(models[1], config) as session:
        session.feed(np.zeros((56, 56, 3), np.uint8), last=True)
        assert session.wait_idle(60)
        trace = session.trace()
    count = int((trace.predicted >= 0).sum())
    assert count == (2 if name == 'offline' else 4)
    layout = lay_out(make_scheme(name, gap=GAP), WaitK(2), ClipShape(
        prefix_of(trace), [trace.grid], len(models[1].encode(models[1].turns.assistant)), count))
    assert (trace.positions == layout.positions[:, :-1]).all()
    assert [ranges(row) for row in trace.rows().mask()] == [
        [[0, row + 1]] for row in range(len(trace.ids))]
    assert replay(trace, models[0]).differing == 0


# "Flash attention silently drops the mask."

def test_a_checkpoint_that_asks_for_flash_attention_is_loaded_without(tmp_path, monkeypatch):
    save_random(tmp_path, SMALL, 1)
    config = json.loads((tmp_path / 'config.json').read_text())
    for part in (config, config['text_config'], config['vision_config']):
        part['attn_implementation'] = part['_attn_implementation'] = 'flash_attention_2'
    (tmp_path / 'config.json').write_text(json.dumps(config))
    asked, honest = [], Qwen2_5_VLForConditionalGeneration.from_pretrained

    def noted(*arguments, **options):
        net, found = honest(*arguments, **options)
        asked.append((options['attn_implementation'], net.config._attn_implementation,
                      net.config.text_config._attn_implementation,
                      net.config.vision_config._attn_implementation))
        return net, found

    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, 'from_pretrained', noted)
    load(str(tmp_path))
    assert asked == [('sdpa',) * 4]


def calls(name: str):
    """All calls of a function or method called `name`, with the file they are in."""
    for file in sorted(PACKAGE.rglob('*.py')):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(
                    node.func, 'attr', getattr(node.func, 'id', '')) == name:
                yield file, node


def test_no_model_is_loaded_with_another_attention():
    found = 0
    for file, call in calls('from_pretrained'):
        if not ast.unparse(call.func).startswith(('Qwen2_5_VLFor', 'Qwen3VLFor',
                                                  'self.model_class')):
            continue  # Tokenizers, configs, and metrics that have no such mask.
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert options.get('attn_implementation') == "'sdpa'", f'{file}:{call.lineno}'
        found += 1
    assert found
    for file in sorted(PACKAGE.rglob('*.py')):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.startswith('flash_attention'), f'{file}:{node.lineno}'


# "The whole prefix is recomputed for every step."

@pytest.mark.parametrize('name', SCHEMES)
def test_every_row_goes_through_the_model_once(models, monkeypatch, name):
    rows, honest = [], Decoder.step

    def counted(self, chunks):
        logits = honest(self, chunks)
        rows.extend((id(chunk.lane), len(chunk.lane) - chunk.rows + i)
                    for chunk in chunks for i in range(chunk.rows))
        return logits

    monkeypatch.setattr(Decoder, 'step', counted)
    trace = play(models[1], name)
    assert len(set(rows)) == len(rows) == len(trace.ids)


# "`decord` has no arm64 build."

def test_decord_is_not_needed():
    for file in sorted(PACKAGE.rglob('*.py')):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [
                node.module or ''] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith('import_module'):
                names = [ast.unparse(argument).strip('\'"') for argument in node.args]
            assert not [n for n in names if n.split('.')[0] == 'decord'], f'{file}:{node.lineno}'
    for file in sorted((PACKAGE.parent / 'requirements').glob('*.txt')):
        assert 'decord' not in file.read_text(), file
