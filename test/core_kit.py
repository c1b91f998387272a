"""Plays a core by hand: every input, and every end of a job, at the moment the test says."""

from __future__ import annotations

from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.core import Core
from sww_ros.streaming.events import NARRATION, Event, StepPerceived, TextDelta
from sww_ros.streaming.jobs import (
    Asked,
    Carried,
    Carry,
    Decode,
    Decoded,
    Failed,
    Fed,
    Frame,
    Input,
    Open,
    Opened,
    Perceive,
    Perceived,
    Spoken,
)
from sww_ros.streaming.relay import Relay


class Play:
    """A core, all that it has told, and the time, which rises by one with every call."""

    def __init__(self, *, serial: bool = False, max_steps: int = 100, wait_k: int = 2,
                 perceptions: int = 1, relay: Relay | None = None, **settings: object) -> None:
        self.core = Core(
            SessionConfig(**{'max_pending_frames': 64, **settings}), prompt='Tell.',
            wait_k=wait_k, max_steps=relay.max_steps if relay else max_steps,
            frames_per_step=2, serial=serial, perceptions=perceptions, relay=relay)
        self.events: list[Event] = []
        self.now, self.changed, self.tokens = 0, 1.0, 0

    def tell(self, given: Input) -> list[Event]:
        self.now += 1
        told = self.core.handle(given, self.now)
        self.events += told
        return told

    def feed(self, frames: int = 2, last: bool = False) -> list[Event]:
        return [event for left in reversed(range(frames))
                for event in self.tell(Fed(Frame(None, self.now, last=last and not left)))]

    def ask(self, question_id: str = 'q', head: tuple[int, ...] = (1, 2)) -> list[Event]:
        return self.tell(Asked(question_id, head))

    def take_perception(self) -> Open | Perceive | None:
        return self.core.next_perception()

    def take_decode(self) -> Decode | None:
        return self.core.next_decode(self.now)

    def done(self, job, kind: str = 'text') -> list[Event]:
        """A job comes back; all turns of a decode step say a letter, or a token of `kind`."""
        if isinstance(job, Open):
            return self.tell(Opened(job))
        if isinstance(job, Perceive):
            return self.tell(Perceived(job, tokens=self.tokens, changed=self.changed))
        if isinstance(job, Carry):
            return self.tell(Carried(job))
        spoken = Spoken(kind, 'a' * (kind == 'text'), unfinished='a' * (kind == 'text'))
        return self.tell(Decoded(job, (spoken,) * len(job.turns)))

    def fail(self, *jobs) -> list[Event]:
        return self.tell(Failed(jobs, 'it broke'))

    def perceive(self) -> list[Event]:
        """Take and do perception jobs until there is none."""
        told = []
        while job := self.take_perception():
            told += self.done(job)
        return told

    def speak(self, kind: str = 'text', steps: int | None = None) -> list[Event]:
        """Take and do decode steps, all or `steps` of them."""
        told = []
        while steps != 0 and (job := self.take_decode()):
            told += self.done(job, kind)
            steps = None if steps is None else steps - 1
        return told

    def rest(self) -> list[Event]:
        """Do all there is to do."""
        told = []
        while more := self.perceive() + self.speak(steps=1):
            told += more
        assert self.core.at_rest
        return told

    def of(self, kind: type) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def finals(self, stream_id: str = NARRATION) -> list[str]:
        return [event.finish_reason for event in self.of(TextDelta)
                if event.stream_id == stream_id and event.final]

    def steps(self) -> list[tuple[int, int]]:
        return [(event.video, event.index) for event in self.of(StepPerceived)]
