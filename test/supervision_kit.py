"""Plays a supervision of engines by hand: no process, no thread, no waiting."""

from __future__ import annotations

from collections import Counter

from sww_ros.engine.supervision import NO_LIMITS, Limits, Supervision
from sww_ros.frames import CameraFrame
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import (
    NARRATION,
    Event,
    FramesDropped,
    StepPerceived,
    TextDelta,
    event_to_dict,
)

SECOND = 1_000_000_000
BACKOFF_S = (1.0, 2.0, 4.0)
STEP = StepPerceived(0, 0, 2, *[0] * 7)
DELTA = TextDelta(NARRATION, 0, 'a', '', False, '', 0, 1, 2, 0, 0, 0, False)


class Play:
    """A machine, what it has told, and engines that are named by numbers."""

    def __init__(self, backoff_s: tuple[float, ...] = BACKOFF_S, limits: Limits = NO_LIMITS,
                 **settings: object) -> None:
        self.machine = Supervision(SessionConfig(**settings), backoff_s, limits)
        self.engines = 0
        self.told: list[tuple[str, object]] = []

    def launch(self, wait_s: float = 0.0) -> SessionConfig | None:
        """Start a process, if it is time to after some seconds; return its session's settings."""
        self.machine.now_ns += round(wait_s * SECOND)
        if (config := self.machine.next_launch()) is not None:
            self.engines += 1
            self.machine.started(self.engines)
        return config

    def run(self, wait_s: float = 0.0) -> SessionConfig:
        """Have an engine start and be ready."""
        config = self.launch(wait_s)
        self.machine.became_ready({'default_prompt': 'Describe.'})
        return config

    def wait(self, seconds: float) -> object | None:
        """Let time pass, and return the engine that is to be killed then."""
        self.machine.now_ns += round(seconds * SECOND)
        return self.machine.next_kill()

    def beat(self, *work: str | int) -> None:
        """Have the engine give a sign of life, with what it works on and since when [ns]."""
        self.machine.received({'type': 'alive', 'work': list(work) or None})

    def die(self, report: str = 'it died') -> None:
        self.machine.lost()
        self.machine.ended(report)

    def say(self, *events: Event) -> None:
        for event in events:
            self.machine.received(event_to_dict(event))

    def listen(self) -> list[tuple[str, object]]:
        """Return what has been told since the last time."""
        told = []
        while (found := self.machine.next_notice()) is not None:
            told.append(found)
        self.told += told
        return told

    def sent(self) -> list[dict | CameraFrame]:
        """Send all that is to be sent."""
        sent = []
        while (found := self.machine.next_send()) is not None:
            assert found[0] == self.engines
            sent.append(found[1])
        return sent

    def events(self, kind: type = object) -> list:
        self.listen()
        return [what for how, what in self.told if how == 'event' and isinstance(what, kind)]

    def dropped(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for event in self.events(FramesDropped):
            counts[event.reason] += event.count
        return dict(counts)

    def ends(self) -> list[tuple[str, str]]:
        return [(event.stream_id, event.finish_reason) for event in self.events(TextDelta)
                if event.final]


def frame(stamp_ns: int = 0) -> CameraFrame:
    return CameraFrame(lambda: None, stamp_ns, 0)
