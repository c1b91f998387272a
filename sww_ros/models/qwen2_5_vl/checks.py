"""What a Qwen2.5-VL's files say: whether its sizes fit together, how it wants its pictures."""

from __future__ import annotations

import math

from sww_ros.models.checks import check_divides, check_positive, check_whole
from sww_ros.models.files import CheckpointError
from sww_ros.streaming.perception import PixelSettings


def check_config(config) -> None:
    """
    Check that the sizes in transformers' config fit together.

    :raises CheckpointError: for what no such model can have
    """
    text, vision = config.text_config, config.vision_config
    check_whole('num_key_value_heads', text.num_key_value_heads, 1, text.num_attention_heads)
    check_divides('num_key_value_heads', text.num_key_value_heads, 'num_attention_heads',
                   text.num_attention_heads)
    if not getattr(text, 'head_dim', None):
        check_divides('num_attention_heads', text.num_attention_heads, 'hidden_size',
                       text.hidden_size)
    check_positive('rms_norm_eps', text.rms_norm_eps)
    check_positive('tokens_per_second of the vision tower', vision.tokens_per_second)
    _check_rotary(text)
    check_divides('num_heads of the vision tower', 4 * vision.num_heads,
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


def _check_rotary(text) -> None:
    rotary = text.rope_parameters
    check_positive('rope_theta', rotary.get('rope_theta'))
    sections = rotary.get('mrope_section')
    if not isinstance(sections, list) or not sections or not all(
            type(part) is int and part >= 0 for part in sections):
        raise CheckpointError(f'mrope_section must be a list of whole numbers, not {sections!r}')
    half, rest = divmod(getattr(text, 'head_dim', None)
                        or text.hidden_size // text.num_attention_heads, 2)
    if rest or sum(sections) != half:
        raise CheckpointError(f'mrope_section {sections} adds up to {sum(sections)}, not to '
                              f'{half + rest / 2:g}, half the size of a head')


_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_LIVE_PIXELS = 308 * 28 * 28
"""What a general checkpoint perceives per frame unless told otherwise: 308 visual tokens."""


def pixel_settings(name: str, data: dict, vision, trained: bool) -> PixelSettings:
    """
    Return the pixel settings; only a streaming checkpoint sets its own size.

    :param name: the file that `data` is from, for messages
    :param vision: transformers' config of the vision tower
    :raises CheckpointError: for values that make no sense
    """
    size = data.get('size') or {}
    if not isinstance(size, dict):
        raise CheckpointError(f'{name}: size must be an object, not {size!r}')
    low = _pixels(name, {'min_pixels': data.get('min_pixels'),
                         'shortest_edge': size.get('shortest_edge')}, 56 * 56)
    high = _pixels(name, {'max_pixels': data.get('max_pixels'),
                          'longest_edge': size.get('longest_edge')}, _LIVE_PIXELS)
    if not trained:
        low, high = min(low, _LIVE_PIXELS // 4), min(high, _LIVE_PIXELS)
    if low > high:
        raise CheckpointError(f'{name}: min_pixels {low} is more than max_pixels {high}')
    unit = (vision.patch_size * vision.spatial_merge_size) ** 2
    if high < unit:
        raise CheckpointError(f'{name}: max_pixels {high} is less than one visual token, {unit}')
    return PixelSettings(
        mean=_colors(name, 'image_mean', data, _CLIP_MEAN, -math.inf),
        std=_colors(name, 'image_std', data, _CLIP_STD, 0.0), min_pixels=low, max_pixels=high,
        patch_size=vision.patch_size, temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size)


def _pixels(file: str, values: dict[str, object], default: int) -> int:
    """Return the first of the values that is given, which must be a count of pixels."""
    for name, value in values.items():
        if not value:
            continue
        if type(value) is not int or value < 1:
            raise CheckpointError(f'{file}: {name} must be a whole number from 1, not {value!r}')
        return value
    return default


def _colors(file: str, name: str, data: dict, default: tuple[float, float, float],
            above: float) -> tuple[float, float, float]:
    values = data.get(name) or default
    if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(
            isinstance(value, int | float) and above < value < math.inf for value in values):
        kind = 'numbers' if above < 0 else f'numbers above {above:g}'
        raise CheckpointError(f'{file}: {name} must be three {kind}, not {values!r}')
    red, green, blue = map(float, values)
    return red, green, blue
