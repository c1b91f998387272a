"""
Both at once against one after the other with real arithmetic, when frames never run out.

`python -m sww_ros.benchmark full-load --model MODEL --json FILE` plays one stream through the same
engine on the same cores, in turn: interleaved, on one and on two torch threads, and group-decoupled
with every executor. A camera at its own rate leaves a small model idle most of the time; here both
sides always have work. `summary` compares what `overlap: auto` chooses with the best interleaved
run and with what can be had: interleaved saves a pass a step, as the last token spoken goes into
the cache with the step that follows it, so P + (K - 1) D against max(P, K D), from the time P of
perceiving a step and D of a decode step, each alone on one core in the same rounds.

The roofline tells what two cores can give: passes of n rows on one and on two cores, alone and
beside the other side, which runs in a forked process that shares the weights, as the executor
`processes` has it. From these times follows how much faster any way to share the cores could be.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
import gc
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
import time
import warnings

import numpy as np
import torch

from sww_ros.benchmark import harness
from sww_ros.benchmark.step import Lanes, appending, filled
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.jobs import Decode, Perceive
from sww_ros.streaming.perception import fit_size


@dataclass(frozen=True)
class Run:
    """One stream at full load, and the mean of its perceptions and of its decode steps [s]."""

    seconds: float
    perceive_s: float
    decode_s: float


def run_once(checkpoint: Checkpoint, frames: Sequence[np.ndarray], side: harness.Side,
             wait_k: int = 0, warm: int = 0) -> Run:
    """
    Feed all frames at once, and wait until all is perceived and said.

    :param wait_k: tokens of narration a step; 0: as the checkpoint says
    :param warm: of how many steps the frames come before the others, and do not count
    :raises RuntimeError: when it does not end, or does not say `wait_k` tokens a step
    """
    wait_k = wait_k or checkpoint.defaults.wait_k
    config = side.config(schedule='wait_k', wait_k=wait_k, max_steps=len(frames),
                         max_pending_frames=len(frames))
    with harness.TimedSession(checkpoint, config) as session:
        for part in (frames[:2 * warm], frames[2 * warm:]):
            before, start_ns = len(session.spans), harness.feed(session, part)
            if not session.wait_idle(harness.PATIENCE_S):
                raise RuntimeError(f'{side}: the stream did not end within '
                                   f'{harness.PATIENCE_S:g} s')
        seconds = (time.monotonic_ns() - start_ns) / 1e9
        spoken, due = session.decode_steps, len(frames) // 2 * wait_k
        if spoken != due:
            raise RuntimeError(f'{side}: {spoken} decode steps, {due} were due')
        spans = session.spans[before:]
        return Run(seconds, harness.mean_seconds(spans, Perceive),
                   harness.mean_seconds(spans, Decode))


def limit(perceive_s: float, decode_s: float, wait_k: int) -> float:
    """Return how many times as fast as interleaved two sides can be, with a core each."""
    return ((perceive_s + (wait_k - 1) * decode_s)
            / max(perceive_s, wait_k * decode_s))


def summarize(load: dict) -> dict:
    """Return what one K's load says, from all its repetitions."""
    wait_k, steps, chosen = load['wait_k'], load['steps'], harness.chosen_of(load)
    times = {name: median(seconds) for name, seconds in load['seconds'].items()}
    perceive, decode = median(load['perceive_s']), median(load['decode_s'])
    highest, slower = limit(perceive, decode, wait_k), max(perceive, wait_k * decode)
    baseline = min((name for name in harness.INTERLEAVED if name in times), key=times.get)
    best = min((name for name in times if name not in harness.INTERLEAVED), key=times.get)
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


def _rounded(figures: dict) -> dict:
    return {name: round(value, 4) if isinstance(value, float) else value
            for name, value in figures.items()}


def play(checkpoint: Checkpoint, frames: Sequence[np.ndarray], wait_k: int, count: int,
         chosen_only: bool = False, warm: int = 0) -> dict:
    """
    Return all repetitions [s] of every way to share the cores, one K's, in alternating rounds.

    :param warm: as `run_once` takes it
    :param chosen_only: leave out all but interleaved, `ALONE`, and what auto chooses
    """
    choice = harness.choose(checkpoint, wait_k, frames[0].shape[0])
    engines = harness.possible(harness.with_choice(harness.ENGINES, choice), checkpoint)
    names = {harness.ALONE, f'{choice.overlap}@{choice.threads}'} if chosen_only else engines
    sides = harness.possible(harness.INTERLEAVED, checkpoint) | {
        name: side for name, side in engines.items() if name in names}
    runs = harness.alternate(f'{checkpoint.name}, K = {wait_k}', sides, count,
                     lambda _, name: run_once(checkpoint, frames, sides[name], wait_k, warm),
                     warm_up=1)
    return dict(
        wait_k=wait_k, steps=len(frames) // 2 - warm, repeats=count,
        choice=asdict(choice),
        seconds={name: [round(run.seconds, 5) for run in each] for name, each in runs.items()},
        perceive_s=[round(run.perceive_s, 7) for run in runs[harness.ALONE]],
        decode_s=[round(run.decode_s, 7) for run in runs[harness.ALONE]])


def run(given: argparse.Namespace) -> dict:
    """Measure what the options ask for; return it, ready for JSON."""
    checkpoint = harness.tireless(given.model, given.device, given.dtype)
    side = harness.frame_side(given.model, given.side)
    frames = harness.noise(given.warm + given.steps, side)
    loads = [play(checkpoint, frames, wait_k, given.repeats, given.chosen_only, given.warm)
             for wait_k in given.wait_k]
    summary, found = [summarize(load) for load in loads], {}
    if given.roofline:
        found = measure_roofline(checkpoint, frames, given.wait_k, 3 * given.repeats)
        for each, to_be_had in zip(summary, found['to_be_had'], strict=True):
            each['roofline'] = to_be_had['speedup']
            each['share_of_roofline'] = round(each['speedup'] / to_be_had['speedup'], 4)
    return dict(model=given.model, parameters=checkpoint.parameters, device=given.device,
                dtype=checkpoint.decoder.precision, frame_side=side,
                summary=summary, loads=loads) | (dict(roofline=found) if found else {})


def draw(result: dict, file: Path) -> None:
    """Draw every run's speed-up over the best interleaved one, and the limit, one panel a K."""
    names = list(dict.fromkeys(name for load in result['loads'] for name in load['seconds']))
    with harness.panels(file, len(result['loads']), sharey=True) as axes:
        for axis, load, said in zip(axes, result['loads'], result['summary']):
            base = median(load['seconds'][said['baseline']])
            for name, seconds in load['seconds'].items():
                color, index = ('C3' if name in harness.INTERLEAVED else 'C0'), names.index(name)
                axis.plot([base / each for each in seconds], [index] * len(seconds), '.',
                          color=color, alpha=0.5)
                axis.plot(base / median(seconds), index, 'o', color=color)
            axis.axvline(1, color='0.7')
            axis.axvline(said['limit'], color='0.3', linestyle='--',
                         label='limit, a core a side')
            if 'roofline' in said:
                axis.axvline(said['roofline'], color='C2', linestyle=':',
                             label='measured roofline')
            axis.set(yticks=range(len(names)), yticklabels=names,
                     xlabel='times as fast as the best interleaved run',
                     title=f'{result["parameters"] / 1e6:.1f} M, {load["wait_k"]} tokens a step, '
                           f'auto: {said["chosen"]}')


Work = Callable[[], object]
CONDITIONS = {'one_core': (1, ''), 'two_cores': (2, ''),
              'beside_perceiving': (1, 'perceive'), 'beside_decoding': (1, 'decode')}
"""Torch threads, and what another process does all the while."""
IN_TURN = ('one_core', 'two_cores')
OWN_ROWS = 30
READ_BYTES = 1 << 28
"""Read over and over to see what of the memory's bandwidth is left; more than caches hold."""


def to_be_had(times: dict[str, dict[str, float]], tokens: int, wait_k: int) -> dict:
    """
    Return what the times [s] of passes, by name and condition, let expect of each way.

    :param tokens: visual tokens of a step
    """
    def pieces(condition: str) -> float:
        rows = -(-tokens // wait_k) + 1
        return times['vision'][condition] + wait_k * times[f'{rows} rows'][condition]

    def in_turn(condition: str) -> float:
        return (times['vision'][condition] + times[f'{tokens + 1} rows'][condition]
                + (wait_k - 1) * times['decode'][condition])

    perceive, decode = times['perceive'], times['decode']
    ways = dict(
        one_pass=min(map(in_turn, IN_TURN)), pieces=min(map(pieces, IN_TURN)),
        two_sides=two_sides(perceive['one_core'], perceive['beside_decoding'],
                            wait_k * decode['one_core'], wait_k * decode['beside_perceiving']))
    # The last token of a step goes with the next one, whether interleaved or fused.
    interleaved, way = ways['one_pass'], min(ways, key=ways.get)
    return dict(wait_k=wait_k, way=way, speedup=round(interleaved / ways[way], 4),
                interleaved_ms=harness.milliseconds(interleaved),
                step_ms={name: harness.milliseconds(seconds) for name, seconds in ways.items()})


def two_sides(perceive: float, perceive_beside: float, speak: float,
              speak_beside: float) -> float:
    """Return how long a step takes both sides: the shorter beside the other, then one alone."""
    both, longer, alone = perceive_beside, speak_beside, speak
    if speak_beside < perceive_beside:
        both, longer, alone = speak_beside, perceive_beside, perceive
    return both + alone * (1 - both / longer)


def measure_roofline(checkpoint: Checkpoint, frames: Sequence[np.ndarray],
                     wait_ks: Sequence[int], count: int) -> dict:
    """Return medians and all repetitions of each pass [ms], and what can be had for each K."""
    perception = checkpoint.perception
    height, width = perception.grid(*fit_size(*frames[0].shape[:2], perception.settings))
    tokens = height * width
    works = _works(checkpoint, frames, wait_ks, tokens)

    def measure_all(_: int, condition: str) -> dict[str, float]:
        threads, other = CONDITIONS[condition]
        with _beside(works.get(other)), harness.torch_threads(threads):
            return {name: _seconds(work) for name, work in works.items()}

    rounds = harness.alternate('roofline', CONDITIONS, count, measure_all)
    found = {name: {condition: [each[name] for each in all_each]
                    for condition, all_each in rounds.items()} for name in works}
    times = {name: {condition: median(all_s) for condition, all_s in each.items()}
             for name, each in found.items()}
    return dict(
        visual_tokens=tokens, context_rows=_context_rows(frames, tokens), repeats=count,
        to_be_had=[to_be_had(times, tokens, wait_k) for wait_k in wait_ks],
        decode_slowed=_ratio(times['decode'], 'beside_perceiving'),
        perceive_slowed=_ratio(times['perceive'], 'beside_decoding'),
        read_gb_per_s={condition: round(READ_BYTES / seconds / 1e9, 2)
                       for condition, seconds in times['read'].items()},
        median_ms={name: {condition: harness.milliseconds(seconds)
                          for condition, seconds in each.items()}
                   for name, each in times.items()},
        all_ms={name: {condition: [harness.milliseconds(seconds) for seconds in all_s]
                       for condition, all_s in each.items()} for name, each in found.items()})


def _ratio(times: dict[str, float], condition: str) -> float:
    return round(times[condition] / times['one_core'], 4)


def _context_rows(frames: Sequence[np.ndarray], tokens: int) -> int:
    """The video that is seen in the middle of the stream."""
    return max(1, len(frames) // 4) * tokens


def _works(checkpoint: Checkpoint, frames: Sequence[np.ndarray], wait_ks: Sequence[int],
           tokens: int) -> dict[str, Work]:
    decoder, perception = checkpoint.decoder, checkpoint.perception
    size = fit_size(*frames[0].shape[:2], perception.settings)
    rows = sorted({1, 10, tokens, tokens + 1, *(tokens + k for k in wait_ks),
                   *(-(-tokens // k) + 1 for k in wait_ks)})
    view = filled(decoder, _context_rows(frames, tokens), max(rows))
    lane = Lanes(decoder, view, 1, OWN_ROWS)

    def vision() -> torch.Tensor:
        return perception.embed(perception.patches(frames[:2], *size), *size)

    def append(count: int) -> None:
        decoder.step(appending(decoder, view, count))

    def perceive() -> None:
        vision()
        append(tokens)

    def decode() -> None:
        decoder.step(lane.chunks())

    return dict(perceive=perceive, decode=decode, vision=vision,
                read=torch.ones(READ_BYTES // 4).sum) | {
        f'{count} rows': partial(append, count) for count in rows}


def _seconds(work: Work) -> float:
    # As in a stream, a pass follows others of its kind: the first of three warms up.
    work()
    start = time.perf_counter()
    work()
    work()
    return (time.perf_counter() - start) / 2


@contextmanager
def _beside(work: Work | None) -> Iterator[None]:
    """Have another process work all the while, on one thread."""
    if work is None:
        yield
        return
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work_on, args=(work, sender), daemon=True)
    with warnings.catch_warnings():
        # The child takes no lock that a thread of ours could hold: it only computes.
        warnings.simplefilter('ignore', DeprecationWarning)
        process.start()
    sender.close()
    try:
        receiver.recv()
        yield
    finally:
        process.kill()
        process.join()


def _work_on(work: Work, sender: Connection) -> None:
    gc.freeze()
    torch.set_num_threads(1)
    work()
    sender.send(True)
    while True:
        work()


FULL_LOAD = harness.Measurement(
    'full-load', 'both at once against one after the other, with real arithmetic, frames never '
    'running out', run, {
        '--model': dict(default='builtin', help="a checkpoint; 'small', 'medium' or 'large': "
                                                'random weights, 35 M, 142 M and 3.8 G'),
        **harness.DEVICE,
        '--wait-k': dict(type=int, nargs='+', default=[3, 16], metavar='K',
                         help='tokens of narration a step'),
        **harness.SIDE, '--steps': dict(type=int, default=40), **harness.WARM,
        **harness.repeats(7),
        '--chosen-only': dict(action='store_true',
                              help='of the executors, only the one that auto chooses'),
        '--roofline': dict(action='store_true',
                           help='measure too what passes cost on one and two cores, alone and '
                                'beside the other side, and what can be had of that')}, draw)
main = FULL_LOAD.main


if __name__ == '__main__':
    main()
