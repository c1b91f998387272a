"""Picks, by their stamps, the frames of a camera that the model wants."""

from __future__ import annotations

from enum import Enum

NANOSECONDS = 1_000_000_000


class Choice(Enum):
    """
    What to do with a frame: perceive it, leave it out, or begin anew and perceive it.

    One is left out because it comes too early (SKIP), or is not newer than one before (OLD).
    """

    TAKE = 'take'
    SKIP = 'skip'
    OLD = 'old'
    RESTART = 'restart'


class FrameSampler:
    """
    Thins a camera's frames to the model's frame rate.

    Frames are due at a steady beat, and a frame that is up to a quarter of a period early is
    taken, so that a camera of just that rate loses none to jitter. Two taken frames are at least
    half a period apart. A slower camera loses nothing.

    :param rate: frames per second that the model wants
    """

    def __init__(self, rate: float) -> None:
        if not rate > 0:
            raise ValueError(f'the frame rate must be positive, not {rate}')
        self._period = round(NANOSECONDS / rate)
        self._due: int | None = None
        self._last = 0

    def choose(self, stamp_ns: int) -> Choice:
        """
        Return what to do with the frame of this stamp [ns].

        A stamp older than the last one by more than a period means that the clock was set back
        or a recording began anew: RESTART. One older by less is a straggler: OLD.
        """
        if self._due is None:
            return self._begin(stamp_ns, Choice.TAKE)
        if stamp_ns < self._last - self._period:
            return self._begin(stamp_ns, Choice.RESTART)
        if stamp_ns <= self._last:
            return Choice.OLD
        self._last = stamp_ns
        if stamp_ns < self._due - self._period // 4:
            return Choice.SKIP
        self._due = max(self._due + self._period, stamp_ns + self._period * 3 // 4)
        return Choice.TAKE

    def reset(self) -> None:
        """Forget the stamps seen so far: the next frame is taken."""
        self._due = None

    def _begin(self, stamp_ns: int, choice: Choice) -> Choice:
        self._last = stamp_ns
        self._due = stamp_ns + self._period
        return choice
