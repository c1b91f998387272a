"""What is measured of a pool, by Prometheus's names; here or, in a replica, by Ray."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, defaultdict
import threading
from typing import Protocol

from sww_ros.frames import NANOSECONDS

PREFIX = 'sww_'
GAUGES = {
    'ready': 'Whether the engine runs (1) or not (0).',
    'sessions': 'Sessions of robots at this moment.',
    'waiting': 'Messages that wait until robots take them.',
}
COUNTERS = {
    'refused': 'Connections that were refused or sent away, by the code of their end.',
    'steps': 'Steps of video perceived.',
    'tokens': 'Pieces of text spoken.',
    'frames_dropped': 'Frames dropped, by reason.',
}
TIMES = {
    'perceived_seconds': "From a frame's capture to the end of its step's perception.",
    'first_token_seconds': "From a frame's capture to the first token that saw its step.",
}
"""The metrics of the three kinds, and what they say; counters have a label `why`."""
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STEPS = 64
"""So many steps of a session are remembered until a token has seen them."""


class Meter(Protocol):
    """Takes what is measured; any thread may call it."""

    def gauge(self, name: str, value: float) -> None:
        """Set one of `GAUGES`."""

    def count(self, name: str, why: str = '', times: int = 1) -> None:
        """Add to one of `COUNTERS`."""

    def observe(self, name: str, seconds: float) -> None:
        """Add a time to one of `TIMES` [s]."""


class LocalMeter:
    """Measures in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gauges: dict[str, float] = {}
        self._counters: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._times = {name: [0] * (len(BUCKETS_S) + 1) for name in TIMES}
        self._sums: defaultdict[str, float] = defaultdict(float)

    def gauge(self, name: str, value: float) -> None:
        """See `Meter`."""
        with self._lock:
            self._gauges[name] = value

    def count(self, name: str, why: str = '', times: int = 1) -> None:
        """See `Meter`."""
        with self._lock:
            self._counters[name, why] += times

    def observe(self, name: str, seconds: float) -> None:
        """See `Meter`."""
        with self._lock:
            self._times[name][bisect_left(BUCKETS_S, seconds)] += 1
            self._sums[name] += seconds

    def text(self) -> str:
        """Return all of it in Prometheus's text format."""
        with self._lock:
            return ''.join(f'{line}\n' for line in [
                *self._lines('gauge', GAUGES, {(name, ''): value
                                               for name, value in self._gauges.items()}),
                *self._lines('counter', COUNTERS, self._counters, '_total'), *self._histograms()])

    @staticmethod
    def _lines(kind: str, names: dict[str, str], values: dict, ending: str = '') -> list[str]:
        lines = []
        for name, words in names.items():
            whole = f'{PREFIX}{name}{ending}'
            lines += [f'# HELP {whole} {words}', f'# TYPE {whole} {kind}']
            lines += [f'{whole}{{why="{why}"}} {value:g}' if why else f'{whole} {value:g}'
                      for (of, why), value in sorted(values.items()) if of == name]
        return lines

    def _histograms(self) -> list[str]:
        lines = []
        for name, words in TIMES.items():
            whole, total = f'{PREFIX}{name}', 0
            lines += [f'# HELP {whole} {words}', f'# TYPE {whole} histogram']
            for most, count in zip([*map(str, BUCKETS_S), '+Inf'], self._times[name]):
                total += count
                lines.append(f'{whole}_bucket{{le="{most}"}} {total}')
            lines += [f'{whole}_sum {self._sums[name]}', f'{whole}_count {total}']
        return lines


class SessionMeter:
    """Measures what the engine says to one session."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._captured: OrderedDict[tuple[int, int], int] = OrderedDict()

    def take(self, message: dict) -> None:
        """Take an event as it goes by."""
        kind = message.get('type')
        if kind == 'step':
            self._meter.count('steps')
            captured = self._captured[message['video'], message['index']] = message['received_ns']
            self._meter.observe('perceived_seconds',
                                (message['perceived_ns'] - captured) / NANOSECONDS)
            if len(self._captured) > STEPS:
                self._captured.popitem(last=False)
        elif kind == 'sight':
            seen = self._captured.pop((message['video'], message['index']), None)
            if seen is not None:
                self._meter.observe('first_token_seconds',
                                    (message['decoded_ns'] - seen) / NANOSECONDS)
        elif kind == 'dropped':
            self._meter.count('frames_dropped', message['reason'], message['count'])
        elif kind == 'text' and message['delta']:
            self._meter.count('tokens')
