"""One forward pass over a batch: video through the stock tower, rows through the stock model."""

from __future__ import annotations

import torch
from torch import nn
import torch.nn.functional as F

from sww_ros.streaming.trace import VIDEO
from sww_ros.training.attention import FLEX, block_mask
from sww_ros.training.batches import Batch
from sww_ros.training.layout import IGNORE
from sww_ros.training.trainee import Trainee


class Teacher(nn.Module):
    """
    The loss of a batch under the streaming mask, by transformers' own modules.

    The tower is frozen but for its merger: its blocks keep nothing for a backward pass, as none
    of their inputs asks for a gradient.
    """

    def __init__(self, trainee: Trainee, attention: str) -> None:
        """
        Take the model.

        :param attention: 'sdpa' with dense masks, or 'flex' with block masks
        """
        super().__init__()
        self.net, self._attention = trainee.net, attention
        self._stock = [trainee.stock]  # In a list: its weights are in `net` already.
        language = trainee.stock.model.language_model
        language.config._attn_implementation = FLEX if attention == 'flex' else 'sdpa'

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the cross-entropy summed over the batch's answer tokens, fp32."""
        told = batch.labels != IGNORE
        return F.cross_entropy(self.logits(batch, told).float(), batch.labels[told],
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
