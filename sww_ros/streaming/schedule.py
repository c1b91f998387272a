"""
Schedules: when narration may speak, and how many steps each of its tokens sees.

Paper section 3.2 (wait-K) and its robustness test (random wait-K). Token indices count all tokens
the narration has spoken or forfeited, silence included. What a schedule grants a step is known
before the step is spoken about: OSPE reserves its positions by it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
import copy
from typing import Protocol

import numpy as np

SCHEDULES = ('live', 'wait_k', 'random_wait_k', 'offline')
MAX_WAIT_K = 1000
"""Tokens a step; far beyond what can be said of one, and still said in bounded time."""


class Schedule(Protocol):
    """Ties the narration's tokens to the steps of the video; each side has one of its own."""

    def granted(self, steps: int) -> int:
        """How many tokens may have been spoken once `steps` steps are perceived."""

    def step_of(self, index: int) -> int:
        """The step, from 1, whose perception grants token `index`."""

    def sees(self, index: int, perceived: int) -> int:
        """How many of `perceived` steps the row that predicts token `index` sees."""

    def after(self, steps: int) -> Schedule:
        """Return the schedule of what follows the first `steps` steps, counted from there."""


class Live:
    """
    As fast as both sides can: K tokens a step, each sees all that is perceived.

    Or K for every `every` steps, once the last of them is there; for the `first` ones, if given.
    """

    def __init__(self, wait_k: int, every: int = 1, first: int = 0) -> None:
        self.wait_k, self._every, self._first = wait_k, every, first or every

    def granted(self, steps: int) -> int:
        return self.wait_k * max(0, (steps - self._first) // self._every + 1)

    def step_of(self, index: int) -> int:
        return self._first + index // self.wait_k * self._every

    def sees(self, index: int, perceived: int) -> int:
        return perceived

    def after(self, steps: int) -> Live:
        return self


class WaitK(Live):
    """Token j sees steps 0..floor(j / K), however far perception is ahead."""

    def sees(self, index: int, perceived: int) -> int:
        return min(self.step_of(index), perceived)


class RandomWaitK:
    """
    Each step grants a number of tokens of its own, drawn evenly from max(1, K // 2) to K.

    So the paper's robustness test draws them, where K is the average of a caption's tokens per
    step; the last step of a video takes the rest.
    """

    def __init__(self, wait_k: int, seed: int = 0) -> None:
        self._wait_k, self._rng = wait_k, np.random.default_rng(seed)
        self._totals = [0]

    def granted(self, steps: int) -> int:
        while len(self._totals) <= steps:
            drawn = int(self._rng.integers(max(1, self._wait_k // 2), self._wait_k + 1))
            self._totals.append(self._totals[-1] + drawn)
        return self._totals[steps]

    def step_of(self, index: int) -> int:
        while self._totals[-1] <= index:
            self.granted(len(self._totals))
        return bisect_right(self._totals, index)

    def sees(self, index: int, perceived: int) -> int:
        return min(self.step_of(index), perceived)

    def after(self, steps: int) -> RandomWaitK:
        before, rest = self.granted(steps), copy.copy(self)
        rest._rng = copy.deepcopy(self._rng)
        rest._totals = [total - before for total in self._totals[steps:]]
        return rest


class Offline:
    """Nothing is said before the video has ended; every token sees it whole."""

    def granted(self, steps: int) -> int:
        return 0

    def step_of(self, index: int) -> int:
        return np.iinfo(np.int64).max

    def sees(self, index: int, perceived: int) -> int:
        return perceived

    def after(self, steps: int) -> Offline:
        return self


def make_schedule(name: str, wait_k: int, seed: int = 0, every: int = 1,
                  first: int = 0) -> Schedule:
    """
    Return the schedule called `name`.

    :param every: steps for which `wait_k` tokens are granted, by `live` and `wait_k`
    :param first: so many they are at the beginning; 0: as many
    :raises ValueError: for a name that no schedule has
    """
    if name not in SCHEDULES:
        raise ValueError(f'unknown schedule {name!r}; one of {", ".join(SCHEDULES)}')
    if name == 'offline':
        return Offline()
    if name == 'random_wait_k':
        return RandomWaitK(wait_k, seed)
    return (Live if name == 'live' else WaitK)(wait_k, every, first)


def spread(due: Iterable[Sequence[int]], counts: Iterable[int], silence: int) -> list[int]:
    """
    Return the tokens of a narration that says all as soon as it may, silence where there is none.

    What the last steps leave no time for is left out.

    :param due: of each step the tokens that may be said from then on
    :param counts: how many tokens each step grants
    """
    waiting: list[int] = []
    said: list[int] = []
    for tokens, count in zip(due, counts, strict=True):
        waiting += tokens
        now, waiting = waiting[:count], waiting[count:]
        said += now + [silence] * (count - len(now))
    return said


class NarrationBudget:
    """
    How many narration tokens may be spoken now, by the schedule.

    In the live schedule unspent budget is capped, so that a slow speaker does not run after the
    video for ever: what goes beyond is forfeited. Once the video has ended, all that is still
    to be said may be, up to `rest_tokens`.
    """

    def __init__(self, schedule: Schedule, cap: int | None = None, rest_tokens: int = 0) -> None:
        self.steps, self.index = 0, 0
        self.schedule, self._cap, self._granted = schedule, cap, 0
        self._rest_tokens, self.ended = rest_tokens, False

    def perceived(self, steps: int, ended: bool = False) -> None:
        """Grant what is due now that `steps` steps are perceived."""
        self.steps = steps
        if self.ended:
            return
        self._granted = self.schedule.granted(steps)
        if self._cap is not None:
            self.index = max(self.index, self._granted - self._cap)
        if ended:
            self.ended = True
            self._granted = max(self._granted, self.index) + self._rest_tokens

    @property
    def left(self) -> int:
        return self._granted - self.index

    @property
    def owner(self) -> int:
        """The step, from 1, to whose text the next token belongs."""
        return max(1, min(self.schedule.step_of(self.index), self.steps))

    @property
    def in_rest(self) -> bool:
        """Whether the schedule has nothing more to say about the next token."""
        return self.ended and self.index >= self.schedule.granted(self.steps)

    @property
    def sees(self) -> int:
        """How many steps the next token sees."""
        return self.schedule.sees(self.index, self.steps)

    def spend(self) -> None:
        self.index += 1

    def rest(self) -> None:
        """
        Give up what is left of the step whose token was the last one spoken.

        That is all that is granted in the live schedule, and once the video's last step is
        spoken about; with wait-K steps that perception has got ahead are still to come.
        """
        step = self.schedule.step_of(self.index - 1)
        is_last = self.ended and step >= self.steps
        everything = self._cap is not None or is_last
        self.index = max(self.index, self._granted if everything else self.schedule.granted(step))

    def after(self, steps: int) -> NarrationBudget:
        """Return what is left once `steps` steps are forgotten; what they still grant is too."""
        before, rest = self.schedule.granted(steps), copy.copy(self)
        rest.schedule, rest.steps = self.schedule.after(steps), self.steps - steps
        rest.index = max(0, self.index - before)
        rest._granted = max(rest.index, self._granted - before)
        return rest

    def close(self) -> None:
        """Grant nothing any more."""
        self.ended, self._granted = True, self.index
