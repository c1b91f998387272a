"""Loading: checkpoints in the ordinary format, and clear words for what cannot be used."""

import json
from pathlib import Path

from family_kit import changed, check_real_shapes
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from sww_ros.evaluation.random_model import QWEN2_5_VL_3B, save_random
from sww_ros.models import loading
from sww_ros.models.loading import CheckpointError, Described, load
from sww_ros.models.plan import plan_of
from sww_ros.models.qwen2_5_vl import Qwen25VL
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.perception import PixelSettings, fit_size
from sww_ros.streaming.session import Session


def test_the_layer_shapes_of_the_3b_model_load_and_stream(tmp_path):
    """Two decoder and two vision layers of the real shapes, from disk, through the same code."""
    shape = dict(text=dict(QWEN2_5_VL_3B['text'], num_hidden_layers=2),
                 vision=dict(QWEN2_5_VL_3B['vision'], depth=2, fullatt_block_indexes=[1]))
    save_random(tmp_path, shape, 1)
    oracle = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    check_real_shapes(tmp_path, oracle, 120, 2e8)


@pytest.mark.parametrize('model, words', [
    ('/no/such/folder', 'does not exist'),
    ('no-such-user/no-such-model', 'neither a folder nor in the local cache'),
])
def test_a_missing_checkpoint_is_named(model, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        load(model)
    assert model in str(caught.value)


def test_a_folder_without_a_config_is_named(tmp_path):
    with pytest.raises(CheckpointError, match='has no config.json'):
        load(str(tmp_path))


def edited(folder, tmp_path, **changes):
    return changed(folder, tmp_path, lambda config: config.update(changes))


def test_another_model_is_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match="is a 'qwen2' model; only Qwen2.5-VL"):
        load(edited(folder, tmp_path, model_type='qwen2'))


def test_unknown_streaming_settings_are_named(folder, tmp_path):
    spoiled = edited(folder, tmp_path, speak_while_watching=dict(wait_kay=3))
    with pytest.raises(CheckpointError, match=r"unknown speak_while_watching .*'wait_kay'"):
        load(spoiled)


def test_a_silence_token_that_is_not_there_is_named(folder, tmp_path):
    spoiled = edited(folder, tmp_path, speak_while_watching=dict(silence_token='<|hush|>'))
    with pytest.raises(CheckpointError, match='<|hush|>'):
        load(spoiled)


def test_a_checkpoint_that_says_how_it_streams_sets_its_own_size(folder, tmp_path):
    """One that says anything else is a general one, perceived as large as is fast enough."""
    size = json.dumps(dict(size=dict(shortest_edge=784, longest_edge=10_000_000)))
    for entry, trained in ((dict(wait_k=3), False), (dict(position_encoding='gdpe'), True)):
        spoiled = edited(folder, tmp_path, speak_while_watching=entry)
        (tmp_path / 'preprocessor_config.json').write_text(size)
        checkpoint = load(spoiled, device='meta')
        assert checkpoint.trained == trained
        assert (checkpoint.perception.settings.max_pixels == 10_000_000) == trained


def test_missing_weights_are_told(folder, tmp_path):
    spoiled = edited(folder, tmp_path)
    (tmp_path / 'model.safetensors').unlink()
    with pytest.raises(CheckpointError, match='cannot load checkpoint'):
        load(spoiled)


def test_a_weight_that_is_not_in_the_file_is_named(folder, tmp_path):
    spoiled, file = edited(folder, tmp_path), tmp_path / 'model.safetensors'
    weights = load_file(file)
    del weights['model.layers.0.mlp.up_proj.weight']
    save_file(weights, file, metadata=dict(format='pt'))
    with pytest.raises(CheckpointError, match=r'lacks 1 weights, .*layers\.0\.mlp\.up_proj'):
        load(spoiled)


def test_an_unknown_dtype_is_named(folder):
    with pytest.raises(CheckpointError, match="unknown dtype 'int3'"):
        load(str(folder), dtype='int3')


def test_pixels_equal_the_processors_own(folder):
    """The live patches are those of transformers' own processor (its Pillow variant)."""
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )
    # Of little contrast, as the two clamp what the filter overshoots at different places.
    frame = np.random.default_rng(1).integers(64, 192, (90, 130, 3), np.uint8)
    perception = load(str(folder)).perception
    settings = perception.settings
    processor = Qwen2VLImageProcessorPil(
        image_mean=settings.mean, image_std=settings.std,
        size=dict(shortest_edge=settings.min_pixels, longest_edge=settings.max_pixels))
    theirs = processor(Image.fromarray(frame), return_tensors='pt')
    size = fit_size(90, 130, settings)
    assert [side // settings.patch_size for side in size] == theirs.image_grid_thw[0, 1:].tolist()
    ours = perception.patches([frame], *size)
    # One grey level of 255, for the rounding of the bicubic filter.
    assert (ours - theirs.pixel_values).abs().max() <= 1.01 / 255 / min(settings.std)


@pytest.mark.parametrize('height, width', [(480, 640), (28, 28), (2000, 30), (1080, 1920)])
def test_frames_are_fitted_as_the_processor_does(height, width):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
    settings = PixelSettings((.5,) * 3, (.5,) * 3, 60_000, 240_000)
    assert fit_size(height, width, settings) == smart_resize(
        height, width, factor=28, min_pixels=60_000, max_pixels=240_000)


def test_a_model_that_does_not_fit_is_refused_with_figures_before_its_weights_are_read(
        monkeypatch: pytest.MonkeyPatch):
    config = SessionConfig(overlap='fused')
    outline = Described('builtin', str(loading.builtin_path())).outline(torch.float32)
    plan = plan_of(outline, 'cpu', config)
    with Session.open('builtin', config) as session:
        lanes = session.info['lane_bytes']
    needed = plan.weights + plan.vision + lanes
    monkeypatch.setattr(loading, 'available_bytes', lambda: needed)
    with Session.open('builtin', config) as session:
        assert session.info['lane_bytes'] == lanes, 'just enough is enough'
    monkeypatch.setattr(loading, 'available_bytes', lambda: needed - 1)
    monkeypatch.setattr(Qwen25VL, 'stock', lambda *_, **__: pytest.fail('it was read'))
    with pytest.raises(CheckpointError) as refused:
        Session.open('builtin', config)
    assert (f'needs {needed / 1e6:,.0f} MB of memory (weights in float32 '
            f'{plan.weights / 1e6:,.0f} MB, its vision tower {plan.vision / 1e6:,.0f} MB, lanes of '
            f'its streams {lanes / 1e6:,.0f} MB), and {needed / 1e6:,.0f} MB are available: set '
            'dtype to bfloat16 or quantize to int4, close other programs') in str(refused.value)
    with pytest.raises(CheckpointError, match='lanes of its streams .* smaller max_steps'):
        monkeypatch.setattr(loading, 'available_bytes', lambda: needed + (1 << 20))
        Session.open('builtin', SessionConfig(overlap='serial', max_steps=5000))
    with pytest.raises(CheckpointError, match='weights in bfloat16 .* while they are read'):
        monkeypatch.setattr(loading, 'available_bytes', lambda: 0)
        load(dtype='bfloat16')


def test_available_memory_heeds_the_container(tmp_path: Path):
    meminfo = tmp_path / 'meminfo'
    meminfo.write_text('MemTotal: 100 kB\nMemAvailable:      50 kB\n')
    assert loading.available_bytes(meminfo, tmp_path) == 50 * 1024
    (tmp_path / 'memory.max').write_text('30000\n')
    (tmp_path / 'memory.current').write_text('20000\n')
    (tmp_path / 'memory.stat').write_text('anon 1\ninactive_file 5000\n')
    assert loading.available_bytes(meminfo, tmp_path) == 15000
    (tmp_path / 'memory.max').write_text('max\n')
    assert loading.available_bytes(meminfo, tmp_path) == 50 * 1024
    assert loading.available_bytes(tmp_path / 'absent', tmp_path) is None
    assert loading.available_bytes() > 1 << 20
