"""
The decode step: by itself, and what answers beside the narration make of it.

`python -m sww_ros.benchmark step --json FILE` measures one lane alone, over a context, many lanes
and n rows on one thread, in processor time of that thread: the built-in checkpoint and random ones
of about 35 M and 142 M parameters. All cases of a model take turns, and the smallest and the median
time of each are kept; the number of operators called is free of noise.

`python -m sww_ros.benchmark lanes --json FILE --picture FILE` narrates in the engine, about one
large picture, whose tokens are as many as a stream of small ones has, and asks 0, 1, 2, 4 and 8
questions at once. What each says is compared with what it says when it is answered alone. Beside
it, as what can be had, the pass of so many rows as speak if they were one lane's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
import time

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from sww_ros.benchmark import harness
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.decoder import Chunk, Decoder
from sww_ros.streaming.events import NARRATION, TextDelta
from sww_ros.streaming.kv import Lane, LaneView
from sww_ros.streaming.schedule import MAX_WAIT_K

ANSWERS = (1, 2, 4, 8)
ROWS = (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 17, 24, 32, 33, 48, 64, 65)


@dataclass(frozen=True)
class Case:
    """A step to measure: what takes it, and what gives its chunks anew each time."""

    decoder: Decoder
    chunks: Callable[[], list[Chunk]]


class Lanes:
    """Text lanes over one context, each with some rows of its own, that take steps together."""

    def __init__(self, decoder: Decoder, context: LaneView | None, lanes: int, own: int) -> None:
        self._decoder, self._context = decoder, context
        self._next = context.length if context else 0
        self._lanes = [decoder.new_lane(own + 64) for _ in range(lanes)]
        for lane in self._lanes:
            decoder.step([self._chunk(lane, own)])
        self._next += own

    def chunks(self) -> list[Chunk]:
        """Return the next row of each lane."""
        made = [self._chunk(lane, 1) for lane in self._lanes]
        self._next += 1
        return made

    def _chunk(self, lane: Lane, rows: int) -> Chunk:
        return _chunk(self._decoder, lane, rows, self._next, self._context)


def _chunk(decoder: Decoder, lane: Lane, rows: int, first: int,
           context: LaneView | None = None) -> Chunk:
    ids = [(first + i) % 250 for i in range(rows)]
    positions = torch.arange(first, first + rows).expand(3, rows)
    return Chunk(lane, decoder.embed(ids), positions, context, predict=True)


def filled(decoder: Decoder, rows: int, room: int) -> LaneView:
    """Return a view of a lane with so many rows, and room for some more."""
    lane = decoder.new_lane(rows + room)
    if rows:
        decoder.step([_chunk(decoder, lane, rows, 0)])
    return lane.view()


def appending(decoder: Decoder, view: LaneView, rows: int) -> list[Chunk]:
    """Return `rows` rows to prefill after those of a view, in a lane that is then forgotten."""
    lane = decoder.new_lane(1)
    lane.follow(view.kv)
    lane.publish(view.length)
    return [_chunk(decoder, lane, rows, view.length)]


def cases(decoder: Decoder, context: int, own: int) -> dict[str, Case]:
    """Return what is measured, by name."""
    view = filled(decoder, context, max(ROWS))
    lanes = {'one lane alone': Lanes(decoder, None, 1, context + own),
             'narration': Lanes(decoder, view, 1, own)}
    lanes |= {f'narration and {n} answers': Lanes(decoder, view, n + 1, own) for n in ANSWERS}
    return ({name: Case(decoder, each.chunks) for name, each in lanes.items()}
            | {f'{n} rows': Case(decoder, partial(appending, decoder, view, n)) for n in ROWS})


def measure(cases: dict[str, Case], count: int) -> dict[str, dict]:
    """Return smallest and median milliseconds of each, all in turn, and the operators it calls."""
    # As in an engine, a step follows others of its kind: the first of three warms up. In the first
    # round lanes find their place in the pool.
    times = harness.alternate('step', cases, count, lambda _, name: [
        _seconds(cases[name]) for _ in range(3)][1:], warm_up=1)
    return {name: dict(min_ms=harness.milliseconds(min(map(min, each))),
                       median_ms=harness.milliseconds(median(sum(each, []))),
                       operators=_operators(cases[name]))
            for name, each in times.items()}


def _seconds(case: Case) -> float:
    chunks = case.chunks()
    # Processor time: what other programs take of the machine is left out.
    start = time.thread_time()
    case.decoder.step(chunks)
    return time.thread_time() - start


def _operators(case: Case) -> int:
    chunks = case.chunks()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        case.decoder.step(chunks)
    return sum(event.count for event in found.key_averages()
               if event.key.startswith(('aten::', 'mkldnn::')))


def report(checkpoint: Checkpoint, given: argparse.Namespace) -> dict:
    """Measure one checkpoint; `beside` is a step with so many answers over narration alone."""
    decoder, empty = checkpoint.decoder, harness.hollow(checkpoint.decoder.layer_count).decoder
    framework = Case(empty, Lanes(empty, filled(empty, 1, max(ROWS)), 1, 1).chunks)
    with harness.torch_threads(1):
        steps = measure(cases(decoder, given.context, given.own) | {'framework': framework},
                        given.repeats)
    alone = steps['narration']
    return dict(
        model=checkpoint.name, parameters=checkpoint.parameters, context_rows=given.context,
        own_rows=given.own, repeats=given.repeats,
        beside={n: round(steps[f'narration and {n} answers']['min_ms'] / alone['min_ms'], 3)
                for n in ANSWERS},
        two_parts_over_one=round(alone['min_ms'] / steps['one lane alone']['min_ms'], 3),
        steps=steps)


def run_step(given: argparse.Namespace) -> dict:
    """Measure what the options ask for; return it, ready for JSON."""
    names = ('model', 'parameters', 'beside', 'two_parts_over_one')
    return dict(threads=1, **harness.of_models(
        given, report, lambda model: {name: model[name] for name in names}))


STEP = harness.Measurement('step', 'the decode step by itself', run_step, {
    '--models': dict(harness.MODELS['--models'], default=['builtin', 'small', 'medium']),
    '--context': dict(type=int, default=420, help='rows of video that are seen'),
    '--own': dict(type=int, default=30, help='rows of text in each lane before'),
    **harness.repeats(20)})


QUESTIONS = tuple(f'What of number {number}?' for number in range(max(ANSWERS)))


def speak(checkpoint: Checkpoint, frames: Sequence[np.ndarray], questions: Sequence[str],
          tokens: int, record: bool = False) -> tuple[list[harness.Span], dict[str, list[int]]]:
    """
    Narrate, and answer all questions at once; return the passes and, if recorded, all tokens.

    :param tokens: of each answer; of the narration, where nothing is asked
    """
    config = harness.Side().config(
        wait_k=MAX_WAIT_K if questions else tokens, max_answers=max(1, len(questions)),
        max_answer_tokens=tokens, record_trace=record,
        frame_width=frames[0].shape[1], frame_height=frames[0].shape[0])
    with harness.TimedSession(checkpoint, config) as session:
        harness.feed(session, frames[:2])
        harness.first_sight(session, 0)
        ids = [session.ask(question) for question in questions]
        left = set(ids)
        while left:
            event = harness.wait_for(session, lambda event: isinstance(event, TextDelta))
            left -= {event.stream_id} if event.final else set()
        if ids:
            session.pause(True)  # The narration would go on.
        if not session.wait_idle(harness.PATIENCE_S):
            raise RuntimeError('the text did not end')
        return session.spans, _tokens(session, ids) if record else {}


def _tokens(session: harness.TimedSession, ids: Sequence[str]) -> dict[str, list[int]]:
    """Return what each said, the answers by their place."""
    trace = session.trace()
    names = {NARRATION: NARRATION} | {name: str(place) for place, name in enumerate(ids)}
    return {names[name]: trace.predicted[
        (trace.lane == lane) & (trace.predicted >= 0)].tolist()
        for lane, name in enumerate(trace.speakers)}


def steps_s(spans: Sequence[harness.Span], speakers: int) -> list[float]:
    """Return the times of decode steps in which so many spoke, and no question was prefilled."""
    found = [span.seconds for span in spans if span.speakers == speakers]
    # Eight heads take a few steps, the first of a lane moves it beside the others.
    return found[speakers + 2:]


def plain_s(checkpoint: Checkpoint, rows: int, before: int, steps: int) -> float:
    """Return the median time of a pass of `rows` rows of one lane that holds `before` others."""
    decoder = checkpoint.decoder
    lane, found = decoder.new_lane(before + rows * (steps + 1)), []
    with harness.torch_threads(1):  # As the session's own threads compute.
        for count in [before, *[rows] * steps]:
            chunk = _chunk(decoder, lane, count, len(lane))
            start = time.monotonic()
            decoder.step([chunk])
            found.append(time.monotonic() - start)
    return median(found[1:])


def compare(checkpoint: Checkpoint, frames: Sequence[np.ndarray], tokens: int) -> dict:
    """Return how many tokens of all speakers at once differ from each one's beside narration."""
    _, together = speak(checkpoint, frames, QUESTIONS, tokens, record=True)
    count = differing = 0
    for place, question in enumerate(QUESTIONS):
        _, alone = speak(checkpoint, frames, [question], tokens, record=True)
        pairs = [*zip(together[str(place)], alone['0'], strict=True),
                 *zip(together[NARRATION], alone[NARRATION])]
        count += len(pairs)
        differing += sum(ours != theirs for ours, theirs in pairs)
    return dict(tokens=count, differing=differing)


def play(checkpoint: Checkpoint, given: argparse.Namespace) -> dict:
    """Return one model's times of a decode step [ms], each repetition's median, by answers."""
    frames, perception = harness.noise(1, given.side), checkpoint.perception

    height, width = perception.grid(*frames[0].shape[:2])

    def measure_one(_: int, answers: int) -> tuple[float, float]:
        spans, _ = speak(checkpoint, frames, QUESTIONS[:answers], given.tokens)
        return (harness.milliseconds(median(steps_s(spans, answers + 1))),
                harness.milliseconds(plain_s(checkpoint, answers + 1, height * width,
                                             given.tokens)))

    found = harness.alternate(f'lanes, {checkpoint.name}', (0, *ANSWERS), given.repeats,
                              measure_one, warm_up=1)
    return dict(
        model=checkpoint.name, parameters=checkpoint.parameters, visual_tokens=height * width,
        identity=compare(checkpoint, frames, given.tokens),
        step_ms={str(answers): [step for step, _ in each] for answers, each in found.items()},
        plain_ms={str(answers): [plain for _, plain in each] for answers, each in found.items()})


def summarize(model: dict) -> dict:
    """
    Return, by answers: a step over one of narration alone, and tokens a second of all.

    `plain` are the rows of one lane over one of them: what a batch of rows costs at least.
    """
    times, plain = ({answers: median(each) for answers, each in model[name].items()}
                    for name in ('step_ms', 'plain_ms'))
    return dict(
        model=model['model'], **model['identity'],
        beside={answers: round(each / times['0'], 3) for answers, each in times.items()},
        plain={answers: round(each / plain['0'], 3) for answers, each in plain.items()},
        tokens_per_s={answers: round((int(answers) + 1) / each * 1e3, 1)
                      for answers, each in times.items()},
        step_ms={answers: round(each, 4) for answers, each in times.items()})


def draw(result: dict, file: Path) -> None:
    """Draw a step's time over that of narration alone, by answers."""
    with harness.panels(file, 1) as [axis]:
        axis.plot([0, max(ANSWERS)], [1, max(ANSWERS) + 1], color='0.6', label='one at a time')
        for model in result['summary']:
            axis.plot([int(answers) for answers in model['beside']], model['beside'].values(),
                      'o-', label=model['model'])
        axis.set(xlabel='answers beside the narration',
                 ylabel='a decode step, times narration alone')


def run_lanes(given: argparse.Namespace) -> dict:
    """Measure what the options ask for; return it, ready for JSON."""
    return harness.of_models(given, play, summarize, 'repeats', 'tokens')


def _check(given: argparse.Namespace) -> str:
    least = 2 * len(QUESTIONS)
    return '' if given.tokens >= least else f'--tokens must be at least {least}'


LANES = harness.Measurement('lanes', 'what answers beside the narration cost', run_lanes, {
    **harness.MODELS, **harness.DEVICE,
    '--side': dict(type=int, default=560,
                   help='width of the picture in pixels: 560 are 400 visual tokens'),
    '--tokens': dict(type=int, default=60, help='of each answer'), **harness.repeats(9)},
    draw, _check)
