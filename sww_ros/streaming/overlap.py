"""How perception and generation share the hardware: one thread in turn, or two at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
import threading
import time
from typing import Protocol

Work = Callable[[], bool]
"""Does one piece of work (a step of video, a decode step); False when there is none."""

Patience = Callable[[], float | None]
"""How long there will be no work unless somebody brings some [s]; None: for ever."""


class BusyLog:
    """When something was running, to tell how much of another interval it covered."""

    def __init__(self, keep: int = 4096) -> None:
        self._past: deque[tuple[int, int]] = deque(maxlen=keep)
        self._since = 0
        self._lock = threading.Lock()

    def __enter__(self) -> BusyLog:
        with self._lock:
            self._since = time.monotonic_ns()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._past.append((self._since, time.monotonic_ns()))
            self._since = 0

    def covered_ns(self, start_ns: int, stop_ns: int) -> int:
        """Return how many nanoseconds of [start, stop) were busy."""
        with self._lock:
            spans = list(self._past)
            if self._since:
                spans.append((self._since, stop_ns))
        return sum(max(0, min(stop, stop_ns) - max(start, start_ns)) for start, stop in spans)


class Turns:
    """Counts beginnings and ends of one side's work, so that its state can be read between them."""

    def __init__(self) -> None:
        self._count = 0

    def __enter__(self) -> None:
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count += 1

    def between(self, check: Callable[[], bool]) -> bool:
        """Return whether the side rests and `check` holds, with no work begun meanwhile."""
        before = self._count
        return before % 2 == 0 and check() and self._count == before


class Executor(Protocol):
    """Runs perception and generation until it is stopped."""

    def start(self) -> None: ...

    def wake(self) -> None:
        """Say that there may be work; callable from any thread."""

    def halt(self) -> None:
        """Begin no more work; does not wait, so that a thread may halt its own executor."""

    def stop(self) -> None:
        """End the threads; a piece of work that is running is finished first."""


class _Loop(threading.Thread):
    """A thread that works while there is work, and else sleeps until it is woken."""

    def __init__(self, name: str, work: Work, prepare: Callable[[], None],
                 patience: Patience = lambda: None) -> None:
        super().__init__(name=name, daemon=True)
        self._work, self._prepare, self._patience = work, prepare, patience
        self._event = threading.Event()
        self._stopping = False

    def wake(self) -> None:
        self._event.set()

    def stop(self) -> None:
        self._stopping = True
        self._event.set()

    def run(self) -> None:
        self._prepare()
        while not self._stopping:
            # Cleared before looking for work: a wake in between is not lost.
            self._event.clear()
            if not self._work() and not self._stopping:
                self._event.wait(self._patience())


class _LoopExecutor:
    def __init__(self, *loops: _Loop) -> None:
        self._loops = loops

    def start(self) -> None:
        for loop in self._loops:
            loop.start()

    def wake(self) -> None:
        for loop in self._loops:
            loop.wake()

    def halt(self) -> None:
        for loop in self._loops:
            loop.stop()

    def stop(self) -> None:
        self.halt()
        for loop in self._loops:
            if loop.is_alive() and loop is not threading.current_thread():
                loop.join()


def make_executor(overlap: str, perceive: Work, generate: Work,
                  prepare: Callable[[], None] = lambda: None,
                  patience: Patience = lambda: None) -> Executor:
    """
    Return the executor called `overlap`; `prepare` runs first on each of its threads.

    The pieces of work must not raise. `patience` is that of generation.

    'threads' perceives and generates at the same time; 'serial' finishes what can be spoken
    before it perceives the next step, as a model with interleaved positions must.

    :raises ValueError: for a name that no executor has
    """
    if overlap == 'threads':
        return _LoopExecutor(_Loop('perception', perceive, prepare),
                             _Loop('generation', generate, prepare, patience))
    if overlap == 'serial':
        return _LoopExecutor(_Loop('serial', lambda: generate() or perceive(), prepare, patience))
    raise ValueError(f'unknown overlap {overlap!r}; one of threads, serial')
