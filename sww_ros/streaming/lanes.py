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
                    config.repetition_penalty, before, config.record_trace)
