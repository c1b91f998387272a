"""
How frames that come meanwhile are seen, and felt, in the middle of a text, with real weights.

`python -m sww_ros.benchmark hazard --json FILE --picture FILE`: how soon a token sees a step that
comes in mid-sentence, by the sentence's length. The first token of a sentence has been said when
the frames of the next step come; the latency runs from the step's first frame to the first token
that saw it. Interleaved has to finish the sentence; with group-decoupled positions the step is
perceived meanwhile, or between two tokens, by every executor.

`python -m sww_ros.benchmark gap --json FILE --picture FILE`: the time between two tokens. An answer
is spoken to its last token, with every executor, while no frame comes, while frames come at the
checkpoint's own rate, and while they come so fast that perceiving takes about half of one core's
time.

`python -m sww_ros.benchmark hand-over --json FILE`: what a hand-over costs, from a step's last
frame to the first token that saw it, around and between. Steps come at a fixed rate, which the
machine holds easily, and streams relieve one another. A step is around a hand-over if anything
between its last frame and the token that saw it lies between the first piece of a successor and the
first step that it alone gets. The share is what pieces, and steps that go into two streams, take of
all passes that perceive (with `fused`, the tokens that ride on them included).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
import gc
from pathlib import Path
from statistics import mean, median
import time

import numpy as np
from tqdm import tqdm

from sww_ros.benchmark import harness
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.choosing import Choice
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import (
    Event,
    FirstSight,
    StepPerceived,
    TextDelta,
)
from sww_ros.streaming.jobs import Carry, Open, Perceive
from sww_ros.streaming.pace import measure
from sww_ros.streaming.schedule import MAX_WAIT_K
from sww_ros.streaming.session import Session

LENGTHS = (2, 10, 100, MAX_WAIT_K)
"""Tokens of the sentence, one of which is said when the frames come."""
WAYS = harness.INTERLEAVED | harness.ENGINES
PERCENTS = (50, 95, 99)
WARM_TOKENS = 5
"""What comes first has the question's prefill in it."""
IDLE = 'none'
RELAYED = ('serial@1', 'fused@1', 'threads@1', 'processes@1')
"""Executors with which hand-overs are measured."""


def latency_s(checkpoint: Checkpoint, frames: Sequence[np.ndarray], side: harness.Side,
              tokens: int) -> float:
    """
    Return the time from when a step's frames come to the first token that saw it.

    :param frames: of two steps; a sentence of `tokens` tokens is begun about the first
    :raises RuntimeError: when the engine falls silent
    """
    config = side.config(wait_k=tokens, max_steps=4, max_pending_frames=8)
    with Session(checkpoint, config) as session:
        for index in range(2):
            came_ns = harness.feed(session, frames[2 * index:2 * index + 2])
            seen = harness.first_sight(session, index)
        return (seen.decoded_ns - came_ns) / 1e9


def _about(checkpoint: Checkpoint, side: int, choice: Choice) -> dict:
    return dict(model=checkpoint.name, parameters=checkpoint.parameters, frame_side=side,
                dtype=checkpoint.decoder.precision, choice=asdict(choice))


def play_hazards(checkpoint: Checkpoint, given: argparse.Namespace) -> dict:
    """Return all latencies [ms] of one model by way to share the cores and length."""
    side = harness.frame_side(checkpoint.name, given.side)
    frames, choice = harness.noise(2, side), harness.choose(checkpoint, 0, side)
    sides = harness.possible(harness.with_choice(WAYS, choice), checkpoint)
    for each in sides.values():
        latency_s(checkpoint, frames, each, 2)
    found = harness.alternate(
        f'hazard, {checkpoint.name}', [(name, tokens) for tokens in given.lengths
                                       for name in sides], given.repeats,
        lambda _, case: latency_s(checkpoint, frames, sides[case[0]], case[1]))
    return _about(checkpoint, side, choice) | dict(latency_ms={
        name: {str(tokens): [*map(harness.milliseconds, found[name, tokens])]
               for tokens in given.lengths} for name in sides})


def summarize_hazards(model: dict) -> dict:
    """Return medians [ms] by length, and how flat each is: its largest over its smallest."""
    medians = {name: {tokens: round(median(all_ms), 3) for tokens, all_ms in each.items()}
               for name, each in model['latency_ms'].items()}
    flatness = {name: round(max(each.values()) / min(each.values()), 3)
                for name, each in medians.items()}
    chosen = harness.chosen_of(model)
    longest = list(medians[chosen])[-1]
    interleaved = min(medians[name][longest] for name in harness.INTERLEAVED if name in medians)
    return dict(model=model['model'], chosen=model['choice']['overlap'],
                chosen_ms=medians[chosen], chosen_flatness=flatness[chosen],
                interleaved_times_as_long=round(interleaved / medians[chosen][longest], 2),
                flatness=flatness, median_ms=medians)


def draw_hazards(result: dict, file: Path) -> None:
    """Draw latency over the length of the sentence, one panel a model."""
    with harness.panels(file, len(result['summary'])) as axes:
        for axis, model in zip(axes, result['summary']):
            for index, (name, each) in enumerate(model['median_ms'].items()):
                axis.plot([int(tokens) for tokens in each], each.values(), color=f'C{index}',
                          marker='o', label=name,
                          linestyle='--' if name in harness.INTERLEAVED else '-')
            axis.set(xscale='log', yscale='log', xlabel='tokens of the sentence being spoken',
                     ylabel='ms until a token sees it',
                     title=f'{model["model"]}, auto: {model["chosen"]}')


def run_hazards(given: argparse.Namespace) -> dict:
    """Measure what the options ask for; return it, ready for JSON."""
    return harness.of_models(given, play_hazards, summarize_hazards, 'repeats', 'lengths')


def _check(given: argparse.Namespace) -> str:
    fits = 2 <= min(given.lengths) <= max(given.lengths) <= MAX_WAIT_K
    return '' if fits else f'--lengths must be from 2 to {MAX_WAIT_K}'


HAZARD = harness.Measurement(
    'hazard', 'how soon a token sees a step that comes in mid-sentence, with real weights',
    run_hazards, {**harness.MODELS, **harness.DEVICE, **harness.SIDE, '--lengths': dict(
        type=int, nargs='+', default=list(LENGTHS), metavar='TOKENS',
        help=f'of the sentence being spoken, 2 to {MAX_WAIT_K}'), **harness.repeats(9)},
    draw_hazards, _check)


def gaps_s(checkpoint: Checkpoint, frames: Sequence[np.ndarray], side: harness.Side, tokens: int,
           step_s: float, before: int, phase: float = 0.0) -> tuple[list[float], int]:
    """
    Speak an answer of `tokens` tokens; return the times between them, and the steps perceived.

    :param step_s: a step's frames come every so many seconds; 0: none do
    :param before: steps that are perceived before it begins
    :param phase: when the first of them comes, 0..1 of `step_s`
    """
    config = side.config(
        narrate=False, max_answer_tokens=tokens + WARM_TOKENS, max_steps=100_000,
        max_pending_frames=max(8, 2 * before))
    with harness.TimedSession(checkpoint, config) as session:
        harness.feed(session, [frames[index % len(frames)] for index in range(2 * before)])
        if not session.wait_idle(harness.PATIENCE_S):
            raise RuntimeError(f'{side}: the first steps were not perceived')
        session.drain()
        session.ask('?')
        seen = _feed_until_answered(session, frames, step_s, phase)
        ends = [span.stop_ns for span in session.spans if span.speakers][WARM_TOKENS:]
    return [(after - end) / 1e9 for end, after in zip(ends, ends[1:])], seen


def _feed_until_answered(session: harness.TimedSession, frames: Sequence[np.ndarray], step_s: float,
                         phase: float) -> int:
    """Feed a step's frames whenever they are due; return how many steps were perceived."""
    start, seen = time.monotonic(), 0
    due = start + phase * step_s
    while time.monotonic() < start + harness.PATIENCE_S:
        wait = max(0.0, due - time.monotonic()) if step_s else harness.PATIENCE_S
        event = session.poll(wait)
        if isinstance(event, TextDelta) and event.final:
            return seen
        seen += isinstance(event, StepPerceived)
        if step_s and time.monotonic() >= due:
            due += step_s
            harness.feed(session, frames[:2])
    raise RuntimeError('the answer did not end')


def play_gaps(checkpoint: Checkpoint, given: argparse.Namespace) -> dict:
    """Return one model's percentiles [ms] of every repetition, by executor and rate."""
    side = harness.frame_side(checkpoint.name, given.side)
    frames, choice = harness.noise(4, side), harness.choose(checkpoint, 0, side)
    pace = measure(checkpoint, SessionConfig(frame_width=side, frame_height=side))
    rates = {IDLE: 0.0, 'own': checkpoint.defaults.seconds_per_step,
             'half': 2 * pace.step_seconds}
    sides = harness.possible(harness.with_choice(harness.ENGINES, choice), checkpoint)

    def run(index: int, case: tuple[str, str]) -> tuple[list[float], int]:
        name, rate = case
        # Over the repetitions frames come at every moment between two.
        phase = (max(0, index) + 0.5) / given.repeats
        return gaps_s(checkpoint, frames, sides[name], given.tokens, rates[rate], given.before,
                      phase)

    found = harness.alternate(f'gap, {checkpoint.name}', [(name, rate) for rate in rates
                                                  for name in sides], given.repeats, run, 1)
    return _about(checkpoint, side, choice) | dict(
        step_every_s={rate: round(step_s, 5) for rate, step_s in rates.items()},
        all_gaps={name: {rate: percentiles(
            [gap for gaps, _ in found[name, rate] for gap in gaps]) | dict(
                steps=sum(steps for _, steps in found[name, rate]))
            for rate in rates} for name in sides},
        repetitions={name: {rate: [percentiles(gaps) | dict(steps=steps)
                                   for gaps, steps in found[name, rate]]
                            for rate in rates} for name in sides})


def percentiles(gaps: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99 [ms] of times [s]."""
    return {f'p{percent}_ms': harness.milliseconds(float(np.percentile(gaps, percent)))
            for percent in PERCENTS}


def summarize_gaps(model: dict) -> dict:
    """
    Return, for each executor, p99 while frames arrive over p99 while none do.

    `p99_ratio` is of all gaps of all repetitions; `p99_ratio_median` of the repetitions' medians.
    """
    def ratios(name: str) -> dict[str, float]:
        each = model['all_gaps'][name]
        return {rate: round(each[rate]['p99_ms'] / each[IDLE]['p99_ms'], 3)
                for rate in each if rate != IDLE}

    def middle(name: str, rate: str) -> float:
        return median(run['p99_ms'] for run in model['repetitions'][name][rate])

    names, chosen = list(model['all_gaps']), harness.chosen_of(model)
    rates = [rate for rate in model['all_gaps'][names[0]] if rate != IDLE]
    return dict(
        model=model['model'], chosen=model['choice']['overlap'], chosen_p99_ratio=ratios(chosen),
        p99_ratio={name: ratios(name) for name in names},
        p99_ratio_median={name: {rate: round(middle(name, rate) / middle(name, IDLE), 3)
                                 for rate in rates} for name in names})


def draw_gaps(result: dict, file: Path) -> None:
    """Draw p50 and p99 of each executor and rate, one panel a model."""
    with harness.panels(file, len(result['models'])) as axes:
        for axis, model in zip(axes, result['models']):
            ways = model['all_gaps']
            for index, rate in enumerate(model['step_every_s']):
                places = [place + 0.25 * (index - 1) for place in range(len(ways))]
                for percent, alpha in (('p99', 0.5), ('p50', 1)):
                    axis.bar(places, [each[rate][f'{percent}_ms'] for each in ways.values()],
                             width=0.22, color=f'C{index}', alpha=alpha,
                             label=f'frames: {rate}, {percent}')
            axis.set(xticks=range(len(ways)), xticklabels=ways, ylabel='ms between two tokens',
                     title=model['model'])


def run_gaps(given: argparse.Namespace) -> dict:
    """Measure what the options ask for; return it, ready for JSON."""
    return harness.of_models(given, play_gaps, summarize_gaps, 'repeats', 'tokens', 'before')


GAP = harness.Measurement('gap', 'the time between two tokens while frames arrive', run_gaps, {
    **harness.MODELS, **harness.DEVICE, **harness.SIDE,
    '--tokens': dict(type=int, default=300, help='of the text that is spoken'),
    '--before': dict(type=int, default=20, help='steps that were perceived before it'),
    **harness.repeats(9)}, draw_gaps)


def play_hand_overs(
        checkpoint: Checkpoint, frames: Sequence[np.ndarray], side: harness.Side, steps: int,
        step_s: float) -> tuple[Sequence[Event], Sequence[harness.Span], dict]:
    """
    Feed so many steps, one every `step_s` seconds; return what was told, when jobs ran, the info.

    Where they come faster than they are perceived they wait, and the latencies say so.

    :raises RuntimeError: where the engine does not come to rest
    """
    config = SessionConfig(overlap=side.overlap, position_encoding=side.position_encoding,
                           threads=side.threads, max_pending_frames=2 * steps)
    with harness.TimedSession(checkpoint, config) as session:
        gc.freeze()  # As in the engine's process.
        due = time.monotonic()
        for step in tqdm(range(steps), desc=f'hand-over, {side.overlap}', unit='step',
                         disable=None):
            time.sleep(max(0.0, due - time.monotonic()))
            due += step_s
            harness.feed(session, frames[2 * step % len(frames):][:2])
        if not session.wait_idle(harness.PATIENCE_S):
            raise RuntimeError(f'{side}: it did not come to rest')
        events, spans, info = session.drain(), session.spans, session.info
    return events, spans, info


def windows(spans: Sequence[harness.Span]) -> list[tuple[int, int]]:
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


def cost_of(events: Sequence[Event], spans: Sequence[harness.Span]) -> dict:
    """Return the latencies [ms] of a run, around hand-overs and between, and what those took."""
    around = windows(spans)
    steps = {event.index: event for event in events if isinstance(event, StepPerceived)}
    latencies: dict[bool, list[float]] = {True: [], False: []}
    for sight in events:
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
        opening_ms=harness.milliseconds(harness.mean_seconds(pieces, Open)),
        piece_ms=harness.milliseconds(harness.mean_seconds(pieces, Carry)),
        step_ms=harness.milliseconds(one_s), step_into_both_ms=harness.milliseconds(two_s),
        pieces=len(pieces), steps_into_both=len(both),
        share=round(extra_s / (pieces_s + sum(plain) + sum(both)), 4))


def run_hand_overs(given: argparse.Namespace) -> dict:
    """Measure what the options ask for; return it, ready for JSON."""
    checkpoint = harness.tireless(given.model)
    frames = harness.noise(50, harness.frame_side(given.model, given.side))
    found, info = {}, {}
    for name in RELAYED:
        events, spans, info = play_hand_overs(checkpoint, frames, harness.ENGINES[name],
                                              given.steps, given.step_s)
        found[name] = cost_of(events, spans)
    summary = dict(
        model=given.model, step_every_s=given.step_s,
        **{name: info[name] for name in ('capacity', 'memory', 'max_steps')},
        p99_ratio={name: round(each['around']['p99_ms'] / each['between']['p99_ms'], 3)
                   for name, each in found.items()},
        share_of_perception={name: each['share'] for name, each in found.items()})
    return dict(summary=summary, executors=found)


HAND_OVER = harness.Measurement(
    'hand-over', 'what it costs that streams relieve one another', run_hand_overs, {
        '--model': dict(default='builtin'), **harness.SIDE,
        '--steps': dict(type=int, default=2000, help='with each executor'),
        '--step-s': dict(type=float, default=0.06,
                         help='a step comes every so many seconds (default: %(default)s)')})
