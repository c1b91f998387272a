"""
Qwen3-VL, the dense sizes: what differs from Qwen2.5-VL, whose family it derives from.

The time of each step is written before it, so no position follows a clock. Queries and keys are
normed, each head by itself, before they turn; rotary angles take their axes in turns (t, h, w, t,
h, w, ..., then t alone). Every block of the vision tower attends to the whole frame, a learnt table
of places is stretched over it, and what some blocks make of it is merged for the first decoder
layers (DeepStack). transformers' modules are the oracle of all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
from typing import Any

import torch
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from sww_ros.models.files import CheckpointError
from sww_ros.models.qwen2_5_vl import Qwen25VL, check_heads, pixel_settings
from sww_ros.models.qwen2_5_vl.language import QwenLanguage, TowerBlocks, Turn
from sww_ros.models.qwen2_5_vl.turns import ChatTurns
from sww_ros.streaming.decoder import Decoder
from sww_ros.streaming.family import Profile, Seen, StepPlace, Turns, VisionTower, Wanted
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


@dataclass(frozen=True)
class _Plan:
    """What a size and `steps` of it fix: what is added to patches for their places, and angles."""

    places: torch.Tensor
    turn: Turn
    steps: int


class Qwen3Tower(TowerBlocks):
    """Runs the weights of transformers' vision tower on the patches of steps."""

    def __init__(self, tower: Any, wanted: Wanted | None = None) -> None:
        """Take the weights of the stock tower, made as they are wanted; they are shared."""
        super().__init__(tower, wanted)
        self._merger_of = dict(zip(self.config.deepstack_visual_indexes,
                                   tower.deepstack_merger_list))
        self.deep_layers = len(self._merger_of)

    def see(self, x: torch.Tensor, plan: _Plan) -> Seen:
        """As of `TowerBlocks`, with the merged tokens of deeper layers."""
        x, deep = x + plan.places, []
        for index, block in enumerate(self.tower.blocks):
            x = self.run(block, x, plan.turn, (len(x) // plan.steps,) * plan.steps)
            if index in self._merger_of:
                deep.append(self._merger_of[index](x))
        return Seen(self.tower.merger(x), deep=torch.stack(deep) if deep else None)

    def make_plan(self, rows: int, columns: int, steps: int) -> _Plan:
        """As of `TowerBlocks`."""
        return _Plan(self._places(rows, columns).repeat(steps, 1),
                     self.turn(rows, columns, steps), steps)

    def _places(self, rows: int, columns: int) -> torch.Tensor:
        """Stretch the square table of learnt places over a frame; (patches, hidden)."""
        table = self.tower.pos_embed.weight.detach()
        side = math.isqrt(len(table))
        (above, row_shares), (before, column_shares) = (
            _stretched(side, self.merge * count) for count in (rows, columns))
        # Of each patch the four entries around it; shares are multiplied in fp32 by the oracle too.
        entries = (side * above[:, None, :, None] + before[:, None, :]).flatten(2)
        shares = (row_shares[:, None, :, None] * column_shares[:, None, :]).flatten(2)
        found = table[entries.to(self.device)] * shares.to(self.device)[..., None]
        return self.in_order(found.sum(2).to(self.dtype))


def _stretched(side: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Stretch `side` entries over `size` patches, the first and the last over the edges.

    :return: of each patch the two entries around it, int64 (size, 2), and their shares, fp32
    """
    at = torch.arange(size, dtype=torch.float32) * (side - 1) / max(size - 1, 1)
    below = at.floor()[:, None] + torch.tensor([0.0, 1.0])
    # Past the last entry nothing is left to share.
    return below.clamp(max=side - 1).long(), 1 - (at[:, None] - below).abs()


class Qwen3Language(QwenLanguage):
    """The text model's weights, as `streaming.decoder.LanguageModel` has them."""

    def __init__(self, language_model: Any, lm_head: nn.Module,
                 wanted: Wanted | None = None) -> None:
        """
        Take over the weights of transformers' text model; its layers are emptied.

        :raises ValueError: for what the live pass does not compute
        """
        self._head_norms: list[torch.Tensor] = []
        super().__init__(language_model, lm_head, wanted)

    def axes(self, sections: list[int]) -> list[int]:
        """Return the axis of each pair of dimensions: t, h, w in turns as far as h and w go."""
        found = torch.zeros(sum(sections), dtype=torch.long)
        for axis in (1, 2):
            found[axis:3 * sections[axis]:3] = axis
        return found.tolist()

    def rotary(self, positions: torch.Tensor) -> torch.Tensor:
        """Return cosines and sines, (2, n, 1, dim)."""
        angles = positions.to(self.device)[self._axis].t().float() * self._inv_freq
        angles = torch.cat([angles, angles], dim=1)[:, None]
        return torch.stack([angles.cos(), angles.sin()]).to(self.dtype)

    def project(self, layer: int, x: torch.Tensor,
                turn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries (n, kv heads, group, dim) and keys with values (n, 2, kv heads, dim)."""
        fused = self.projected(layer, x)
        heads = fused.view(len(x), -1, self.head_dim)[:, :self.heads + self.kv_heads]
        # Halves, not neighbours, turn together: a norm of reordered numbers would round otherwise.
        normed = self.weighted_norm(heads, self._head_norms[layer])
        first, second = normed.chunk(2, -1)
        cos, sin = turn
        heads.copy_(normed * cos + torch.cat([-second, first], dim=-1) * sin)
        return self.parted(fused)

    def qkv(self, attention: nn.Module) -> tuple[torch.Tensor, None]:
        """Return the weight of q, k and v in one; there is no bias."""
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        return torch.cat([part.weight.detach() for part in parts]), None

    def fuse(self, layer: nn.Module) -> Any:
        """Return the weights of a stock layer in the form that they are used in."""
        of_queries, of_keys = (norm.weight.detach() for norm in (
            layer.self_attn.q_norm, layer.self_attn.k_norm))
        self._head_norms.append(torch.cat([of_queries.expand(self.heads, -1),
                                           of_keys.expand(self.kv_heads, -1)]))
        return super().fuse(layer)


class Qwen3VL(Qwen25VL):
    """The family, as `streaming.family.Family` describes it."""

    name = 'Qwen3-VL'
    turns: Turns = TimedTurns()
    profiles: Mapping[str, Profile] = {}
    config_class = Qwen3VLConfig
    model_class = Qwen3VLForConditionalGeneration

    def check(self, config: Any) -> None:
        """Check that the sizes in transformers' config fit together; else a CheckpointError."""
        text, vision = config.text_config, config.vision_config
        check_heads(config)
        sections = text.rope_parameters['mrope_section']
        if len(sections) != 3:
            raise CheckpointError('mrope_section must have a part for each of time, row and '
                                  f'column, not {sections!r}')
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
                f'deepstack_visual_indexes must be rising blocks below {vision.depth}, at most '
                f'one for each of the {most} layers of the text, not {deep!r}')

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
