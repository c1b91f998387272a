"""
`overlap: auto`: tries the executors on this machine for a moment, and takes the best.

The best is the one with the least time from a step's last frame to the first token that saw it
while a sentence is spoken; among those that no listener could tell apart, the one that gets
through most steps a second at full load.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
import os
from statistics import median
import time

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
SIGHTS, LOAD_STEPS, ROUNDS = 3, 8, 3
ALIKE, ALIKE_S = 1.1, 0.005
"""Latencies within this factor, or this time [s], are alike: a frame's own period is far longer."""


@dataclass(frozen=True)
class Choice:
    """An executor, why it was chosen, and what was measured: seconds to a sight, steps a second."""

    overlap: str
    why: str
    measured: dict[str, dict[str, float]]


def choose_overlap(checkpoint: Checkpoint, config: SessionConfig, pace: Pace) -> Choice:
    """
    Return the executor to take for a checkpoint on this machine, positions permitting.

    :param pace: how fast it runs here
    :raises ValueError: when the model cannot run
    """
    wait_k = config.wait_k or checkpoint.defaults.wait_k
    slow = pace.step_seconds + wait_k * pace.token_seconds
    if slow > LONG_S:
        return Choice('fused', f'a step and its words take {slow:.1f} s, too long to try all: '
                      'one pass for both reads the weights once', {})
    trials = {name: _Trial(checkpoint, config, name) for name in candidates(checkpoint, config)}
    sights: dict[str, list[float]] = {name: [] for name in trials}
    loads: dict[str, list[float]] = {name: [] for name in trials}
    for _ in range(ROUNDS):
        for name, trial in trials.items():
            sights[name] += trial.sights_s()
            loads[name].append(trial.load_s(LOAD_STEPS))
    measured = {name: dict(first_sight_s=median(sights[name]),
                           steps_per_s=LOAD_STEPS / median(loads[name])) for name in trials}
    return Choice(*decide(measured), measured)


def decide(measured: dict[str, dict[str, float]]) -> tuple[str, str]:
    """Return the best executor and why, from each one's `first_sight_s` and `steps_per_s`."""
    least = min(found['first_sight_s'] for found in measured.values())
    alike = {name: found for name, found in measured.items()
             if found['first_sight_s'] <= max(ALIKE * least, least + ALIKE_S)}
    best = max(alike, key=lambda name: alike[name]['steps_per_s'])
    told = ', '.join(f'{name} {found["first_sight_s"] * 1e3:.1f} ms and '
                     f'{found["steps_per_s"]:.1f} steps/s' for name, found in measured.items())
    return best, f'from a frame to its first token, and at full load: {told}'


def candidates(checkpoint: Checkpoint, config: SessionConfig) -> list[str]:
    """Return the executors that can run a checkpoint here."""
    found = ['fused', 'threads', 'serial']
    on_cpu = checkpoint.decoder.device.type == 'cpu'
    if on_cpu and config.threads == 1 and len(os.sched_getaffinity(0)) > 1:
        found.append('processes')
    return found


class _Trial:
    """One executor on noise, with a speaker that never falls silent."""

    def __init__(self, checkpoint: Checkpoint, config: SessionConfig, overlap: str) -> None:
        self._checkpoint = checkpoint
        self._config = replace(config, overlap=overlap, record_trace=False, narrate=True,
                               max_pending_frames=1000, max_steps=1000)
        frames = checkpoint.perception.settings.temporal_patch_size
        size = (frames, *working_size(checkpoint, config), 3)
        self._frames = np.random.default_rng(0).integers(0, 256, size, np.uint8)

    def sights_s(self) -> list[float]:
        """Seconds from a step's last frame to the first token that saw it, in mid-sentence."""
        found = []
        with _TalkingSession(self._checkpoint, replace(
                self._config, schedule='live', wait_k=1000)) as session:
            for index in range(SIGHTS + 1):
                fed = time.monotonic_ns()
                self._feed(session, 1)
                sight = self._await_sight(session, index)
                if index:
                    found.append((sight.decoded_ns - fed) / 1e9)
        return found

    def load_s(self, steps: int) -> float:
        """Seconds for so many steps that are all there, with their tokens."""
        config = replace(self._config, schedule='wait_k')
        with _TalkingSession(self._checkpoint, config) as session:
            # The first step opens the stream, and finds memory cold.
            self._feed(session, 1)
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
    def _make_runner(self, *arguments: object) -> ModelRunner:
        kind = _TalkingFork if self._overlap == 'processes' else _Talking
        return kind(*arguments)
