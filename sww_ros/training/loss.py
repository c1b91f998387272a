"""
Batches of clips, and the loss of one: video through the stock tower, rows through the stock model.

Clips stand side by side, padded, or several in one row, packed; they never see each other.

Attention has dense masks under SDPA, block masks under FlexAttention. Both say the same:
`mask_mod` is the rule of `streaming/visibility.py` for single pairs of rows, and the tests hold it
against `Rows.mask`. FlexAttention has no backward pass on a CPU; there it runs uncompiled and
without gradients, which is how the tests compare it. Compiled, on a GPU, it never builds a dense
mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
import functools

import numpy as np
import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
import torch.nn.functional as F
from transformers import AttentionInterface

from sww_ros.streaming.layout import IGNORE
from sww_ros.streaming.trace import VIDEO
from sww_ros.streaming.visibility import VISUAL_LANE, Rows
from sww_ros.training.clips import Clip
from sww_ros.training.model import TrainedModel

FLEX = 'sww_flex'
"""FlexAttention under a name of our own, so that only the language model takes it."""
BLOCK = 128
"""Rows of one block of a block mask; batches are filled up to whole ones, for fewer shapes."""
_PADDED = -1
"""The clip of rows that only fill; they see each other, as a softmax needs something."""


@dataclass(frozen=True)
class Batch:
    """
    B rows of L columns, made of clips.

    `ids`, `labels`, `clip`, `lane`, `step`, `sees` (B, L) int64, `positions` (3, B, L);
    `patches` (all, pixels) and `grids` (clips, 3), in patches, in the order in which the clips
    stand. `ids` is VIDEO, -1, where a merged visual token goes.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    clip: torch.Tensor
    lane: torch.Tensor
    step: torch.Tensor
    sees: torch.Tensor
    patches: torch.Tensor
    grids: torch.Tensor

    @property
    def answer_tokens(self) -> int:
        return int((self.labels != IGNORE).sum())

    @property
    def rows(self) -> int:
        """Rows that are not padding."""
        return int((self.clip != _PADDED).sum())

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: value.to(device, non_blocking=True)
                        for name, value in vars(self).items()})

    def mask(self) -> torch.Tensor:
        """The dense mask, (B, 1, L, L) bool: True where row i attends to row j."""
        found = []
        for clip, *rows in zip(*(part.cpu().numpy()
                                 for part in (self.clip, self.lane, self.step, self.sees))):
            found.append(Rows(*rows).mask() & (clip[:, None] == clip))
        return torch.from_numpy(np.stack(found))[:, None].to(self.ids.device)


def pad(clips: Sequence[Clip], whole: int = 1) -> Batch:
    """Put each clip into a row of its own, filled up to a multiple of `whole` columns."""
    return _batch([[clip] for clip in clips], whole)


def pack(clips: Sequence[Clip], whole: int = 1) -> Batch:
    """Put all clips into one row, one after the other, filled up likewise."""
    return _batch([clips], whole)


def packed(clips: Iterable[Clip], max_rows: int, whole: int = 1) -> Iterator[Batch]:
    """Yield packed batches of at most `max_rows` rows of clips each; a clip is never cut."""
    waiting: list[Clip] = []
    filled = 0
    for clip in clips:
        if waiting and filled + len(clip.rows) > max_rows:
            yield pack(waiting, whole)
            waiting, filled = [], 0
        waiting.append(clip)
        filled += len(clip.rows)
    if waiting:
        yield pack(waiting, whole)


def padded(clips: Iterable[Clip], count: int, whole: int = 1) -> Iterator[Batch]:
    """Yield padded batches of `count` clips, the last one of what is left."""
    waiting: list[Clip] = []
    for clip in clips:
        waiting.append(clip)
        if len(waiting) == count:
            yield pad(waiting, whole)
            waiting = []
    if waiting:
        yield pad(waiting, whole)


def _batch(lines: Sequence[Sequence[Clip]], whole: int) -> Batch:
    """Put each list of clips into one row."""
    length = max(sum(len(clip.rows) for clip in line) for line in lines)
    length += -length % whole
    shape = len(lines), length
    columns = dict(ids=np.zeros(shape, np.int64), labels=np.full(shape, IGNORE),
                   clip=np.full(shape, _PADDED), lane=np.full(shape, VISUAL_LANE),
                   step=np.zeros(shape, np.int64), sees=np.zeros(shape, np.int64))
    positions = np.zeros((3, *shape), np.int64)
    for row, line in enumerate(lines):
        at = 0
        for number, clip in enumerate(line):
            laid = clip.rows
            here = slice(at, at + len(laid))
            for name, value in (('ids', laid.ids), ('labels', laid.labels), ('clip', number),
                                ('lane', laid.rows.lane), ('step', laid.rows.step),
                                ('sees', laid.rows.sees)):
                columns[name][row, here] = value
            positions[:, row, here] = laid.positions
            at += len(laid)
    clips = [clip for line in lines for clip in line]
    # The tower counts patches, 2 x 2 of them in a merged token.
    grids = [(steps, 2 * height, 2 * width) for steps, height, width in
             (clip.grid for clip in clips)]
    return Batch(**{name: torch.from_numpy(value) for name, value in columns.items()},
                 positions=torch.from_numpy(positions),
                 patches=torch.cat([clip.patches for clip in clips]), grids=torch.tensor(grids))


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
