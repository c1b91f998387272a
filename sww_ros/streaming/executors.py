"""
How perception and generation share the hardware: executors, which differ in where jobs run.

An executor is some threads, each with a rule for which jobs it takes of the core. The rule is
asked again after every input, under the core's lock; jobs run outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import threading
from typing import Protocol

from sww_ros.streaming.core import Core
from sww_ros.streaming.jobs import Failed, Input, Job, Perceive
from sww_ros.streaming.processes import ChildError, ChildGone
from sww_ros.streaming.runner import describe

Rule = Callable[[Core, int], Sequence[Job]]
"""Takes jobs of one pass from a core, at a time [ns]; empty when there is nothing to do."""


def perception(core: Core, now_ns: int) -> Sequence[Job]:
    """Perceive, and nothing else."""
    job = core.next_perception()
    return [job] if job else []


def generation(core: Core, now_ns: int) -> Sequence[Job]:
    """Decode, and nothing else."""
    job = core.next_decode(now_ns)
    return [job] if job else []


def one_at_a_time(core: Core, now_ns: int) -> Sequence[Job]:
    """Perceive a step as soon as it is there, between two tokens of a sentence."""
    first, second = perception, generation
    if not core.prefers_perception:
        first, second = second, first
    return first(core, now_ns) or second(core, now_ns)


def fused(core: Core, now_ns: int) -> Sequence[Job]:
    """One pass for a step and the next token of every speaker, so that weights are read once."""
    job = core.next_perception() if core.prefers_perception else None
    if job is None:
        return generation(core, now_ns) or perception(core, now_ns)
    ridden = core.next_decode(now_ns, riding=job) if isinstance(job, Perceive) else None
    return [job, ridden] if ridden else [job]


RULES: dict[str, dict[str, Rule]] = {
    'threads': {'perception': perception, 'generation': generation},
    'processes': {'perception': perception, 'generation': generation},
    'serial': {'serial': one_at_a_time},
    'fused': {'fused': fused},
}
"""Each executor's threads, by name, and their rules."""


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
