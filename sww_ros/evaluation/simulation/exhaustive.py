"""
Small scope, all of it: every order of up to six inputs, with every point at which a job may end.

The inputs are those of a theme: with repetition, in every order. Orders that lead to the same
state go on in the same way, so each state is gone on from once. Each that leads to a new state is
played to its end, and all invariants are asked of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sww_ros.evaluation.simulation.invariants import broken
from sww_ros.evaluation.simulation.reading import Reading
from sww_ros.evaluation.simulation.script import (
    Ask,
    Cancel,
    Close,
    Feed,
    Finish,
    Forget,
    Move,
    Pause,
    Prompt,
    Script,
    Settings,
)
from sww_ros.evaluation.simulation.world import World
from sww_ros.streaming.core import Core
from sww_ros.streaming.jobs import Decode, Job, Word

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
    '_blind_ns', '_config', '_decoded', '_events', '_now', '_seq', 'asked_ns', 'fed_ns', 'number',
    'pixels', 'prompt', 'received_ns', 'rest', 'stamp_ns', 'started_ns', 'stream', 'tokens',
    'told'))


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
            state = _state(world)
            if least.get(state, self.most + 1) <= used:
                continue
            least[state] = used
            held, inputs = tuple(world.held), [*self._inputs(world.core)]
            world.come_to_rest()
            world.end()
            if words := broken(Reading(world.script, world.log)):
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
                    decodes = isinstance(jobs[-1], Decode)
                    yield Finish(worker, fails='decoding' if decodes else 'perception')


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
    return found


def _state(world: World) -> int:
    """A hash of all that decides how a run goes on, by the core and as seen from outside."""
    reading = Reading(world.script, world.log)
    return hash((_canonical((world.core, world.held), {}), reading.summary()))


def _canonical(value: object, met: dict[int, int]) -> object:
    """Plain data that is equal for objects which are alike, and refer to each other alike."""
    kind = type(value)
    if kind is Word:
        return value.owner, value.sees
    if kind in (int, str, bool, float) or value is None:
        return value
    if kind in (tuple, list, deque):
        return tuple([_canonical(one, met) for one in value])
    if isinstance(value, dict):
        return tuple([(key, _canonical(one, met)) for key, one in value.items()])
    if (number := met.get(id(value))) is not None:
        return number
    met[id(value)] = len(met)
    return kind.__name__, *[
        _canonical(one, met) for name, one in vars(value).items() if name not in _IMMATERIAL]
