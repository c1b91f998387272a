"""
Overlap with real weights at full load: frames come as fast as they can be perceived.

`python -m sww_ros.benchmark full-load --model PATH --json FILE` plays one stream through the same
engine on the same cores, in turn: one side after the other, interleaved or group-decoupled, and
both at once. A camera at its own rate leaves a small model idle most of the time; here both sides
always have work.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
import json
from pathlib import Path
from statistics import median
import time

import numpy as np

from sww_ros.benchmark.machine import machine
from sww_ros.evaluation.random_model import random_checkpoint
from sww_ros.models.loading import load
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import StepPerceived
from sww_ros.streaming.session import Session


@dataclass(frozen=True)
class Side:
    """One way to share the cores."""

    overlap: str
    position_encoding: str
    threads: int


THREADS = Side('threads', 'gdpe', 1)
BASELINES = {
    f'{name}_{threads}_thread{"s" * (threads > 1)}': Side('serial', scheme, threads)
    for name, scheme in (('interleaved', 'interleaved'), ('serial', 'gdpe')) for threads in (1, 2)}
"""
One side after the other. Interleaved needs a forward pass less per step: the last token spoken
goes into the cache with the step that follows it.
"""


@dataclass(frozen=True)
class Run:
    """One stream at full load, in seconds; `overlap` is the share of perception."""

    seconds: float
    perceiving: float
    overlap: float
    decode_steps: int


def run_once(checkpoint: Checkpoint, frames: Sequence[np.ndarray], side: Side,
             wait_k: int = 0) -> Run:
    """
    Feed all frames at once, and wait until all is perceived and said.

    :param wait_k: tokens of narration a step; 0: as the checkpoint says
    """
    config = SessionConfig(
        overlap=side.overlap, position_encoding=side.position_encoding, schedule='wait_k',
        threads=side.threads, wait_k=wait_k, max_steps=len(frames), max_pending_frames=len(frames))
    with Session(checkpoint, config) as session:
        start = time.monotonic()
        for frame in frames:
            session.feed(frame)
        if not session.wait_idle(600):
            raise RuntimeError(f'{side}: the stream did not end within 600 s')
        seconds = time.monotonic() - start
        steps = [e for e in session.drain() if isinstance(e, StepPerceived)]
        perceiving = sum(e.perceived_ns - e.started_ns for e in steps)
        return Run(seconds, perceiving / 1e9, sum(e.overlap_ns for e in steps) / perceiving,
                   session.decode_steps)


def compare(checkpoint: Checkpoint, frames: Sequence[np.ndarray], repeats: int) -> dict:
    """
    Return medians of both sides, alternating; `r` is perception over generation, one at a time.

    Serial may use both cores for each piece of work, threads one for each side. The baseline is
    whichever of BASELINES is fastest.
    """
    sides = BASELINES | {'threads': THREADS}
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for _ in range(repeats + 1):
        for name, side in sides.items():
            runs[name].append(run_once(checkpoint, frames, side))
    # The first round warms up.
    times = {name: median(run.seconds for run in side[1:]) for name, side in runs.items()}
    best = min(BASELINES, key=times.get)
    alone = runs['serial_1_thread'][1:]
    perceiving = median(run.perceiving for run in alone)
    r = perceiving / (times['serial_1_thread'] - perceiving)
    return dict(
        model=checkpoint.name, parameters=checkpoint.parameters,
        baseline=best, steps=len(frames) // 2, decode_steps=alone[0].decode_steps,
        repeats=repeats, **{f'{name}_s': round(value, 4) for name, value in times.items()},
        speedup=round(times[best] / times['threads'], 3),
        r=round(r, 3), limit=round((1 + r) / max(1.0, r), 3),
        overlap_ratio=round(median(run.overlap for run in runs['threads'][1:]), 3))


MEDIUM = dict(
    text=dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8,
              num_attention_heads=16, num_key_value_heads=4,
              rope_parameters=dict(rope_type='default', rope_theta=1e6,
                                   mrope_section=[8, 12, 12])),
    vision=dict(depth=4, hidden_size=512, intermediate_size=1536, num_heads=8,
                window_size=112, fullatt_block_indexes=[3], tokens_per_second=2))
"""Large enough that arithmetic, not Python, takes the time."""


def medium() -> Checkpoint:
    """A random checkpoint of the shape MEDIUM."""
    return random_checkpoint(MEDIUM, 0, silence_token='<|silence|>', max_steps=1000)[1]


def main(arguments: list[str] | None = None) -> None:
    """Measure one checkpoint on random frames, print and write."""
    parser = argparse.ArgumentParser(prog='python -m sww_ros.benchmark full-load',
                                     description=__doc__.split('\n')[1])
    parser.add_argument('--model', default='builtin',
                        help="a checkpoint, or 'medium': random weights")
    parser.add_argument('--side', type=int, default=84, help='width of a frame in pixels')
    parser.add_argument('--steps', type=int, default=40)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--json', type=Path)
    given = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    size = (2 * given.steps, given.side, given.side, 3)
    frames = list(rng.integers(0, 256, size, np.uint8))
    checkpoint = medium() if given.model == 'medium' else load(given.model)
    result = dict(machine=machine(), **compare(checkpoint, frames, given.repeats))
    print(json.dumps(result, indent=1))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
