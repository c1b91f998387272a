"""
What /diagnostics says about the narrator: its engine, its camera, its speech (REP-107).

What is said of the last seconds is measured here, and what may be wrong with the camera's frames is
judged, for the log too.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
import math
from pathlib import Path
import time

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
import numpy as np
from rclpy.impl.rcutils_logger import RcutilsLogger

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
MIB = 1 << 20
SHARE = 0.1
"""Least share of the frames wanted of late that must be lost for it to be told."""

FEW = 2
"""So many frames lost of late are no trouble yet."""

FASTER = 'take a smaller model or frame_width and frame_height, a GPU, or end other programs'

AHEAD_S, BEHIND_S = 2.0, 10.0
"""How far stamps may be from the node's clock: ahead by jitter, behind by transport."""

REPEAT_S = 30.0
"""Least time between two lines of the log about the same kind of trouble."""

LOGGED_ELSEWHERE = ('silent',)

WINDOW = 256
RATE_WINDOW_S = 10.0
RATE_EVENTS = 10_000


class Window:
    """The last values of a measure; any thread may add and read."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=WINDOW)

    def add(self, value: float) -> None:
        self._values.append(value)

    def percentile(self, percent: float) -> float:
        """Return a percentile of the last values; NaN without any."""
        values = self._values.copy()
        return float(np.percentile(values, percent)) if values else float('nan')

    def mean(self) -> float:
        values = self._values.copy()
        return float(np.mean(values)) if values else float('nan')


class Rate:
    """How often something happens per second, over the last ten seconds; for any thread."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=RATE_EVENTS)
        self._began = time.monotonic()

    def add(self, times: int = 1) -> None:
        self._times.extend([time.monotonic()] * times)

    def count(self) -> int:
        """Return how often it happened in the last ten seconds."""
        since = time.monotonic() - RATE_WINDOW_S
        return sum(at >= since for at in self._times.copy())

    def value(self) -> float:
        lasted = time.monotonic() - self._began
        return self.count() / max(min(RATE_WINDOW_S, lasted), 1e-3)


@dataclass
class Health:
    """
    A moment of the narrator, as plain numbers; times in ms, where the name does not say s.

    `doing` is what the engine takes its time for, where it does; `dropped` counts frames by reason
    since the start, `lately` those of the last ten seconds; `stuck_s` is how long stamps have stood
    still, `age_s` how far they are behind the clock; memory in bytes.
    """

    state: str = 'unconfigured'
    trouble: str = ''
    doing: str = ''
    info: dict = field(default_factory=dict)
    restarts: int = 0
    engine_memory: int = 0
    topic: str = ''
    watching: bool = False
    paused: bool = False
    silent_s: float = 0.0
    why_silent: str = ''
    stuck_s: float = 0.0
    age_s: float = 0.0
    camera_timeout: float = 0.0
    received: int = 0
    perceived: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    lately: Counter[str] = field(default_factory=Counter)
    camera_rate: float = 0.0
    tokens_rate: float = 0.0
    overlap_ratio: float = math.nan
    perceived_ms: tuple[float, float] = (math.nan, math.nan)
    first_token_ms: tuple[float, float] = (math.nan, math.nan)
    caption_ms: tuple[float, float] = (math.nan, math.nan)
    open_questions: int = 0


@dataclass(frozen=True)
class Finding:
    """How the camera's frames are; `advice` says what to do, where something is to be done."""

    kind: str
    level: bytes
    message: str
    advice: str = ''

    @property
    def words(self) -> str:
        """Message and advice."""
        return f'{self.message}: {self.advice}' if self.advice else self.message


def judge_camera(health: Health) -> Finding:
    """Return the worst that is to be said of the frames: not coming, not read, late, wrong."""
    if not health.watching:
        return Finding('', OK, 'not subscribed')
    if health.silent_s > health.camera_timeout:
        return Finding('silent', ERROR, f'no frame for {health.silent_s:.0f} s',
                       health.why_silent)
    if health.paused:
        return Finding('', OK, 'paused')
    if health.camera_rate == 0:
        return Finding('', OK, 'waiting for the first frame')
    if health.stuck_s > health.camera_timeout:
        return Finding('stuck', ERROR, f'the stamps stand still: none newer for '
                       f'{health.stuck_s:.0f} s, and nothing is seen', 'the driver must stamp '
                       'each frame with its time, or with 0 for the time of its arrival')
    return _judge_losses(health) or _judge_stamps(health) or _judge_rate(health)


def _judge_losses(health: Health) -> Finding | None:
    wanted = health.lately.total()
    bad, overrun = health.lately['bad'], health.lately['overrun']
    if bad > max(FEW, SHARE * wanted):
        level = WARN if health.lately['perceived'] else ERROR
        return Finding('bad', level, f'{bad} of {wanted} frames could not be read in the last '
                       '10 s', "see the log's errors, and check the driver, its encoding and "
                       'the step of its images')
    if overrun > max(FEW, SHARE * wanted):
        if not health.lately['perceived']:
            return Finding('hung', ERROR, f'nothing is perceived: all {wanted} frames of the last '
                           '10 s were dropped', 'the engine hangs, or one step takes longer than '
                           f'that: {FASTER}, or restart the node')
        median_ms = health.perceived_ms[0]
        late = '' if math.isnan(median_ms) else f', and the rest is seen {median_ms:.0f} ms late'
        return Finding('overrun', WARN, f'the model is too slow for the camera: {overrun} of '
                       f'{wanted} frames were dropped in the last 10 s{late}', FASTER)
    return None


def _judge_stamps(health: Health) -> Finding | None:
    if -AHEAD_S <= health.age_s <= BEHIND_S:
        return None
    where = 'ahead of' if health.age_s < 0 else 'behind'
    return Finding('clock', WARN, f'the stamps are {abs(health.age_s):.0f} s {where} the clock of '
                   'this node', 'synchronize the clocks of the two machines; for a recording set '
                   'use_sim_time, and play it with --clock')


def _judge_rate(health: Health) -> Finding:
    wanted = health.info.get('frame_rate', 0.0)
    if health.camera_rate < 0.9 * wanted:
        return Finding('rate', WARN,
                       f'slower than the {wanted:g} Hz that the model was made for')
    return Finding('', OK, 'frames come')


class Alarm:
    """Logs each kind of finding that has an advice: when it begins, and then seldom."""

    def __init__(self, log: RcutilsLogger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._logged_s: dict[str, float] = {}

    def take(self, finding: Finding) -> None:
        """Take what is found now; called as often as one likes."""
        now = self._clock()
        if (not finding.advice or finding.kind in LOGGED_ELSEWHERE
                or now - self._logged_s.get(finding.kind, -REPEAT_S) < REPEAT_S):
            return
        self._logged_s[finding.kind] = now
        # rclpy wants one severity for each place that logs.
        if finding.level == ERROR:
            self._log.error(finding.words)
        else:
            self._log.warning(finding.words)


def statuses(name: str, health: Health) -> list[DiagnosticStatus]:
    """
    Return the statuses of the parts "name: engine", "name: camera" and "name: speech".

    :param name: the node's full name, without the first slash
    """
    hardware = str(health.info.get('model', ''))
    parts = {'engine': _engine(health), 'camera': _camera(health), 'speech': _speech(health)}
    return [
        DiagnosticStatus(
            name=f'{name}: {part}', level=level, message=message, hardware_id=hardware,
            values=[KeyValue(key=key, value=value) for key, value in values.items()])
        for part, (level, message, values) in parts.items()]


def _engine(health: Health) -> tuple[bytes, str, dict[str, str]]:
    values = {key: str(value) for key, value in health.info.items()}
    values |= {'restarts': str(health.restarts),
               'memory [MiB]': f'{health.engine_memory / MIB:.0f}'}
    fallback = health.info.get('fallback', '')
    message = ': '.join(filter(None, [health.trouble or health.state, health.doing, fallback]))
    if health.trouble:
        return ERROR, message, values
    return WARN if health.info and health.doing or fallback else OK, message, values


def _camera(health: Health) -> tuple[bytes, str, dict[str, str]]:
    values = {'topic': health.topic, 'rate [Hz]': f'{health.camera_rate:.1f}',
              'frames received': str(health.received),
              'frames perceived': str(health.perceived)}
    values |= {f'frames dropped ({reason})': str(count)
               for reason, count in sorted(health.dropped.items())}
    finding = judge_camera(health)
    return finding.level, finding.words, values


def _speech(health: Health) -> tuple[bytes, str, dict[str, str]]:
    values = {'tokens per second': f'{health.tokens_rate:.1f}',
              'open questions': str(health.open_questions),
              'overlap ratio': f'{health.overlap_ratio:.2f}'}
    for what, (half, most) in (('callback to perceived', health.perceived_ms),
                               ('perceived to first token', health.first_token_ms),
                               ('stamp to caption', health.caption_ms)):
        values |= {f'{what}, p50 [ms]': f'{half:.1f}', f'{what}, p95 [ms]': f'{most:.1f}'}
    if health.tokens_rate > 0:
        return OK, 'speaking', values
    return OK, 'silent', values


def resident_bytes(pid: int) -> int:
    """Return the memory that a process holds [bytes]; 0 when it is gone."""
    try:
        for line in Path(f'/proc/{pid}/status').read_text().splitlines():
            if line.startswith('VmRSS:'):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
