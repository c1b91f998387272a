"""
Checks of what a checkpoint's files say, before a model is built of it.

Bounds come first, on the file as it is: libraries build what they are told, 10**9 layers too.
"""

from __future__ import annotations

from collections.abc import Iterable
import math
import re

from sww_ros.models.files import CheckpointError

_LARGEST = {
    'hidden_size': 1 << 16, 'intermediate_size': 1 << 20, 'num_hidden_layers': 1024,
    'num_attention_heads': 1024, 'num_key_value_heads': 1024, 'head_dim': 4096,
    'vocab_size': 1 << 24, 'depth': 1024, 'num_heads': 1024, 'out_hidden_size': 1 << 16,
    'patch_size': 256, 'temporal_patch_size': 64, 'spatial_merge_size': 64,
    'window_size': 1 << 16}
"""Whole numbers from 1 to far beyond any Qwen2.5-VL."""
_FLOATS = ('F64', 'F32', 'F16', 'BF16')


def check_sizes(config: dict) -> None:
    """
    Check the numbers of a config.json as it is.

    :raises CheckpointError: for parts that are no objects, and numbers out of all proportion
    """
    parts = {'': config}
    for name in ('text_config', 'vision_config', 'rope_parameters', 'rope_scaling'):
        value = config.get(name)
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f'config.json: {name} is {value!r}, not an object with names '
                                  'and values')
        parts[f'{name}.'] = value or {}
    for prefix, part in parts.items():
        for name, largest in _LARGEST.items():
            if name in part and part[name] is not None:
                _check_whole(f'config.json: {prefix}{name}', part[name], 1, largest)
    for part in parts.values():
        if quantized := part.get('quantization_config'):
            how = quantized.get('quant_method', '') if isinstance(quantized, dict) else ''
            raise CheckpointError(f'its weights are quantized ({how or "somehow"}), which cannot '
                                  'be streamed: give the checkpoint that it was made from')


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise CheckpointError(f'{name} must be a whole number from {low} to {high}, '
                              f'not {value!r}')


def check_config(config) -> None:
    """
    Check that the sizes in transformers' config fit together.

    :raises CheckpointError: for what no such model can have
    """
    text, vision = config.text_config, config.vision_config
    _check_whole('num_key_value_heads', text.num_key_value_heads, 1, text.num_attention_heads)
    _check_divides('num_key_value_heads', text.num_key_value_heads, 'num_attention_heads',
                   text.num_attention_heads)
    if not getattr(text, 'head_dim', None):
        _check_divides('num_attention_heads', text.num_attention_heads, 'hidden_size',
                       text.hidden_size)
    _check_positive('rms_norm_eps', text.rms_norm_eps)
    _check_positive('tokens_per_second of the vision tower', vision.tokens_per_second)
    _check_rotary(text)
    _check_divides('num_heads of the vision tower', 4 * vision.num_heads,
                   'hidden_size of the vision tower', vision.hidden_size, 'four times ')
    unit = vision.patch_size * vision.spatial_merge_size
    if vision.window_size < unit:
        raise CheckpointError(f'window_size {vision.window_size} is less than one visual token, '
                              f'{unit} pixels')
    whole = vision.fullatt_block_indexes
    if not isinstance(whole, (list, tuple)) or not all(type(index) is int for index in whole):
        raise CheckpointError(f'fullatt_block_indexes must be a list of blocks, not {whole!r}')
    if vision.out_hidden_size != text.hidden_size:
        raise CheckpointError(f'out_hidden_size of the vision tower is {vision.out_hidden_size}, '
                              f'hidden_size of the text {text.hidden_size}: they must be equal')


def _check_divides(name: str, value: int, of: str, whole: int, times: str = '') -> None:
    if whole % value:
        raise CheckpointError(f'{of} {whole} is no multiple of {times}{name} '
                              f'({value // (4 if times else 1)})')


def _check_positive(name: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise CheckpointError(f'{name} must be a number above 0, not {value!r}')


def _check_rotary(text) -> None:
    rotary = text.rope_parameters
    _check_positive('rope_theta', rotary.get('rope_theta'))
    sections = rotary.get('mrope_section')
    if not isinstance(sections, list) or not sections or not all(
            type(part) is int and part >= 0 for part in sections):
        raise CheckpointError(f'mrope_section must be a list of whole numbers, not {sections!r}')
    half, rest = divmod(getattr(text, 'head_dim', None)
                        or text.hidden_size // text.num_attention_heads, 2)
    if rest or sum(sections) != half:
        raise CheckpointError(f'mrope_section {sections} adds up to {sum(sections)}, not to '
                              f'{half + rest / 2:g}, half the size of a head')


def check_weights(weights: dict[str, str], config) -> None:
    """
    Check the tensors of a checkpoint by their names and types.

    :param weights: as `Files.weights` returns them; {}: nothing is checked
    :raises CheckpointError: for whole numbers, and layers that are not there
    """
    for name, kind in weights.items():
        if kind not in _FLOATS:
            raise CheckpointError(f'the weight {name!r} is of type {kind}, and only '
                                  f'{", ".join(_FLOATS)} can be streamed: give the checkpoint '
                                  'that it was made from')
    for name, wanted, pattern in (
            ('num_hidden_layers', config.text_config.num_hidden_layers, r'\blayers\.(\d+)\.'),
            ('depth of the vision tower', config.vision_config.depth, r'\bblocks\.(\d+)\.')):
        found = _count(pattern, weights)
        if found < wanted and weights:
            raise CheckpointError(f'config.json says {name} {wanted}, and there are weights of '
                                  f'{found}: save or download it again, whole')


def _count(pattern: str, names: Iterable[str]) -> int:
    found = (re.search(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def check_penalty(config: dict) -> float:
    """
    Return the repetition penalty of a generation_config.json; 1.0, none, where it names none.

    :raises CheckpointError: for one that makes no sense
    """
    penalty = config.get('repetition_penalty')
    if penalty is None:
        return 1.0
    number = isinstance(penalty, int | float) and not isinstance(penalty, bool)
    if not number or not 1.0 <= penalty < math.inf:
        raise CheckpointError('generation_config.json: repetition_penalty must be a number from '
                              f'1.0, not {penalty!r}')
    return float(penalty)
