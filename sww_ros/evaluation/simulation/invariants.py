"""What must hold of every schedule, whatever happens: each a small function over a reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sww_ros.evaluation.simulation.budgets import BUDGETS
from sww_ros.evaluation.simulation.life import LIFE
from sww_ros.evaluation.simulation.questions import QUESTIONS
from sww_ros.evaluation.simulation.reading import Reading
from sww_ros.evaluation.simulation.relaying import RELAYING
from sww_ros.evaluation.simulation.script import Script
from sww_ros.evaluation.simulation.seeing import SEEING
from sww_ros.evaluation.simulation.speaking import SPEAKING
from sww_ros.evaluation.simulation.watching import WATCHING
from sww_ros.evaluation.simulation.world import World

Invariant = Callable[[Reading], Iterator[str]]
"""Yields in words what breaks it."""

INVARIANTS: tuple[Invariant, ...] = (
    *QUESTIONS, *WATCHING, *LIFE, *SPEAKING, *SEEING, *BUDGETS, *RELAYING)


def violations(script: Script) -> list[str]:
    """Play a script; return what does not hold, each as `invariant: what happened`."""
    world = World(script)
    try:
        world.play()
    except Exception as error:  # noqa: BLE001 - whatever the core raises, it must not
        return [f'nothing_is_raised: {type(error).__name__}: {error}']
    return broken(Reading(script, world.log))


def broken(reading: Reading) -> list[str]:
    """Return what does not hold of a reading."""
    return [f'{invariant.__name__}: {words}' for invariant in INVARIANTS
            for words in invariant(reading)]
