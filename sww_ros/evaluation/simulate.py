"""
Simulation of the core: schedules by chance and by exhaustion, in virtual time, without a model.

`python -m sww_ros.evaluation.simulate --schedules N --first-seed S --json FILE` plays N random
schedules and a small scope exhaustively, and asks all invariants of each; then it puts faults
into the core on purpose, each of which has to be found. What fails is told by its seed and as the
smallest script that fails alike, ready to be pasted into a test.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
import json
import multiprocessing
import multiprocessing.connection
from multiprocessing.process import BaseProcess
import os
from pathlib import Path
import threading
import time
from typing import TypeVar, cast

from tqdm import tqdm

from sww_ros.evaluation.simulation.faults import FAULTS, seeded
from sww_ros.evaluation.simulation.invariants import violations
from sww_ros.evaluation.simulation.search import Scope, random_script, scopes, shrink
from sww_ros.evaluation.simulation.world import Script

Task, Result = TypeVar('Task'), TypeVar('Result')

MOST_FOR_A_FAULT = 20_000
"""Schedules in which a seeded fault has to show."""
_BATCH = 250
_MOST_SHRUNK = 3


def simulate(schedules: int, first_seed: int = 0, processes: int = 2, inputs: int = 4) -> dict:
    """
    Play everything; return what was found as plain data, `summary` first.

    :param inputs: up to how many inputs of all kinds are tried in every order
    """
    started = time.monotonic()
    # Processes that import nothing but the core.
    with ProcessPoolExecutor(processes, multiprocessing.get_context('spawn'),
                             initializer=_end_with_parent) as pool:
        by_chance = _random(pool, schedules, first_seed)
        by_exhaustion = _exhaustive(pool, inputs)
        faults = _faults(pool)
    violated = by_chance['violations'] + by_exhaustion['violations']
    summary = dict(
        schedules=schedules, orders=by_exhaustion['orders'], violations=violated,
        faults_seeded=len(faults), faults_found=sum(fault['found'] for fault in faults),
        seconds=round(time.monotonic() - started, 1))
    return dict(summary=summary, random=by_chance, exhaustive=by_exhaustion, faults=faults)


def _end_with_parent() -> None:
    """Have a worker end when its parent is killed; it would go on for hours, or wait for ever."""
    def wait() -> None:
        parent = cast(BaseProcess, multiprocessing.parent_process())
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
    threading.Thread(target=wait, daemon=True).start()


def _each(pool: ProcessPoolExecutor, work: Callable[[Task], Result], tasks: Iterable[Task],
          unit: str) -> Iterable[Result]:
    """Yield what comes of each task, in their order, under a bar."""
    every = list(tasks)
    return tqdm(pool.map(work, every), total=len(every), unit=unit, disable=None)


def _random(pool: ProcessPoolExecutor, schedules: int, first_seed: int) -> dict:
    started, failing = time.monotonic(), []
    end = first_seed + schedules
    batches = (range(start, min(start + _BATCH, end)) for start in range(first_seed, end, _BATCH))
    for found in _each(pool, _play, batches, f'{_BATCH} schedules'):
        failing += found
    return dict(
        first_seed=first_seed, violations=len(failing),
        seconds=round(time.monotonic() - started, 1),
        failing=[dict(seed=seed, broken=words, **_smallest(random_script(seed)))
                 for seed, words in failing[:_MOST_SHRUNK]])


def _play(seeds: Iterable[int]) -> list[tuple[int, list[str]]]:
    """Return the seeds that break something, and what."""
    return [(seed, words) for seed in seeds if (words := violations(random_script(seed)))]


def _smallest(script: Script) -> dict:
    small = shrink(script)
    return dict(script=repr(small), breaks=violations(small))


def _exhaustive(pool: ProcessPoolExecutor, inputs: int) -> dict:
    started, every = time.monotonic(), scopes(inputs)
    found = [*_each(pool, Scope.explore, every, 'scope')]
    failing = [one for scope in found for one in scope.failing]
    return dict(
        orders=sum(scope.orders for scope in found), states=sum(scope.states for scope in found),
        violations=len(failing), seconds=round(time.monotonic() - started, 1),
        failing=[dict(broken=words, **_smallest(script))
                 for script, words in failing[:_MOST_SHRUNK]],
        scopes=[dict(settings=repr(scope.settings), inputs=[repr(move) for move in scope.inputs],
                     most_inputs=scope.most, jobs_fail=scope.fails, orders=one.orders,
                     states=one.states)
                for scope, one in zip(every, found, strict=True)])


def _faults(pool: ProcessPoolExecutor) -> list[dict]:
    return [*_each(pool, _seek, range(len(FAULTS)), 'fault')]


def _seek(number: int) -> dict:
    """Put a fault into the core of this process, and play until it shows."""
    fault = FAULTS[number]
    found: dict = dict(found=False, schedules=MOST_FOR_A_FAULT)
    with seeded(fault):
        for seed in range(MOST_FOR_A_FAULT):
            if violations(script := random_script(seed)):
                found = dict(found=True, schedules=seed + 1, **_smallest(script))
                break
    return dict(name=fault.name, words=fault.words, **found)


def report(result: dict) -> str:
    """What is to be read on screen: the summary, and all that is wrong."""
    lines = [json.dumps(result['summary'])]
    for failing in (*result['random']['failing'], *result['exhaustive']['failing']):
        lines += [f'seed {failing["seed"]}' if 'seed' in failing else 'small scope',
                  *(f'  {words}' for words in failing['broken']),
                  f'  smallest: assert violations({failing["script"]}) == []',
                  *(f'  {words}' for words in failing['breaks'])]
    lines += [f'not found: {fault["name"]}: {fault["words"]}'
              for fault in result['faults'] if not fault['found']]
    return '\n'.join(lines)


def main() -> None:
    """Simulate, print and write what was found; exit 1 if anything fails."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--schedules', type=int, default=20_000)
    parser.add_argument('--first-seed', type=int, default=0)
    parser.add_argument('--inputs', type=int, default=4, help='of all kinds, in every order')
    parser.add_argument('--processes', type=int, default=os.cpu_count() or 1)
    parser.add_argument('--json', type=Path)
    arguments = parser.parse_args()
    result = simulate(arguments.schedules, arguments.first_seed, arguments.processes,
                      arguments.inputs)
    print(report(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + '\n')
    summary = result['summary']
    if summary['violations'] or summary['faults_found'] < summary['faults_seeded']:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
