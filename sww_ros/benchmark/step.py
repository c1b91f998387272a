"""
The decode step by itself: one lane alone, over a context, many lanes, n rows.

`python -m sww_ros.benchmark step --json FILE` measures the built-in checkpoint and random ones of
about 35 M and 142 M parameters on one thread, in processor time of that thread. All cases of a
model take turns, and the smallest and the median time of each are kept; the number of operators
called is free of noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
import time

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from sww_ros.benchmark.command import finish, make_parser, parse
from sww_ros.benchmark.models import hollow, medium, small
from sww_ros.models.loading import load
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.decoder import Chunk, Decoder
from sww_ros.streaming.kv import Lane, LaneView

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


def measure(cases: dict[str, Case], repeats: int) -> dict[str, dict]:
    """Return smallest and median milliseconds of each, all in turn, and the operators it calls."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats + 1):
        for name, case in cases.items():
            # As in an engine, a step follows others of its kind: the first of three warms up.
            times[name] += [_seconds(case) for _ in range(3)][1:]
    # In the first round lanes find their place in the pool.
    return {name: dict(min_ms=round(min(each[2:]) * 1e3, 4),
                       median_ms=round(median(each[2:]) * 1e3, 4),
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


def report(checkpoint: Checkpoint, context: int, own: int, repeats: int) -> dict:
    """Measure one checkpoint; `beside` is a step with so many answers over narration alone."""
    decoder = checkpoint.decoder
    empty = hollow(decoder.layer_count).decoder
    framework = Case(empty, Lanes(empty, filled(empty, 1, max(ROWS)), 1, 1).chunks)
    steps = measure(cases(decoder, context, own) | {'framework': framework}, repeats)
    alone = steps['narration']
    return dict(
        model=checkpoint.name, parameters=checkpoint.parameters, context_rows=context,
        own_rows=own, repeats=repeats,
        beside={n: round(steps[f'narration and {n} answers']['min_ms'] / alone['min_ms'], 3)
                for n in ANSWERS},
        two_parts_over_one=round(alone['min_ms'] / steps['one lane alone']['min_ms'], 3),
        steps=steps)


def main(arguments: list[str] | None = None) -> None:
    """Measure the checkpoints asked for, print and write."""
    parser = make_parser('step', __doc__, picture=False)
    makers = {'builtin': load, 'small': small, 'medium': medium}
    parser.add_argument('--models', nargs='+', choices=makers, default=list(makers))
    parser.add_argument('--context', type=int, default=420, help='rows of video that are seen')
    parser.add_argument('--own', type=int, default=30, help='rows of text in each lane before')
    parser.add_argument('--repeats', type=int, default=20)
    given = parse(parser, arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [report(makers[name](), given.context, given.own, given.repeats)
                 for name in tqdm(given.models, desc='step', unit='model', disable=None)]
    finally:
        torch.set_num_threads(threads)
    summary = [{name: each[name] for name in ('model', 'parameters', 'beside',
                                              'two_parts_over_one')} for each in found]
    finish(given, dict(threads=1, summary=summary, models=found))


if __name__ == '__main__':
    main()
