"""
The engine against the ways to narrate a live video with stock modules, over a stream's length.

`python -m sww_ros.benchmark peers --json FILE --picture FILE` plays the same frames with the same
weights through each: `generate()` on the whole prefix or on the newest frames at each step, a
key-value cache carried from step to step, whole or in windows, and the engine, interleaved and
group-decoupled. Rounds alternate; the names' `@N` are torch threads.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
from pathlib import Path
import re
from statistics import median

import torch
from tqdm import tqdm

from sww_ros.benchmark.contenders import WAIT_K, Contender, Contest, contenders, make_contest
from sww_ros.benchmark.harness import (
    DEVICE,
    WARM,
    Measurement,
    alternate,
    panels,
    repeats,
    torch_threads,
)
from sww_ros.streaming.rules import RULES

LENGTHS = (10, 20, 40, 80)
OURS = ('interleaved', 'gdpe_')
WARM_UP_STEPS = 3


def measure(contest: Contest, field: dict[str, Contender], lengths: list[int], count: int,
            sentence: int) -> list[dict]:
    """
    Return a row for each contender and length, with all repetitions [s] and their medians.

    :param sentence: tokens of the sentence during which a hazard comes
    """
    for contender in field.values():
        contender.seconds(WARM_UP_STEPS)
        contender.hazard_seconds(1, 2)
    rows = []
    for steps in sorted(lengths):
        found = alternate(f'peers, {steps} steps', field, count, lambda _, name, steps=steps: (
            field[name].seconds(steps), field[name].hazard_seconds(steps, sentence)))
        rows += [_row(name, steps, *zip(*times)) for name, times in found.items()]
    return rows


def _row(name: str, steps: int, seconds: Sequence[float],
         hazards: Sequence[float]) -> dict:
    middle = median(seconds)
    return dict(
        name=name, steps=steps, seconds=round(middle, 4),
        step_ms=round(middle / steps * 1e3, 3), tokens_per_s=round(steps * WAIT_K / middle, 2),
        hazard_s=round(median(hazards), 4), all_seconds=[round(value, 4) for value in seconds],
        all_hazard_s=[round(value, 4) for value in hazards])


def best(rows: list[dict], steps: int, figure: str = 'seconds') -> dict[str, dict]:
    """Return the best row of each contender at a length, whatever its number of threads."""
    found: dict[str, dict] = {}
    for row in rows:
        name = row['name'].partition('@')[0]
        if row['steps'] == steps and (
                name not in found or row[figure] < found[name][figure]):
            found[name] = row
    return found


def summarize(rows: list[dict]) -> list[dict]:
    """Return, for each length, the engine's best and how many times as long the others take."""
    summary = []
    for steps in sorted({row['steps'] for row in rows}):
        fastest, soonest = best(rows, steps), best(rows, steps, 'hazard_s')
        ours = min((name for name in fastest if name.startswith(OURS)),
                   key=lambda name: fastest[name]['seconds'], default=None)
        if ours is None:
            continue
        summary.append(dict(
            steps=steps, ours=fastest[ours]['name'], seconds=fastest[ours]['seconds'],
            times_as_long={name: round(row['seconds'] / fastest[ours]['seconds'], 3)
                           for name, row in fastest.items() if not name.startswith(OURS)},
            hazard_s={name: row['hazard_s'] for name, row in soonest.items()}))
    return summary


def peak_megabytes(given: argparse.Namespace, name: str) -> dict[int, float | None]:
    """
    Return by how much a process grows at most that plays a stream of each length [MB].

    None where the kernel does not say.

    :raises BrokenProcessPool: when the process dies
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(_megabytes, given, name).result()


def _megabytes(given: argparse.Namespace, name: str) -> dict[int, float | None]:
    _, field = _prepare(given)
    field[name].seconds(WARM_UP_STEPS)
    found: dict[int, float | None] = {}
    before = _status_megabytes('VmRSS')
    for steps in sorted(given.lengths):
        try:
            # Makes the kernel forget the peak so far, which was loading.
            Path('/proc/self/clear_refs').write_text('5')
        except OSError:
            found[steps] = None
            continue
        field[name].seconds(steps)
        found[steps] = round(_status_megabytes('VmHWM') - before, 1)
    return found


def _gpu_megabytes(contender: Contender, lengths: Sequence[int]) -> dict[int, float | None]:
    """Return what a stream of each length takes of a GPU at most, beside the weights [MB]."""
    found: dict[int, float | None] = {}
    for steps in sorted(lengths):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contender.seconds(steps)
        found[steps] = round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)
    return found


def _status_megabytes(entry: str) -> float:
    status = Path('/proc/self/status').read_text()
    return int(re.search(rf'{entry}:\s+(\d+) kB', status)[1]) / 1000


def _prepare(given: argparse.Namespace) -> tuple[Contest, dict[str, Contender]]:
    # Two more steps come with the hazard.
    contest = make_contest(given.model, given.warm + max(given.lengths) + 2, given.side,
                           device=given.device, dtype=given.dtype)
    field = contenders(contest, given.overlaps, given.threads, given.window, given.newest,
                       given.warm)
    chosen = {name: contender for name, contender in field.items()
              if not given.only or name.partition('@')[0] in given.only}
    if not chosen:
        raise SystemExit(f'--only: none of these is a contender: {", ".join(given.only)}; there '
                         f'are {", ".join(dict.fromkeys(n.partition("@")[0] for n in field))}')
    return contest, chosen


def draw(result: dict, file: Path) -> None:
    """Draw time per step, hazard latency and memory over the length of the stream."""
    rows = result['rows']
    lengths = sorted({row['steps'] for row in rows})
    with panels(file, 3, width=4.7) as axes:
        for index, name in enumerate(best(rows, lengths[0])):
            ours = name.startswith(OURS)
            style = dict(color=f'C{index}', marker='o', markersize=4, linestyle='-' if ours else
                         '--', linewidth=2 if ours else 1.2)
            axes[0].plot(lengths, [best(rows, n)[name]['step_ms'] for n in lengths], label=name,
                         **style)
            axes[1].plot(lengths, [best(rows, n, 'hazard_s')[name]['hazard_s'] * 1e3
                                   for n in lengths], **style)
            memory = {row['steps']: row['megabytes'] for row in result['memory']
                      if row['name'].partition('@')[0] == name and row['megabytes'] is not None}
            axes[2].plot(sorted(memory), [memory[steps] for steps in sorted(memory)], **style)
        for axis, title, label, scale in zip(
                axes, ('A step, perceived and spoken about', 'A hazard in mid-sentence',
                       'Memory beside the model'),
                ('ms', 'ms until a token sees it', 'MB at the peak'), ('log', 'log', 'linear')):
            axis.set(xlabel='steps of the stream', ylabel=label, title=title, yscale=scale)


def run(given: argparse.Namespace) -> dict:
    """Measure what the options ask for; return it, ready for JSON."""
    contest, field = _prepare(given)
    with torch_threads():
        rows = measure(contest, field, given.lengths, given.repeats, given.sentence)
    chosen = [row['name'] for row in best(rows, max(given.lengths)).values()]
    on_gpu = contest.checkpoint.decoder.device.type != 'cpu'
    memory = [dict(name=name, steps=steps, megabytes=value)
              for name in tqdm(chosen, desc='memory', unit='contender', disable=None)
              for steps, value in (_gpu_megabytes(field[name], given.lengths) if on_gpu else
                                   peak_megabytes(given, name)).items()]
    return dict(
        model=given.model, parameters=contest.checkpoint.parameters,
        dtype=str(contest.checkpoint.decoder.dtype).removeprefix('torch.'), wait_k=WAIT_K,
        frame_side=given.side, tokens_per_step=contest.stock.grid[0] * contest.stock.grid[1],
        sentence=given.sentence, window_steps=given.window, newest_steps=given.newest,
        repeats=given.repeats, summary=summarize(rows), rows=rows, memory=memory)


PEERS = Measurement(
    'peers', 'against the ways to do it with stock modules, over the length of the stream', run, {
        '--model': dict(default='builtin', help="'builtin', 'small' or 'medium' (35 and 142 M "
                                                'random weights), or a folder'),
        **DEVICE, '--side': dict(type=int, default=84, help='width of a frame in pixels'),
        '--lengths': dict(type=int, nargs='+', default=list(LENGTHS), metavar='STEPS'),
        **WARM, **repeats(5),
        '--overlaps': dict(nargs='+', default=list(RULES), choices=list(RULES),
                           help='of the engine, with group-decoupled positions'),
        '--threads': dict(type=int, nargs='+', default=[1, 2],
                          help='torch threads of those that do one thing at a time'),
        '--window': dict(type=int, default=16, help='steps that windows keep'),
        '--newest': dict(type=int, default=4, help='steps that stateless generate() is shown'),
        '--sentence': dict(type=int, default=30,
                           help='tokens of the sentence during which a hazard comes'),
        '--only': dict(nargs='+', default=[], metavar='NAME',
                       help='contenders, without their @N; all if not given')}, draw)
