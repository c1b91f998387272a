"""
Schedules as data, and virtual time in which an executor without threads plays them.

A move that cannot be made, such as the end of a job when none is out, is passed over. So any
part of a script is a script, which is what shrinking needs; and its `repr` is how it is written.
Workers take jobs by the rules of `rules.RULES`, as threads would, and hold them until the script
says that the oldest pass is done; so any order in which threads could meet can be written down. A
fake model speaks; a log is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import NamedTuple

from sww_ros.streaming import jobs
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.core import Core
from sww_ros.streaming.events import Event
from sww_ros.streaming.relay import Relay
from sww_ros.streaming.rules import AHEAD, RULES, fused, one_at_a_time, perception


class _Brief:
    """A dataclass whose `repr` leaves out what has its default."""

    def __repr__(self) -> str:
        given = [f'{field.name}={getattr(self, field.name)!r}' for field in fields(self)
                 if getattr(self, field.name) != field.default]
        return f'{type(self).__name__}({", ".join(given)})'


@dataclass(frozen=True, repr=False)
class Settings(_Brief):
    """
    What a core is made with, and which of `world.EXECUTORS` drives it.

    `relay` is capacity and memory, where streams are relieved.
    """

    overlap: str = 'threads'
    serial: bool = False
    schedule: str = 'live'
    schedule_seed: int = 0
    wait_k: int = 2
    max_steps: int = 8
    relay: tuple[int, int] | None = None
    recall_steps: int = 0
    frames_per_step: int = 1
    max_pending_frames: int = 8
    max_answers: int = 2
    max_queued: int = 2
    question_policy: str = 'queue'
    max_answer_tokens: int = 3
    max_rest_tokens: int = 2
    question_timeout_s: float = 0.0
    single_turn: bool = False
    narrate: bool = True
    speak: str = 'trained'

    def make_core(self) -> Core:
        return Core(_config(self), prompt='p0', wait_k=self.wait_k, max_steps=self.max_steps,
                    frames_per_step=self.frames_per_step, serial=self.serial,
                    perceptions=1 if self.serial else AHEAD.get(self.overlap, 1),
                    relay=self.make_relay())

    def make_relay(self) -> Relay | None:
        """When its streams are relieved, as a session would have it."""
        if self.relay is None or self.serial or self.schedule == 'offline':
            return None
        return Relay.plan(self.max_steps, *self.relay)


_OF_CORE = ('overlap', 'serial', 'wait_k', 'max_steps', 'frames_per_step', 'relay')


@lru_cache(maxsize=64)
def _config(settings: Settings) -> SessionConfig:
    return SessionConfig(**{field.name: getattr(settings, field.name)
                            for field in fields(Settings) if field.name not in _OF_CORE})


@dataclass(frozen=True, repr=False)
class Feed(_Brief):
    """A frame comes; `last` ends its clip."""

    last: bool = False


@dataclass(frozen=True, repr=False)
class Ask(_Brief):
    """
    A question comes; its head is fed in `pieces` decode steps more than one.

    It is about the narration's token number `about`, from 1, if that is any.
    """

    name: str = 'a'
    pieces: int = 0
    about: int = 0


@dataclass(frozen=True, repr=False)
class Cancel(_Brief):
    """A question is taken back."""

    name: str = 'a'


@dataclass(frozen=True, repr=False)
class Prompt(_Brief):
    """Another prompt is set."""


@dataclass(frozen=True, repr=False)
class Forget(_Brief):
    """The session is reset."""


@dataclass(frozen=True, repr=False)
class Pause(_Brief):
    """Watching stops, or goes on."""

    paused: bool = True


@dataclass(frozen=True, repr=False)
class Wait(_Brief):
    """Nothing happens for some seconds."""

    seconds: int = 1


@dataclass(frozen=True, repr=False)
class Close(_Brief):
    """The session is closed."""


@dataclass(frozen=True, repr=False)
class Look(_Brief):
    """A worker that is idle asks for jobs; in a script that is not eager only then."""

    worker: int = 0


@dataclass(frozen=True, repr=False)
class Finish(_Brief):
    """
    A worker is done with its jobs.

    `fails` is the side that fails if it took part: perception | decoding; or all, for good. `says`
    holds what the turns come to, one letter each, over and over: t a word, S a word that ends a
    sentence, h half a character, s silence, e the end of a turn.
    """

    worker: int = 0
    fails: str = ''
    says: str = 't'


Move = Feed | Ask | Cancel | Prompt | Forget | Pause | Wait | Close | Look | Finish


@dataclass(frozen=True, repr=False)
class Script(_Brief):
    """
    A schedule: moves, after which all jobs come back until nothing goes on, then the end.

    Workers that are `eager` ask for jobs after every move. `tail` is what is said in the jobs
    after the last move, letter by letter, over and over.
    """

    settings: Settings = Settings()
    moves: tuple[Move, ...] = ()
    eager: bool = True
    tail: str = 't'


MOST_JOBS = 400
"""More passes than this after the last move, and the core counts as never coming to rest."""
EXECUTORS = {name: tuple(rules.values()) for name, rules in RULES.items()} | {
    'crowd': (one_at_a_time, fused, one_at_a_time)}
"""Those of the engine, and one whose workers take whatever there is: the core keeps them apart."""
TOKENS = 50
"""Of a step, so that two of them go into one pass, and not three."""
_MOVE_NS = 1_000_000
_SECOND_NS = 1_000_000_000


@dataclass(slots=True)
class Told:
    """An input, and what the core told of it; `refused` if it raised ValueError."""

    now: int
    given: jobs.Input
    events: list[Event]
    refused: bool = False


@dataclass(slots=True)
class Taken:
    """Jobs that a worker took for one pass; `at_rest` if the core said so before or after."""

    now: int
    jobs: Sequence[jobs.Job]
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


class Pass(NamedTuple):
    """Jobs that a worker holds, and since when."""

    jobs: Sequence[jobs.Job]
    since: int


def ahead_of(overlap: str) -> int:
    """How many perceptions an executor takes before the first comes back."""
    return AHEAD.get(overlap, 1)


class _Text:
    """What a fake speaker has said: how many tokens and words, and the rest of a sentence."""

    def __init__(self) -> None:
        self.tokens = self.told = 0
        self.rest = ''

    def add(self, letter: str) -> jobs.Spoken:
        self.tokens += 1
        kind = {'s': 'silence', 'e': 'stop'}.get(letter, 'text')
        delta = sentence = ''
        if letter in 'tS':
            self.told += 1
            delta = f'{self.told},'
            self.rest += delta
        if letter in 'eS':
            sentence, self.rest = self.rest, ''
        return jobs.Spoken(kind, delta, sentence, self.rest, self.tokens)


class _Lane:
    """A fake speaker: pieces of its head that are still to be fed, and its text."""

    def __init__(self, pieces: int, text: _Text | None = None) -> None:
        self.pieces, self.text = pieces, text or _Text()

    def speak(self, letter: str) -> jobs.Spoken | None:
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
        ahead = ahead_of(script.settings.overlap)
        self._most = [ahead if rule is perception else 1 for rule in self._rules]
        self._held: list[deque[Pass]] = [deque() for _ in self._rules]
        self._frames = self._prompts = 0
        self._rested: bool | None = None

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
            self.make(move)
            if self.script.eager:
                self._look()
            if any(self._held) and self._at_rest and not self.core.closed:
                self.log.append(Rest(self.now, True, 0, True, busy=True))

    def come_to_rest(self) -> None:
        """Let all jobs come back until there are none, then let time pass where that matters."""
        self._work_off()
        if (deadline := self.core.deadline_ns) is not None:
            self.now = max(self.now, deadline)
            self._work_off()

    def end(self) -> None:
        """Close, and see what inputs do after that."""
        self._tell(jobs.Closed())
        for given in (jobs.Fed(jobs.Frame(None)), jobs.Reset(), jobs.Prompted('late'),
                      jobs.Cancelled('a'), jobs.Ticked()):
            self._tell(given)
        self._look()

    @property
    def held(self) -> list[Sequence[jobs.Job]]:
        """What each worker is computing, the oldest pass of several."""
        return [held[0].jobs if held else () for held in self._held]

    @property
    def out(self) -> list[list[Sequence[jobs.Job]]]:
        """All that each worker holds, in order."""
        return [[each.jobs for each in held] for held in self._held]

    def _work_off(self) -> None:
        tail = self.script.tail
        passes = 0
        while passes < MOST_JOBS:
            self._look()
            busy = [worker for worker, held in enumerate(self._held) if held]
            if not busy:
                break
            self.now += _MOVE_NS
            at = passes % len(tail)
            self._hand_in(busy[passes % len(busy)], '', tail[at:] + tail[:at])
            passes += 1
        self.log.append(Rest(self.now, self.core.at_rest, passes, self.core.video.opened))

    @property
    def _at_rest(self) -> bool:
        """Whether the core rests, asked once until it is told something, or a job is taken."""
        if self._rested is None:
            self._rested = self.core.at_rest
        return self._rested

    def _look(self) -> None:
        for worker in range(len(self._rules)):
            self._take(worker)

    def _take(self, worker: int) -> None:
        held = self._held[worker]
        if len(held) >= self._most[worker] or not self.tick():
            return
        rested = self._at_rest
        if taken := [job for _, job in self._rules[worker]([self.core], self.now)]:
            held.append(Pass(taken, self.now))
            self.note(taken, rested)

    def tick(self) -> bool:
        """Do as a scheduler does before it asks for jobs; False where time stands still."""
        core = self.core
        while not core.closed and (core.deadline_ns or self.now + 1) <= self.now:
            before = core.deadline_ns
            self._tell(jobs.Ticked())
            if core.deadline_ns == before:
                return False  # What must hold of timeouts says so.
        return True

    def note(self, taken: Sequence[jobs.Job], rested: bool) -> None:
        """Log jobs that were taken of the core, which said before whether it rests."""
        self._rested = None
        self.log.append(Taken(self.now, taken, rested or self._at_rest))
        for job in taken:
            if isinstance(job, jobs.Open):
                job.video.work = _Lane(0, job.source.work.text) if job.source else _Lane(1)

    def _tell(self, given: jobs.Input) -> None:
        self._rested = None
        try:
            self.log.append(Told(self.now, given, self.core.handle(given, self.now)))
        except ValueError:
            self.log.append(Told(self.now, given, [], refused=True))

    def make(self, move: Move) -> None:
        """Make one move."""
        match move:
            case Finish(worker, fails, says):
                self._hand_in(worker % len(self._rules), fails, says)
            case Feed(last):
                self._frames += 1
                self._tell(jobs.Fed(jobs.Frame(None, self._frames, self.now, self.now, last)))
            case Ask(name, pieces, about) if not self.core.closed:  # `Session.ask` raises then.
                self._tell(jobs.Asked(name, (0,) * pieces, (about,)))
            case Cancel(name):
                self._tell(jobs.Cancelled(name))
            case Prompt():
                self._prompts += 1
                self._tell(jobs.Prompted(f'p{self._prompts}'))
            case Forget():
                self._tell(jobs.Reset())
            case Pause(paused):
                self._tell(jobs.Paused(paused))
            case Wait(seconds):
                self.now += seconds * _SECOND_NS
            case Close():
                self._tell(jobs.Closed())
            case Look(worker):
                self._take(worker % len(self._rules))

    def _hand_in(self, worker: int, fails: str, says: str) -> None:
        if held := self._held[worker]:
            self.hand_in(held.popleft(), fails, says)

    def hand_in(self, made: Pass, fails: str, says: str) -> None:
        """Have jobs come back, as `Finish` says."""
        done, since = made
        if fails == 'all':
            self._tell(jobs.Failed(tuple(done), 'all that computes is gone', fatal=True))
        elif any(side_of(job) == fails for job in done):
            self._tell(jobs.Failed(tuple(done), f'{fails} fails'))
        else:
            for job in done:
                self._tell(self._result(job, since, says))

    def _result(self, job: jobs.Job, since: int, says: str) -> jobs.Input:
        match job:
            case jobs.Open():
                return jobs.Opened(job)
            case jobs.Carry():
                return jobs.Carried(job)
            case jobs.Perceive():
                # As good as chance, and the same in every run.
                changed = job.frames[-1].stamp_ns * 7 % 10 / 10
                return jobs.Perceived(job, since, since, since, self.now, TOKENS, changed)
        return jobs.Decoded(job, tuple(_lane(turn).speak(says[index % len(says)])
                                  for index, turn in enumerate(job.turns)), self.now,
                            job.started_ns // _MOVE_NS * 7 % 10)


def side_of(job: jobs.Job) -> str:
    """Return which side a job is of, `decoding` or `perception`."""
    return 'decoding' if isinstance(job, jobs.Decode) else 'perception'


def _lane(turn: jobs.Turn) -> _Lane:
    if turn.question is None:
        return turn.video.work
    if turn.question.work is None:
        turn.question.work = _Lane(len(turn.question.head))
    return turn.question.work
