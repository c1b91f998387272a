"""Which jobs each thread of an executor takes of the core: pure, as the core is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sww_ros.streaming.core import Core
from sww_ros.streaming.jobs import Job, Perceive

Rule = Callable[[Core, int], Sequence[Job]]
"""Takes jobs of one pass from a core, at a time [ns]; empty when there is nothing to do."""


def perception(core: Core, now_ns: int) -> Sequence[Job]:
    """Perceive, and between frames prepare the stream that comes next."""
    job = core.next_perception() or core.next_piece()
    return [job] if job else []


def generation(core: Core, now_ns: int) -> Sequence[Job]:
    """Decode, and nothing else."""
    job = core.next_decode(now_ns)
    return [job] if job else []


def _steps(core: Core, now_ns: int) -> Sequence[Job]:
    job = core.next_perception()
    return [job] if job else []


def one_at_a_time(core: Core, now_ns: int) -> Sequence[Job]:
    """Perceive a step as soon as it is there, between two tokens of a sentence."""
    first, second = _steps, generation
    if not core.prefers_perception:
        first, second = second, first
    return first(core, now_ns) or second(core, now_ns) or perception(core, now_ns)


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
AHEAD = {'processes': 2}
"""
How many steps an executor takes before the first comes back; one where it does not say.

A process of its own would wait for its parent's interpreter between two steps, a fifth of the time.
"""
