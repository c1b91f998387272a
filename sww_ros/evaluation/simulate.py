"""
Simulation of the core: schedules by chance and by exhaustion, in virtual time, without a model.

`python -m sww_ros.evaluation.simulate --schedules N --first-seed S --json FILE` plays N random
schedules and a small scope exhaustively, and N / 20 times several together on one executor, and
asks all invariants of each; then it puts faults into the core on purpose, each of which has to be
found. What fails is told by its seed and as the smallest script that fails alike, ready to be
pasted into a test.

A seed gives settings, a mood and moves; a theme gives up to six inputs, in every order, with every
point at which a job may end.
"""

from __future__ import annotations

import argparse
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
import json
import multiprocessing
import multiprocessing.connection
from multiprocessing.process import BaseProcess
import os
from pathlib import Path
import random
import threading
import time
from typing import NamedTuple, TypeVar, cast

from tqdm import tqdm

from sww_ros.evaluation.simulation.faults import FAULTS, seeded
from sww_ros.evaluation.simulation.invariants import broken, violations
from sww_ros.evaluation.simulation.reading import Reading
from sww_ros.evaluation.simulation.sharing import SHARED, Gathering
from sww_ros.evaluation.simulation.world import (
    EXECUTORS,
    Ask,
    Cancel,
    Close,
    Feed,
    Finish,
    Forget,
    Look,
    Move,
    Pause,
    Prompt,
    Script,
    Settings,
    Wait,
    World,
    side_of,
)
from sww_ros.streaming.config import QUESTION_POLICIES
from sww_ros.streaming.core import Core
from sww_ros.streaming.gate import GATES
from sww_ros.streaming.jobs import Job, Word
from sww_ros.streaming.schedule import SCHEDULES

MOST_MOVES = 100

# How often each move comes, and how often a job fails and of which sides, by mood.
_CALM = dict(feed=8, last=1, ask=2, cancel=1, prompt=1, reset=1, pause=1, wait=1, close=0.1,
             finish=14)
_LONG = dict(feed=20, ask=4, cancel=0.5, prompt=0.1, reset=0.1, pause=0.1, finish=60)
_MOODS = (
    (_CALM, 0.03, ('perception', 'decoding', 'all')),
    (_CALM | dict(last=5, prompt=0.2, reset=0.2), 0.0, ()),
    (_CALM | dict(ask=10, cancel=3), 0.02, ('perception', 'decoding')),
    (_CALM | dict(reset=4, prompt=4, ask=4), 0.05, ('perception', 'decoding')),
    (_CALM | dict(pause=6, last=3), 0.02, ('perception', 'decoding')),
    (_CALM | dict(feed=20, finish=8), 0.0, ()),
    (_CALM | dict(feed=2, ask=5, wait=5), 0.0, ()),
    (_LONG, 0.02, ('perception', 'decoding')),
    (_CALM | dict(feed=10, finish=30, reset=0.1, prompt=0.1, close=0), 0.9, ('perception',)),
    (_CALM | dict(feed=10, finish=30, reset=0.1, prompt=0.1, close=0), 0.9, ('decoding',)),
)
_WORDS = 'ttttSShsse'
_TAILS = ('t', 's', 'e', 'tsSe', 'tttS', 'h')
_NAMES = 'abcdef'
_PLAIN_MOVES: dict[str, Move] = dict(
    feed=Feed(), last=Feed(True), prompt=Prompt(), reset=Forget(), close=Close())
# Most steps of a stream, its capacity, and how many are carried over.
_RELAYS = ((3, 2, 1), (4, 2, 1), (4, 3, 1), (4, 3, 2), (6, 4, 2), (6, 3, 2), (8, 4, 3), (12, 6, 5))


def random_script(seed: int) -> Script:
    """Return the schedule of a seed."""
    chance = random.Random(seed)
    weights, failing, sides = chance.choice(_MOODS)
    count = chance.randint(3, MOST_MOVES) * (4 if weights is _LONG else 1)
    moves = tuple(_move(name, chance, failing, sides)
                  for name in chance.choices([*weights], [*weights.values()], k=count))
    eager = chance.random() < 0.7
    if not eager:
        moves = tuple(move for made in moves for move in (
            (made, Look(chance.randrange(3))) if chance.random() < 0.7 else (made,)))
    return Script(random_settings(chance), moves, eager, chance.choice(_TAILS))


def random_settings(chance: random.Random) -> Settings:
    """Return settings as they come up, small, so that every limit is met."""
    max_steps = chance.choice((1, 2, 3, 4, 50))
    relay = None
    if chance.random() < 0.5:
        max_steps, *relay = chance.choice(_RELAYS)
    recall_steps = chance.choice((0, 4, 20)) if relay else 0
    schedule = chance.choice(SCHEDULES)
    return Settings(
        overlap=chance.choice(tuple(EXECUTORS)), serial=chance.random() < 0.2,
        schedule=schedule, schedule_seed=chance.randrange(3),
        wait_k=chance.randint(1, 3), max_steps=max_steps,
        relay=relay and tuple(relay), recall_steps=recall_steps,
        frames_per_step=chance.choice((1, 1, 2, 3)), max_pending_frames=chance.choice((1, 2, 4, 8)),
        max_answers=chance.randint(1, 3), max_queued=chance.randint(0, 2),
        question_policy=chance.choice(QUESTION_POLICIES),
        max_answer_tokens=chance.randint(1, 5), max_rest_tokens=chance.randint(1, 4),
        question_timeout_s=chance.choice((0.0, 2.0)), single_turn=chance.random() < 0.2,
        narrate=chance.random() < 0.9,
        speak=chance.choice(tuple(GATES)) if schedule == 'live' else 'trained')


def _move(name: str, chance: random.Random, failing: float, sides: tuple[str, ...]) -> Move:
    match name:
        case 'finish':
            fails = chance.choice(sides) if failing and chance.random() < failing else ''
            return Finish(chance.randrange(3), fails, ''.join(chance.choices(_WORDS, k=2)))
        case 'ask':
            return Ask(chance.choice(_NAMES), chance.choice((0, 0, 1, 2)), chance.randrange(12))
        case 'cancel':
            return Cancel(chance.choice(_NAMES))
        case 'pause':
            return Pause(chance.random() < 0.5)
        case 'wait':
            return Wait(chance.randint(1, 3))
    return _PLAIN_MOVES[name]


MOST_CORES = 4
"""How many cores share an executor at most."""


def gather(seed: int) -> Gathering:
    """Play the schedules of a seed on one executor, their moves one among the other."""
    chance = random.Random(f'together {seed}')
    scripts = [random_script(seed * MOST_CORES + number)
               for number in range(chance.randint(2, MOST_CORES))]
    gathering = Gathering(scripts, chance.choice(SHARED))
    left = [deque(script.moves) for script in scripts]
    moves = []
    while any(left):
        number = chance.choices(range(len(left)), [len(each) for each in left])[0]
        moves.append((number, left[number].popleft()))
    gathering.play(moves)
    return gathering


MOST_INPUTS = 6
_THEMES = dict(
    videos=(Feed(), Feed(last=True), Ask(), Forget()),
    pauses=(Feed(), Feed(last=True), Pause(), Pause(False)),
    questions=(Feed(), Ask(), Ask('b'), Cancel()),
    endings=(Feed(last=True), Ask(), Prompt(), Close()))
_SMALL = dict(wait_k=1, max_steps=2, max_answers=1, max_queued=1, max_answer_tokens=1,
              max_rest_tokens=1)
_EXECUTORS = (
    dict(overlap='threads'), dict(overlap='serial', schedule='offline'),
    dict(overlap='fused', schedule='wait_k'), dict(overlap='serial', serial=True),
    dict(overlap='threads', max_steps=3, relay=(2, 1)))
# What differs between two states that go on alike: times, numbers, and what was said.
_IMMATERIAL = frozenset((
    '_blind_ns', '_config', '_decoded', '_events', '_now', '_seq', '_streams', 'asked_ns',
    'fed_ns', 'number', 'pixels', 'prompt', 'received_ns', 'rest', 'stamp_ns', 'started_ns',
    'stream', 'tokens', 'told'))


class Found(NamedTuple):
    """How many orders were tried, to how many states they led, and which broke what."""

    orders: int
    states: int
    failing: list[tuple[Script, list[str]]]


@dataclass(frozen=True)
class Scope:
    """Inputs in every order, up to `most` of them; with `fails` every job may fail too."""

    settings: Settings
    inputs: tuple[Move, ...]
    most: int = MOST_INPUTS
    fails: bool = False

    def explore(self) -> Found:
        """Try all of it."""
        tried, found = 0, []
        least: dict[int, int] = {}
        waiting: deque[tuple[tuple[Move, ...], int]] = deque([((), 0)])
        while waiting:
            moves, used = waiting.popleft()
            tried += 1
            world = World(Script(self.settings, moves))
            world.make_moves()
            reading = Reading(world.script, world.log)
            state = _state(world, reading)
            if least.get(state, self.most + 1) <= used:
                continue
            least[state] = used
            held, inputs = tuple(world.held), [*self._inputs(world.core)]
            known = len(world.log)
            world.come_to_rest()
            world.end()
            reading.read(world.log[known:])
            if words := broken(reading):
                found.append((world.script, words))
                continue
            # Those with as few inputs first, so that a state is met with the least it takes.
            waiting.extendleft(((*moves, end), used) for end in self._ends(held))
            if used < self.most:
                waiting.extend(((*moves, given), used + 1) for given in inputs)
        return Found(tried, len(least), found)

    def _inputs(self, core: Core) -> Iterator[Move]:
        """All but those that change nothing."""
        for given in () if core.closed else self.inputs:
            if not (given == Pause(core.paused)
                    or isinstance(given, Cancel) and given.name not in core.open_questions):
                yield given

    def _ends(self, held: tuple[tuple[Job, ...], ...]) -> Iterator[Finish]:
        for worker, jobs in enumerate(held):
            if jobs:
                yield Finish(worker)
                if self.fails:
                    yield Finish(worker, fails=side_of(jobs[-1]))


def scopes(most_of_all: int = 4) -> list[Scope]:
    """
    Each theme with each executor; and all inputs together.

    :param most_of_all: up to how many of those; one less where jobs may fail too
    """
    every = tuple(dict.fromkeys(move for theme in _THEMES.values() for move in theme))
    found = []
    for executor in _EXECUTORS:
        settings = Settings(**_SMALL | executor)
        # Where streams are relieved too, there are many more states.
        most = MOST_INPUTS - (settings.relay is not None)
        found += [Scope(settings, theme, most) for theme in _THEMES.values()]
        found += [Scope(settings, every, most_of_all),
                  Scope(settings, every, most_of_all - 1, fails=True)]
    # What differs from two threads is the step ahead, so what decides where a step belongs.
    for settings in (Settings(**_SMALL, overlap='processes'),
                     Settings(**_SMALL | dict(overlap='processes', max_steps=3, relay=(2, 1)))):
        found += [Scope(settings, _THEMES['videos'], most_of_all),
                  Scope(settings, _THEMES['videos'], most_of_all - 1, fails=True)]
    return found


def _state(world: World, reading: Reading) -> int:
    """A hash of all that decides how a run goes on, by the core and as seen from outside."""
    return hash((_canonical((world.core, world.out), {}), reading.summary()))


_PLAIN = frozenset((int, str, bool, float, type(None)))


def _canonical(value: object, met: dict[int, int]) -> object:
    """Plain data that is equal for objects which are alike, and refer to each other alike."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is Word:
        return value.owner, value.sees
    if kind in (tuple, list, deque):
        return tuple([one if type(one) in _PLAIN else _canonical(one, met) for one in value])
    if kind is Counter:
        return tuple(sorted((+value).items()))
    if isinstance(value, dict):
        return tuple([(key, _canonical(one, met)) for key, one in value.items()])
    if (number := met.get(id(value))) is not None:
        return number
    met[id(value)] = len(met)
    return kind.__name__, *[
        one if type(one) in _PLAIN else _canonical(one, met)
        for name, one in vars(value).items() if name not in _IMMATERIAL]


Finds = Callable[[Script], list[str]]


def shrink(script: Script, finds: Finds = violations) -> Script:
    """
    Return the smallest script found that breaks the first invariant which `script` breaks.

    Parts of the moves are left out (delta debugging), then settings and moves are made plain, as
    long as anything becomes smaller.
    """
    name = _first(finds(script))
    if not name:
        return script

    def fails(candidate: Script) -> bool:
        return any(words.startswith(f'{name}:') for words in finds(candidate))

    changed = True
    while changed:
        changed = False
        for candidates in (_shorter, _plainer):
            while (smaller := next(filter(fails, candidates(script)), None)) is not None:
                script, changed = smaller, True
    return script


def _first(found: list[str]) -> str:
    return found[0].split(':')[0] if found else ''


def _shorter(script: Script) -> Iterator[Script]:
    """All with a part of the moves left out, from halves to single ones."""
    moves = script.moves
    size = len(moves)
    while size:
        for start in range(0, len(moves), size):
            yield replace(script, moves=moves[:start] + moves[start + size:])
        size //= 2


def _plainer(script: Script) -> Iterator[Script]:
    """All with one setting, or one move, as it is by default."""
    if not script.eager:
        yield replace(script, eager=True,
                      moves=tuple(move for move in script.moves if not isinstance(move, Look)))
    for whole in (Settings(), Script()):
        part = script.settings if isinstance(whole, Settings) else script
        for field in fields(whole):
            if field.name in ('settings', 'moves', 'eager'):
                continue
            value = getattr(whole, field.name)
            if getattr(part, field.name) != value:
                plain = replace(part, **{field.name: value})
                yield plain if part is script else replace(script, settings=plain)
    for index, move in enumerate(script.moves):
        for field in fields(move):
            # Who finishes is not a matter of taste.
            if getattr(move, field.name) != field.default and not (
                    isinstance(move, Finish) and field.name == 'worker'):
                plain = replace(move, **{field.name: field.default})
                yield replace(script,
                              moves=(*script.moves[:index], plain, *script.moves[index + 1:]))


Result = TypeVar('Result')

MOST_FOR_A_FAULT = 20_000
"""Schedules in which a seeded fault has to show."""
_BATCH = 250
_MOST_SHRUNK = 3
_SCHEDULES_A_GATHERING = 20


def simulate(schedules: int, first_seed: int = 0, processes: int = 2, inputs: int = 4) -> dict:
    """
    Play everything; return what was found as plain data, `summary` first.

    :param inputs: up to how many inputs of all kinds are tried in every order
    """
    started, every = time.monotonic(), scopes(inputs)
    seeds = _batches(first_seed, schedules)
    seeds_together = _batches(first_seed, schedules // _SCHEDULES_A_GATHERING)
    # Processes that import nothing but the core.
    with ProcessPoolExecutor(processes, multiprocessing.get_context('spawn'),
                             initializer=_end_with_parent) as pool:
        # All at once, what takes longest first: no process waits for the last task of another.
        explored = pool.map(Scope.explore, every)
        sought = pool.map(_seek, range(len(FAULTS)))
        gathered, played = pool.map(_gather, seeds_together), pool.map(_play, seeds)
        by_exhaustion = _exhaustive(every, [*_shown(explored, every, 'scope')])
        faults = [*_shown(sought, FAULTS, 'fault')]
        # Of those that share executors the seed is told alone.
        together = _summed(first_seed, _shown(gathered, seeds_together, f'{_BATCH} gatherings'))
        by_chance = _summed(first_seed, _shown(played, seeds, f'{_BATCH} schedules'))
        for failing in by_chance['failing']:
            failing |= _smallest(random_script(failing['seed']))
    violated = sum(found['violations'] for found in (by_chance, together, by_exhaustion))
    summary = dict(
        schedules=schedules, orders=by_exhaustion['orders'], violations=violated,
        faults_seeded=len(faults), faults_found=sum(fault['found'] for fault in faults),
        seconds=round(time.monotonic() - started, 1))
    return dict(
        summary=summary, random=by_chance,
        together=dict(together, gatherings=schedules // _SCHEDULES_A_GATHERING),
        exhaustive=by_exhaustion, faults=faults)


def _summed(first_seed: int, batches: Iterable[list[tuple[int, list[str]]]]) -> dict:
    """How many seeds break something, and what the first ones do."""
    failing = [one for batch in batches for one in batch]
    return dict(first_seed=first_seed, violations=len(failing),
                failing=[dict(seed=seed, broken=words) for seed, words in failing[:_MOST_SHRUNK]])


def _end_with_parent() -> None:
    """Have a worker end when its parent is killed; it would go on for hours, or wait for ever."""
    def wait() -> None:
        parent = cast(BaseProcess, multiprocessing.parent_process())
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
    threading.Thread(target=wait, daemon=True).start()


def _batches(first: int, count: int) -> list[range]:
    """Return so many seeds from the first on, as many at a time as are worth a task."""
    end = first + count
    return [range(start, min(start + _BATCH, end)) for start in range(first, end, _BATCH)]


def _shown(found: Iterable[Result], tasks: Sized, unit: str) -> Iterable[Result]:
    """Yield what comes of each task, in their order, under a bar."""
    return tqdm(found, total=len(tasks), unit=unit, disable=None)


def _gather(seeds: Iterable[int]) -> list[tuple[int, list[str]]]:
    """Return the seeds that break something where executors are shared, and what."""
    return [(seed, words) for seed in seeds if (words := gather(seed).violations)]


def _play(seeds: Iterable[int]) -> list[tuple[int, list[str]]]:
    """Return the seeds that break something, and what."""
    return [(seed, words) for seed in seeds if (words := violations(random_script(seed)))]


def _smallest(script: Script) -> dict:
    small = shrink(script)
    return dict(script=repr(small), breaks=violations(small))


def _exhaustive(every: list[Scope], found: list[Found]) -> dict:
    failing = [one for scope in found for one in scope.failing]
    return dict(
        orders=sum(scope.orders for scope in found), states=sum(scope.states for scope in found),
        violations=len(failing),
        failing=[dict(broken=words, **_smallest(script))
                 for script, words in failing[:_MOST_SHRUNK]],
        scopes=[dict(settings=repr(scope.settings), inputs=[repr(move) for move in scope.inputs],
                     most_inputs=scope.most, jobs_fail=scope.fails, orders=one.orders,
                     states=one.states)
                for scope, one in zip(every, found, strict=True)])


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
    for failing in result.get('together', {}).get('failing', ()):
        lines += [f'together, seed {failing["seed"]}',
                  *(f'  {words}' for words in failing['broken'])]
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
