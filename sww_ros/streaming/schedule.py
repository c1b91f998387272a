"""
Schedules: when narration may speak, and how many steps each of its tokens sees.

Paper section 3.2 (wait-K) and its robustness test (random wait-K). Token indices count all tokens
the narration has spoken or forfeited, silence included.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

SCHEDULES = ('live', 'wait_k', 'random_wait_k')


class Schedule(Protocol):
    """Ties the narration's tokens to the steps of the video."""

    def granted(self, steps: int) -> int:
        """How many tokens may have been spoken once `steps` steps are perceived."""

    def sees(self, index: int, perceived: int) -> int:
        """How many of `perceived` steps the row that predicts token `index` sees."""


class Live:
    """As fast as both sides can: K tokens a step, each sees all that is perceived."""

    def __init__(self, wait_k: int) -> None:
        self.wait_k = wait_k

    def granted(self, steps: int) -> int:
        return self.wait_k * steps

    def sees(self, index: int, perceived: int) -> int:
        return perceived


class WaitK(Live):
    """Token j sees steps 0..floor(j / K), however far perception is ahead."""

    def sees(self, index: int, perceived: int) -> int:
        return min(index // self.wait_k + 1, perceived)


class RandomWaitK:
    """Each step grants a number of tokens of its own, drawn evenly from 1 to 2K - 1."""

    def __init__(self, wait_k: int, seed: int = 0) -> None:
        self._wait_k, self._rng = wait_k, np.random.default_rng(seed)
        self._totals = [0]

    def granted(self, steps: int) -> int:
        while len(self._totals) <= steps:
            self._totals.append(self._totals[-1] + int(self._rng.integers(1, 2 * self._wait_k)))
        return self._totals[steps]

    def sees(self, index: int, perceived: int) -> int:
        self.granted(perceived)
        step = int(np.searchsorted(self._totals, index, side='right'))
        return min(step, perceived)


def make_schedule(name: str, wait_k: int, seed: int = 0) -> Schedule:
    """
    Return the schedule called `name`.

    :raises ValueError: for a name that no schedule has
    """
    if name not in SCHEDULES:
        raise ValueError(f'unknown schedule {name!r}; one of {", ".join(SCHEDULES)}')
    if name == 'random_wait_k':
        return RandomWaitK(wait_k, seed)
    return Live(wait_k) if name == 'live' else WaitK(wait_k)
