"""
What two cores can give: passes of n rows on one and on two cores, alone and beside the other side.

The other side runs in a forked process that shares the weights, as the executor `processes` has
it. From these times follows how much faster than interleaved any way to share the cores could be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
import gc
import multiprocessing
from multiprocessing.connection import Connection
from statistics import median
import time
import warnings

import numpy as np
import torch
from tqdm import tqdm

from sww_ros.benchmark.command import milliseconds
from sww_ros.benchmark.step import Lanes, appending, filled
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.perception import fit_size

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
                interleaved_ms=milliseconds(interleaved),
                step_ms={name: milliseconds(seconds) for name, seconds in ways.items()})


def two_sides(perceive: float, perceive_beside: float, speak: float,
              speak_beside: float) -> float:
    """Return how long a step takes both sides: the shorter beside the other, then one alone."""
    both, longer, alone = perceive_beside, speak_beside, speak
    if speak_beside < perceive_beside:
        both, longer, alone = speak_beside, perceive_beside, perceive
    return both + alone * (1 - both / longer)


def measure_roofline(checkpoint: Checkpoint, frames: Sequence[np.ndarray],
                     wait_ks: Sequence[int], repeats: int) -> dict:
    """Return medians and all repetitions of each pass [ms], and what can be had for each K."""
    perception = checkpoint.perception
    height, width = perception.grid(*fit_size(*frames[0].shape[:2], perception.settings))
    tokens = height * width
    works = _works(checkpoint, frames, wait_ks, tokens)
    found: dict[str, dict[str, list[float]]] = {
        name: {condition: [] for condition in CONDITIONS} for name in works}
    threads = torch.get_num_threads()
    rounds = [each for _ in range(repeats) for each in CONDITIONS.items()]
    try:
        for condition, (count, other) in tqdm(rounds, desc='roofline', unit='round',
                                              disable=None):
            with _beside(works.get(other)):
                torch.set_num_threads(count)
                for name, work in works.items():
                    found[name][condition].append(_seconds(work))
    finally:
        torch.set_num_threads(threads)
    times = {name: {condition: median(all_s) for condition, all_s in each.items()}
             for name, each in found.items()}
    return dict(
        visual_tokens=tokens, context_rows=_context_rows(frames, tokens), repeats=repeats,
        to_be_had=[to_be_had(times, tokens, wait_k) for wait_k in wait_ks],
        decode_slowed=_ratio(times['decode'], 'beside_perceiving'),
        perceive_slowed=_ratio(times['perceive'], 'beside_decoding'),
        read_gb_per_s={condition: round(READ_BYTES / seconds / 1e9, 2)
                       for condition, seconds in times['read'].items()},
        median_ms={name: {condition: milliseconds(seconds) for condition, seconds in each.items()}
                   for name, each in times.items()},
        all_ms={name: {condition: [milliseconds(seconds) for seconds in all_s]
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
