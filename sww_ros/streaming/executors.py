"""
How perception and generation share the hardware: executors, which differ in where jobs run.

An executor is some threads, each with a rule for which jobs it takes of the core (rules.py). The
rule is asked again after every input, under the core's lock; jobs run outside of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
import os
import threading
import time
from typing import Protocol

from sww_ros.streaming.jobs import Failed, Input, Job
from sww_ros.streaming.processes import ChildError, ChildGone
from sww_ros.streaming.rules import AHEAD, RULES, Rule, perception
from sww_ros.streaming.runner import describe


class Desk(Protocol):
    """Where jobs are taken and results are handed in; `Session` is one."""

    def take(self, rule: Rule, wait: bool = True) -> Sequence[Job]:
        """Wait for jobs; none once the session is closed, or if there are none without a `wait`."""

    def hand_in(self, results: Sequence[Input]) -> None:
        """Give what has come of the jobs."""


Finish = Callable[[], Sequence[Input]]
"""Waits until the jobs of a pass are done, and returns what has come of them."""


class _Worker(threading.Thread):
    """Takes jobs, has them begun, and hands in what comes of them, in the same order."""

    def __init__(self, name: str, rule: Rule, ahead: int, desk: Desk,
                 begin: Callable[[Sequence[Job]], Finish], prepare: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._rule, self._ahead, self._desk = rule, ahead, desk
        self._begin, self._prepare = begin, prepare
        self.work: tuple[str, int] | None = None

    def run(self) -> None:
        self._prepare()
        out: deque[tuple[Sequence[Job], Finish]] = deque()
        while True:
            jobs: Sequence[Job] = ()
            if len(out) < self._ahead:
                jobs = self._desk.take(self._rule, wait=not out)
            if jobs:
                self.work = self.work or _now_at(jobs)
                out.append((jobs, self._begun(jobs)))
                if len(out) < self._ahead:
                    continue
            if not out:
                return
            self._desk.hand_in(_outcome(*out.popleft()))
            self.work = _now_at(out[0][0]) if out else None

    def _begun(self, jobs: Sequence[Job]) -> Finish:
        """Begin with jobs; what goes wrong is told when they are finished."""
        try:
            return self._begin(jobs)
        except Exception as error:  # noqa: BLE001 - the same as if it went wrong later
            return partial(_raise, error)


def _now_at(jobs: Sequence[Job]) -> tuple[str, int]:
    return ' and '.join(type(job).__name__.lower() for job in jobs), time.monotonic_ns()


def _raise(error: Exception) -> Sequence[Input]:
    raise error


def _outcome(jobs: Sequence[Job], finish: Finish) -> Sequence[Input]:
    try:
        return finish()
    except ChildGone as error:
        return [Failed(tuple(jobs), str(error), fatal=True)]
    except ChildError as error:
        return [Failed(tuple(jobs), str(error))]
    except Exception as error:  # noqa: BLE001 - whatever it is, the session goes on
        return [Failed(tuple(jobs), describe(error))]


class Executor:
    """The threads of one session."""

    def __init__(self, overlap: str, desk: Desk,
                 begin: Callable[[Sequence[Job]], Finish],
                 prepare: Callable[[], None] = lambda: None) -> None:
        """
        Make the threads; `prepare` runs first on each of them.

        :param begin: begins with the jobs of one pass; what it or finishing them raises is told
        :raises ValueError: for an `overlap` that no executor has
        """
        if overlap not in RULES:
            raise ValueError(f'unknown overlap {overlap!r}; one of {", ".join(RULES)}')
        ahead = AHEAD.get(overlap, 1)
        self._workers = [_Worker(name, rule, ahead if rule is perception else 1, desk, begin,
                                 prepare)
                         for name, rule in RULES[overlap].items()]

    def start(self) -> None:
        for worker in self._workers:
            worker.start()

    @property
    def work(self) -> tuple[str, int] | None:
        """The oldest pass in progress: its jobs, in words, and since when [monotonic ns]."""
        return min(filter(None, (worker.work for worker in self._workers)),
                   key=itemgetter(1), default=None)

    def join(self) -> None:
        """Wait until what is running is finished; callable from a worker too."""
        for worker in self._workers:
            if worker is not threading.current_thread():
                worker.join()
                _await_native_end(worker)


def _await_native_end(worker: threading.Thread) -> None:
    """
    Wait until the kernel's thread is gone too, a moment after Python's.

    Until then native libraries tidy up under locks, of which a fork would copy one that is held.
    """
    task = f'/proc/self/task/{worker.native_id}'
    for _ in range(1000):
        if not os.path.exists(task):
            return
        time.sleep(0.001)
