"""
How much faster both at once is than one after the other, on calibrated devices.

`python -m sww_ros.benchmark overlap --json FILE --picture FILE` plays the same stream through the
same engine with `overlap` serial (as interleaved positions force it) and threads, in turn, for
r = perception / generation from 0.1 to 10, and compares S = T_serial / T_threads with its limit
(1 + r) / max(1, r). Then it measures how long a hazard stays unseen while a sentence is spoken.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
import time

import numpy as np
import torch
from tqdm import tqdm

from sww_ros.benchmark.full_load import run_once
from sww_ros.benchmark.harness import Measurement, Side, alternate, panels, repeats
from sww_ros.benchmark.latency import latency_s
from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.decoder import Chunk

RATIOS = (0.1, 0.2, 0.5, 0.8, 1.0, 1.25, 2.0, 5.0, 10.0)
LENGTHS = (1, 10, 100, 1000)
SIDES = ('serial', 'threads')
STEP_S = 0.06
"""Perception and generation of one step together, in seconds."""
WAIT_K = 3
PERCEIVE_S, DECODE_S = 0.02, 0.004
"""A step's perception and a token where the hazard's latency is measured."""
FRAME = np.zeros((56, 56, 3), np.uint8)


def measure_speedup(checkpoint: Checkpoint, count: int, steps: int) -> list[dict]:
    """For each r: medians of both sides' times, S and its limit."""
    rows = []
    for r in tqdm(RATIOS, desc='speed-up', unit='ratio', disable=None):
        perceive, generate = STEP_S * r / (1 + r), STEP_S / (1 + r)
        with calibrated(checkpoint, perceive, generate / WAIT_K):
            figures = _both(count, lambda side: run_once(
                checkpoint, [FRAME] * 2 * steps, Side(side), WAIT_K).seconds)
        limit = (1 + r) / max(1.0, r)
        # A stream of n steps cannot hide its first perception and its last words.
        finite = steps * (1 + r) / (steps * max(1.0, r) + min(1.0, r))
        rows.append(dict(
            r=r, **figures, speedup=round(figures['serial_s'] / figures['threads_s'], 4),
            limit=round(limit, 4), limit_of_this_length=round(finite, 4)))
    return rows


def measure_hazard(checkpoint: Checkpoint, count: int, lengths: Sequence[int]) -> list[dict]:
    """For each length of the sentence being spoken: median latency of both sides."""
    with calibrated(checkpoint, PERCEIVE_S, DECODE_S):
        return [dict(tokens=tokens, **_both(count, lambda side, tokens=tokens: latency_s(
            checkpoint, [FRAME] * 4, Side(side), tokens))) for tokens in lengths]


def _both(count: int, seconds: Callable[[str], float]) -> dict:
    """Return medians and all repetitions of both sides, measured in turn."""
    times = alternate('overlap', SIDES, count, lambda _, side: seconds(side))
    return {f'{side}_s': round(median(times[side]), 4) for side in SIDES} | {
        f'all_{side}_s': [round(value, 4) for value in times[side]] for side in SIDES}


def summarize(speedup: list[dict], hazard: list[dict]) -> dict:
    """Return the speed-up at r = 1, the worst share of the limit, and how flat the latency is."""
    at_one = next(row for row in speedup if row['r'] == 1.0)
    latencies = [row['threads_s'] for row in hazard]
    return dict(
        speedup=at_one['speedup'], limit=at_one['limit'],
        worst_share_of_limit=round(min(row['speedup'] / row['limit'] for row in speedup), 4),
        hazard_flatness=round(max(latencies) / min(latencies), 4))


def draw(result: dict, file: Path) -> None:
    """Draw both measurements."""
    with panels(file, 2, width=5) as (left, right):
        rows = result['speedup']
        fine = np.geomspace(0.1, 10, 200)
        left.plot(fine, (1 + fine) / np.maximum(1, fine), color='0.6',
                  label='limit (1+r)/max(1,r)')
        left.plot([row['r'] for row in rows], [row['speedup'] for row in rows], 'o', color='C0',
                  label='measured')
        left.set(xscale='log', xlabel='r = perception / generation', ylabel='speed-up over serial',
                 ylim=(0.95, 2.1), title='Perceiving and speaking at once')
        rows = result['hazard']
        for side, color in zip(SIDES, ('C3', 'C0')):
            right.plot([row['tokens'] for row in rows], [row[f'{side}_s'] for row in rows], 'o-',
                       color=color, label=side)
        right.set(xscale='log', yscale='log', xlabel='tokens of the sentence being spoken',
                  ylabel='seconds until a token sees it', title='A hazard in mid-sentence')


def run(given: argparse.Namespace) -> dict:
    """Measure what the options ask for; return it, ready for JSON."""
    checkpoint = calibrated_checkpoint()
    speedup = measure_speedup(checkpoint, given.repeats, given.steps)
    hazard = measure_hazard(checkpoint, given.repeats, given.lengths)
    return dict(what='calibrated devices that sleep; medians of alternating runs',
                repeats=given.repeats, steps=given.steps, wait_k=WAIT_K,
                summary=summarize(speedup, hazard), speedup=speedup, hazard=hazard)


OVERLAP = Measurement(
    'overlap', 'how much faster both at once is, on calibrated devices, and hazards seen in time',
    run, {**repeats(5), '--steps': dict(type=int, default=60), '--lengths': dict(
        type=int, nargs='+', default=list(LENGTHS), metavar='TOKENS',
        help='of the sentence during which a hazard comes')}, draw)


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
