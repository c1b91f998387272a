"""A session that notes when each of its jobs ran."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
import time
from typing import NamedTuple

from sww_ros.streaming.jobs import Decode, Input, Job
from sww_ros.streaming.processes import ForkingRunner
from sww_ros.streaming.runner import ModelRunner
from sww_ros.streaming.session import Session


class Span(NamedTuple):
    """The jobs of one pass, and from when to when they ran, on `time.monotonic_ns`."""

    jobs: Sequence[Job]
    start_ns: int
    stop_ns: int

    @property
    def seconds(self) -> float:
        return (self.stop_ns - self.start_ns) / 1e9

    @property
    def speakers(self) -> int:
        """How many turns were taken in it; 0 for perception alone."""
        return sum(len(job.turns) for job in self.jobs if isinstance(job, Decode))


class _Timed(ModelRunner):
    def __init__(self, *arguments: object) -> None:
        self.spans: list[Span] = []
        super().__init__(*arguments)

    def run(self, jobs: Sequence[Job]) -> list[Input]:
        start = time.monotonic_ns()
        results = super().run(jobs)
        # From either thread: appending is atomic.
        self.spans.append(Span(jobs, start, time.monotonic_ns()))
        return results


class _TimedFork(_Timed, ForkingRunner):
    pass


class TimedSession(Session):
    """A session with `spans`, in the order in which they ended."""

    def _make_runner(self, *arguments: object) -> ModelRunner:
        return (_TimedFork if self._overlap == 'processes' else _Timed)(*arguments)

    @property
    def spans(self) -> list[Span]:
        return [*self._runner.spans]


def mean_seconds(spans: Sequence[Span], kind: type[Job]) -> float:
    """Return the mean time of the passes that did one job of a kind; 0.0 if none did."""
    found = [span.seconds for span in spans
             if len(span.jobs) == 1 and isinstance(span.jobs[0], kind)]
    return mean(found) if found else 0.0
