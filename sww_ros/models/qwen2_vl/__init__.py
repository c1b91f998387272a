"""
Qwen2-VL: what differs from Qwen2.5-VL, whose family it derives from and whose decoder it has.

Its positions know no seconds: each step of a video is the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from sww_ros.models.files import check_positive
from sww_ros.models.qwen2_5_vl import Qwen25VL, check_heads
from sww_ros.models.qwen2_vl.profiles import PROFILES
from sww_ros.models.qwen2_vl.vision import Qwen2Tower
from sww_ros.streaming.family import Profile, VisionTower, Wanted


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
