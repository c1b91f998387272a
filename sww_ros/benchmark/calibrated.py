"""A checkpoint whose stages take a known time, to measure scheduling apart from arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
import time

import torch

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.decoder import Chunk


def calibrated_checkpoint() -> Checkpoint:
    """Return a small random checkpoint; its own arithmetic is far below the calibrated times."""
    return random_checkpoint(SMALL, 0, silence_token='<|silence|>', max_steps=100_000)[1]


@contextmanager
def calibrated(checkpoint: Checkpoint, perceive_s: float, decode_s: float) -> Iterator[None]:
    """
    Let each step's perception take `perceive_s` and each decode step `decode_s` seconds.

    Both are slept away, as two devices of their own would work: neither slows the other down. The
    real pass runs too, and counts within the time.
    """
    decoder, perception = checkpoint.decoder, checkpoint.perception
    step, embed = decoder.step, perception.embed
    forced = torch.zeros(len(checkpoint.tokenizer))
    forced[checkpoint.vocabulary.silence] = 1.0

    def timed_step(chunks: Sequence[Chunk]) -> list[torch.Tensor | None]:
        start = time.monotonic()
        # Always silence: no turn may end before its time.
        logits = [row if row is None else forced for row in step(chunks)]
        if chunks[0].predict:
            _sleep_until(start + decode_s)
        return logits

    def timed_embed(*arguments: object) -> torch.Tensor:
        start = time.monotonic()
        embeds = embed(*arguments)
        _sleep_until(start + perceive_s)
        return embeds

    decoder.step, perception.embed = timed_step, timed_embed
    try:
        yield
    finally:
        del decoder.step, perception.embed


def _sleep_until(deadline: float) -> None:
    if (left := deadline - time.monotonic()) > 0:
        time.sleep(left)
