"""Random delays at any line of the engine, so that every interleaving of its threads comes up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
import random
import sys
import threading
import time

import sww_ros.streaming

_ENGINE = str(Path(sww_ros.streaming.__file__).parent)
_EAGERNESS = 0.03
_LONGEST_S = 0.002


@contextmanager
def disturbed(seed: int) -> Iterator[None]:
    """
    Let this thread, and all that start meanwhile, sleep at random between lines of the engine.

    A line is slept at less often the more often it runs: what happens once in a stream, where
    one thread hands over to another, is disturbed as much as the inner loops.
    """
    chance, runs = random.Random(seed), Counter()

    def at_line(frame, event: str, _: object) -> Callable:
        if event == 'line':
            line = frame.f_code, frame.f_lineno
            runs[line] += 1
            if chance.random() * runs[line] < _EAGERNESS:
                time.sleep(chance.random() * _LONGEST_S)
        return at_line

    def at_call(frame, *_: object) -> Callable | None:
        return at_line if frame.f_code.co_filename.startswith(_ENGINE) else None

    before = sys.gettrace(), threading.gettrace()
    sys.settrace(at_call)
    threading.settrace(at_call)
    try:
        yield
    finally:
        sys.settrace(before[0])
        threading.settrace(before[1])
