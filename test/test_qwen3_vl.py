"""
Qwen3-VL: random checkpoints of it are told by their config, stream, and equal transformers' own.

Only random weights; those of the published checkpoints are not here.
"""

from dataclasses import replace
from functools import reduce
import json
from pathlib import Path
from types import SimpleNamespace

from family_kit import (
    GRID,
    STEPS,
    changed,
    check_ids,
    check_real_shapes,
    check_replay,
    exact,
    noise_for,
    relieved,
    turn_of,
    watch,
)
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
import torch
from training_kit import DATA
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from sww_ros.benchmark.contenders import make_contest
from sww_ros.evaluation.proof import TOLERANCE, Subject, can_relay, run_case, subject_of
from sww_ros.evaluation.random_model import (
    SMALL_QWEN3,
    random_checkpoint,
    random_model,
    save_random,
    shape_qwen3,
)
from sww_ros.models.loading import CheckpointError, load, load_stock
from sww_ros.models.qwen3_vl import Qwen3Tower
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.decoder import Decoder
from sww_ros.streaming.positions import SCHEMES, make_scheme
from sww_ros.streaming.rules import RULES
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import VIDEO, replay
from sww_ros.training.recipe import Recipe
from sww_ros.training.trainer import train

PARALLEL = ('gdpe', 'gipe', 'ospe', 'offline')
__all__ = ['exact']
SHAPE = SMALL_QWEN3
CASES = 40
QWEN3_VL_2B = shape_qwen3(2048, 6144, 28, 16, 8, 128, depth=24, hidden_size=1024,
                          intermediate_size=4096, num_heads=16, num_position_embeddings=2304,
                          deepstack_visual_indexes=[5, 11, 17])
"""The layer shapes of Qwen3-VL-2B, from its published config."""


# The vision tower.

@pytest.fixture(scope='module')
def towers():
    return {dtype: random_model(SMALL_QWEN3, 1, dtype)[0].model.visual
            for dtype in (torch.float32, torch.float64)}


@torch.no_grad()
def difference(stock, rows: int, columns: int, dtype: torch.dtype) -> tuple[float, float]:
    """The largest difference to the stock tower, deeper features included, and what is normal."""
    patches = torch.randn(4 * rows * columns, 1536, dtype=dtype)
    theirs = stock(patches, grid_thw=torch.tensor([[1, 2 * rows, 2 * columns]]))
    theirs = torch.stack([theirs.pooler_output, *theirs.deepstack_features])
    seen = Qwen3Tower(stock)(patches, rows, columns)
    ours = torch.cat([seen.rows[None], seen.deep])
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max()), float(theirs.abs().max())


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 99),
       dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_tower_is_the_stock_one(towers, rows, columns, seed, dtype):
    torch.manual_seed(seed)
    error, _ = difference(towers[dtype], rows, columns, dtype)
    assert error <= (2e-5 if dtype == torch.float32 else 1e-9)


def cut(shape: dict) -> dict:
    """Two layers of a shape on both sides."""
    return dict(shape, text=dict(shape['text'], num_hidden_layers=2),
                vision=dict(shape['vision'], depth=2, deepstack_visual_indexes=[0, 1]))


def test_the_tower_is_the_stock_one_in_the_shapes_of_the_2b_model():
    shape = dict(cut(QWEN3_VL_2B), text=SMALL_QWEN3['text'])
    error, largest = difference(random_model(shape, 2)[0].model.visual, 6, 5, torch.float32)
    assert error <= 1e-4 * largest


# Streams.

@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('schedule, overlap', [
    ('wait_k', 'threads'), ('live', 'fused'), ('live', 'processes'), ('offline', 'serial')])
def test_it_streams_as_its_oracle_has_it(exact, scheme, schedule, overlap):
    checkpoint, stock = exact
    trace = watch(checkpoint, position_encoding=scheme, schedule=schedule, overlap=overlap)
    check_replay([trace], stock, 5)


@pytest.mark.parametrize('scheme, overlap', [
    *((scheme, 'fused') for scheme in PARALLEL), *(('gdpe', overlap) for overlap in RULES)])
def test_its_streams_relieve_one_another(exact, scheme, overlap):
    checkpoint, stock = exact
    traces = relieved(checkpoint, position_encoding=scheme, overlap=overlap)
    assert len(traces) >= 3
    check_ids(traces, checkpoint)
    check_replay(traces, stock, 10)


@pytest.mark.parametrize('scheme, overlap', [
    ('gdpe', 'processes'), ('gipe', 'fused'), ('interleaved', 'serial')])
def test_tokens_that_are_left_out_take_their_deeper_features_with_them(exact, scheme, overlap):
    checkpoint, stock = exact
    frames = noise_for(checkpoint, STEPS)
    frames[:, :, 40:] = frames[0, :, 40:]
    trace = watch(checkpoint, frames, position_encoding=scheme, overlap=overlap, still=0.99)
    assert len(trace.places) < STEPS * GRID[0] * GRID[1]
    check_replay([trace], stock, 5)


@pytest.fixture(scope='module')
def subjects() -> list[Subject]:
    return [Subject(seed, dtype, SMALL_QWEN3)
            for seed in range(2) for dtype in (torch.float32, torch.float64)]


@pytest.mark.parametrize('first, hand_overs', [(0, False), (5000, True)])
def test_random_runs_equal_the_oracle(subjects, first, hand_overs):
    seeds = [seed for seed in range(first, first + CASES) if can_relay(seed) or not hand_overs]
    tokens, relays = 0, 0
    for seed in seeds[:CASES // 4] if hand_overs else seeds:
        subject = subject_of(subjects, seed)
        outcome = run_case(subject, seed, hand_overs)
        assert outcome.error <= TOLERANCE[subject.dtype], f'case {seed}: {outcome}'
        assert outcome.differing == 0, f'case {seed}: {outcome}'
        tokens, relays = tokens + outcome.tokens, relays + outcome.hand_overs
    assert tokens > 40 and (relays > 10 or not hand_overs)


def test_the_proof_fails_when_deeper_features_are_left_out(subjects, monkeypatch):
    honest = Decoder.rows_of
    monkeypatch.setattr(Decoder, 'rows_of', lambda self, before, seen, after=(): honest(
        self, before, replace(seen, deep=None), after))
    outcomes = [run_case(subjects[1], seed) for seed in range(4)]
    assert max(outcome.error for outcome in outcomes) > TOLERANCE[torch.float64]


def test_the_proof_fails_when_kept_steps_lose_their_deeper_features(subjects, monkeypatch):
    monkeypatch.setattr('sww_ros.streaming.stream.KeptSteps.add', lambda self, seen, patches: (
        self._steps.append((seen and replace(seen, deep=None), patches)),
        setattr(self, '_count', self._count + 1)))
    seeds = [seed for seed in range(5000, 5040) if can_relay(seed)][:3]
    outcomes = [run_case(subjects[1], seed, hand_overs=True) for seed in seeds]
    assert max(outcome.error for outcome in outcomes) > TOLERANCE[torch.float64]


def test_in_bfloat16_tokens_differ_by_rounding_alone():
    compared = 0
    for seed in range(2):
        model, checkpoint = random_checkpoint(SMALL_QWEN3, seed, torch.bfloat16, max_steps=40)
        verdict = replay(watch(checkpoint, noise_for(checkpoint, 8, seed), wait_k=5), model)
        assert verdict.differing == verdict.rounding
        compared += verdict.compared
    assert compared > 40


def test_the_layer_shapes_of_the_2b_model_load_and_stream(tmp_path):
    """Two decoder and two vision layers of the real shapes, from disk, through the same code."""
    save_random(tmp_path, cut(QWEN3_VL_2B), 1)
    check_real_shapes(tmp_path, Qwen3VLForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation='sdpa'), 128, 1.5e8)


# What it is asked in, and where its rows sit.

def processor(tokenizer) -> Qwen3VLProcessor:
    """Transformers' own processor, without the pixels' part, which needs torchvision."""
    made = Qwen3VLProcessor.__new__(Qwen3VLProcessor)
    for name in ('image', 'video', 'vision_start', 'vision_end'):
        token = f'<|{name}_pad|>' if name in ('image', 'video') else f'<|{name}|>'
        setattr(made, f'{name}_token', token)
    made.tokenizer = tokenizer
    made.video_processor = SimpleNamespace(merge_size=2, temporal_patch_size=2)
    return made


@pytest.mark.parametrize('frame_rate', [2.0, 1.0, 3.0, 10.0, 0.7, 29.97])
def test_it_is_asked_as_its_processor_writes(folder, frame_rate):
    checkpoint = load(str(folder), device='meta').at(frame_rate)
    steps = 60
    about = dict(
        video_grid_thw=np.array([[steps, *(2 * side for side in GRID)]]),
        video_metadata=[SimpleNamespace(fps=frame_rate, frames_indices=list(range(2 * steps)))])
    made, defaults = processor(checkpoint.tokenizer), checkpoint.defaults
    # What its chat template makes of a system turn, and a text and a video in one user turn.
    template = (f'<|im_start|>system\n{defaults.system}<|im_end|>\n<|im_start|>user\n'
                f'{defaults.prompt}<|vision_start|><|video_pad|><|vision_end|><|im_end|>\n'
                '<|im_start|>assistant\n')
    [text], _ = made.get_text_with_replacements(
        [template], videos_replacements=[made.replace_video_token(about, 0)])
    video = checkpoint.tokenizer.convert_tokens_to_ids('<|video_pad|>')
    ours = turn_of(checkpoint, steps)[0] + checkpoint.encode(checkpoint.turns.assistant)
    assert [video if token == VIDEO else token for token in ours] == checkpoint.encode(text)


def stock_positions(oracle, ids: np.ndarray, steps: int) -> np.ndarray:
    """Positions (3, n) by transformers' own rule, of text and visual tokens in a row."""
    found, _ = oracle.model.get_rope_index(
        torch.from_numpy(ids)[None], torch.from_numpy(2 * (ids == VIDEO))[None],
        video_grid_thw=torch.tensor([[steps, *(2 * side for side in GRID)]]))
    return found[:, 0].numpy()


@pytest.mark.parametrize('scheme', ['gdpe', 'gipe', 'offline'])
def test_its_visual_group_is_laid_out_as_the_stock_model_does(exact, scheme):
    checkpoint, stock = exact
    trace = watch(checkpoint, position_encoding=scheme, overlap='threads', schedule='offline')
    visual = trace.lane == -1
    ids, _ = turn_of(checkpoint, STEPS)
    assert trace.ids[visual].tolist() == ids
    assert np.array_equal(trace.positions[:, visual], stock_positions(stock, trace.ids[visual],
                                                                      STEPS))
    first = dict(gdpe=0, gipe=10_000, offline=1 + trace.positions[:, visual].max())[scheme]
    assert trace.positions[:, trace.lane == 0].tolist() == 3 * [
        list(range(first, first + sum(trace.lane == 0)))]


def test_interleaved_every_row_is_where_the_stock_model_has_it(exact):
    checkpoint, stock = exact
    trace = watch(checkpoint, position_encoding='interleaved', schedule='wait_k')
    running = trace.lane == -1
    assert np.array_equal(trace.positions[:, running],
                          stock_positions(stock, trace.ids[running], STEPS))


def test_golden_positions_of_a_step_between_its_time_and_its_end():
    """By hand: p = 3; `<0.2 seconds><|vision_start|>` as 2 tokens, 2x3 tokens, 1 token; twice."""
    timeline = make_scheme('gdpe').timeline(3)
    t, rows, columns = np.concatenate([timeline.step(2, 3, text=(2, 1)) for _ in range(2)], axis=1)
    assert t.tolist() == [3, 4, 5, 5, 5, 5, 5, 5, 8, 9, 10, 11, 11, 11, 11, 11, 11, 14]
    assert rows.tolist() == [3, 4, 5, 5, 5, 6, 6, 6, 8, 9, 10, 11, 11, 11, 12, 12, 12, 14]
    assert columns.tolist() == [3, 4, 5, 6, 7, 5, 6, 7, 8, 9, 10, 11, 12, 13, 11, 12, 13, 14]
    assert timeline.tail()[0].tolist() == [15, 16, 17]
    assert timeline.narration().place(2)[0].tolist() == [0, 1]


# Loading.

def edited(folder: Path, to: Path, path: tuple[str, ...], values: dict) -> str:
    """Copy a checkpoint with a part of its config changed."""
    return changed(folder, to, lambda config: reduce(dict.__getitem__, path, config).update(values))


TEXT, VISION = ('text_config',), ('vision_config',)


@pytest.mark.parametrize('path, values, words', [
    ((*TEXT, 'rope_parameters'), dict(mrope_section=[4, 2, 3]), 'adds up to 9, not to 8'),
    ((*TEXT, 'rope_parameters'), dict(mrope_section=[4, 4]), 'a part for each of time, row and'),
    ((*TEXT, 'rope_parameters'), dict(rope_theta=0), 'rope_theta'),
    ((*TEXT, 'rope_parameters'), dict(rope_type='linear', factor=2.0), "rotary scaling 'linear'"),
    (TEXT, dict(num_key_value_heads=3), 'num_key_value_heads'),
    (TEXT, dict(num_hidden_layers=60), 'num_hidden_layers 60'),
    (TEXT, dict(attention_bias=True), 'attention_bias is set'),
    (TEXT, dict(hidden_act='gelu'), "activation 'gelu' is not supported"),
    (TEXT, dict(rms_norm_eps=-1), 'rms_norm_eps'),
    (VISION, dict(out_hidden_size=47), 'out_hidden_size'),
    (VISION, dict(num_heads=3), 'num_heads'),
    (VISION, dict(patch_size=[16, 16]), 'patch_size'),
    (VISION, dict(temporal_patch_size=4), 'only 2 frames a step have the times'),
    (VISION, dict(num_position_embeddings=26), 'num_position_embeddings 26 is no square'),
    (VISION, dict(num_position_embeddings=10 ** 9), 'num_position_embeddings'),
    (VISION, dict(deepstack_visual_indexes=[1, 0]), 'rising blocks below 3'),
    (VISION, dict(deepstack_visual_indexes=[0, 3]), 'rising blocks below 3'),
    (VISION, dict(deepstack_visual_indexes=7), 'deepstack_visual_indexes'),
    ((), dict(model_type='qwen3_vl_moe'), r"'qwen3_vl_moe' model; only .*Qwen3-VL \(qwen3_vl\)"),
])
def test_a_setting_that_makes_no_sense_is_named(folder, tmp_path, path, values, words):
    with pytest.raises(CheckpointError, match=words):
        load(edited(folder, tmp_path, path, values))


def test_more_deeper_features_than_layers_are_refused(folder, tmp_path):
    spoiled = edited(folder, tmp_path, VISION, dict(deepstack_visual_indexes=[0, 1, 2]))
    with pytest.raises(CheckpointError, match='at most one for each of the 2 layers of the text'):
        load(edited(Path(spoiled), tmp_path, TEXT, dict(num_hidden_layers=2)))


def test_the_published_form_of_a_config_is_read_alike(folder, tmp_path):
    """Its files have `rope_scaling` and `rope_theta` beside it, and one name for both types."""
    spoiled = edited(folder, tmp_path, VISION, dict(model_type='qwen3_vl'))
    rotary = json.loads((folder / 'config.json').read_text())['text_config']['rope_parameters']
    theta = rotary.pop('rope_theta')
    spoiled = edited(Path(spoiled), tmp_path, TEXT, dict(rope_scaling=rotary, rope_theta=theta))
    config = json.loads((tmp_path / 'config.json').read_text())
    del config['text_config']['rope_parameters']
    (tmp_path / 'config.json').write_text(json.dumps(config))
    one, other = (load(name).decoder.model.rotary(torch.arange(9).expand(3, -1))
                  for name in (str(folder), spoiled))
    assert torch.equal(one, other)


def test_deeper_features_that_are_no_numbers_are_told(folder, tmp_path):
    spoiled, file = edited(folder, tmp_path, (), {}), tmp_path / 'model.safetensors'
    weights = load_file(file)
    weights['model.visual.deepstack_merger_list.1.linear_fc2.bias'][3] = torch.nan
    save_file(weights, file, metadata=dict(format='pt'))
    with pytest.raises(CheckpointError, match='no finite numbers .its vision tower.'):
        load(spoiled)


def test_frames_are_as_large_as_its_patches_make_308_tokens(folder, tmp_path):
    """Its video processor's bounds are of a whole video; those of a frame are the engine's own."""
    spoiled = edited(folder, tmp_path, (), {})
    (tmp_path / 'video_preprocessor_config.json').write_text(json.dumps(dict(
        size=dict(longest_edge=25_165_824, shortest_edge=4096), patch_size=16,
        temporal_patch_size=2, merge_size=2)))
    pixels = load(spoiled, device='meta').perception.settings
    assert (pixels.unit, pixels.min_pixels, pixels.max_pixels) == (32, 4096, 308 * 32 * 32)
    assert pixels.mean == pixels.std == (0.5, 0.5, 0.5)


def test_what_is_remembered_counts_deeper_features_too(exact):
    checkpoint, _ = exact
    with Session(checkpoint, SessionConfig(recall_steps=1000, frame_width=64, frame_height=64,
                                           max_steps=8, overlap='serial')) as session:
        # 1000 steps of 4 tokens, 48 numbers of 8 bytes each, and as much for each of two layers.
        assert 'remembered in up to 4.6 MB' in session.info['relay']


def test_it_is_no_contender_yet(folder):
    with pytest.raises(CheckpointError, match='Qwen3-VL has text in every step of video'):
        make_contest(str(folder), 2, 64)


# Training; its rows and its loss are held to the engine's in test/test_training.py.

@pytest.mark.parametrize('changes', [{}, dict(lora_rank=8)], ids=['full', 'lora'])
def test_what_was_trained_opens_and_streams(folder, tmp_path, changes):
    train(Recipe(model=str(folder), data=(DATA / 'pe_video.jsonl',), out=tmp_path, steps=2,
                 batch=2, learning_rate=1e-2, warmup=0.0, max_pixels=64 * 64, keep_all=True,
                 **changes))
    before, after = (load_stock(str(name), torch.float32) for name in (folder, tmp_path))
    moved = {name for name, weight in after.named_parameters()
             if not torch.equal(weight, before.get_parameter(name))}
    parts = ('visual.merger.linear_fc2', 'visual.deepstack_merger_list.1.linear_fc1',
             'language_model.layers.2.self_attn.q_proj', 'language_model.layers.0.mlp.down_proj')
    assert moved >= {f'model.{part}.weight' for part in parts}
    assert not [name for name in moved if 'visual' in name and 'merger' not in name]
    trace = watch(checkpoint := load(str(tmp_path), dtype='float64'))
    assert checkpoint.trained
    check_replay([trace], load_stock(str(tmp_path), torch.float64), 5)
