"""
How perception and generation share the hardware: executors, which differ in where jobs run.

An executor is some threads, each with a rule for which jobs it takes of the core (rules.py). The
rule is asked again after every input, under the core's lock; jobs run outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import os
import threading
import time
from typing import Protocol

from sww_ros.streaming.jobs import Failed, Input, Job
from sww_ros.streaming.processes import ChildError, ChildGone
from sww_ros.streaming.rules import RULES, Rule
from sww_ros.streaming.runner import describe


class Desk(Protocol):
    """Where jobs are taken and results are handed in; `Session` is one."""

    def take(self, rule: Rule) -> Sequence[Job]:
        """Wait for jobs; none once the session is closed."""

    def hand_in(self, results: Sequence[Input]) -> None:
        """Give what has come of the jobs."""


class _Worker(threading.Thread):
    def __init__(self, name: str, rule: Rule, desk: Desk,
                 run: Callable[[Sequence[Job]], Sequence[Input]],
                 prepare: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._rule, self._desk, self._run_jobs, self._prepare = rule, desk, run, prepare

    def run(self) -> None:
        self._prepare()
        while jobs := self._desk.take(self._rule):
            try:
                results = self._run_jobs(jobs)
            except ChildGone as error:
                results = [Failed(tuple(jobs), str(error), fatal=True)]
            except ChildError as error:
                results = [Failed(tuple(jobs), str(error))]
            except Exception as error:  # noqa: BLE001 - whatever it is, the session goes on
                results = [Failed(tuple(jobs), describe(error))]
            self._desk.hand_in(results)


class Executor:
    """The threads of one session."""

    def __init__(self, overlap: str, desk: Desk,
                 run: Callable[[Sequence[Job]], Sequence[Input]],
                 prepare: Callable[[], None] = lambda: None) -> None:
        """
        Make the threads; `prepare` runs first on each of them.

        :param run: does the jobs of one pass; what it raises is told
        :raises ValueError: for an `overlap` that no executor has
        """
        if overlap not in RULES:
            raise ValueError(f'unknown overlap {overlap!r}; one of {", ".join(RULES)}')
        self._workers = [_Worker(name, rule, desk, run, prepare)
                         for name, rule in RULES[overlap].items()]

    def start(self) -> None:
        for worker in self._workers:
            worker.start()

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
