"""
How perception and generation share the hardware: executors, which differ in where jobs run.

An executor is some threads, each with a rule for which jobs it takes of the cores (rules.py). The
rule is asked again after every input, under the cores' lock; jobs run outside of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
import os
import threading
import time
from typing import Any, Protocol, cast

from sww_ros.streaming.core import Core
from sww_ros.streaming.jobs import Decode, Failed, Input, Job, Ticked
from sww_ros.streaming.processes import ChildError, ChildGone
from sww_ros.streaming.rules import AHEAD, RULES, Rota, Rule, looked_at, perception
from sww_ros.streaming.runner import ModelRunner, describe, run_together, see_ahead

LET_IN_S = 2e-5
"""
How long whoever has received a frame is let in for, between the parts of a pass of several [s].

Each of a pass's many short calls lets the interpreter go, and has it back before a thread that is
woken by that can take it: one step in eight waited so for the whole pass.
"""


class Desk(Protocol):
    """Where jobs are taken and results are handed in; `Scheduler` is one."""

    def take(self, rule: Rule, wait: bool = True) -> Sequence[Job]:
        """Wait for jobs; none once all is over, or if there are none without a `wait`."""

    def hand_in(self, results: Sequence[Input]) -> None:
        """Give what has come of the jobs."""


Finish = Callable[[], Sequence[Input]]
"""Waits until the jobs of a pass are done, and returns what has come of them."""


Prepare = Callable[[str], None]
"""Runs first on each thread of an executor, and is given its name."""


class _Worker(threading.Thread):
    """Takes jobs, has them begun, and hands in what comes of them, in the same order."""

    def __init__(self, name: str, rule: Rule, ahead: int, desk: Desk,
                 begin: Callable[[Sequence[Job]], Finish], prepare: Prepare) -> None:
        super().__init__(name=name, daemon=True)
        self._rule, self._ahead, self._desk = rule, ahead, desk
        self._begin, self._prepare = begin, prepare
        self.work: tuple[str, int] | None = None

    def run(self) -> None:
        self._prepare(self.name)
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
    kinds = dict.fromkeys(type(job).__name__.lower() for job in jobs)
    return ' and '.join(kinds), time.monotonic_ns()


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
    """The threads of one session, or of several."""

    def __init__(self, overlap: str, desk: Desk,
                 begin: Callable[[Sequence[Job]], Finish],
                 prepare: Prepare = lambda name: None) -> None:
        """
        Make the threads.

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


@dataclass(eq=False)
class Seat:
    """A session at a scheduler: its core, who computes for it, and who takes what has come."""

    core: Core
    runner: ModelRunner
    tell: Callable[[Input], None]


class Scheduler:
    """
    Hands the jobs of sessions to one executor, and what comes of them back to each.

    `lock` is the one lock: it guards the cores; `changed` wakes whoever waits for a job.
    `decode_steps` counts passes in which was decoded, `shared_steps` those for several sessions.
    """

    def __init__(self, overlap: str, prepare: Prepare = lambda name: None,
                 lasts: bool = False) -> None:
        """
        Make an executor; it starts with the first session.

        :param lasts: whether it waits for more sessions when the last one is closed
        """
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.decode_steps = self.shared_steps = 0
        self._lasts, self._is_over, self._has_begun = lasts, False, False
        # What is done for steps that are not taken yet, as `work` says it.
        self._ahead: tuple[str, int] | None = None
        # Whether there was more in the last pass than tokens: steps may have come meanwhile.
        self._has_seen = False
        self._turns = Rota()
        self._seats: dict[Core, Seat] = {}
        # Who handed out what is not back yet; changed under the lock alone.
        self._owners: dict[Job, Seat] = {}
        self._executor = Executor(overlap, self, self._begin, prepare)

    @property
    def work(self) -> tuple[str, int] | None:
        """The oldest pass in progress: its jobs, in words, and since when [monotonic ns]."""
        return min(filter(None, (self._executor.work, self._ahead)), key=itemgetter(1),
                   default=None)

    def join(self, seat: Seat) -> None:
        """Take the jobs of one more session."""
        with self.changed:
            self._seats[seat.core] = seat
            self._turns.cores.append(seat.core)
            begins, self._has_begun = not self._has_begun, True
            self.changed.notify_all()
        if begins:
            self._executor.start()

    def leave(self, seat: Seat) -> None:
        """Wait until what is computed for a closed session is finished, and forget it."""
        if not self._lasts:
            self._executor.join()
            return
        with self.changed:
            self.changed.wait_for(lambda: seat not in self._owners.values())
            if self._seats.pop(seat.core, None):
                self._turns.cores.remove(seat.core)

    def end(self) -> None:
        """Wait until what is computed is finished, and end the threads."""
        with self.changed:
            self._is_over = True
            self.changed.notify_all()
        if self._has_begun:
            self._executor.join()

    # What the executor asks.

    def take(self, rule: Rule, wait: bool = True) -> Sequence[Job]:
        """
        Wait for jobs, and send the cores their ticks meanwhile; none once all are closed.

        Steps are looked at before they are taken: pixels first, then by the vision tower. What
        comes meanwhile is looked at too, and goes into their pass; what has come during the pass
        before is let in first, so that it does not wait for the next token of others too.
        """
        looked: set[Core] = set()
        unseen: list[ModelRunner] = []
        with self.changed:
            if self._has_seen:
                self._has_seen = False
                self._let_in(looked)
            while not self._is_over and (self._lasts or any(
                    not core.closed for core in self._turns.cores)):
                now = time.monotonic_ns()
                due = min(self._deadlines(), key=itemgetter(0), default=None)
                if due and due[0] <= now:
                    due[1].tell(Ticked())
                elif ahead := self._due_ahead(rule, looked):
                    looked.update(ahead)
                    unseen += self._cut_ahead(ahead)
                    self._let_in(looked)
                elif unseen:
                    self._look_ahead(partial(see_ahead, unseen))
                    unseen = []
                    self._let_in(looked)
                elif handed := self._turns.take(rule, now):
                    self._owners.update((job, self._seats[core]) for core, job in handed)
                    return [job for _, job in handed]
                elif not wait:
                    break
                else:
                    self.changed.wait((due[0] - now) / 1e9 if due else None)
        return ()

    def _due_ahead(self, rule: Rule, looked: set[Core]) -> list[Core]:
        """Return whose steps are to be looked at; nobody's where there is nobody to go along."""
        cores = self._turns.cores
        return [core for core in looked_at(rule, cores)
                if core not in looked] if len(cores) > 1 else []

    def _cut_ahead(self, cores: Sequence[Core]) -> list[ModelRunner]:
        """Have the pixels of steps made that wait; return who has made them."""
        due = [(self._seats[core].runner, core.video, core.frames_due) for core in cores]

        def cut() -> None:
            for runner, video, frames in due:
                runner.cut_ahead(video, frames)
        self._look_ahead(cut)
        return [runner for runner, *_ in due]

    def _look_ahead(self, look: Callable[[], None]) -> None:
        """Have steps looked at that wait, with the lock let go."""
        self._ahead = 'perceive', time.monotonic_ns()
        self.lock.release()
        try:
            look()
        finally:
            self.lock.acquire()
            self._ahead = None

    def _let_in(self, looked: set[Core]) -> None:
        """Let those in who have received a frame, while a step of others may go along."""
        cores = self._turns.cores
        if len(cores) > 1 and not looked.issuperset(cores):
            self.changed.wait(LET_IN_S)

    def _deadlines(self) -> Iterator[tuple[int, Seat]]:
        for core, seat in self._seats.items():
            if (deadline := core.deadline_ns) is not None:
                yield deadline, seat

    def hand_in(self, results: Sequence[Input]) -> None:
        """Have each core take what has come of its jobs."""
        with self.changed:
            for result in results:
                jobs = (result.jobs if isinstance(result, Failed)
                        else [cast(Any, result).job])  # As all that comes of a job has.
                owned: dict[Seat, list[Job]] = {}
                for job in jobs:
                    owned.setdefault(self._owners.pop(job), []).append(job)
                for seat, mine in owned.items():
                    seat.tell(replace(result, jobs=tuple(mine)) if isinstance(result, Failed)
                              else result)

    def _begin(self, jobs: Sequence[Job]) -> Finish:
        """Begin with the jobs of one pass, which are of several sessions where these share it."""
        parts: dict[Seat, list[Job]] = {}
        for job in jobs:
            parts.setdefault(self._owners[job], []).append(job)
        decoding = sum(isinstance(job, Decode) for job in jobs)
        self.decode_steps += decoding > 0
        self.shared_steps += decoding > 1
        self._has_seen |= decoding < len(jobs)
        if len(parts) == 1:
            (seat, mine), = parts.items()
            return seat.runner.begin(mine)
        return partial(run_together, [(seat.runner, mine) for seat, mine in parts.items()])


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
