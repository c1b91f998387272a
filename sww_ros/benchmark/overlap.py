"""
How much faster both at once is than one after the other, on calibrated devices.

`python -m sww_ros.benchmark overlap --json FILE --picture FILE` plays the same stream through the
same engine with `overlap` serial (as interleaved positions force it) and threads, in turn, for
r = perception / generation from 0.1 to 10, and compares S = T_serial / T_threads with its limit
(1 + r) / max(1, r). Then it measures how long a hazard stays unseen while a sentence is spoken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
import time

import numpy as np
import torch
from tqdm import tqdm

from sww_ros.benchmark.command import finish, make_parser, parse
from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.decoder import Chunk
from sww_ros.streaming.events import FirstSight
from sww_ros.streaming.session import Session

RATIOS = (0.1, 0.2, 0.5, 0.8, 1.0, 1.25, 2.0, 5.0, 10.0)
LENGTHS = (1, 10, 100, 1000)
SIDES = ('serial', 'threads')
STEP_S = 0.06
"""Perception and generation of one step together, in seconds."""
WAIT_K = 3
PERCEIVE_S, DECODE_S = 0.02, 0.004
"""A step's perception and a token where the hazard's latency is measured."""
FRAME = np.zeros((56, 56, 3), np.uint8)


def stream_seconds(checkpoint: Checkpoint, overlap: str, steps: int) -> float:
    """Time from the first frame until all steps are perceived and all tokens are spoken."""
    config = SessionConfig(overlap=overlap, schedule='wait_k', wait_k=WAIT_K,
                           max_pending_frames=2 * steps)
    with Session(checkpoint, config) as session:
        start = time.monotonic()
        for _ in range(2 * steps):
            session.feed(FRAME)
        if not session.wait_idle(600):
            raise RuntimeError(f'{overlap}: the stream did not end')
        seconds = time.monotonic() - start
        if session.decode_steps != steps * WAIT_K:
            raise RuntimeError(f'{overlap}: {session.decode_steps} decode steps, '
                               f'{steps * WAIT_K} were due')
    return seconds


def hazard_seconds(checkpoint: Checkpoint, overlap: str, tokens: int) -> float:
    """
    Time from a frame's arrival to the first token that could see it.

    A sentence of `tokens` tokens has just begun when the frame arrives.
    """
    config = SessionConfig(overlap=overlap, wait_k=tokens, max_pending_frames=8)
    with Session(checkpoint, config) as session:
        session.feed(FRAME)
        session.feed(FRAME)
        while not isinstance(session.poll(60), FirstSight):
            pass
        start = time.monotonic_ns()
        session.feed(FRAME)
        session.feed(FRAME)
        while True:
            event = session.poll(600)
            if isinstance(event, FirstSight) and event.index == 1:
                return (event.decoded_ns - start) / 1e9


def measure_speedup(checkpoint: Checkpoint, repeats: int, steps: int) -> list[dict]:
    """For each r: medians of both sides' times, S and its limit."""
    rows = []
    for r in tqdm(RATIOS, desc='speed-up', unit='ratio', disable=None):
        perceive, generate = STEP_S * r / (1 + r), STEP_S / (1 + r)
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        with calibrated(checkpoint, perceive, generate / WAIT_K):
            for _ in range(repeats):
                for side in SIDES:
                    times[side].append(stream_seconds(checkpoint, side, steps))
        serial, threads = (median(times[side]) for side in SIDES)
        limit = (1 + r) / max(1.0, r)
        # A stream of n steps cannot hide its first perception and its last words.
        finite = steps * (1 + r) / (steps * max(1.0, r) + min(1.0, r))
        rows.append(dict(r=r, serial_s=round(serial, 4), threads_s=round(threads, 4),
                         speedup=round(serial / threads, 4), limit=round(limit, 4),
                         limit_of_this_length=round(finite, 4), **_all(times)))
    return rows


def _all(times: dict[str, list[float]]) -> dict[str, list[float]]:
    return {f'all_{side}_s': [round(value, 4) for value in times[side]] for side in SIDES}


def measure_hazard(checkpoint: Checkpoint, repeats: int, lengths: Sequence[int]) -> list[dict]:
    """For each length of the sentence being spoken: median latency of both sides."""
    rows = []
    with calibrated(checkpoint, PERCEIVE_S, DECODE_S):
        for tokens in tqdm(lengths, desc='hazard latency', unit='length', disable=None):
            times = {side: [] for side in SIDES}
            for _ in range(repeats):
                for side in SIDES:
                    times[side].append(hazard_seconds(checkpoint, side, tokens))
            rows.append(dict(tokens=tokens, **{f'{side}_s': round(median(times[side]), 4)
                                               for side in SIDES}, **_all(times)))
    return rows


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
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    rows = result['speedup']
    fine = np.geomspace(0.1, 10, 200)
    left.plot(fine, (1 + fine) / np.maximum(1, fine), color='0.6', label='limit (1+r)/max(1,r)')
    left.plot([row['r'] for row in rows], [row['speedup'] for row in rows], 'o', color='C0',
              label='measured')
    left.set(xscale='log', xlabel='r = perception / generation', ylabel='speed-up over serial',
             ylim=(0.95, 2.1), title='Perceiving and speaking at once')
    left.legend()
    rows = result['hazard']
    for side, color in zip(SIDES, ('C3', 'C0')):
        right.plot([row['tokens'] for row in rows], [row[f'{side}_s'] for row in rows], 'o-',
                   color=color, label=side)
    right.set(xscale='log', yscale='log', xlabel='tokens of the sentence being spoken',
              ylabel='seconds until a token sees it', title='A hazard in mid-sentence')
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser('overlap', __doc__)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--steps', type=int, default=60)
    parser.add_argument('--lengths', type=int, nargs='+', default=list(LENGTHS), metavar='TOKENS',
                        help='of the sentence during which a hazard comes')
    given = parse(parser, arguments)
    checkpoint = calibrated_checkpoint()
    speedup = measure_speedup(checkpoint, given.repeats, given.steps)
    hazard = measure_hazard(checkpoint, given.repeats, given.lengths)
    finish(given, dict(
        what='calibrated devices that sleep; medians of alternating runs',
        repeats=given.repeats, steps=given.steps, wait_k=WAIT_K,
        summary=summarize(speedup, hazard), speedup=speedup, hazard=hazard), draw)


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


if __name__ == '__main__':
    main()
