"""Qwen2.5-VL, all that is its own: what `streaming.family` asks of a kind of model."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from sww_ros.models.checks import check_layers, check_sizes, check_types
from sww_ros.models.files import CheckpointError, Files, told
from sww_ros.models.qwen2_5_vl.checks import check_config, pixel_settings
from sww_ros.models.qwen2_5_vl.language import QwenLanguage
from sww_ros.models.qwen2_5_vl.tower import QwenTower
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
