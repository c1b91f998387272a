"""
Attention of the language model in training: dense masks for SDPA, block masks for FlexAttention.

Both say the same: `mask_mod` is the rule of `streaming/visibility.py` for single pairs of rows,
and the tests hold it against `Rows.mask`. FlexAttention has no backward pass on a CPU; there it
runs uncompiled and without gradients, which is how the tests compare it. Compiled, on a GPU, it
never builds a dense mask.
"""

from __future__ import annotations

from collections.abc import Callable
import functools

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface

from sww_ros.streaming.visibility import VISUAL_LANE

FLEX = 'sww_flex'
"""FlexAttention under a name of our own, so that only the language model takes it."""
BLOCK = 128
"""Rows of one block of a block mask; batches are filled up to whole ones, for fewer shapes."""


def choose(attention: str, device: torch.device) -> str:
    """
    Return 'sdpa' or 'flex' for 'auto' and for what was asked.

    :raises ValueError: where what was asked cannot train on this device
    """
    if attention == 'auto':
        return 'flex' if device.type == 'cuda' else 'sdpa'
    if attention == 'flex' and device.type != 'cuda':
        raise ValueError(f'attention flex cannot train on {device.type}: FlexAttention has no '
                         'backward pass there; leave the option out, or use sdpa')
    return attention


def mask_mod(clip: torch.Tensor, lane: torch.Tensor, step: torch.Tensor,
             sees: torch.Tensor) -> Callable[..., torch.Tensor]:
    """
    Return FlexAttention's predicate: whether row `query` of a batch attends to row `key`.

    All arguments are (B, L) integers; rows of different clips never see each other.
    """
    def visible(batch, _head, query, key):
        causal = (key <= query) & (lane[batch, key] == lane[batch, query])
        across = (lane[batch, query] != VISUAL_LANE) & (lane[batch, key] == VISUAL_LANE)
        shown = step[batch, key] < sees[batch, query]
        return (clip[batch, key] == clip[batch, query]) & (causal | (across & shown))

    return visible


def block_mask(clip: torch.Tensor, lane: torch.Tensor, step: torch.Tensor,
               sees: torch.Tensor) -> BlockMask:
    """Return the block mask of a batch; on a GPU its making is compiled, and nothing is dense."""
    rows, length = clip.shape
    make = _compiled_maker() if clip.is_cuda else create_block_mask
    return make(mask_mod(clip, lane, step, sees), rows, None, length, length,
                device=str(clip.device), BLOCK_SIZE=BLOCK)


@functools.cache
def _compiled_maker() -> Callable[..., BlockMask]:
    return torch.compile(create_block_mask)


@functools.cache
def _compiled_attention() -> Callable[..., torch.Tensor]:
    return torch.compile(flex_attention, dynamic=True)


def _attend(module, query, key, value, attention_mask, scaling=None, **_):
    run = _compiled_attention() if query.is_cuda else flex_attention
    # Under autocast, turning queries and keys leaves them in fp32, and all three must agree.
    query, key = query.to(value.dtype), key.to(value.dtype)
    out = run(query, key, value, block_mask=attention_mask, scale=scaling,
              enable_gqa=query.shape[1] != key.shape[1])
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(FLEX, _attend)
