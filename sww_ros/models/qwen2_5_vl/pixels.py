"""How a checkpoint wants its pictures, from the file of Qwen2-VL's processor."""

from __future__ import annotations

import math

from sww_ros.models.files import CheckpointError
from sww_ros.streaming.perception import PixelSettings

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
