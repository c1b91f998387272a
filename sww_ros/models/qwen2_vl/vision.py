"""The arithmetic of Qwen2-VL's vision tower; transformers' modules are the oracle of the tests."""

from __future__ import annotations

import functools
from typing import Any

import torch

from sww_ros.models.qwen2_5_vl.language import PLANS, TowerBlocks
from sww_ros.streaming.family import Seen, Wanted


class Qwen2Tower(TowerBlocks):
    """Runs the weights of transformers' vision tower on steps; every block sees all of one."""

    deep_layers = 0

    def __init__(self, tower: Any, wanted: Wanted | None = None) -> None:
        """Take the weights of the stock tower, made as they are wanted; they are shared."""
        super().__init__(tower, wanted)
        self._turn = functools.lru_cache(maxsize=PLANS)(self._make_turn)

    @torch.inference_mode()
    def __call__(self, patches: torch.Tensor, rows: int, columns: int) -> Seen:
        """
        Return the merged tokens of each step, rows * columns of them.

        :param patches: (steps * 4 * rows * columns, channels * pixels), in the tower's order
        :param rows: rows of merged tokens
        """
        steps = self.steps_in(patches, rows, columns)
        x, turn = self.embed(patches), self._turn(rows, columns, steps)
        for block in self.tower.blocks:
            x = self.run(block, x, turn, (len(x) // steps,) * steps)
        return Seen(self.tower.merger(x))

    def _make_turn(self, rows: int, columns: int,
                   steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        angles = self.angles(rows, columns).repeat(steps, 1).to(self.device)
        return angles.cos(), angles.sin()
