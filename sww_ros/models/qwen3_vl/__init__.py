"""
Qwen3-VL, the dense sizes: what differs from Qwen2.5-VL, whose family it derives from.

The time of each step is written before it, so no position follows a clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
from typing import Any

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from sww_ros.models.files import CheckpointError
from sww_ros.models.qwen2_5_vl import Qwen25VL, check_heads, pixel_settings
from sww_ros.models.qwen2_5_vl.turns import ChatTurns
from sww_ros.models.qwen3_vl.language import Qwen3Language, Qwen3Tower
from sww_ros.streaming.decoder import Decoder
from sww_ros.streaming.family import Profile, StepPlace, Turns, VisionTower, Wanted
from sww_ros.streaming.perception import PixelSettings

FRAMES = 2
"""Frames in a step, whose times are averaged."""
_GRAY = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class TimedTurns(ChatTurns):
    """
    `streaming.family.Turns` of Qwen3-VL: those of Qwen2.5-VL, and its time before each step.

    As its processor in transformers from 5.10 on has it, which leaves the chat template's pair of
    vision tokens around the whole video; before, and so in the authors' release, it had none there.
    """

    def around_step(self, step: StepPlace) -> tuple[Sequence[str], Sequence[str]]:
        """
        The mean of the times of its frames, counted from where the stream begins.

        Each step is taken to be whole; of a last one with a single frame the processor writes the
        time of that frame.
        """
        rate, first = FRAMES / step.seconds, FRAMES * step.index
        time = (first / rate + (first + FRAMES - 1) / rate) / 2  # Rounded as the processor does.
        return (f'<{time:.1f} seconds><|vision_start|>',), ('<|vision_end|>',)


class Qwen3VL(Qwen25VL):
    """The family, as `streaming.family.Family` describes it."""

    name = 'Qwen3-VL'
    turns: Turns = TimedTurns()
    profiles: Mapping[str, Profile] = {}
    config_class = Qwen3VLConfig
    model_class = Qwen3VLForConditionalGeneration

    def check(self, config: Any) -> None:
        """Check that the sizes in transformers' config fit together; else a CheckpointError."""
        check_config(config)

    def tokens_per_second(self, config: Any) -> float:
        """A step has one position: its time is text."""
        return 1.0

    def pixels(self, name: str, data: dict, config: Any, trained: bool) -> PixelSettings:
        """Return the settings of Qwen3-VL's processor; its bounds count the pixels of a frame."""
        return pixel_settings(name, data, config.vision_config, trained, _GRAY, _GRAY)

    def vision(self, net: Any, wanted: Wanted | None = None) -> VisionTower:
        """Return the tower over the stock tower's weights."""
        return Qwen3Tower(net.model.visual, wanted)

    def decoder(self, net: Any, wanted: Wanted | None = None) -> Decoder:
        """Return the decoder; the stock layers are emptied."""
        return Decoder(Qwen3Language(net.model.language_model, net.lm_head, wanted))

    def stock_extras(self, seen: Any, visual: torch.Tensor,
                     places: torch.Tensor | None = None) -> dict[str, Any]:
        """Return what the stock text model adds to visual rows after its first layers."""
        deep = [each if places is None else each[places] for each in seen.deepstack_features]
        return dict(visual_pos_masks=visual, deepstack_visual_embeds=deep)


FAMILY = Qwen3VL()


def check_config(config: Any) -> None:
    """
    Check that the sizes in transformers' config fit together.

    :raises CheckpointError: for what no such model can have
    """
    text, vision = config.text_config, config.vision_config
    check_heads(config)
    sections = text.rope_parameters['mrope_section']
    if len(sections) != 3:
        raise CheckpointError(f'mrope_section must have a part for each of time, row and column, '
                              f'not {sections!r}')
    if text.attention_bias:
        raise CheckpointError('attention_bias is set: attention with biases cannot be streamed')
    if vision.temporal_patch_size != FRAMES:
        raise CheckpointError(f'temporal_patch_size of the vision tower is '
                              f'{vision.temporal_patch_size}: only {FRAMES} frames a step have '
                              'the times that are written')
    places = vision.num_position_embeddings
    if math.isqrt(places) ** 2 != places:
        raise CheckpointError(f'num_position_embeddings {places} is no square')
    deep, most = list(vision.deepstack_visual_indexes), text.num_hidden_layers
    if deep != sorted({*deep} & {*range(vision.depth)}) or len(deep) > most:
        raise CheckpointError(
            f'deepstack_visual_indexes must be rising blocks below {vision.depth}, at most one for '
            f'each of the {most} layers of the text, not {deep!r}')
