"""Weights as whole numbers: exact products of what they stand for, in every executor."""

from __future__ import annotations

import json
import math
from pathlib import Path

from family_kit import changed
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
import torch

from sww_ros.evaluation import replay as replay_command
from sww_ros.evaluation.random_model import QWEN2_5_VL_3B, SMALL_QWEN3, save_random
from sww_ros.models.loading import CheckpointError, load, load_stock
from sww_ros.shapes import score
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import TextDelta
from sww_ros.streaming.quantize import codes_of, dequantized, weights_of
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import replay

KINDS = ('int8', 'int4')
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(scope='module')
def small(folder):
    return str(folder)


def held_bytes(matrix) -> int:
    """Return what the tensors of a matrix take, its bias apart."""
    held = [value for name, value in vars(matrix).items() if name != '_bias']
    held += [part for value in held if isinstance(value, tuple) for part in value]
    return sum({part.data_ptr(): part.nbytes for part in held
                if isinstance(part, torch.Tensor)}.values())


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('shape', [(64, 48), (96, 256), (40, 30), (2600, 1920)])
def test_rows_are_multiplied_by_what_the_whole_numbers_stand_for(kind, dtype, shape):
    """By PyTorch's kernels in bf16, where the shape allows it, and by blocks."""
    torch.manual_seed(0)
    weight, bias = torch.randn(shape).to(dtype), torch.randn(shape[0]).to(dtype)
    meant = dequantized(weight, kind).double()
    for rows in (1, 3, 33, 100):
        x, base = torch.randn(rows, shape[1]).to(dtype), torch.randn(rows, shape[0]).to(dtype)
        product = x.double() @ meant.t()
        close = TOLERANCE[dtype] * float(product.abs().max())
        for found, wanted in ((weights_of(weight, None, kind)(x), product),
                              (weights_of(weight, bias, kind)(x), product + bias),
                              (weights_of(weight, None, kind).added_to(base, x), product + base)):
            assert found.dtype == dtype
            assert float((found.double() - wanted).abs().max()) <= close


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('shape', [(64, 48), (96, 256), (40, 30)])
def test_a_quantized_matrix_takes_what_is_planned(kind, dtype, shape):
    outline = weights_of(torch.empty(shape, dtype=dtype, device='meta'), None, kind)
    matrix = weights_of(torch.randn(shape).to(dtype), None, kind)
    assert matrix.numel == outline.numel == math.prod(shape)
    assert outline.bytes_on(torch.device('cpu')) == held_bytes(matrix)


@pytest.mark.parametrize('kind, steps', [('int8', 254), ('int4', 15)])
def test_whole_numbers_are_the_nearest(kind, steps):
    torch.manual_seed(0)
    weight = torch.randn(50, 384)
    span = 2 * weight.abs().amax(1) if kind == 'int8' else (
        weight.view(50, 3, 128).amax(2) - weight.view(50, 3, 128).amin(2)).amax(1)
    off = (dequantized(weight, kind) - weight).abs()
    assert bool((off <= 0.501 * span[:, None] / steps).all())
    assert float(off.mean()) > 0.1 * float(span.mean()) / steps, 'they are whole numbers'


@pytest.mark.parametrize('kind', KINDS)
def test_rows_of_zeros_and_of_one_number_stay_what_they_are(kind):
    weight = torch.zeros(16, 128)
    weight[3], weight[5, 7] = 0.3, -2.0
    torch.testing.assert_close(dequantized(weight, kind), weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_large_matrices_are_quantized_in_parts_alike(kind, monkeypatch):
    torch.manual_seed(0)
    weight, x = torch.randn(304, 256).bfloat16(), torch.randn(2, 256).bfloat16()
    whole, product = codes_of(weight, kind), weights_of(weight, None, kind)(x)
    monkeypatch.setattr('sww_ros.streaming.quantize._CHUNK', 256 * 70)
    for one, other in zip(codes_of(weight, kind), whole):
        assert one is other or torch.equal(one, other)
    assert torch.equal(weights_of(weight, None, kind)(x), product)


def watch(model: str, **settings):
    """Return the trace of a run, with an answer beside the narration."""
    with Session.open(model, SessionConfig(record_trace=True, max_answer_tokens=6,
                                           **settings)) as session:
        frames = np.random.default_rng(0).integers(0, 256, (8, 84, 84, 3), np.uint8)
        for frame in frames[:4]:
            session.feed(frame)
        assert session.wait_idle(120)
        session.ask('What colour is the square?')
        for frame in frames[4:]:
            session.feed(frame)
        assert session.wait_idle(120)
        assert any(isinstance(event, TextDelta) for event in session.drain())
        return session.info, session.trace()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('overlap', ['fused', 'threads', 'processes', 'serial'])
@pytest.mark.parametrize('model', ['builtin', 'small'])
def test_a_run_is_that_of_the_stock_model_with_the_dequantized_weights(small, kind, overlap,
                                                                        model):
    model = small if model == 'small' else model
    info, trace = watch(model, overlap=overlap, quantize=kind)
    assert info['dtype'] == f'{kind} with float32' and trace.quantize == kind
    verdict = replay(trace, load_stock(model, torch.float32, kind))
    scale = float(verdict.logits.abs().max())
    assert verdict.differing == 0 and verdict.compared > 8
    error = float((trace.logits - verdict.logits).abs().max())
    assert error < 1e-4 * max(1.0, scale)
    plain = replay(trace, load_stock(model, torch.float32))
    assert float((trace.logits - plain.logits).abs().max()) > 30 * error, 'they are quantized'


@pytest.mark.parametrize('kind', KINDS)
def test_a_run_of_qwen3_vl_is_that_of_its_stock_model_with_the_dequantized_weights(tmp_path, kind):
    save_random(tmp_path, SMALL_QWEN3, 1)
    _, trace = watch(str(tmp_path), overlap='fused', quantize=kind)
    verdict = replay(trace, load_stock(str(tmp_path), torch.float32, kind))
    error, scale = (trace.logits - verdict.logits).abs().max(), verdict.logits.abs().max()
    assert verdict.differing == 0 and verdict.compared > 8 and error < 1e-4 * max(1.0, scale)


@pytest.mark.parametrize('kind', KINDS)
def test_in_bf16_tokens_are_the_oracles_but_for_rounding(kind):
    _, trace = watch('builtin', overlap='fused', dtype='bfloat16', quantize=kind)
    verdict = replay(trace, load_stock('builtin', torch.bfloat16, kind))
    assert verdict.differing == verdict.rounding <= 2


def test_a_quantized_run_is_replayed_from_its_file(small, tmp_path, capsys):
    _, trace = watch(small, overlap='fused', quantize='int4')
    trace.save(tmp_path / 'trace')
    assert replay_command.main([str(tmp_path / 'trace'), '--model', small]) == 0
    assert ', 0 differ' in capsys.readouterr().out


def test_embeddings_head_and_vision_tower_are_not_quantized(small):
    plain, quantized = load(small), load(small, quantize='int4')
    ids = list(range(20))
    assert torch.equal(plain.decoder.embed(ids), quantized.decoder.embed(ids))
    assert torch.equal(plain.decoder.model._head, quantized.decoder.model._head)
    patches = torch.randn(16, 1176)
    assert torch.equal(plain.perception._tower(patches, 2, 2).rows,
                       quantized.perception._tower(patches, 2, 2).rows)


def test_what_cannot_be_quantized_is_told(small):
    with pytest.raises(ValueError, match='quantize must be one of none, int8, int4'):
        SessionConfig(quantize='int3')
    with pytest.raises(ValueError, match='quantize must be one of none, int8, int4'):
        load(small, quantize='int3')
    with pytest.raises(ValueError, match='31 columns cannot be quantized to int4: take int8'):
        weights_of(torch.randn(64, 31), None, 'int4')


@pytest.mark.parametrize('kind', KINDS)
def test_weights_that_are_no_numbers_are_told(small, tmp_path, kind):
    changed(Path(small), tmp_path)
    weights = load_file(tmp_path / 'model.safetensors')
    weights['model.layers.0.mlp.up_proj.weight'].view(-1)[5] = math.nan
    save_file(weights, tmp_path / 'model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(CheckpointError, match='no finite numbers'):
        load(str(tmp_path), quantize=kind)


def test_two_layers_of_the_3b_run_in_int4(tmp_path):
    shape = dict(text=dict(QWEN2_5_VL_3B['text'], num_hidden_layers=2),
                 vision=dict(depth=1, hidden_size=160, intermediate_size=424, num_heads=2,
                             window_size=112, fullatt_block_indexes=[0]))
    save_random(tmp_path, shape, 1)
    _, trace = watch(str(tmp_path), overlap='fused', quantize='int4', threads=2)
    verdict = replay(trace, load_stock(str(tmp_path), torch.float32, 'int4'))
    live, error = trace.logits, (trace.logits - verdict.logits).abs().max()
    # Logits are in the hundreds with these weights.
    assert verdict.differing == 0 and float(error / live.abs().max()) < 1e-4


@pytest.mark.parametrize('kind, points', [('int8', 1), ('int4', 3)])
def test_the_shapes_world_is_told_as_well(kind, points):
    """A small sample of docs/benchmarks/quantized.json, and what all of it says."""
    file = Path(__file__).resolve().parents[1] / 'docs/benchmarks/quantized.json'
    found = json.loads(file.read_text())['quantize']
    for name in ('facts_true', 'facts_narrated', 'answers_right'):
        plain, lesser = (found[each]['summary'][name] for each in ('none', kind))
        assert lesser >= plain - points / 100
    sample = score.run('builtin', 1000, 3, 2, quantize=kind).table()['summary']
    assert sample['facts_true'] > 0.9 and sample['facts_narrated'] > 0.9
