"""What /diagnostics says about the narrator: its engine, its camera, its speech (REP-107)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
import math

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
MIB = 1 << 20


@dataclass
class Health:
    """A moment of the narrator, as plain numbers; times in ms, memory in bytes."""

    state: str = 'unconfigured'
    trouble: str = ''
    info: dict = field(default_factory=dict)
    restarts: int = 0
    engine_memory: int = 0
    topic: str = ''
    watching: bool = False
    paused: bool = False
    silent_s: float = 0.0
    camera_timeout: float = 0.0
    received: int = 0
    perceived: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    camera_rate: float = 0.0
    tokens_rate: float = 0.0
    overlap_ratio: float = math.nan
    perceived_ms: tuple[float, float] = (math.nan, math.nan)
    first_token_ms: tuple[float, float] = (math.nan, math.nan)
    caption_ms: tuple[float, float] = (math.nan, math.nan)
    open_questions: int = 0


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
    if health.trouble:
        return ERROR, health.trouble, values
    return OK, health.state, values


def _camera(health: Health) -> tuple[bytes, str, dict[str, str]]:
    values = {'topic': health.topic, 'rate [Hz]': f'{health.camera_rate:.1f}',
              'frames received': str(health.received),
              'frames perceived': str(health.perceived)}
    values |= {f'frames dropped ({reason})': str(count)
               for reason, count in sorted(health.dropped.items())}
    if not health.watching:
        return OK, 'not subscribed', values
    if health.silent_s > health.camera_timeout:
        return ERROR, f'no frame for {health.silent_s:.0f} s', values
    if health.paused:
        return OK, 'paused', values
    if health.camera_rate == 0:
        return OK, 'waiting for the first frame', values
    wanted = health.info.get('frame_rate', 0.0)
    if health.camera_rate < 0.9 * wanted:
        return WARN, f'slower than the {wanted:g} Hz that the model was made for', values
    return OK, 'frames come', values


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
