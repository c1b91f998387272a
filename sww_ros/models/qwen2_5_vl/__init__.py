"""
Qwen2.5-VL, all that is its own: what `streaming.family` asks of a kind of model.

Among it whether the sizes in its files fit together, and how it wants its pictures.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
import math
from typing import Any

import torch
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
from sww_ros.streaming.decoder import Decoder
from sww_ros.streaming.family import Turns, VisionTower
from sww_ros.streaming.perception import PixelSettings
from sww_ros.streaming.trace import VIDEO, Trace


@dataclass(frozen=True)
class ChatTurns:
    """`streaming.family.Turns` of Qwen2.5-VL: one user turn holds the prompt and the video."""

    special: tuple[str, ...] = ('<|im_start|>', '<|im_end|>', '<|vision_start|>',
                                '<|vision_end|>')
    end: str = '<|im_end|>'
    tail: str = '<|vision_end|><|im_end|>\n'
    assistant: str = '<|im_start|>assistant\n'
    next_turn: str = '<|im_end|>\n<|im_start|>assistant\n'

    def prefix(self, system: str, prompt: str) -> tuple[str, ...]:
        """System turn, standing question and the start of the video: ours, the user's, ours."""
        return (f'<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n', prompt,
                '<|vision_start|>')

    def question(self, question: str) -> tuple[str, ...]:
        """The head of the text group of a question asked at run time: ours, the user's, ours."""
        return '<|im_start|>user\n', question, self.next_turn

    def around_step(self, index: int, seconds: float) -> tuple[str, str]:
        """Nothing: the steps of a video stand side by side."""
        return '', ''


TURNS = ChatTurns()


class Qwen25VL:
    """The family, as `streaming.family.Family` describes it."""

    name = 'Qwen2.5-VL'
    turns: Turns = TURNS
    config_class = Qwen2_5_VLConfig

    def config(self, source: str, files: Files, **options: Any) -> Any:
        """Return the config of a checkpoint, checked before and after transformers reads it."""
        check_sizes(files.json('config.json'))
        try:
            config = self.config_class.from_pretrained(source, **options)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a value in it
            raise CheckpointError(f'config.json cannot be used: {told(error)}') from error
        check_config(config)
        weights = files.weights()
        check_types(weights)
        check_layers(weights, 'num_hidden_layers', config.text_config.num_hidden_layers,
                     r'\blayers\.(\d+)\.')
        check_layers(weights, 'depth of the vision tower', config.vision_config.depth,
                     r'\bblocks\.(\d+)\.')
        return config

    def stock(self, source: str, **options: Any) -> Any:
        """Return what transformers' `from_pretrained` does."""
        return Qwen2_5_VLForConditionalGeneration.from_pretrained(
            source, use_safetensors=True, attn_implementation='sdpa', **options)

    def outline(self, config: Any) -> Any:
        """Return the stock model without weights, on the device 'meta'."""
        config = deepcopy(config)
        config._attn_implementation = 'sdpa'  # It may ask for a kernel that is not installed here.
        with torch.device('meta'):
            return Qwen2_5_VLForConditionalGeneration(config)

    def tokens_per_second(self, config: Any) -> float:
        """Positions a second, by which it was trained."""
        return float(config.vision_config.tokens_per_second)

    def pixels(self, name: str, data: dict, config: Any, trained: bool) -> PixelSettings:
        """Return the settings of Qwen2-VL's processor."""
        return pixel_settings(name, data, config.vision_config, trained)

    def vision(self, net: Any) -> VisionTower:
        """Return the tower over the stock tower's weights."""
        return QwenTower(net.model.visual)

    def decoder(self, net: Any) -> Decoder:
        """Return the decoder; the stock layers are emptied."""
        return Decoder(QwenLanguage(net.model.language_model, net.lm_head))

    def stock_logits(self, net: Any, trace: Trace, at: torch.Tensor) -> torch.Tensor:
        """Run the stock tower over all steps, and the stock text model over all rows."""
        device, (rows, columns) = net.device, trace.grid
        merge = net.config.vision_config.spatial_merge_size
        grid = torch.tensor([[trace.steps, merge * rows, merge * columns]], device=device)
        seen = net.model.visual(trace.patches.to(device, net.dtype), grid_thw=grid).pooler_output
        ids = torch.from_numpy(trace.ids).to(device)
        embeds = net.get_input_embeddings()(ids.clamp(min=0))
        embeds[ids == VIDEO] = seen[torch.from_numpy(trace.places).to(device)].to(net.dtype)
        mask = torch.from_numpy(trace.rows().mask())[None, None].to(device)
        positions = torch.from_numpy(trace.positions)[:, None].to(device)
        hidden = net.model.language_model(
            inputs_embeds=embeds[None], position_ids=positions, attention_mask=mask,
            use_cache=False).last_hidden_state[0]
        return net.lm_head(hidden[at.to(device)])


FAMILY = Qwen25VL()


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
