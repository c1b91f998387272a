"""Which jobs each thread of an executor takes of the cores, and whose turn it is: pure, as they."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sww_ros.streaming.core import Core
from sww_ros.streaming.jobs import Decode, Job, Perceive

Handed = list[tuple[Core, Job]]
Rule = Callable[[Sequence[Core], int], Handed]
"""
Takes jobs of one pass from cores, at a time [ns]; empty when there is nothing to do.

The first core is the one whose turn it is to perceive. Decode steps of all go into one pass.
"""


class Rota:
    """
    Cores that share an executor, the one whose turn it is to perceive first.

    Who has perceived goes behind all others: so nobody waits for more than one job of each.
    """

    def __init__(self, cores: Iterable[Core] = ()) -> None:
        self.cores = [*cores]

    def take(self, rule: Rule, now_ns: int) -> Handed:
        """Take what a rule takes, and note who has had a turn."""
        handed = rule(self.cores, now_ns)
        for core, job in handed:
            if not isinstance(job, Decode):
                self.cores.remove(core)
                self.cores.append(core)
        return handed


def perception(cores: Sequence[Core], now_ns: int) -> Handed:
    """Perceive, and between frames prepare the streams that come next."""
    return _first(cores, Core.next_perception) or _first(cores, Core.next_piece)


def generation(cores: Sequence[Core], now_ns: int) -> Handed:
    """Decode, and nothing else."""
    return [(core, job) for core in cores if (job := core.next_decode(now_ns))]


def one_at_a_time(cores: Sequence[Core], now_ns: int) -> Handed:
    """Perceive a step as soon as it is there, between two tokens of a sentence."""
    return (_first(_eager(cores), Core.next_perception) or generation(cores, now_ns)
            or perception(cores, now_ns))


def fused(cores: Sequence[Core], now_ns: int) -> Handed:
    """One pass for a step and the next token of every speaker, so that weights are read once."""
    handed = _first(_eager(cores), Core.next_perception)
    if not handed:
        return generation(cores, now_ns) or perception(cores, now_ns)
    (perceiving, job), = handed
    if isinstance(job, Perceive):
        for core in cores:
            riding = job if core is perceiving else None
            if ridden := core.next_decode(now_ns, riding):
                handed.append((core, ridden))
    return handed


def _eager(cores: Sequence[Core]) -> list[Core]:
    return [core for core in cores if core.prefers_perception]


def _first(cores: Sequence[Core], next_job: Callable[[Core], Job | None]) -> Handed:
    """Take a job of the first core that has one."""
    for core in cores:
        if (job := next_job(core)) is not None:
            return [(core, job)]
    return []


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
