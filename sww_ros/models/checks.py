"""
Checks of what a checkpoint's files say, before a model is built of it.

Bounds come first, on the file as it is: libraries build what they are told, 10**9 layers too.
"""

from __future__ import annotations

import math
import re

from sww_ros.models.files import CheckpointError

_LARGEST = {
    'hidden_size': 1 << 16, 'intermediate_size': 1 << 20, 'num_hidden_layers': 1024,
    'num_attention_heads': 1024, 'num_key_value_heads': 1024, 'head_dim': 4096,
    'vocab_size': 1 << 24, 'depth': 1024, 'num_heads': 1024, 'out_hidden_size': 1 << 16,
    'patch_size': 256, 'temporal_patch_size': 64, 'spatial_merge_size': 64,
    'window_size': 1 << 16}
"""Whole numbers from 1 to far beyond any model."""
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
                check_whole(f'config.json: {prefix}{name}', part[name], 1, largest)
    for part in parts.values():
        if quantized := part.get('quantization_config'):
            how = quantized.get('quant_method', '') if isinstance(quantized, dict) else ''
            raise CheckpointError(f'its weights are quantized ({how or "somehow"}), which cannot '
                                  'be streamed: give the checkpoint that it was made from')


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Check that a value is a whole number from `low` to `high`; else a CheckpointError."""
    if type(value) is not int or not low <= value <= high:
        raise CheckpointError(f'{name} must be a whole number from {low} to {high}, '
                              f'not {value!r}')


def check_divides(name: str, value: int, of: str, whole: int, times: str = '') -> None:
    """Check that `value` divides `whole`; `times` is what messages say of four times a value."""
    if whole % value:
        raise CheckpointError(f'{of} {whole} is no multiple of {times}{name} '
                              f'({value // (4 if times else 1)})')


def check_positive(name: str, value: object) -> None:
    """Check that a value is a finite number above 0; else a CheckpointError."""
    if (not isinstance(value, int | float) or isinstance(value, bool)
            or not 0 < value < math.inf):
        raise CheckpointError(f'{name} must be a number above 0, not {value!r}')


def check_types(weights: dict[str, str]) -> None:
    """
    Check the types of a checkpoint's tensors, as `Files.weights` returns them.

    :raises CheckpointError: for whole numbers
    """
    for name, kind in weights.items():
        if kind not in _FLOATS:
            raise CheckpointError(f'the weight {name!r} is of type {kind}, and only '
                                  f'{", ".join(_FLOATS)} can be streamed: give the checkpoint '
                                  'that it was made from')


def check_layers(weights: dict[str, str], name: str, wanted: int, pattern: str) -> None:
    """
    Check that there are weights of all layers; where nothing is known of the weights, nothing is.

    :param name: what the config calls their number
    :param pattern: a regular expression whose group is the index of a weight's layer
    :raises CheckpointError: for layers that are not there
    """
    matches = (re.search(pattern, weight) for weight in weights)
    found = max((int(match[1]) + 1 for match in matches if match), default=0)
    if found < wanted and weights:
        raise CheckpointError(f'config.json says {name} {wanted}, and there are weights of '
                              f'{found}: save or download it again, whole')


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
