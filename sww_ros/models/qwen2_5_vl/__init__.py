"""
Qwen2.5-VL, all that is its own: what `streaming.family` asks of a kind of model.

Among it whether the sizes in its files fit together, and how it wants its pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
import math
from typing import Any

import torch
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from sww_ros.models.files import (
    CheckpointError,
    Files,
    check_divides,
    check_layers,
    check_positive,
    check_sizes,
    check_types,
    check_whole,
    told,
)
from sww_ros.models.qwen2_5_vl.language import QwenLanguage, QwenTower
from sww_ros.models.qwen2_5_vl.turns import PROFILES, TURNS
from sww_ros.streaming.decoder import Decoder
from sww_ros.streaming.family import Profile, Turns, VisionTower, Wanted
from sww_ros.streaming.perception import PixelSettings
from sww_ros.streaming.quantize import dequantized
from sww_ros.streaming.trace import VIDEO, Trace


class Qwen25VL:
    """The family, as `streaming.family.Family` describes it."""

    name = 'Qwen2.5-VL'
    turns: Turns = TURNS
    profiles: Mapping[str, Profile] = PROFILES
    config_class = Qwen2_5_VLConfig
    model_class = Qwen2_5_VLForConditionalGeneration

    def config(self, source: str, files: Files, **options: Any) -> Any:
        """Return the config of a checkpoint, checked before and after transformers reads it."""
        check_sizes(files.json('config.json'))
        try:
            config = self.config_class.from_pretrained(source, **options)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a value in it
            raise CheckpointError(f'config.json cannot be used: {told(error)}') from error
        self.check(config)
        # What is packed is unpacked as it is read; transformers would ask for other packages.
        config.__dict__.pop('quantization_config', None)
        weights = files.weights()
        check_types(weights)
        check_layers(weights, 'num_hidden_layers', config.text_config.num_hidden_layers,
                     r'\blayers\.(\d+)\.')
        check_layers(weights, 'depth of the vision tower', config.vision_config.depth,
                     r'\bblocks\.(\d+)\.')
        return config

    def check(self, config: Any) -> None:
        """Check that the sizes in transformers' config fit together; else a CheckpointError."""
        vision = config.vision_config
        check_heads(config)
        check_positive('tokens_per_second of the vision tower', vision.tokens_per_second)
        unit = vision.patch_size * vision.spatial_merge_size
        if vision.window_size < unit:
            raise CheckpointError(f'window_size {vision.window_size} is less than one visual '
                                  f'token, {unit} pixels')
        whole = vision.fullatt_block_indexes
        if not isinstance(whole, (list, tuple)) or not all(type(index) is int for index in whole):
            raise CheckpointError(f'fullatt_block_indexes must be a list of blocks, not {whole!r}')

    def stock(self, source: str | None, **options: Any) -> Any:
        """Return what transformers' `from_pretrained` does."""
        return self.model_class.from_pretrained(
            source, use_safetensors=True, attn_implementation='sdpa', **options)

    def outline(self, config: Any) -> Any:
        """Return the stock model without weights, on the device 'meta'."""
        config = deepcopy(config)
        config._attn_implementation = 'sdpa'  # It may ask for a kernel that is not installed here.
        with torch.device('meta'):
            return self.model_class(config)

    def tokens_per_second(self, config: Any) -> float:
        """Positions a second, by which it was trained."""
        return float(config.vision_config.tokens_per_second)

    def pixels(self, name: str, data: dict, config: Any, trained: bool) -> PixelSettings:
        """Return the settings of Qwen2-VL's processor."""
        return pixel_settings(name, data, config.vision_config, trained)

    def vision(self, net: Any, wanted: Wanted | None = None) -> VisionTower:
        """Return the tower over the stock tower's weights."""
        return QwenTower(net.model.visual, wanted)

    def decoder(self, net: Any, wanted: Wanted | None = None) -> Decoder:
        """Return the decoder; the stock layers are emptied."""
        return Decoder(QwenLanguage(net.model.language_model, net.lm_head, wanted))

    def quantize(self, net: Any, quantize: str) -> None:
        """Give the linears of the language model's layers what they are after quantization."""
        for module in net.model.language_model.layers.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = dequantized(module.weight.data, quantize)

    def stock_logits(self, net: Any, trace: Trace, at: torch.Tensor) -> torch.Tensor:
        """Run the stock tower over all steps, and the stock text model over all rows."""
        device, (rows, columns) = net.device, trace.grid
        merge = net.config.vision_config.spatial_merge_size
        grid = torch.tensor([[trace.steps, merge * rows, merge * columns]], device=device)
        seen = net.model.visual(trace.patches.to(device, net.dtype), grid_thw=grid)
        ids, places = (torch.from_numpy(of).to(device) for of in (trace.ids, trace.places))
        visual, embeds = ids == VIDEO, net.get_input_embeddings()(ids.clamp(min=0))
        embeds[visual] = seen.pooler_output[places].to(net.dtype)
        mask = torch.from_numpy(trace.rows().mask())[None, None].to(device)
        positions = torch.from_numpy(trace.positions)[:, None].to(device)
        hidden = net.model.language_model(
            inputs_embeds=embeds[None], position_ids=positions, attention_mask=mask,
            use_cache=False, **self.stock_extras(seen, visual[None], places)).last_hidden_state[0]
        return net.lm_head(hidden[at.to(device)])

    def stock_extras(self, seen: Any, visual: torch.Tensor,
                     places: torch.Tensor | None = None) -> dict[str, Any]:
        """Nothing: rows are all that it takes."""
        return {}


FAMILY = Qwen25VL()


def check_heads(config, width: str = 'hidden_size', merged: str = 'out_hidden_size') -> None:
    """
    Check what Qwen's families share: heads, rotary sections, the widths of tower and text.

    :param width: what the vision tower's config calls the width of its blocks
    :param merged: and that of the rows it gives
    :raises CheckpointError: for sizes that do not fit together
    """
    text, vision = config.text_config, config.vision_config
    check_whole('num_key_value_heads', text.num_key_value_heads, 1, text.num_attention_heads)
    check_divides('num_key_value_heads', text.num_key_value_heads, 'num_attention_heads',
                   text.num_attention_heads)
    if not getattr(text, 'head_dim', None):
        check_divides('num_attention_heads', text.num_attention_heads, 'hidden_size',
                       text.hidden_size)
    check_positive('rms_norm_eps', text.rms_norm_eps)
    _check_rotary(text)
    check_divides('num_heads of the vision tower', 4 * vision.num_heads,
                   f'{width} of the vision tower', getattr(vision, width), 'four times ')
    if getattr(vision, merged) != text.hidden_size:
        raise CheckpointError(f'{merged} of the vision tower is {getattr(vision, merged)}, '
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
_LIVE_TOKENS = 308
"""What a general checkpoint perceives per frame unless told otherwise, in visual tokens."""
_Colors = tuple[float, float, float]


def pixel_settings(name: str, data: dict, vision, trained: bool, mean: _Colors = _CLIP_MEAN,
                   std: _Colors = _CLIP_STD) -> PixelSettings:
    """
    Return the pixel settings; only a streaming checkpoint sets its own size.

    :param name: the file that `data` is from, for messages
    :param vision: transformers' config of the vision tower
    :param mean: of colours where the file names none, and so `std`
    :raises CheckpointError: for values that make no sense
    """
    size = data.get('size') or {}
    if not isinstance(size, dict):
        raise CheckpointError(f'{name}: size must be an object, not {size!r}')
    unit = (vision.patch_size * vision.spatial_merge_size) ** 2
    live = _LIVE_TOKENS * unit
    low = _pixels(name, {'min_pixels': data.get('min_pixels'),
                         'shortest_edge': size.get('shortest_edge')}, 4 * unit)
    high = _pixels(name, {'max_pixels': data.get('max_pixels'),
                          'longest_edge': size.get('longest_edge')}, live)
    if not trained:
        low, high = min(low, live // 4), min(high, live)
    if low > high:
        raise CheckpointError(f'{name}: min_pixels {low} is more than max_pixels {high}')
    if high < unit:
        raise CheckpointError(f'{name}: max_pixels {high} is less than one visual token, {unit}')
    return PixelSettings(
        mean=_colors(name, 'image_mean', data, mean, -math.inf),
        std=_colors(name, 'image_std', data, std, 0.0), min_pixels=low, max_pixels=high,
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


def _colors(file: str, name: str, data: dict, default: _Colors, above: float) -> _Colors:
    values = data.get(name) or default
    if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(
            isinstance(value, int | float) and above < value < math.inf for value in values):
        kind = 'numbers' if above < 0 else f'numbers above {above:g}'
        raise CheckpointError(f'{file}: {name} must be three {kind}, not {values!r}')
    red, green, blue = map(float, values)
    return red, green, blue
