"""
Qwen2-VL: what differs from Qwen2.5-VL, whose family it derives from and whose decoder it has.

Its positions know no seconds: each step of a video is the next one. Its vision tower has no
windows; transformers' modules are the oracle of the tests. How a published streaming checkpoint was
trained to be asked is data: read in the public code that comes with LiveCC (arXiv 2504.16030),
`demo/infer.py` and `data/lmm_dataset.py` of showlab/livecc. docs/models.md says what is different
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from sww_ros.models.files import check_positive
from sww_ros.models.qwen2_5_vl import Qwen25VL, check_heads
from sww_ros.models.qwen2_5_vl.language import TowerBlocks, Turn
from sww_ros.models.qwen2_5_vl.turns import TurnByTurn
from sww_ros.streaming.family import Profile, Seen, VisionTower, Wanted

_TOKEN = 28 * 28
"""Pixels of one merged visual token."""

PROFILES = {
    # Three seconds in one video, then a turn a second; ' ...' ends each reply and is all of a
    # silent one. Streams have as many visual tokens as the clips that it was trained on, 24 k.
    'livecc': Profile(
        turns=TurnByTurn(first_turn=3, inside='<|vision_end|>', drops_cut=True,
                         opening='Time={start:.1f}-{stop:.1f}s'),
        known_as=('livecc',), pixels=(100 * _TOKEN, 384 * _TOKEN), silence=' ...', goes_on=True,
        repetition_penalty=1.05,
        defaults=dict(
            position_encoding='interleaved', schedule='live', wait_k=16, seconds_per_step=1.0,
            max_steps=64, system='You are a helpful assistant.',
            prompt='Please describe the video.')),
}


class Qwen2Tower(TowerBlocks):
    """Runs the weights of transformers' vision tower on steps; every block sees all of one."""

    def see(self, x: torch.Tensor, plan: tuple[Turn, int]) -> Seen:
        """As of `TowerBlocks`."""
        turn, steps = plan
        for block in self.tower.blocks:
            x = self.run(block, x, turn, (len(x) // steps,) * steps)
        return Seen(self.tower.merger(x))

    def make_plan(self, rows: int, columns: int, steps: int) -> tuple[Turn, int]:
        """Return rotary angles, and of how many steps they are."""
        return self.turn(rows, columns, steps), steps


class Qwen2VL(Qwen25VL):
    """The family, as `streaming.family.Family` describes it."""

    name = 'Qwen2-VL'
    profiles: Mapping[str, Profile] = PROFILES
    config_class = Qwen2VLConfig
    model_class = Qwen2VLForConditionalGeneration

    def check(self, config: Any) -> None:
        """Check that the sizes in transformers' config fit together; else a CheckpointError."""
        check_heads(config, width='embed_dim', merged='hidden_size')
        check_positive('mlp_ratio of the vision tower', config.vision_config.mlp_ratio)

    def tokens_per_second(self, config: Any) -> float:
        """None: steps are counted."""
        return 0.0

    def vision(self, net: Any, wanted: Wanted | None = None) -> VisionTower:
        """Return the tower over the stock tower's weights."""
        return Qwen2Tower(net.model.visual, wanted)


FAMILY = Qwen2VL()
