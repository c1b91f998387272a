"""Which jobs each thread of an executor takes of the cores, and whose turn it is: pure, as they."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

from sww_ros.streaming.core import Core
from sww_ros.streaming.jobs import Carry, Decode, Job, Open, Perceive

Handed = list[tuple[Core, Job]]
Rule = Callable[[Sequence[Core], int], Handed]
"""
Takes jobs of one pass from cores, at a time [ns]; empty when there is nothing to do.

The first core is the one whose turn it is to perceive. Decode steps of all go into one pass.
"""


JOINT_TOKENS = 128
"""
Steps of several cores, and pieces, go into one pass with so many visual tokens together at most.

Such a pass reads the weights once, and takes less than its steps would one by one. Of larger steps
each has a pass of its own, so that the first is not told of as late as the last.
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


def looked_at(rule: Rule, cores: Sequence[Core]) -> list[Core]:
    """Return the cores whose steps a rule takes next: they may be looked at now."""
    if rule is generation:
        return []
    found: list[Core] = []
    tokens = 0.0
    for core in cores if rule is perception else _eager(cores):
        tokens += core.tokens_due
        if tokens > JOINT_TOKENS:
            break
        if core.frames_due:
            found.append(core)
    return found


def perception(cores: Sequence[Core], now_ns: int) -> Handed:
    """Perceive, and between frames prepare the streams that come next."""
    return _steps(cores) or _together(cores, lambda core: core.piece_tokens,
                                      lambda core: core.next_piece())


def generation(cores: Sequence[Core], now_ns: int) -> Handed:
    """Decode, and nothing else."""
    return [(core, job) for core in cores if (job := core.next_decode(now_ns))]


def one_at_a_time(cores: Sequence[Core], now_ns: int) -> Handed:
    """Perceive a step as soon as it is there, between two tokens of a sentence."""
    return (_steps(_eager(cores)) or generation(cores, now_ns) or perception(cores, now_ns))


def fused(cores: Sequence[Core], now_ns: int) -> Handed:
    """One pass for steps and the next token of every speaker, so that weights are read once."""
    handed = _steps(_eager(cores))
    if not handed:
        return generation(cores, now_ns) or perception(cores, now_ns)
    taken = dict(handed)
    if any(isinstance(job, Open) for job in taken.values()):
        return handed
    for core in cores:
        job = taken.get(core)
        if isinstance(job, Carry):
            continue  # Its token may be about to put the same words into the stream that comes.
        if ridden := core.next_decode(now_ns, cast(Perceive | None, job)):
            handed.append((core, ridden))
    return handed


def _steps(cores: Sequence[Core]) -> Handed:
    """Take the steps that wait, or what goes before them."""
    return _together(cores, lambda core: core.tokens_due,
                     lambda core: core.next_perception(shared=len(cores) > 1))


def _together(cores: Sequence[Core], tokens_of: Callable[[Core], float],
              take: Callable[[Core], Job | None]) -> Handed:
    """Take a job of each, as many as one pass has room for; nobody is passed over."""
    handed: Handed = []
    tokens = 0.0
    for core in cores:
        due = tokens_of(core)
        if handed and tokens + due > JOINT_TOKENS:
            break
        if due and (job := take(core)) is not None:
            handed.append((core, job))
            tokens += due
    return handed


def _eager(cores: Sequence[Core]) -> list[Core]:
    return [core for core in cores if core.prefers_perception]


RULES: dict[str, dict[str, Rule]] = {
    'threads': {'perception': perception, 'generation': generation},
    'processes': {'perception': perception, 'generation': generation},
    'serial': {'serial': one_at_a_time},
    'fused': {'fused': fused},
}
"""Each executor's threads, by name, and their rules."""
PRIORITIES = {'generation': -1, 'perception': 0}
"""On a GPU these threads have a stream each, of such a priority; less goes first."""
AHEAD = {'processes': 2}
"""
How many steps an executor takes before the first comes back; one where it does not say.

A process of its own would wait for its parent's interpreter between two steps, a fifth of the time.
"""
