"""
The vision tower of Qwen2.5-VL for one step of video at a time.

The arithmetic is that of transformers' tower, the oracle of the tests; what depends on the size of
the frames alone (windows, rotary angles) is computed once per size, and windows of one size
attend in one call, as per-window Python costs more than the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
import functools

import torch
from torch import nn
import torch.nn.functional as F

from sww_ros.streaming.family import Seen


@dataclass(frozen=True)
class _Plan:
    """What a frame size fixes: the order of merged tokens, rotary angles, windows' lengths."""

    order: torch.Tensor
    back: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    windows: tuple[int, ...]


class QwenTower:
    """Runs the weights of transformers' vision tower on the patches of one step."""

    def __init__(self, tower: nn.Module) -> None:
        """Take the weights of the stock tower; they are shared, not copied."""
        config = tower.config
        self._tower, self._heads = tower, config.num_heads
        self._merge = config.spatial_merge_size
        self._window = config.window_size // (config.patch_size * self._merge)
        self._whole = frozenset(config.fullatt_block_indexes)
        convolution = tower.patch_embed.proj.weight.detach()
        self._patch = convolution.reshape(len(convolution), -1)
        self.dtype, self.device = self._patch.dtype, self._patch.device
        self._plan = functools.lru_cache(maxsize=8)(self._make_plan)

    @torch.inference_mode()
    def __call__(self, patches: torch.Tensor, rows: int, columns: int) -> Seen:
        """
        Return the merged tokens of one step, rows * columns of them.

        :param patches: (4 * rows * columns, channels * pixels), in the tower's order
        :param rows: rows of merged tokens
        """
        plan = self._plan(rows, columns)
        unit = self._merge ** 2
        x = F.linear(patches, self._patch)
        x = x.view(-1, unit, x.shape[-1])[plan.order].reshape(len(x), -1)
        for index, block in enumerate(self._tower.blocks):
            windows = (len(x),) if index in self._whole else plan.windows
            x = x + self._attend(block.attn, block.norm1(x), plan, windows)
            x = x + block.mlp(block.norm2(x))
        return Seen(self._tower.merger(x)[plan.back])

    def _attend(self, attention: nn.Module, x: torch.Tensor, plan: _Plan,
                windows: tuple[int, ...]) -> torch.Tensor:
        qkv = attention.qkv(x).view(len(x), 3, self._heads, -1).transpose(0, 2)
        # The oracle turns queries and keys in fp32 whatever the weights' type.
        turning = qkv[:, :2].float()
        half = turning.shape[-1] // 2
        swapped = torch.cat([-turning[..., half:], turning[..., :half]], dim=-1)
        q, k = (turning * plan.cos + swapped * plan.sin).to(x.dtype).unbind(1)
        parts = zip(*(_split(part, windows) for part in (q, k, qkv[:, 2])))
        out = [F.scaled_dot_product_attention(*part).transpose(1, 2).flatten(0, 1)
               for part in parts]
        return attention.proj((out[0] if len(out) == 1 else torch.cat(out)).flatten(1))

    def _make_plan(self, rows: int, columns: int) -> _Plan:
        unit, size = self._merge ** 2, self._window
        index = torch.arange(rows * columns).view(rows, columns)
        blocks = [index[r:r + size, c:c + size].flatten()
                  for r in range(0, rows, size) for c in range(0, columns, size)]
        order = torch.cat(blocks)
        angles = self._angles(rows, columns).view(rows * columns, unit, -1)[order].flatten(0, 1)
        to = functools.partial(torch.Tensor.to, device=self.device)
        return _Plan(to(order), to(torch.argsort(order)), to(angles.cos()), to(angles.sin()),
                     tuple(len(block) * unit for block in blocks))

    def _angles(self, rows: int, columns: int) -> torch.Tensor:
        """Rotary angles of all patches in the tower's order, (patches, head dim) fp32."""
        m = self._merge
        row, column = torch.meshgrid(torch.arange(rows * m), torch.arange(columns * m),
                                     indexing='ij')
        places = torch.stack([row, column], dim=-1).view(rows, m, columns, m, 2)
        places = places.transpose(1, 2).reshape(-1, 2, 1)
        angles = (places.float() * self._tower.rotary_pos_emb.inv_freq.float().cpu()).flatten(1)
        return torch.cat([angles, angles], dim=-1)


def _split(x: torch.Tensor, windows: tuple[int, ...]) -> list[torch.Tensor]:
    """Cut (heads, n, dim) into (windows, heads, length, dim), neighbours of a length together."""
    found, start = [], 0
    while start < x.shape[1]:
        length, count = windows[0], 1
        while count < len(windows) and windows[count] == length:
            count += 1
        part = x[:, start:start + count * length]
        found.append(part.unflatten(1, (count, length)).transpose(0, 1))
        start, windows = start + count * length, windows[count:]
    return found
