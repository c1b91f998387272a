"""Checkpoints that are broken or make no sense: each is refused in words, and none hangs."""

import json
import math

from family_kit import changed
import pytest
from safetensors.torch import load_file, save_file
import torch
from training_kit import noise

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.models.loading import CheckpointError, load
from sww_ros.streaming.checkpoint import StreamDefaults
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import Trouble
from sww_ros.streaming.session import Session

TEXT, VISION, STREAMING = ('text_config',), ('vision_config',), ('speak_while_watching',)
ROPE = (*TEXT, 'rope_parameters')


@pytest.fixture
def copied(folder, tmp_path):
    changed(folder, tmp_path)
    return tmp_path


def edit(folder, file, change):
    """Change the content of a JSON file of the checkpoint."""
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(change(content)))


def put(path, **values):
    def change(content):
        place = content
        for name in path:
            place = place.setdefault(name, {})
        place.update(values)
        return content

    return change


def refused(folder, *words):
    with pytest.raises(CheckpointError) as caught:
        load(str(folder))
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize('path, values, words', [
    (ROPE, dict(mrope_section=[2, 2, 3]), 'mrope_section [2, 2, 3] adds up to 7, not to 6'),
    (ROPE, dict(mrope_section=[8, -4, 2]), 'mrope_section'),
    (ROPE, dict(mrope_section='many'), 'mrope_section'),
    (ROPE, dict(rope_theta=0), 'rope_theta'),
    (ROPE, dict(rope_theta=math.nan), 'rope_theta'),
    (TEXT, dict(num_attention_heads=0), 'num_attention_heads'),
    (TEXT, dict(num_attention_heads=5), 'num_attention_heads'),
    (TEXT, dict(num_key_value_heads=0), 'num_key_value_heads'),
    (TEXT, dict(num_key_value_heads=3), 'num_key_value_heads'),
    (TEXT, dict(num_hidden_layers=10 ** 9), 'num_hidden_layers'),
    (TEXT, dict(num_hidden_layers=60), 'num_hidden_layers'),
    (TEXT, dict(num_hidden_layers='two'), 'num_hidden_layers'),
    (TEXT, dict(hidden_size=10 ** 9), 'hidden_size'),
    (TEXT, dict(vocab_size=10 ** 12), 'vocab_size'),
    (TEXT, dict(rms_norm_eps=-1), 'rms_norm_eps'),
    (VISION, dict(depth=10 ** 9), 'depth'),
    (VISION, dict(num_heads=0), 'num_heads'),
    (VISION, dict(num_heads=3), 'num_heads'),
    (VISION, dict(patch_size=0), 'patch_size'),
    (VISION, dict(temporal_patch_size=0), 'temporal_patch_size'),
    (VISION, dict(spatial_merge_size=0), 'spatial_merge_size'),
    (VISION, dict(window_size=3), 'window_size'),
    (VISION, dict(tokens_per_second=0), 'tokens_per_second'),
    (VISION, dict(fullatt_block_indexes=7), 'fullatt_block_indexes'),
    (VISION, dict(out_hidden_size=47), 'out_hidden_size'),
    (STREAMING, dict(wait_k=0), 'wait_k'),
    (STREAMING, dict(wait_k=10 ** 6), 'wait_k'),
    (STREAMING, dict(wait_k='3'), 'wait_k'),
    (STREAMING, dict(wait_k=True), 'wait_k'),
    (STREAMING, dict(seconds_per_step=0), 'seconds_per_step'),
    (STREAMING, dict(seconds_per_step=math.inf), 'seconds_per_step'),
    (STREAMING, dict(tokens_per_second=-1), 'tokens_per_second'),
    (STREAMING, dict(max_steps=0), 'max_steps'),
    (STREAMING, dict(max_steps=10 ** 12), 'max_steps'),
    (STREAMING, dict(position_gap=-1), 'position_gap'),
    (STREAMING, dict(schedule='sometimes'), "'sometimes'"),
    (STREAMING, dict(position_encoding='rope'), "'rope'"),
    (STREAMING, dict(prompt=7), 'prompt'),
    (STREAMING, dict(silence_token=['x']), 'silence_token'),
    ((), dict(speak_while_watching=[1]), 'speak_while_watching'),
    ((), dict(text_config=[1]), 'text_config'),
    ((), dict(model_type=['qwen2_5_vl']), 'it is a'),
    ((), dict(vision_config=3), 'vision_config'),
    ((), dict(quantization_config=dict(quant_method='awq')), 'quantized'),
])
def test_a_setting_that_makes_no_sense_is_named(copied, path, values, words):
    edit(copied, 'config.json', put(path, **values))
    refused(copied, words)


def test_the_flat_form_of_a_config_is_held_to_the_same(copied):
    """Qwen2.5-VL's own files have the text's settings at the top, and `rope_scaling`."""
    def flatten(content):
        text = content.pop('text_config')
        rotary = text.pop('rope_parameters')
        text.pop('model_type')
        return content | text | dict(rope_theta=rotary['rope_theta'], rope_scaling=dict(
            type='mrope', mrope_section=rotary['mrope_section']))

    edit(copied, 'config.json', flatten)
    checkpoint = load(str(copied))
    assert checkpoint.decoder.layer_count == 2 and not checkpoint.trained
    edit(copied, 'config.json', put(('rope_scaling',), mrope_section=[1, 1, 1]))
    refused(copied, 'mrope_section [1, 1, 1] adds up to 3, not to 6')
    edit(copied, 'config.json', put((), num_hidden_layers=10 ** 9))
    refused(copied, 'num_hidden_layers')


@pytest.mark.parametrize('file, values, words', [
    ('generation_config.json', dict(eos_token_id=''), 'eos_token_id'),
    ('generation_config.json', dict(eos_token_id={}), 'eos_token_id'),
    ('tokenizer_config.json', dict(model_max_length=[]), 'its tokenizer cannot be loaded'),
])
def test_what_only_shows_in_use_is_refused_as_it_loads(copied, file, values, words):
    """Found by test/fuzz.py."""
    edit(copied, file, put((), **values))
    refused(copied, words)


@pytest.mark.parametrize('file', ['config.json', 'generation_config.json', 'tokenizer.json',
                                  'tokenizer_config.json', 'preprocessor_config.json',
                                  'model.safetensors.index.json'])
@pytest.mark.parametrize('content', ['[1, 2]', '{"size"', '\x00'])
def test_a_file_that_is_no_object_is_named(copied, file, content):
    if file == 'model.safetensors.index.json':
        (copied / 'model.safetensors').unlink()
    (copied / file).write_text(content)
    refused(copied, file)


@pytest.mark.parametrize('values, words', [
    (dict(image_std=[0.5, 0, 0.5]), 'image_std'),
    (dict(image_std=[0.5]), 'image_std'),
    (dict(image_mean=[0.5, math.nan, 0.5]), 'image_mean'),
    (dict(image_mean='gray'), 'image_mean'),
    (dict(size=[3]), 'size'),
    (dict(size=dict(longest_edge='x')), 'longest_edge'),
    (dict(min_pixels=9000, max_pixels=4000), 'min_pixels'),
    (dict(max_pixels=-1), 'max_pixels'),
    (dict(max_pixels=100), 'max_pixels'),
])
def test_pixels_that_make_no_sense_are_named(copied, values, words):
    edit(copied, 'preprocessor_config.json', put((), **values))
    refused(copied, 'preprocessor_config.json', words)


@pytest.mark.parametrize('value', [0, -1.0, 'much', math.nan, 0.5])
def test_a_penalty_that_makes_no_sense_is_named(copied, value):
    edit(copied, 'generation_config.json', put((), repetition_penalty=value))
    refused(copied, 'repetition_penalty')


def test_missing_tokenizer_files_are_told(copied):
    for file in ('tokenizer.json', 'tokenizer_config.json', 'vocab.json', 'merges.txt'):
        (copied / file).unlink(missing_ok=True)
    refused(copied, 'tokenizer', str(copied))


def test_a_tokenizer_without_the_chat_tokens_is_told(copied):
    edit(copied, 'tokenizer.json', lambda content: dict(
        content, added_tokens=[token for token in content['added_tokens']
                               if token['content'] != '<|vision_start|>']))
    edit(copied, 'tokenizer_config.json', lambda content: {
        name: value for name, value in content.items() if name != 'extra_special_tokens'})
    refused(copied, '<|vision_start|>')


def test_a_tokenizer_larger_than_the_model_is_told(copied):
    rewrite(copied, lambda name, weight: weight[:200] if 'embed_tokens' in name else weight)
    edit(copied, 'config.json', put(TEXT, vocab_size=200, pad_token_id=None))
    refused(copied, 'tokenizer', '200')


def rewrite(folder, change):
    file = folder / 'model.safetensors'
    weights = {name: change(name, weight).contiguous()
               for name, weight in load_file(file).items()}
    save_file(weights, file, metadata=dict(format='pt'))


def test_weights_of_a_wrong_shape_are_named(copied):
    rewrite(copied, lambda name, weight: weight[:-1] if 'layers.1.mlp.up_proj' in name else weight)
    refused(copied, 'layers.1.mlp.up_proj.weight', '(63, 48)', '(64, 48)')


def test_weights_that_are_whole_numbers_are_named(copied):
    rewrite(copied, lambda name, weight: weight.to(torch.int8) if 'up_proj' in name else weight)
    refused(copied, 'up_proj.weight', 'I8')


@pytest.mark.parametrize('name', ['model.layers.0.mlp.up_proj.weight', 'embed_tokens',
                                  'visual.blocks.1', 'visual.merger', 'visual.patch_embed'])
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_told(copied, name, value):
    def spoil(found, weight):
        if name in found:
            weight.view(-1)[weight.numel() // 2] = value
        return weight

    rewrite(copied, spoil)
    refused(copied, 'no finite numbers')


def test_weights_that_are_all_zero_are_told(copied):
    rewrite(copied, lambda name, weight: torch.zeros_like(weight))
    refused(copied, 'all tokens alike')


def test_a_weights_file_that_is_cut_off_is_told(copied):
    file = copied / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:1000])
    refused(copied, 'model.safetensors')


def test_logits_that_are_no_numbers_are_trouble_and_not_text():
    """What no check at loading sees: a row of the table that is used only then."""
    model, checkpoint = random_checkpoint(SMALL, 1)
    checkpoint.decoder.model._norm[3] = math.nan
    with Session(checkpoint, SessionConfig(threads=1)) as session:
        for frame in noise(1):
            session.feed(frame)
        assert session.wait_idle(60)
        events = session.drain()
    troubles = [event.message for event in events if isinstance(event, Trouble)]
    assert troubles and 'no finite numbers' in troubles[0]


def test_the_defaults_make_sense():
    assert StreamDefaults().wait_k == 3
    with pytest.raises(ValueError, match='wait_k must be 1 to 1000, not 0'):
        StreamDefaults(wait_k=0)


def test_a_session_takes_no_more_tokens_a_step_than_a_checkpoint():
    with pytest.raises(ValueError, match='wait_k must be 0 to 1000, not 1000000'):
        SessionConfig(wait_k=10 ** 6)
