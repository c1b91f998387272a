"""
Qwen2-VL: random checkpoints of it are told by their config, stream, and equal transformers' own.

Only random weights; those of the published checkpoints are not here.
"""

from family_kit import (
    GRID,
    STEPS,
    changed,
    check_replay,
    exact,
    noise_for,
    relieved,
    turn_of,
    watch,
)
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
import torch

from sww_ros.evaluation.proof import TOLERANCE, Subject, run_case, subject_of
from sww_ros.evaluation.random_model import SMALL_QWEN2, random_model, shape_qwen2
from sww_ros.models.loading import CheckpointError, load
from sww_ros.models.qwen2_vl import Qwen2Tower
from sww_ros.streaming.positions import SCHEMES
from sww_ros.streaming.trace import VIDEO, replay

__all__ = ['exact']
SHAPE = SMALL_QWEN2
CASES = 20
QWEN2_VL_7B = shape_qwen2(3584, 18944, 28, 28, 4, depth=32, embed_dim=1280, num_heads=16)
"""The layer shapes of Qwen2-VL-7B, and so of LiveCC, from its published config."""


@torch.no_grad()
def check_tower(shape: dict, rows: int, columns: int, dtype: torch.dtype) -> None:
    stock = random_model(shape, 2, dtype)[0].model.visual
    patches = torch.randn(4 * rows * columns, 1176, dtype=dtype)
    theirs = stock(patches, grid_thw=torch.tensor([[1, 2 * rows, 2 * columns]])).pooler_output
    ours = Qwen2Tower(stock)(patches, rows, columns).rows
    close = 1e-5 if dtype == torch.float32 else 1e-12
    assert float((ours - theirs).abs().max()) <= close * float(theirs.abs().max())


@pytest.mark.parametrize('rows, columns', [(1, 1), (2, 3), (7, 4), (1, 9)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_the_tower_is_the_stock_one(rows, columns, dtype):
    check_tower(SMALL_QWEN2, rows, columns, dtype)


def test_the_tower_is_the_stock_one_in_the_shapes_of_the_7b_model():
    text = SMALL_QWEN2['text']
    vision = dict(QWEN2_VL_7B['vision'], depth=2, hidden_size=text['hidden_size'])
    check_tower(dict(QWEN2_VL_7B, text=text, vision=vision), 6, 5, torch.float32)


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('schedule, overlap', [('live', 'fused'), ('offline', 'serial')])
def test_it_streams_as_its_oracle_has_it(exact, scheme, schedule, overlap):
    checkpoint, stock = exact
    trace = watch(checkpoint, position_encoding=scheme, schedule=schedule, overlap=overlap)
    check_replay([trace], stock, 5)


def test_its_streams_relieve_one_another(exact):
    checkpoint, stock = exact
    traces = relieved(checkpoint, position_encoding='gdpe', overlap='fused')
    assert len(traces) >= 3
    check_replay(traces, stock, 10)


def test_random_runs_equal_the_oracle():
    subjects = [Subject(0, dtype, SMALL_QWEN2) for dtype in TOLERANCE]
    tokens = 0
    for seed in range(CASES):
        subject = subject_of(subjects, seed)
        outcome = run_case(subject, seed)
        assert outcome.error <= TOLERANCE[subject.dtype], f'case {seed}: {outcome}'
        assert outcome.differing == 0, f'case {seed}: {outcome}'
        tokens += outcome.tokens
    assert tokens > 40


@pytest.mark.parametrize('frame_rate', [2.0, 8.0])
def test_its_steps_are_counted_whatever_their_time(exact, frame_rate):
    checkpoint, stock = exact
    trace = watch(checkpoint, position_encoding='gdpe', schedule='offline', overlap='threads',
                  frame_rate=frame_rate)
    visual = trace.lane == -1
    ids, _ = turn_of(checkpoint, STEPS)
    assert trace.ids[visual].tolist() == ids
    # Of a video that is longer than wide, transformers has what follows begin within its time.
    before = visual & (np.cumsum(trace.ids == VIDEO) <= STEPS * GRID[0] * GRID[1])
    before[np.flatnonzero(trace.ids == VIDEO)[-1] + 1:] = False
    ids = torch.from_numpy(trace.ids[visual])[None]
    found, _ = stock.model.get_rope_index(
        ids, (ids == VIDEO).int() * 2,
        video_grid_thw=torch.tensor([[STEPS, *(2 * side for side in GRID)]]))
    assert np.array_equal(trace.positions[:, before], found[:, 0, :before.sum()].numpy())


# Loading.

@pytest.mark.parametrize('part, values, words', [
    ('vision_config', dict(embed_dim=33), 'num_heads of the vision tower'),
    ('vision_config', dict(hidden_size=47), 'hidden_size of the vision tower is 47'),
    ('vision_config', dict(depth=3), 'depth of the vision tower'),
    ('vision_config', dict(mlp_ratio=0), 'mlp_ratio'),
    ('vision_config', dict(hidden_act='nothing'), 'config.json cannot be used'),
    ('text_config', dict(num_hidden_layers=3), 'num_hidden_layers'),
    ('text_config', dict(num_key_value_heads=3), 'num_key_value_heads')])
def test_a_config_that_makes_no_sense_is_named(folder, tmp_path, part, values, words):
    with pytest.raises(CheckpointError, match=words):
        load(changed(folder, tmp_path, lambda config: config[part].update(values)))


def test_published_configs_and_weights_have_older_names(folder, tmp_path, exact):
    """The text's sizes stand in config.json itself, and weights are called as they were in 2024."""
    def flatten(config):
        text = config.pop('text_config')
        rope = text.pop('rope_parameters')
        config.update({name: value for name, value in text.items() if name != 'model_type'},
                      rope_theta=rope['rope_theta'], rope_scaling=dict(
                          type='mrope', mrope_section=rope['mrope_section']))
        config['vision_config'].update(model_type='qwen2_vl', in_chans=3)
    older = changed(folder, tmp_path, flatten)
    weights = load_file(folder / 'model.safetensors')
    save_file({name.replace('model.language_model.', 'model.').replace('model.visual.', 'visual.'):
               weight for name, weight in weights.items()}, tmp_path / 'model.safetensors',
              metadata=dict(format='pt'))
    trace = watch(load(older, dtype='float64'), noise_for(exact[0], 2), overlap='fused')
    assert replay(trace, exact[1]).differing == 0
