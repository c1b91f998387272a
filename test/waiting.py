"""Waits for what is to come true: how long it takes says nothing, only that it comes."""

from __future__ import annotations

from collections.abc import Callable
import time

PATIENCE_S = 120.0
"""How long anything may take on a machine that is slow, or busy with other work."""


def wait_until(condition: Callable[[], object], timeout_s: float = PATIENCE_S,
               explain: Callable[[], object] = lambda: 'it did not come true') -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, explain()
        time.sleep(0.02)
