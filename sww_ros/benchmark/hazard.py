"""
How soon a token sees a step that comes in mid-sentence, by the sentence's length, real weights.

`python -m sww_ros.benchmark hazard --json FILE --picture FILE`: the first token of a sentence has
been said when the frames of the next step come; the latency runs from the step's last frame to the
first token that saw it. Interleaved has to finish the sentence; with group-decoupled positions the
step is perceived meanwhile, or between two tokens, by every executor. Rounds alternate.
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
from sww_ros.benchmark.full_load import ENGINES, INTERLEAVED, Side, choose, chosen_of, with_choice
from sww_ros.benchmark.models import frame_side, noise, tireless
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import FirstSight
from sww_ros.streaming.schedule import MAX_WAIT_K
from sww_ros.streaming.session import Session

LENGTHS = (2, 10, 100, MAX_WAIT_K)
"""Tokens of the sentence, one of which is said when the frames come."""
PATIENCE_S = 600.0
SIDES = INTERLEAVED | ENGINES


def latency_s(checkpoint: Checkpoint, frames: Sequence[np.ndarray], side: Side,
              tokens: int) -> float:
    """
    Return the time from a step's last frame to the first token that saw it.

    :param frames: of two steps; a sentence of `tokens` tokens is begun about the first
    :raises RuntimeError: when the engine falls silent
    """
    config = SessionConfig(
        overlap=side.overlap, position_encoding=side.position_encoding, threads=side.threads,
        wait_k=tokens, max_steps=4, memory=0, max_pending_frames=8)
    with Session(checkpoint, config) as session:
        for index in range(2):
            came_ns = time.monotonic_ns()
            for frame in frames[2 * index:2 * index + 2]:
                session.feed(frame)
            seen = _sight(session, index)
        return (seen.decoded_ns - came_ns) / 1e9


def _sight(session: Session, index: int) -> FirstSight:
    while (event := session.poll(PATIENCE_S)) is not None:
        if isinstance(event, FirstSight) and event.index == index:
            return event
    raise RuntimeError('the engine fell silent')


def play(checkpoint: Checkpoint, frames: Sequence[np.ndarray], lengths: Sequence[int],
         repeats: int) -> dict:
    """Return all latencies [ms] of one model by way to share the cores and length."""
    choice = choose(checkpoint, 0, frames[0].shape[0])
    sides = with_choice(SIDES, choice)
    found = {name: {str(tokens): [] for tokens in lengths} for name in sides}
    for side in sides.values():
        latency_s(checkpoint, frames, side, 2)
    rounds = [(tokens, name) for _ in range(repeats) for tokens in lengths for name in sides]
    progress = tqdm(rounds, desc=f'hazard, {checkpoint.name}', unit='run', disable=None)
    for tokens, name in progress:
        progress.set_postfix_str(f'{name}, {tokens} tokens')
        found[name][str(tokens)].append(
            milliseconds(latency_s(checkpoint, frames, sides[name], tokens)))
    return dict(model=checkpoint.name, parameters=checkpoint.parameters,
                frame_side=frames[0].shape[0],
                choice=dict(overlap=choice.overlap, threads=choice.threads, why=choice.why),
                latency_ms=found)


def summarize(model: dict) -> dict:
    """Return medians [ms] by length, and how flat each is: its largest over its smallest."""
    medians = {name: {tokens: round(median(all_ms), 3) for tokens, all_ms in each.items()}
               for name, each in model['latency_ms'].items()}
    flatness = {name: round(max(each.values()) / min(each.values()), 3)
                for name, each in medians.items()}
    chosen = chosen_of(model)
    longest = list(medians[chosen])[-1]
    interleaved = min(medians[name][longest] for name in INTERLEAVED)
    return dict(model=model['model'], chosen=model['choice']['overlap'],
                chosen_ms=medians[chosen], chosen_flatness=flatness[chosen],
                interleaved_times_as_long=round(interleaved / medians[chosen][longest], 2),
                flatness=flatness, median_ms=medians)


def draw(result: dict, file: Path) -> None:
    """Draw latency over the length of the sentence, one panel a model."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    models = result['summary']
    figure, axes = plt.subplots(1, len(models), squeeze=False, figsize=(5.5 * len(models), 3.8))
    for axis, model in zip(axes[0], models):
        for index, (name, each) in enumerate(model['median_ms'].items()):
            axis.plot([int(tokens) for tokens in each], each.values(), color=f'C{index}',
                      marker='o', linestyle='--' if name in INTERLEAVED else '-', label=name)
        axis.set(xscale='log', yscale='log', xlabel='tokens of the sentence being spoken',
                 ylabel='ms until a token sees it',
                 title=f'{model["model"]}, auto: {model["chosen"]}')
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser('hazard', __doc__)
    parser.add_argument('--models', nargs='+', default=['builtin', 'medium'])
    parser.add_argument('--side', type=int, default=0,
                        help='width of a frame in pixels; by default 112 for medium, else 84')
    parser.add_argument('--lengths', type=int, nargs='+', default=list(LENGTHS), metavar='TOKENS',
                        help=f'of the sentence being spoken, 2 to {MAX_WAIT_K}')
    parser.add_argument('--repeats', type=int, default=9)
    given = parse(parser, arguments)
    if not 2 <= min(given.lengths) <= max(given.lengths) <= MAX_WAIT_K:
        parser.error(f'--lengths must be from 2 to {MAX_WAIT_K}')
    finish(given, run(given), draw)


def run(given: argparse.Namespace) -> dict:
    """Measure what the options ask for; return it, ready for JSON."""
    models = [play(tireless(name), noise(2, frame_side(name, given.side)), given.lengths,
                   given.repeats) for name in given.models]
    return dict(repeats=given.repeats, lengths=given.lengths,
                summary=[summarize(model) for model in models], models=models)


if __name__ == '__main__':
    main()
