"""Models that are measured, what they are shown, and sessions that note when each job ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean
import time
from typing import NamedTuple

import numpy as np

from sww_ros.evaluation.random_model import random_checkpoint
from sww_ros.models.loading import load
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.generation import Vocabulary
from sww_ros.streaming.jobs import Decode, Input, Job
from sww_ros.streaming.processes import ForkingRunner
from sww_ros.streaming.runner import ModelRunner
from sww_ros.streaming.session import Session


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


class Span(NamedTuple):
    """The jobs of one pass, and from when to when they ran, on `time.monotonic_ns`."""

    jobs: Sequence[Job]
    start_ns: int
    stop_ns: int

    @property
    def seconds(self) -> float:
        return (self.stop_ns - self.start_ns) / 1e9

    @property
    def speakers(self) -> int:
        """How many turns were taken in it; 0 for perception alone."""
        return sum(len(job.turns) for job in self.jobs if isinstance(job, Decode))


class _Timed(ModelRunner):
    def __init__(self, *arguments: object) -> None:
        self.spans: list[Span] = []
        super().__init__(*arguments)

    def begin(self, jobs: Sequence[Job]) -> Callable[[], list[Input]]:
        start, finish = time.monotonic_ns(), super().begin(jobs)

        def finished() -> list[Input]:
            results = finish()
            # From either thread: appending is atomic.
            self.spans.append(Span(jobs, start, time.monotonic_ns()))
            return results
        return finished


class _TimedFork(_Timed, ForkingRunner):
    pass


class TimedSession(Session):
    """A session with `spans`, in the order in which they ended."""

    def _make_runner(self, *arguments: object) -> ModelRunner:
        return (_TimedFork if self._overlap == 'processes' else _Timed)(*arguments)

    @property
    def spans(self) -> list[Span]:
        return [*self._runner.spans]


def mean_seconds(spans: Sequence[Span], kind: type[Job]) -> float:
    """Return the mean time of the passes that did one job of a kind; 0.0 if none did."""
    found = [span.seconds for span in spans
             if len(span.jobs) == 1 and isinstance(span.jobs[0], kind)]
    return mean(found) if found else 0.0
