"""One small forward pass of a loaded checkpoint, whose numbers must be numbers."""

from __future__ import annotations

import numpy as np
import torch

from sww_ros.models.files import CheckpointError
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.decoder import Chunk
from sww_ros.streaming.positions import text_positions


def try_out(checkpoint: Checkpoint) -> None:
    """
    Let the checkpoint see a small gray picture and predict one token.

    A NaN or an infinity in any layer, a table of zeros, or a type too narrow for the weights
    shows in it: the model would say the same token for ever.

    :raises CheckpointError: in words
    """
    decoder, perception = checkpoint.decoder, checkpoint.perception
    side = 2 * perception.settings.unit
    gray = np.full((side, side, 3), 100, np.uint8)
    prefix = checkpoint.encode(*checkpoint.turns.prefix(checkpoint.defaults.system, ''))
    try:
        seen = perception.embed(perception.patches([gray], side, side), side, side).rows
        rows = torch.cat([decoder.embed(prefix), seen])
        positions = torch.from_numpy(text_positions(0, len(rows)))
        logits, = decoder.step([Chunk(decoder.new_lane(len(rows)), rows, positions, predict=True)])
    except (RuntimeError, IndexError) as error:
        raise CheckpointError(f'the model cannot run: {error}') from error
    if not seen.isfinite().all() or not logits.isfinite().all():
        where = 'its output' if seen.isfinite().all() else 'its vision tower'
        narrow = (', or float16 is too narrow for it (try bfloat16 or float32)'
                  if decoder.dtype == torch.float16 else '')
        raise CheckpointError(f'the model computes no finite numbers ({where}): its weights are '
                              f'broken{narrow}; save or download it again')
    if logits.max() == logits.min():
        raise CheckpointError('the model likes all tokens alike: its weights are zero; save or '
                              'download it again')
