"""
Schedules as data: what happens to a session, in which order, with which settings.

A move that cannot be made, such as the end of a job when none is out, is passed over. So any
part of a script is a script, which is what shrinking needs; and its `repr` is how it is written.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.core import Core
from sww_ros.streaming.relay import Relay
from sww_ros.streaming.rules import AHEAD


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
    """A question comes; its head is fed in `pieces` decode steps more than one."""

    name: str = 'a'
    pieces: int = 0


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
