"""Opens text lanes as the session's settings want them."""

from __future__ import annotations

from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.generation import TextLane
from sww_ros.streaming.kv import Lane
from sww_ros.streaming.positions import Track


def open_lane(checkpoint: Checkpoint, config: SessionConfig, stream_id: str, head: list[int],
              track: Track, before: list[int], cache: Lane | None = None) -> TextLane:
    """
    Return a speaker that begins with `head`, placed on `track`.

    :param before: the prefix, which the repetition penalty counts as used
    :param cache: the lane it writes to; one of its own if not given
    """
    decoder = checkpoint.decoder
    if cache is None:
        cache = decoder.new_lane(len(head) + 64)
    return TextLane(stream_id, decoder, cache, track, head, checkpoint.tokenizer,
                    repetition_penalty(checkpoint, config), before, config.record_trace)


def repetition_penalty(checkpoint: Checkpoint, config: SessionConfig) -> float:
    """
    Return the penalty that a session speaks with: its own, or that of the checkpoint.

    :raises ValueError: for a session that records its run, which cannot be replayed with one
    """
    penalty = config.repetition_penalty or checkpoint.repetition_penalty
    if config.record_trace and penalty != 1.0:
        raise ValueError(f'the checkpoint asks for a repetition penalty of {penalty:g}, and a run '
                         'with one cannot be replayed: set repetition_penalty to 1.0')
    return penalty
