"""
Both at once against one after the other with real arithmetic, when frames never run out.

`python -m sww_ros.benchmark full-load --model MODEL --json FILE` plays one stream through the same
engine on the same cores, in turn: interleaved, on one and on two torch threads, and group-decoupled
with every executor. A camera at its own rate leaves a small model idle most of the time; here both
sides always have work. `summary` compares what `overlap: auto` chooses with the best interleaved
run and with what can be had: interleaved saves a pass a step, as the last token spoken goes into
the cache with the step that follows it, so P + (K - 1) D against max(P, K D), from the time P of
perceiving a step and D of a decode step, each alone on one core in the same rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
import time

import numpy as np
from tqdm import tqdm

from sww_ros.benchmark.command import finish, make_parser, parse
from sww_ros.benchmark.models import TimedSession, frame_side, mean_seconds, noise, tireless
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.choosing import Choice, choose_overlap
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.jobs import Decode, Perceive
from sww_ros.streaming.pace import measure


@dataclass(frozen=True)
class Side:
    """One way to share the cores."""

    overlap: str
    position_encoding: str
    threads: int


INTERLEAVED = {f'interleaved@{threads}': Side('serial', 'interleaved', threads)
               for threads in (1, 2)}
ALONE = 'serial@1'
"""One side after the other on one thread: each alone, so P and D are measured here."""
ENGINES = {
    ALONE: Side('serial', 'gdpe', 1), 'serial@2': Side('serial', 'gdpe', 2),
    'fused@1': Side('fused', 'gdpe', 1), 'fused@2': Side('fused', 'gdpe', 2),
    'threads@1': Side('threads', 'gdpe', 1), 'processes@1': Side('processes', 'gdpe', 1)}
"""Group-decoupled, by executor and torch threads of each side."""


@dataclass(frozen=True)
class Run:
    """One stream at full load, and the mean of its perceptions and of its decode steps [s]."""

    seconds: float
    perceive_s: float
    decode_s: float


def run_once(checkpoint: Checkpoint, frames: Sequence[np.ndarray], side: Side,
             wait_k: int = 0) -> Run:
    """
    Feed all frames at once, and wait until all is perceived and said.

    :param wait_k: tokens of narration a step; 0: as the checkpoint says
    :raises RuntimeError: when it does not end, or does not say `wait_k` tokens a step
    """
    wait_k = wait_k or checkpoint.defaults.wait_k
    config = SessionConfig(
        overlap=side.overlap, position_encoding=side.position_encoding, schedule='wait_k',
        threads=side.threads, wait_k=wait_k, max_steps=len(frames), memory=0,
        max_pending_frames=len(frames))
    with TimedSession(checkpoint, config) as session:
        start = time.monotonic()
        for frame in frames:
            session.feed(frame)
        if not session.wait_idle(600):
            raise RuntimeError(f'{side}: the stream did not end within 600 s')
        seconds = time.monotonic() - start
        spoken, due = session.decode_steps, len(frames) // 2 * wait_k
        if spoken != due:
            raise RuntimeError(f'{side}: {spoken} decode steps, {due} were due')
        return Run(seconds, mean_seconds(session.spans, Perceive),
                   mean_seconds(session.spans, Decode))


def limit(perceive_s: float, decode_s: float, wait_k: int) -> float:
    """Return how many times as fast as interleaved two sides can be, with a core each."""
    return ((perceive_s + (wait_k - 1) * decode_s)
            / max(perceive_s, wait_k * decode_s))


def summarize(load: dict) -> dict:
    """Return what one K's load says, from all its repetitions."""
    wait_k, steps, chosen = load['wait_k'], load['steps'], chosen_of(load)
    times = {name: median(seconds) for name, seconds in load['seconds'].items()}
    perceive, decode = median(load['perceive_s']), median(load['decode_s'])
    highest, slower = limit(perceive, decode, wait_k), max(perceive, wait_k * decode)
    baseline = min(INTERLEAVED, key=times.get)
    best = min((name for name in times if name not in INTERLEAVED), key=times.get)
    one = times['interleaved@1']
    # A stream of n steps cannot hide its first perception and its last words.
    finite = steps / (steps + min(perceive, wait_k * decode) / slower)
    overlap, _, threads = chosen.partition('@')
    found = dict(
        wait_k=wait_k, chosen=overlap, threads=int(threads), baseline=baseline,
        speedup=times[baseline] / times[chosen], limit=highest,
        share_of_limit=times[baseline] / times[chosen] / highest,
        limit_of_this_length=highest * finite, limit_measured=one / steps / slower,
        best=best, best_speedup=times[baseline] / times[best],
        steps_per_s=steps / times[chosen], perceive_ms=perceive * 1e3, decode_ms=decode * 1e3)
    if 'processes@1' in times:
        speedup = one / times['processes@1']
        found['one_core_a_side'] = _rounded(dict(
            speedup=speedup, share_of_limit=speedup / highest,
            share_of_limit_of_this_length=speedup / (highest * finite)))
    return _rounded(found) | dict(speedups={
        name: round(times[baseline] / seconds, 4) for name, seconds in times.items()})


def with_choice(sides: dict[str, Side], choice: Choice) -> dict[str, Side]:
    """Return the sides and, if it is not among them, what auto has chosen."""
    name = f'{choice.overlap}@{choice.threads}'
    return sides | {name: Side(choice.overlap, 'gdpe', choice.threads)}


def chosen_of(result: dict) -> str:
    """Return the name, `overlap@threads`, of what auto has chosen."""
    return f'{result["choice"]["overlap"]}@{result["choice"].get("threads", 1)}'


def _rounded(figures: dict) -> dict:
    return {name: round(value, 4) if isinstance(value, float) else value
            for name, value in figures.items()}


def choose(checkpoint: Checkpoint, wait_k: int, side: int) -> Choice:
    """Return what `overlap: auto` takes for frames of `side` pixels."""
    config = SessionConfig(wait_k=wait_k, frame_width=side, frame_height=side)
    return choose_overlap(checkpoint, config, measure(checkpoint, config))


def play(checkpoint: Checkpoint, frames: Sequence[np.ndarray], wait_k: int, repeats: int,
         chosen_only: bool = False) -> dict:
    """
    Return all repetitions [s] of every way to share the cores, one K's, in alternating rounds.

    :param chosen_only: leave out all but interleaved, `ALONE`, and what auto chooses
    """
    choice = choose(checkpoint, wait_k, frames[0].shape[0])
    engines = with_choice(ENGINES, choice)
    names = {ALONE, f'{choice.overlap}@{choice.threads}'} if chosen_only else engines
    sides = INTERLEAVED | {name: side for name, side in engines.items() if name in names}
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    rounds = [name for _ in range(repeats + 1) for name in sides]
    for name in tqdm(rounds, desc=f'{checkpoint.name}, K = {wait_k}', unit='run', disable=None):
        runs[name].append(run_once(checkpoint, frames, sides[name], wait_k))
    # The first round warms up.
    kept = {name: each[1:] for name, each in runs.items()}
    return dict(
        wait_k=wait_k, steps=len(frames) // 2, repeats=repeats,
        choice=dict(overlap=choice.overlap, threads=choice.threads, why=choice.why,
                    measured=choice.measured),
        seconds={name: [round(run.seconds, 5) for run in each] for name, each in kept.items()},
        perceive_s=[round(run.perceive_s, 7) for run in kept[ALONE]],
        decode_s=[round(run.decode_s, 7) for run in kept[ALONE]])


def main(arguments: list[str] | None = None) -> None:
    """Measure one checkpoint on random frames, print and write."""
    parser = make_parser('full-load', __doc__)
    parser.add_argument('--model', default='builtin',
                        help="a checkpoint; 'small' or 'medium': random weights, 35 M and 142 M")
    parser.add_argument('--wait-k', type=int, nargs='+', default=[3, 16], metavar='K',
                        help='tokens of narration a step')
    parser.add_argument('--side', type=int, default=0,
                        help='width of a frame in pixels; by default 112 for medium, else 84')
    parser.add_argument('--steps', type=int, default=40)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--chosen-only', action='store_true',
                        help='of the executors, only the one that auto chooses')
    parser.add_argument('--roofline', action='store_true',
                        help='measure too what passes cost on one and two cores, alone and beside '
                             'the other side, and what can be had of that')
    given = parse(parser, arguments)
    finish(given, run(given), draw)


def run(given: argparse.Namespace) -> dict:
    """Measure what the options ask for; return it, ready for JSON."""
    checkpoint, side = tireless(given.model), frame_side(given.model, given.side)
    frames = noise(given.steps, side)
    loads = [play(checkpoint, frames, wait_k, given.repeats, given.chosen_only)
             for wait_k in given.wait_k]
    summary, found = [summarize(load) for load in loads], {}
    if given.roofline:
        from sww_ros.benchmark.roofline import measure_roofline
        found = measure_roofline(checkpoint, frames, given.wait_k, 3 * given.repeats)
        for each, to_be_had in zip(summary, found['to_be_had'], strict=True):
            each['roofline'] = to_be_had['speedup']
            each['share_of_roofline'] = round(each['speedup'] / to_be_had['speedup'], 4)
    return dict(model=given.model, parameters=checkpoint.parameters, frame_side=side,
                summary=summary, loads=loads) | (dict(roofline=found) if found else {})


def draw(result: dict, file: Path) -> None:
    """Draw every run's speed-up over the best interleaved one, and the limit, one panel a K."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(1, len(result['loads']), squeeze=False, sharey=True,
                                figsize=(5.5 * len(result['loads']), 3.8))
    names = list(dict.fromkeys(name for load in result['loads'] for name in load['seconds']))
    for axis, load, said in zip(axes[0], result['loads'], result['summary']):
        base = median(load['seconds'][said['baseline']])
        for name, seconds in load['seconds'].items():
            color, index = ('C3' if name in INTERLEAVED else 'C0'), names.index(name)
            axis.plot([base / each for each in seconds], [index] * len(seconds), '.', color=color,
                      alpha=0.5)
            axis.plot(base / median(seconds), index, 'o', color=color)
        axis.axvline(1, color='0.7')
        axis.axvline(said['limit'], color='0.3', linestyle='--', label='limit, a core a side')
        if 'roofline' in said:
            axis.axvline(said['roofline'], color='C2', linestyle=':', label='measured roofline')
        axis.set(yticks=range(len(names)), yticklabels=names,
                 xlabel='times as fast as the best interleaved run',
                 title=f'{result["parameters"] / 1e6:.1f} M, {load["wait_k"]} tokens a step, '
                       f'auto: {said["chosen"]}')
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == '__main__':
    main()
