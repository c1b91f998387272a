"""AWQ's and GPTQ's directories: packed here as their formats say, read, and streamed."""

from __future__ import annotations

import json
from pathlib import Path
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
import torch

from sww_ros.evaluation.random_model import save_random, shape
from sww_ros.models.loading import CheckpointError, load, load_stock
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import replay

GROUP = 32
SHAPE = shape(64, 96, 2, 4, 2, theta=1e4, depth=2, hidden_size=32, intermediate_size=48,
              window_size=56, fullatt_block_indexes=[1])
SAID = dict(
    awq=dict(quant_method='awq', bits=4, group_size=GROUP, version='gemm', zero_point=True,
             modules_to_not_convert=['visual']),
    gptq=dict(quant_method='gptq', bits=4, group_size=GROUP, desc_act=False, sym=False),
    gptq_act_order=dict(quant_method='gptq', bits=4, group_size=GROUP, desc_act=True, sym=False),
    gptq_v2=dict(quant_method='gptq', bits=4, group_size=GROUP, checkpoint_format='gptq_v2'))


def packed(numbers: np.ndarray, order=range(8)) -> torch.Tensor:
    """Pack eight neighbours of each row into one int32: the i-th lowest bits hold order[i]."""
    parts = numbers.reshape(len(numbers), -1, 8).astype(np.uint32)
    out = np.zeros(parts.shape[:2], np.uint32)
    for place, which in enumerate(order):
        out |= parts[..., which] << np.uint32(4 * place)
    return torch.from_numpy(out.view(np.int32))


def pack(weight: torch.Tensor, kind: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return what stands in a file for a matrix (out, in), and what it means, in fp32."""
    outs, ins = weight.shape
    rng = np.random.default_rng(outs)
    group = np.arange(ins) // GROUP
    if kind == 'gptq_act_order':
        rng.shuffle(group)
    q = rng.integers(0, 16, (ins, outs))
    zeros = rng.integers(1, 16, (ins // GROUP, outs))
    scales = torch.from_numpy(rng.uniform(0.5, 1.5, zeros.shape) / 60).half()
    meant = (torch.from_numpy(q - zeros[group]) * scales.float()[group]).t().float()
    if kind == 'awq':
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        return dict(qweight=packed(q, order), qzeros=packed(zeros, order), scales=scales), meant
    stored = zeros - (kind != 'gptq_v2')
    return dict(qweight=packed(q.T).t().contiguous(), qzeros=packed(stored), scales=scales,
                g_idx=torch.from_numpy(group).int()), meant


@pytest.fixture(params=SAID)
def folder(request, tmp_path):
    """A checkpoint whose language model is packed, and beside it the same unpacked, `plain`."""
    plain = tmp_path / 'plain'
    save_random(plain, SHAPE, 1, torch.float16)
    found = tmp_path / 'packed'
    shutil.copytree(plain, found)
    weights, dense = load_file(plain / 'model.safetensors'), {}
    for name in list(weights):
        if '.layers.' in name and name.endswith('_proj.weight'):
            matrix = name.removesuffix('.weight')
            parts, dense[name] = pack(weights.pop(name), request.param)
            weights |= {f'{matrix}.{part}': tensor for part, tensor in parts.items()}
    save_file(weights, found / 'model.safetensors', metadata=dict(format='pt'))
    kept = {name: weight.float() for name, weight in weights.items()
            if name.endswith(('.weight', '.bias'))}
    save_file({name: weight.contiguous() for name, weight in (kept | dense).items()},
              plain / 'model.safetensors', metadata=dict(format='pt'))
    config = json.loads((found / 'config.json').read_text())
    (found / 'config.json').write_text(json.dumps(
        config | dict(quantization_config=SAID[request.param])))
    return found


def watch(model: Path, **settings):
    with Session.open(str(model), SessionConfig(record_trace=True, overlap='fused', **settings)
                      ) as session:
        for frame in np.random.default_rng(0).integers(0, 256, (6, 84, 84, 3), np.uint8):
            session.feed(frame)
        assert session.wait_idle(60)
        return session.trace()


def test_packed_weights_are_what_their_format_says_and_stream(folder):
    plain = folder.parent / 'plain'
    ours = load_stock(str(folder), torch.float32).state_dict()
    meant = load_stock(str(plain), torch.float32).state_dict()
    assert ours.keys() == meant.keys()
    for name, weight in meant.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-6, atol=1e-7)
    trace = watch(folder)
    verdict = replay(trace, load_stock(str(plain), torch.float32))
    assert verdict.differing == 0 and verdict.compared > 3
    assert float((trace.logits - verdict.logits).abs().max()) < 1e-4


def test_packed_weights_may_be_quantized_again(folder):
    trace = watch(folder, quantize='int8')
    assert not replay(trace, load_stock(str(folder), torch.float32, 'int8')).differing


def test_a_packed_matrix_that_is_not_whole_is_told(folder):
    weights = load_file(folder / 'model.safetensors')
    del weights['model.layers.1.mlp.down_proj.qzeros']
    save_file(weights, folder / 'model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(CheckpointError, match=r"packed matrix '.*layers\.1\.mlp\.down_proj'"):
        load(str(folder))
