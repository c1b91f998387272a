"""
The time between two tokens of a long text while frames arrive, against none arriving.

`python -m sww_ros.benchmark gap --json FILE --picture FILE`: an answer is spoken to its last token,
with every executor, while no frame comes, while frames come at the checkpoint's own rate, and while
they come so fast that perceiving takes about half of one core's time. Rounds alternate.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
import time

import numpy as np
from tqdm import tqdm

from sww_ros.benchmark.command import finish, make_parser, milliseconds, parse
from sww_ros.benchmark.full_load import ENGINES, Side, choose, chosen_of, with_choice
from sww_ros.benchmark.models import TimedSession, frame_side, noise, tireless
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import StepPerceived, TextDelta
from sww_ros.streaming.pace import measure

SIDES = ENGINES
PERCENTS = (50, 95, 99)
WARM_TOKENS = 5
"""What comes first has the question's prefill in it."""
PATIENCE_S = 600.0
IDLE = 'none'


def gaps_s(checkpoint: Checkpoint, frames: Sequence[np.ndarray], side: Side, tokens: int,
           step_s: float, before: int, phase: float = 0.0) -> tuple[list[float], int]:
    """
    Speak an answer of `tokens` tokens; return the times between them, and the steps perceived.

    :param step_s: a step's frames come every so many seconds; 0: none do
    :param before: steps that are perceived before it begins
    :param phase: when the first of them comes, 0..1 of `step_s`
    """
    config = SessionConfig(
        overlap=side.overlap, position_encoding='gdpe', threads=side.threads, narrate=False,
        max_answer_tokens=tokens + WARM_TOKENS, max_steps=100_000, memory=0,
        max_pending_frames=max(8, 2 * before))
    with TimedSession(checkpoint, config) as session:
        for index in range(2 * before):
            session.feed(frames[index % len(frames)])
        if not session.wait_idle(PATIENCE_S):
            raise RuntimeError(f'{side}: the first steps were not perceived')
        session.drain()
        session.ask('?')
        seen = _feed_until_answered(session, frames, step_s, phase)
        ends = [span.stop_ns for span in session.spans if span.speakers][WARM_TOKENS:]
    return [(after - end) / 1e9 for end, after in zip(ends, ends[1:])], seen


def _feed_until_answered(session: TimedSession, frames: Sequence[np.ndarray], step_s: float,
                         phase: float) -> int:
    """Feed a step's frames whenever they are due; return how many steps were perceived."""
    due, seen, patience = time.monotonic() + phase * step_s, 0, time.monotonic() + PATIENCE_S
    while time.monotonic() < patience:
        wait = max(0.0, due - time.monotonic()) if step_s else PATIENCE_S
        event = session.poll(wait)
        if isinstance(event, TextDelta) and event.final:
            return seen
        seen += isinstance(event, StepPerceived)
        if step_s and time.monotonic() >= due:
            due += step_s
            for frame in frames[:2]:
                session.feed(frame)
    raise RuntimeError('the answer did not end')


def play(checkpoint: Checkpoint, frames: Sequence[np.ndarray], tokens: int, before: int,
         repeats: int) -> dict:
    """Return one model's percentiles [ms] of every repetition, by executor and rate."""
    side = frames[0].shape[0]
    config = SessionConfig(frame_width=side, frame_height=side)
    pace, choice = measure(checkpoint, config), choose(checkpoint, 0, side)
    rates = {IDLE: 0.0, 'own': checkpoint.defaults.seconds_per_step,
             'half': 2 * pace.step_seconds}
    sides = with_choice(SIDES, choice)
    found = {name: {rate: [] for rate in rates} for name in sides}
    rounds = [(index, rate, name) for index in range(-1, repeats) for rate in rates
              for name in sides]
    progress = tqdm(rounds, desc=f'gap, {checkpoint.name}', unit='run', disable=None)
    for index, rate, name in progress:
        progress.set_postfix_str(f'{name}, frames: {rate}')
        phase = (index + 0.5) / repeats if index >= 0 else 0.0
        gaps, steps = gaps_s(checkpoint, frames, sides[name], tokens, rates[rate], before, phase)
        if index >= 0:  # The first round warms up.
            found[name][rate].append(dict(steps=steps, gaps=gaps))
    return dict(
        model=checkpoint.name, parameters=checkpoint.parameters, frame_side=side,
        choice=dict(overlap=choice.overlap, threads=choice.threads, why=choice.why),
        step_every_s={rate: round(step_s, 5) for rate, step_s in rates.items()},
        all_gaps={name: {rate: percentiles([gap for run in runs for gap in run['gaps']])
                         | dict(steps=sum(run['steps'] for run in runs))
                         for rate, runs in each.items()} for name, each in found.items()},
        repetitions={name: {rate: [percentiles(run['gaps']) | dict(steps=run['steps'])
                                   for run in runs] for rate, runs in each.items()}
                     for name, each in found.items()})


def percentiles(gaps: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99 [ms] of times [s]."""
    return {f'p{percent}_ms': milliseconds(float(np.percentile(gaps, percent)))
            for percent in PERCENTS}


def summarize(model: dict) -> dict:
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

    names, chosen = list(model['all_gaps']), chosen_of(model)
    rates = [rate for rate in model['all_gaps'][names[0]] if rate != IDLE]
    return dict(
        model=model['model'], chosen=model['choice']['overlap'], chosen_p99_ratio=ratios(chosen),
        p99_ratio={name: ratios(name) for name in names},
        p99_ratio_median={name: {rate: round(middle(name, rate) / middle(name, IDLE), 3)
                                 for rate in rates} for name in names})


def draw(result: dict, file: Path) -> None:
    """Draw p50 and p99 of each executor and rate, one panel a model."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    models = result['models']
    figure, axes = plt.subplots(1, len(models), squeeze=False, figsize=(5.5 * len(models), 3.8))
    for axis, model in zip(axes[0], models):
        for index, rate in enumerate(model['step_every_s']):
            places = [place + 0.25 * (index - 1) for place in range(len(model['all_gaps']))]
            p50, p99 = ([each[rate][p] for each in model['all_gaps'].values()]
                        for p in ('p50_ms', 'p99_ms'))
            axis.bar(places, p99, width=0.22, color=f'C{index}', alpha=0.5,
                     label=f'frames: {rate}, p99')
            axis.bar(places, p50, width=0.22, color=f'C{index}', label=f'frames: {rate}, p50')
        axis.set(xticks=range(len(model['all_gaps'])), xticklabels=model['all_gaps'],
                 ylabel='ms between two tokens', title=model['model'])
        axis.grid(alpha=0.3, axis='y')
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser('gap', __doc__)
    parser.add_argument('--models', nargs='+', default=['builtin', 'medium'])
    parser.add_argument('--side', type=int, default=0,
                        help='width of a frame in pixels; by default 112 for medium, else 84')
    parser.add_argument('--tokens', type=int, default=300, help='of the text that is spoken')
    parser.add_argument('--before', type=int, default=20,
                        help='steps that were perceived before it')
    parser.add_argument('--repeats', type=int, default=9)
    given = parse(parser, arguments)
    finish(given, run(given), draw)


def run(given: argparse.Namespace) -> dict:
    """Measure what the options ask for; return it, ready for JSON."""
    models = [play(tireless(name), noise(4, frame_side(name, given.side)), given.tokens,
                   given.before, given.repeats) for name in given.models]
    return dict(repeats=given.repeats, tokens=given.tokens, before=given.before,
                summary=[summarize(model) for model in models], models=models)


if __name__ == '__main__':
    main()
