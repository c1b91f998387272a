"""
What passes take of an engine that several cameras are on: the costs with which pools are planned.

An engine's process runs a `TimedEngine` in place of an `Engine`; once it ends, it leaves behind how
long each of its passes took and what was in it. From these follow, by least squares, what the first
step in a pass takes and what each further one, what a token takes, and a piece of a successor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
import json
from operator import attrgetter
import os
from pathlib import Path
from statistics import median
import tempfile
import time
from typing import NamedTuple

import numpy as np

from sww_ros.fleet.simulated import Costs
from sww_ros.frames import NANOSECONDS
from sww_ros.library import Engine
from sww_ros.streaming.executors import Finish, Scheduler
from sww_ros.streaming.jobs import Decode, Input, Job, Perceive
from sww_ros.streaming.relay import Relay
from sww_ros.streaming.session import Loaded, take_threads

TIMED = 'sww_ros.benchmark.passes:TimedEngine.open'
"""What opens the engine of an engine's process, for `EngineClient` and `open_request`."""
FOLDER = 'SWW_ROS_PASSES'
"""The variable of the environment that names the folder in which engines leave their files."""
BETWEEN_NS = 10 ** 6
"""What follows on a pass sooner than this is the same work: so what lies between is counted too."""
SPREAD = (0.5, 0.95, 0.99)
MANY = 9


class TimedPass(NamedTuple):
    """
    How many jobs of each kind a pass did, and when it began and ended [monotonic ns].

    It begins as the first of its steps is looked at, `looked_ns` before it is taken.
    """

    steps: int
    pieces: int
    speakers: int
    start_ns: int
    stop_ns: int
    looked_ns: int = 0


class TimedScheduler(Scheduler):
    """Keeps what each pass took, in the order of their ends."""

    def __init__(self, *arguments: object, **options: object) -> None:
        self.passes: list[TimedPass] = []
        self._looking_ns = 0
        super().__init__(*arguments, **options)

    def _look_ahead(self, look: Callable[[], None]) -> None:
        self._looking_ns = self._looking_ns or time.monotonic_ns()
        super()._look_ahead(look)

    def _begin(self, jobs: Sequence[Job]) -> Finish:
        now, finish = time.monotonic_ns(), super()._begin(jobs)
        start, steps = now, sum(isinstance(job, Perceive) for job in jobs)
        if steps and self._looking_ns:
            start, self._looking_ns = self._looking_ns, 0
        speakers = sum(len(job.turns) for job in jobs if isinstance(job, Decode))
        pieces = sum(not isinstance(job, (Perceive, Decode)) for job in jobs)

        def finished() -> list[Input]:
            results = finish()
            self.passes.append(TimedPass(steps, pieces, speakers, start, time.monotonic_ns(),
                                         now - start))
            return results
        return finished


class TimedEngine(Engine):
    """An engine that writes its passes into the folder that `FOLDER` names, once it is closed."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self._scheduler = TimedScheduler(
            self._overlap, partial(take_threads, loaded.checkpoint, loaded.config), lasts=True)

    def close(self) -> None:
        """Close it, as an engine is, and write what its passes took."""
        super().close()
        file = Path(os.environ[FOLDER]) / f'{os.getpid()}.json'
        file.write_text(json.dumps(self._scheduler.passes))


@contextmanager
def timing() -> Iterator[list[TimedPass]]:
    """Give a list that has, afterwards, the passes of each `TimedEngine` that has ended within."""
    passes: list[TimedPass] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        try:
            yield passes
        finally:
            del os.environ[FOLDER]
        for file in sorted(Path(folder).iterdir()):
            passes += [TimedPass(*each) for each in json.loads(file.read_text())]
        passes.sort(key=attrgetter('start_ns'))


def relay_of(info: dict) -> Relay | None:
    """Return when the streams of a session are relieved, by what it says of itself."""
    return Relay.plan(info['max_steps'], info['capacity'], info['memory'])


def _took(passes: Sequence[TimedPass]) -> dict[tuple[int, int, int], list[float]]:
    """Return how long passes took, and what lies between them [s], by steps, pieces, speakers."""
    took: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    for each, following in zip(passes, [*passes[1:], None], strict=True):
        between_ns = following.start_ns - each.stop_ns if following else BETWEEN_NS
        taken_ns = each.stop_ns - each.start_ns + (between_ns if between_ns < BETWEEN_NS else 0)
        took[each.steps, each.pieces, each.speakers].append(taken_ns / NANOSECONDS)
    return took


def costs_of(passes: Sequence[TimedPass], step_tokens: int) -> Costs:
    """
    Return what passes take, by what is in them.

    :param step_tokens: visual tokens of a step
    """
    took = _took(passes)
    # A pass with steps, each step, one with pieces and no step, each piece, a pass with speakers,
    # each of them; as often as it was seen.
    rows = np.array([(steps > 0, steps, pieces > 0 and not steps, pieces, speakers > 0, speakers)
                     for steps, pieces, speakers in took], float)
    weights = np.sqrt([len(each) for each in took.values()])
    fitted, *_ = np.linalg.lstsq(rows * weights[:, None], weights * [
        median(each) for each in took.values()], rcond=None)
    first, more, piece, more_piece, speaking, speaker = (float(each) for each in fitted)
    # Of those that are waited for: a token alone takes so little that it differs by more.
    ratios = [seconds / float(row @ fitted)
              for row, each in zip(rows, took.values(), strict=True) for seconds in each
              if row[0] or not rows[:, 0].any()]
    spread = np.quantile(ratios, SPREAD)
    together = any(pieces > 1 or pieces and steps for steps, pieces, _ in took)
    # Of what its steps take, for so much of it they are looked at.
    looks = [each.looked_ns / NANOSECONDS / (first + more * each.steps)
             for each in passes if each.looked_ns]
    return Costs(
        first + more, tuple((count, speaking + speaker * count) for count in (1, MANY)),
        tuple(zip(SPREAD, (spread / spread[0]).tolist(), strict=True)), more, step_tokens,
        piece + more_piece, more_piece if together else None,
        look_s=median(looks) * (first + more) if looks else 0.0)
