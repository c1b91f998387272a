"""The models that are measured, with a speaker that never falls silent, and what they are shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sww_ros.evaluation.random_model import random_checkpoint
from sww_ros.models.loading import load
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.generation import Vocabulary


def _shape(hidden: int, inner: int, layers: int, heads: int, kv_heads: int,
           vision: dict) -> dict:
    half = hidden // heads // 2
    other = (half - half // 4) // 2
    text = dict(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads,
        rope_parameters=dict(rope_type='default', rope_theta=1e6,
                             mrope_section=[half - 2 * other, other, other]))
    return dict(text=text, vision=dict(num_heads=heads // 2, tokens_per_second=2, **vision))


MEDIUM = _shape(1024, 4096, 8, 16, 4, dict(
    depth=4, hidden_size=512, intermediate_size=1536, window_size=112, fullatt_block_indexes=[3]))
"""Large enough that arithmetic, not Python, takes the time: 142 M parameters."""
SMALL = _shape(512, 2048, 8, 8, 2, dict(
    depth=4, hidden_size=256, intermediate_size=768, window_size=112, fullatt_block_indexes=[3]))
"""Between the built-in model and MEDIUM: 35 M parameters."""


def small() -> Checkpoint:
    """A random checkpoint of the shape SMALL."""
    return _named('small', SMALL)


def medium() -> Checkpoint:
    """A random checkpoint of the shape MEDIUM."""
    return _named('medium', MEDIUM)


def hollow(layers: int) -> Checkpoint:
    """A checkpoint so narrow that a step is what its layers cost in Python and dispatch."""
    vision = dict(depth=1, hidden_size=32, intermediate_size=48, window_size=56,
                  fullatt_block_indexes=[0])
    return _named('hollow', _shape(16, 16, layers, 4, 1, vision))


def _named(name: str, shape: dict) -> Checkpoint:
    _, made = random_checkpoint(shape, 0, silence_token='<|silence|>', max_steps=1000)
    return replace(made, name=name)


RANDOM = dict(small=small, medium=medium)


def tireless(name: str) -> Checkpoint:
    """
    Return a model by its name: 'builtin', 'small', 'medium', a folder or a hub id.

    No token of its is silence or the end of a turn, so that all that may be said is said.

    :raises CheckpointError: for a model that cannot be used
    """
    checkpoint = RANDOM[name]() if name in RANDOM else load(name)
    return replace(checkpoint, name=name, vocabulary=Vocabulary(frozenset()))


def frame_side(name: str, side: int = 0) -> int:
    """Return the width and height [pixels] of frames for a model; `side` where it is given."""
    return side or (112 if name == 'medium' else 84)


def noise(steps: int, side: int) -> list[np.ndarray]:
    """Return random frames for so many steps, two a step."""
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (2 * steps, side, side, 3), np.uint8))
