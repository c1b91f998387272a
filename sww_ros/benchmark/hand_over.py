"""
What a hand-over costs: from a step's last frame to the first token that saw it, around and between.

`python -m sww_ros.benchmark hand-over --json FILE`: steps come at a fixed rate, which the machine
holds easily, and streams relieve one another. A step is around a hand-over if anything between its
last frame and the token that saw it lies between the first piece of a successor and the first step
that it alone gets. The share is what pieces, and steps that go into two streams, take of all
passes that perceive (with `fused`, the tokens that ride on them included).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
import time

import numpy as np
from tqdm import tqdm

from sww_ros.benchmark.command import finish, make_parser, milliseconds, parse
from sww_ros.benchmark.full_load import ENGINES, Side
from sww_ros.benchmark.gap import PATIENCE_S, percentiles
from sww_ros.benchmark.models import Span, TimedSession, frame_side, mean_seconds, noise, tireless
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import Event, FirstSight, FramesDropped, StepPerceived
from sww_ros.streaming.jobs import Carry, Open, Perceive

SIDES = {name: ENGINES[name] for name in ('serial@1', 'fused@1', 'threads@1', 'processes@1')}


@dataclass(frozen=True)
class Run:
    """What was told of a run, and when its jobs ran; a session's settings as it says them."""

    events: Sequence[Event]
    spans: Sequence[Span]
    info: dict


def play(checkpoint: Checkpoint, frames: Sequence[np.ndarray], side: Side, steps: int,
         step_s: float) -> Run:
    """
    Feed so many steps, one every `step_s` seconds.

    :raises RuntimeError: where the engine does not come to rest, or loses frames
    """
    config = SessionConfig(overlap=side.overlap, position_encoding=side.position_encoding,
                           threads=side.threads, max_pending_frames=16)
    with TimedSession(checkpoint, config) as session:
        due = time.monotonic()
        for step in tqdm(range(steps), desc=f'hand-over, {side.overlap}', unit='step',
                         disable=None):
            time.sleep(max(0.0, due - time.monotonic()))
            due += step_s
            for frame in frames[2 * step % len(frames):][:2]:
                session.feed(frame)
        if not session.wait_idle(PATIENCE_S):
            raise RuntimeError(f'{side}: it did not come to rest')
        run = Run(session.drain(), session.spans, session.info)
    if any(isinstance(event, FramesDropped) for event in run.events):
        raise RuntimeError(f'{side}: steps come faster than they are perceived, take --step-s')
    return run


def windows(spans: Sequence[Span]) -> list[tuple[int, int]]:
    """Return from when to when [ns] a successor was prepared and took over, of each that did."""
    begun: dict[int, int] = {}
    found = []
    for span in sorted(spans, key=lambda span: span.start_ns):
        for job in span.jobs:
            if isinstance(job, Open) and job.source:
                begun[job.video.stream] = span.start_ns
            elif isinstance(job, Perceive) and job.video.stream in begun:
                found.append((begun.pop(job.video.stream), span.stop_ns))
    return found


def measure(run: Run) -> dict:
    """Return the latencies [ms] of a run, around hand-overs and between, and what those took."""
    spans, around = run.spans, windows(run.spans)
    steps = {event.index: event for event in run.events if isinstance(event, StepPerceived)}
    latencies: dict[bool, list[float]] = {True: [], False: []}
    for sight in run.events:
        if isinstance(sight, FirstSight):
            came_ns = steps[sight.index].received_ns
            near = any(begin < sight.decoded_ns and came_ns < end for begin, end in around)
            latencies[near].append((sight.decoded_ns - came_ns) / 1e9)
    pieces = [span for span in spans if isinstance(span.jobs[0], Carry)
              or isinstance(span.jobs[0], Open) and span.jobs[0].source]
    plain, both = ([span.seconds for span in spans if isinstance(span.jobs[0], Perceive)
                    and bool(span.jobs[0].also) == also] for also in (False, True))
    one_s, two_s = mean(plain), mean(both) if both else 0.0
    pieces_s = sum(span.seconds for span in pieces)
    extra_s = pieces_s + len(both) * max(0.0, two_s - one_s)
    return dict(
        steps=len(steps), hand_overs=len(around), steps_around=len(latencies[True]),
        between=percentiles(latencies[False]), around=percentiles(latencies[True]),
        opening_ms=milliseconds(mean_seconds(pieces, Open)),
        piece_ms=milliseconds(mean_seconds(pieces, Carry)),
        step_ms=milliseconds(one_s), step_into_both_ms=milliseconds(two_s),
        pieces=len(pieces), steps_into_both=len(both),
        share=round(extra_s / (pieces_s + sum(plain) + sum(both)), 4))


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser('hand-over', __doc__, picture=False)
    parser.add_argument('--model', default='builtin')
    parser.add_argument('--side', type=int, default=0, help='width of a frame in pixels')
    parser.add_argument('--steps', type=int, default=2000, help='with each executor')
    parser.add_argument('--step-s', type=float, default=0.06,
                        help='a step comes every so many seconds (default: %(default)s)')
    given = parse(parser, arguments)
    finish(given, run(given))


def run(given: argparse.Namespace) -> dict:
    """Measure what the options ask for; return it, ready for JSON."""
    checkpoint, side = tireless(given.model), frame_side(given.model, given.side)
    frames = noise(50, side)
    found, info = {}, {}
    for name, each in SIDES.items():
        played = play(checkpoint, frames, each, given.steps, given.step_s)
        found[name], info = measure(played), played.info
    summary = dict(
        model=given.model, step_every_s=given.step_s,
        **{name: info[name] for name in ('capacity', 'memory', 'max_steps')},
        p99_ratio={name: round(each['around']['p99_ms'] / each['between']['p99_ms'], 3)
                   for name, each in found.items()},
        share_of_perception={name: each['share'] for name, each in found.items()})
    return dict(summary=summary, executors=found)


if __name__ == '__main__':
    main()
