"""
Virtual time: an executor without threads drives a core with a fake model, and keeps a log.

Workers take jobs by the rules of `rules.RULES`, as threads would, and hold them until the
script says that the oldest pass is done; so any order in which threads could meet can be written
down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from sww_ros.evaluation.simulation.script import (
    Ask,
    Cancel,
    Close,
    Feed,
    Finish,
    Forget,
    Look,
    Pause,
    Prompt,
    Script,
    Wait,
)
from sww_ros.streaming.events import Event
from sww_ros.streaming.jobs import (
    Asked,
    Cancelled,
    Carried,
    Carry,
    Closed,
    Decode,
    Decoded,
    Failed,
    Fed,
    Frame,
    Input,
    Job,
    Open,
    Opened,
    Paused,
    Perceive,
    Perceived,
    Prompted,
    Reset,
    Spoken,
    Ticked,
    Turn,
)
from sww_ros.streaming.rules import AHEAD, RULES, fused, one_at_a_time, perception

MOST_JOBS = 400
"""More passes than this after the last move, and the core counts as never coming to rest."""
EXECUTORS = {name: tuple(rules.values()) for name, rules in RULES.items()} | {
    'crowd': (one_at_a_time, fused, one_at_a_time)}
"""Those of the engine, and one whose workers take whatever there is: the core keeps them apart."""
_MOVE_NS = 1_000_000
_SECOND_NS = 1_000_000_000


@dataclass(slots=True)
class Told:
    """An input, and what the core told of it; `refused` if it raised ValueError."""

    now: int
    given: Input
    events: list[Event]
    refused: bool = False


@dataclass(slots=True)
class Taken:
    """Jobs that a worker took for one pass; `at_rest` if the core said so before or after."""

    now: int
    jobs: Sequence[Job]
    at_rest: bool


@dataclass(slots=True)
class Rest:
    """
    No worker has anything to do, after `passes` since the last move.

    Or the core says so while a worker is `busy`, which it must not.
    """

    now: int
    at_rest: bool
    passes: int
    opened: bool
    busy: bool = False


Entry = Told | Taken | Rest


@dataclass(slots=True)
class _Pass:
    """Jobs that a worker holds, and since when."""

    jobs: Sequence[Job]
    since: int


def ahead_of(overlap: str) -> int:
    """How many perceptions an executor takes before the first comes back."""
    return AHEAD.get(overlap, 1)


class _Text:
    """What a fake speaker has said: how many tokens and words, and the rest of a sentence."""

    def __init__(self) -> None:
        self.tokens = self.told = 0
        self.rest = ''

    def add(self, letter: str) -> Spoken:
        self.tokens += 1
        kind = {'s': 'silence', 'e': 'stop'}.get(letter, 'text')
        delta = sentence = ''
        if letter in 'tS':
            self.told += 1
            delta = f'{self.told},'
            self.rest += delta
        if letter in 'eS':
            sentence, self.rest = self.rest, ''
        return Spoken(kind, delta, sentence, self.rest, self.tokens)


class _Lane:
    """A fake speaker: pieces of its head that are still to be fed, and its text."""

    def __init__(self, pieces: int, text: _Text | None = None) -> None:
        self.pieces, self.text = pieces, text or _Text()

    def speak(self, letter: str) -> Spoken | None:
        if self.pieces:
            self.pieces -= 1
            return None
        return self.text.add(letter)


class World:
    """One run of a script."""

    def __init__(self, script: Script) -> None:
        self.script, self.core = script, script.settings.make_core()
        self.log: list[Entry] = []
        self.now = _SECOND_NS
        self._rules = EXECUTORS[script.settings.overlap]
        self._ahead = ahead_of(script.settings.overlap)
        self._held: list[deque[_Pass]] = [deque() for _ in self._rules]
        self._frames = self._prompts = 0

    def play(self) -> list[Entry]:
        """Play the script to its end; return the log."""
        self.make_moves()
        self.come_to_rest()
        self.end()
        return self.log

    def make_moves(self) -> None:
        if self.script.eager:
            self._look()
        for move in self.script.moves:
            self.now += _MOVE_NS
            _MOVES[type(move)](self, move)
            if self.script.eager:
                self._look()
            if self.core.at_rest and any(self._held) and not self.core.closed:
                self.log.append(Rest(self.now, True, 0, True, busy=True))

    def come_to_rest(self) -> None:
        """Let all jobs come back until there are none, then let time pass where that matters."""
        self._work_off()
        if (deadline := self.core.deadline_ns) is not None:
            self.now = max(self.now, deadline)
            self._work_off()

    def end(self) -> None:
        """Close, and see what inputs do after that."""
        self._tell(Closed())
        for given in (Fed(Frame(None)), Reset(), Prompted('late'), Cancelled('a'), Ticked()):
            self._tell(given)
        self._look()

    @property
    def held(self) -> list[Sequence[Job]]:
        """What each worker is computing, the oldest pass of several."""
        return [held[0].jobs if held else () for held in self._held]

    @property
    def out(self) -> list[list[Sequence[Job]]]:
        """All that each worker holds, in order."""
        return [[each.jobs for each in held] for held in self._held]

    def _work_off(self) -> None:
        tail = self.script.tail
        passes = 0
        while passes < MOST_JOBS:
            self._look()
            busy = [worker for worker, jobs in enumerate(self._held) if jobs]
            if not busy:
                break
            self.now += _MOVE_NS
            at = passes % len(tail)
            self._hand_in(busy[passes % len(busy)], '', tail[at:] + tail[:at])
            passes += 1
        self.log.append(Rest(self.now, self.core.at_rest, passes, self.core.video.opened))

    def _look(self) -> None:
        for worker in range(len(self._rules)):
            self._take(worker)

    def _take(self, worker: int) -> None:
        """Do as `Session.take` does."""
        core, held, rule = self.core, self._held[worker], self._rules[worker]
        if len(held) >= (self._ahead if rule is perception else 1):
            return
        while not core.closed and (core.deadline_ns or self.now + 1) <= self.now:
            before = core.deadline_ns
            self._tell(Ticked())
            if core.deadline_ns == before:
                return  # Time stands still: what must hold of timeouts says so.
        rested = core.at_rest
        if jobs := rule(core, self.now):
            held.append(_Pass(jobs, self.now))
            self.log.append(Taken(self.now, jobs, rested or core.at_rest))
            for job in jobs:
                if isinstance(job, Open):
                    job.video.work = _Lane(0, job.source.work.text) if job.source else _Lane(1)

    def _tell(self, given: Input) -> None:
        try:
            self.log.append(Told(self.now, given, self.core.handle(given, self.now)))
        except ValueError:
            self.log.append(Told(self.now, given, [], refused=True))

    # Moves.

    def _feed(self, move: Feed) -> None:
        self._frames += 1
        self._tell(Fed(Frame(None, self._frames, self.now, self.now, move.last)))

    def _ask(self, move: Ask) -> None:
        if not self.core.closed:  # `Session.ask` raises then.
            self._tell(Asked(move.name, (0,) * move.pieces))

    def _cancel(self, move: Cancel) -> None:
        self._tell(Cancelled(move.name))

    def _prompt(self, move: Prompt) -> None:
        self._prompts += 1
        self._tell(Prompted(f'p{self._prompts}'))

    def _forget(self, move: Forget) -> None:
        self._tell(Reset())

    def _pause(self, move: Pause) -> None:
        self._tell(Paused(move.paused))

    def _wait(self, move: Wait) -> None:
        self.now += move.seconds * _SECOND_NS

    def _close(self, move: Close) -> None:
        self._tell(Closed())

    def _look_once(self, move: Look) -> None:
        self._take(move.worker % len(self._rules))

    def _finish(self, move: Finish) -> None:
        self._hand_in(move.worker % len(self._rules), move.fails, move.says)

    def _hand_in(self, worker: int, fails: str, says: str) -> None:
        jobs, since = (), 0
        if self._held[worker]:
            oldest = self._held[worker].popleft()
            jobs, since = oldest.jobs, oldest.since
        if fails and any(_side(job) == fails for job in jobs):
            self._tell(Failed(tuple(jobs), f'{fails} fails'))
            return
        if jobs and fails == 'all':
            self._tell(Failed(tuple(jobs), 'all that computes is gone', fatal=True))
            return
        for job in jobs:
            self._tell(self._result(job, since, says))

    def _result(self, job: Job, since: int, says: str) -> Input:
        if isinstance(job, Open):
            return Opened(job)
        if isinstance(job, Carry):
            return Carried(job)
        if isinstance(job, Perceive):
            return Perceived(job, since, since, since, self.now)
        return Decoded(job, tuple(_lane(turn).speak(says[index % len(says)])
                                  for index, turn in enumerate(job.turns)), self.now)


def _side(job: Job) -> str:
    return 'decoding' if isinstance(job, Decode) else 'perception'


def _lane(turn: Turn) -> _Lane:
    if turn.question is None:
        return turn.video.work
    if turn.question.work is None:
        turn.question.work = _Lane(len(turn.question.head))
    return turn.question.work


_MOVES = {
    Feed: World._feed, Ask: World._ask, Cancel: World._cancel, Prompt: World._prompt,
    Forget: World._forget, Pause: World._pause, Wait: World._wait, Close: World._close,
    Look: World._look_once, Finish: World._finish}
