"""
`overlap: auto`: tries the executors on this machine for a moment, and takes the best.

The best is the one with the least time from a step's last frame to the first token that saw it
while a sentence is spoken; among those that no listener could tell apart, the one that gets
through most steps a second at full load; and of those that do so alike, the steadiest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
import math
import os
from statistics import median
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import FirstSight, Trouble
from sww_ros.streaming.generation import TextLane
from sww_ros.streaming.jobs import Spoken
from sww_ros.streaming.pace import Pace, working_size
from sww_ros.streaming.processes import ForkingRunner
from sww_ros.streaming.runner import ModelRunner
from sww_ros.streaming.session import Session

LONG_S = 0.5
"""A step with its tokens that takes longer is not tried in every way: loading takes long enough."""
SIGHTS = 3
LOAD_STEPS, SLOW_LOAD_STEPS, SLOW_S = 16, 8, 0.05
"""Steps at full load; of a model whose step takes longer than this time [s], fewer."""
ROUNDS, LEAST_ROUNDS, ENOUGH_S = 6, 2, 8.0
"""Rounds of all ways; no further one is begun after this time [s]."""
ALIKE, ALIKE_S = 1.1, 0.010
"""
Latencies within this factor, or this time [s], are alike: a camera's own period is far longer.

With 5 ms the 35 M model took one pass for both, 6 ms sooner but 0.8 times as many steps a second.
"""
SAME_LOAD = 1.05
"""Steps a second within this factor are the same: what else runs on a machine moves them more."""
STEADY = ('processes', 'threads', 'fused', 'serial')
"""Of the same: first those where no word waits for a frame, least of all for its interpreter."""
HOPELESS = 1.3
"""What has taken so many times as long as the quickest is not tried again."""


class Way(NamedTuple):
    """An executor, and how many torch threads each of its computations takes."""

    overlap: str
    threads: int

    def __str__(self) -> str:
        return f'{self.overlap}@{self.threads}'


@dataclass(frozen=True)
class Choice:
    """An executor, why it was chosen, and what was measured: seconds to a sight, steps a second."""

    overlap: str
    threads: int
    why: str
    measured: dict[str, dict[str, float]]


def choose_overlap(checkpoint: Checkpoint, config: SessionConfig, pace: Pace,
                   shared: bool = False) -> Choice:
    """
    Return the executor to take for a checkpoint on this machine, positions permitting.

    :param pace: how fast it runs here
    :param shared: whether it is for several sessions, which cannot perceive in another process
    :raises ValueError: when the model cannot run
    """
    ways = [way for way in candidates(checkpoint, config)
            if not (shared and way.overlap == 'processes')]
    wait_k = config.resolved(checkpoint).wait_k
    slow = pace.step_seconds + wait_k * pace.token_seconds
    if slow > LONG_S:
        threads = max(way.threads for way in ways)
        return Choice('fused', threads, f'a step and its words take {slow:.1f} s, too long to try '
                      'all: one pass for both reads the weights once', {})
    steps = LOAD_STEPS if slow <= SLOW_S else SLOW_LOAD_STEPS
    found = _measure({way: _Trial(checkpoint, config, way) for way in ways}, steps)
    measured = {str(way): each for way, each in found.items()}
    best, why = decide(measured)
    way = next(way for way in found if str(way) == best)
    return Choice(way.overlap, way.threads, why, measured)


def _measure(trials: dict[Way, _Trial], steps: int) -> dict[Way, dict[str, float]]:
    """Return each way's `first_sight_s`, and `steps_per_s` at a load of so many steps."""
    sights: dict[Way, list[float]] = {way: [] for way in trials}
    # What else runs on a machine only ever adds to a time: the least is nearest to what is asked.
    loads = dict.fromkeys(trials, math.inf)
    began = time.monotonic()
    for number in range(ROUNDS):
        if number >= LEAST_ROUNDS and time.monotonic() - began > ENOUGH_S:
            break
        for way, trial in [*trials.items()]:
            if math.inf > loads[way] > HOPELESS * min(loads.values()):
                continue
            try:
                sights[way] += trial.sights_s()
                loads[way] = min(loads[way], trial.load_s(steps))
            except (OSError, RuntimeError):
                if way.overlap != 'processes':
                    raise
                del trials[way], loads[way]  # No memory for another process, say.
    return {way: dict(first_sight_s=median(sights[way]), steps_per_s=steps / loads[way])
            for way in trials}


def decide(measured: dict[str, dict[str, float]]) -> tuple[str, str]:
    """Return the best executor and why, from each one's `first_sight_s` and `steps_per_s`."""
    least = min(found['first_sight_s'] for found in measured.values())
    alike = {name: found for name, found in measured.items()
             if found['first_sight_s'] <= max(ALIKE * least, least + ALIKE_S)}
    most = max(found['steps_per_s'] for found in alike.values())
    same = [name for name, found in alike.items() if SAME_LOAD * found['steps_per_s'] >= most]
    best = min(same, key=lambda name: (STEADY.index(name.partition('@')[0]),
                                       -alike[name]['steps_per_s']))
    told = ', '.join(f'{name} {found["first_sight_s"] * 1e3:.1f} ms and '
                     f'{found["steps_per_s"]:.1f} steps/s' for name, found in measured.items())
    return best, f'from a frame to its first token, and at full load: {told}'


def candidates(checkpoint: Checkpoint, config: SessionConfig) -> list[Way]:
    """
    Return the ways in which a checkpoint can run here.

    Where the number of threads is left open, what does one thing at a time may take every core,
    and each of two sides half of them.
    """
    if checkpoint.decoder.device.type != 'cpu':
        return [Way(overlap, 1) for overlap in ('threads', 'fused', 'serial')]
    cores = len(os.sched_getaffinity(0))
    whole = [config.threads] if config.threads else sorted({1, cores})
    half = config.threads or max(1, cores // 2)
    ways = [Way('fused', threads) for threads in whole]
    ways += [Way('serial', whole[0]), Way('threads', half)]
    if cores > 1 and whole[0] == 1:  # A forked child computes with one thread.
        ways.append(Way('processes', 1))
    return ways


class _Trial:
    """One executor on noise, with a speaker that never falls silent."""

    def __init__(self, checkpoint: Checkpoint, config: SessionConfig, way: Way) -> None:
        self._checkpoint = checkpoint
        # The first step opens the stream, and finds memory cold; a GPU records the next ones.
        self._warm = 1 if checkpoint.decoder.device.type == 'cpu' else 4
        self._config = replace(
            config, overlap=way.overlap, threads=way.threads, record_trace=False, narrate=True,
            max_pending_frames=1000, max_steps=1000, memory=0)
        frames = checkpoint.perception.settings.temporal_patch_size
        size = (frames, *working_size(checkpoint, config), 3)
        self._frames = np.random.default_rng(0).integers(0, 256, size, np.uint8)

    def sights_s(self) -> list[float]:
        """Seconds from a step's last frame to the first token that saw it, in mid-sentence."""
        found = []
        with _TalkingSession(self._checkpoint, replace(
                self._config, schedule='live', wait_k=1000)) as session:
            for index in range(self._warm + SIGHTS):
                fed = time.monotonic_ns()
                self._feed(session, 1)
                sight = self._await_sight(session, index)
                if index >= self._warm:
                    found.append((sight.decoded_ns - fed) / 1e9)
        return found

    def load_s(self, steps: int) -> float:
        """Seconds for so many steps that are all there, with their tokens."""
        config = replace(self._config, schedule='wait_k')
        with _TalkingSession(self._checkpoint, config) as session:
            self._feed(session, self._warm)
            self._rest(session)
            start = time.monotonic()
            self._feed(session, steps)
            self._rest(session)
            return time.monotonic() - start

    def _feed(self, session: Session, steps: int) -> None:
        for frame in [*self._frames] * steps:
            session.feed(frame)

    def _rest(self, session: Session) -> None:
        session.wait_idle(300.0)
        for event in session.drain():
            _check(event)

    def _await_sight(self, session: Session, index: int) -> FirstSight:
        while True:
            event = session.poll(300.0)
            _check(event)
            if isinstance(event, FirstSight) and event.index == index:
                return event


def _check(event: object) -> None:
    if event is None or isinstance(event, Trouble):
        raise ValueError(f'the model cannot run: {event.message if event else "it hangs"}')


class _Talking(ModelRunner):
    def _speak(self, lane: TextLane, row: torch.Tensor) -> Spoken:
        lane.choose(row, self._silence)
        return Spoken('text')


class _TalkingFork(_Talking, ForkingRunner):
    pass


class _TalkingSession(Session):
    def _make_runner(self, *arguments: Any) -> ModelRunner:
        kind = _TalkingFork if self._overlap == 'processes' else _Talking
        return kind(*arguments)
