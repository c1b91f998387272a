"""Where the time goes: the stages of each perceived step, and their recent distribution."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
import time

import numpy as np

from sww_ros.streaming.events import FirstSight, StepPerceived, TextDelta

WINDOW = 256
RATE_WINDOW_S = 10.0
RATE_EVENTS = 10_000
UNSEEN_STEPS = 64
"""Steps that may wait for a token that sees them; older ones are reported without."""


@dataclass(frozen=True)
class StepTimes:
    """
    A perceived step with the first token that could see it, if any.

    `first_token_ns` is from perceived to that token, `publish_ns` from the token to its message
    (0 for silence).
    """

    step: StepPerceived
    has_first_token: bool = False
    first_token_ns: int = 0
    publish_ns: int = 0

    @property
    def perceived_ns(self) -> int:
        """From the image callback until a token could see the step."""
        return self.step.perceived_ns - self.step.received_ns

    @property
    def overlap_ratio(self) -> float:
        """Share of the step's perception during which decoding ran too."""
        duration = self.step.perceived_ns - self.step.started_ns
        return min(1.0, self.step.overlap_ns / duration) if duration > 0 else 0.0


class StepBook:
    """
    Brings the events of a session together, step by step.

    Each method returns the steps whose times are known now. The text of a decode step follows
    its sights at once, so a sight is settled by the event after it.
    """

    def __init__(self) -> None:
        self._unseen: dict[tuple[int, int], StepPerceived] = {}
        self._seen: list[StepTimes] = []

    def perceived(self, step: StepPerceived) -> list[StepTimes]:
        settled = self.settle()
        self._unseen[step.video, step.index] = step
        while len(self._unseen) > UNSEEN_STEPS:
            settled.append(StepTimes(self._unseen.pop(next(iter(self._unseen)))))
        return settled

    def seen(self, sight: FirstSight) -> None:
        step = self._unseen.pop((sight.video, sight.index), None)
        if step is not None:
            self._seen.append(StepTimes(step, True, sight.decoded_ns - step.perceived_ns))

    def published(self, delta: TextDelta, published_ns: int) -> list[StepTimes]:
        """Note that a text's message went out at `published_ns` [monotonic]."""
        if delta.first_sight:
            publish_ns = published_ns - delta.emitted_ns
            self._seen = [replace(times, publish_ns=publish_ns) for times in self._seen]
        return self.settle()

    def settle(self) -> list[StepTimes]:
        """Return the steps that were seen, whose token turned out to be silence."""
        seen, self._seen = self._seen, []
        return seen

    def clear(self) -> list[StepTimes]:
        """Return what is known, as the stream begins anew."""
        unseen, self._unseen = self._unseen, {}
        return [*self.settle(), *(StepTimes(step) for step in unseen.values())]


class Window:
    """The last values of a measure; any thread may add and read."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=WINDOW)

    def add(self, value: float) -> None:
        self._values.append(value)

    def percentile(self, percent: float) -> float:
        """Return a percentile of the last values; NaN without any."""
        values = self._values.copy()
        return float(np.percentile(values, percent)) if values else float('nan')

    def mean(self) -> float:
        values = self._values.copy()
        return float(np.mean(values)) if values else float('nan')


class Rate:
    """How often something happens per second, over the last ten seconds; for any thread."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=RATE_EVENTS)
        self._began = time.monotonic()

    def add(self, times: int = 1) -> None:
        self._times.extend([time.monotonic()] * times)

    def count(self) -> int:
        """Return how often it happened in the last ten seconds."""
        since = time.monotonic() - RATE_WINDOW_S
        return sum(at >= since for at in self._times.copy())

    def value(self) -> float:
        lasted = time.monotonic() - self._began
        return self.count() / max(min(RATE_WINDOW_S, lasted), 1e-3)
