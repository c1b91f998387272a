"""
The loss of a batch: video through the stock tower, rows through the stock model.

Attention has dense masks under SDPA, block masks under FlexAttention. Both say the same:
`mask_mod` is the rule of `streaming/visibility.py` for single pairs of rows, and the tests hold it
against `Rows.mask`. FlexAttention has no backward pass on a CPU; there it runs uncompiled and
without gradients, which is how the tests compare it. Compiled, on a GPU, it never builds a dense
mask.
"""

from __future__ import annotations

from collections.abc import Callable
import functools

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
import torch.nn.functional as F
from transformers import AttentionInterface

from sww_ros.streaming.layout import IGNORE
from sww_ros.streaming.trace import VIDEO
from sww_ros.streaming.visibility import VISUAL_LANE
from sww_ros.training.batches import Batch
from sww_ros.training.model import TrainedModel

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


class Loss(nn.Module):
    """
    The loss of a batch under the streaming mask, by transformers' own modules.

    The tower is frozen but for its merger: its blocks keep nothing for a backward pass, as none
    of their inputs asks for a gradient.
    """

    def __init__(self, model: TrainedModel, attention: str) -> None:
        """
        Take the model.

        :param attention: 'sdpa' with dense masks, or 'flex' with block masks
        """
        super().__init__()
        self.net, self._attention = model.net, attention
        self._stock = [model.stock]  # In a list: its weights are in `net` already.
        language = model.stock.model.language_model
        language.config._attn_implementation = FLEX if attention == 'flex' else 'sdpa'

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the cross-entropy summed over the batch's answer tokens, fp32."""
        labelled = batch.labels != IGNORE
        return F.cross_entropy(self.logits(batch, labelled).float(), batch.labels[labelled],
                               reduction='sum')

    def logits(self, batch: Batch, at: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, vocabulary) of the rows where `at` (B, L) is True."""
        stock = self._stock[0]
        seen = stock.model.visual(batch.patches, grid_thw=batch.grids).pooler_output
        embeds = stock.get_input_embeddings()(batch.ids.clamp(min=0))
        embeds = embeds.masked_scatter((batch.ids == VIDEO)[..., None], seen.to(embeds.dtype))
        if self._attention == 'flex':
            mask = block_mask(batch.clip, batch.lane, batch.step, batch.sees)
        else:
            mask = batch.mask()
        hidden = stock.model.language_model(
            inputs_embeds=embeds, position_ids=batch.positions,
            attention_mask=mask, use_cache=False).last_hidden_state
        return stock.lm_head(hidden[at])
