"""
Where each token sits: three-dimensional M-RoPE positions (t, h, w) of every position scheme.

Source: "Speak While Watching", arXiv 2601.06843, section 3; Qwen2.5-VL's rule for video time.
All positions are int64 arrays of shape (3, n).

A `Timeline` lays out one stream as it goes on, however long: `step` after step, `tail` if the
video ends; `narration` and `answer` give the tracks on which text is placed. A turn with whole
videos in it is laid out by `turn_positions`, as the stock model does. A new scheme is one class
here and one entry in `Scheme.timeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

TAIL_TOKENS = 3
"""`<|vision_end|><|im_end|>\\n`, which follow a video that has ended."""
GIPE_GAP = 10_000
"""Delta of the authors' code: an absolute position, not an offset from the video's last."""


def text_positions(first: int, count: int) -> np.ndarray:
    """Positions of `count` text tokens from `first` on: t = h = w."""
    return np.tile(np.arange(first, first + count, dtype=np.int64), (3, 1))


@dataclass(frozen=True)
class VideoClock:
    """
    Qwen2.5-VL's time axis: tau(f) = floor(f * seconds_per_step * tokens_per_second).

    One step is one temporal patch (2 frames); the default 1 s step at 2 positions a second.
    """

    tokens_per_second: float = 2.0
    seconds_per_step: float = 1.0

    def tau(self, step: int | np.ndarray) -> np.ndarray:
        exact = np.asarray(step) * self.seconds_per_step * self.tokens_per_second
        # What rounding has left just below a whole number is that number: 7 * 2/3 * 3 is 14.
        return np.floor(exact + 1e-6).astype(np.int64)


def step_positions(first: int, tau: int, height: int, width: int) -> np.ndarray:
    """Positions of height x width merged tokens: (first + tau, first + r, first + c)."""
    row, column = np.divmod(np.arange(height * width, dtype=np.int64), width)
    return np.stack([np.full_like(row, tau), row, column]) + first


@dataclass(frozen=True)
class Video:
    """A whole video in a turn: merged tokens are laid out as steps x height x width."""

    steps: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        return self.steps * self.height * self.width


def turn_positions(parts: Sequence[int | Video], clock: VideoClock | None = None,
                   first: int = 0) -> np.ndarray:
    """
    Positions of text (a number of tokens) and whole videos, one after the other from `first` on.

    Those of the stock model: each part begins after the largest position before it.
    """
    clock, found = clock or VideoClock(), [text_positions(0, 0)]
    for part in parts:
        if isinstance(part, Video):
            found += [step_positions(first, int(clock.tau(step)), part.height, part.width)
                      for step in range(part.steps)]
            first += max(int(clock.tau(part.steps - 1)), part.height - 1, part.width - 1) + 1
        else:
            found.append(text_positions(first, part))
            first += part
    return np.concatenate(found, axis=1)


class Track:
    """
    Where one text goes: one token after the other, from `first` on.

    `owner` is the step (from 1) whose tokens are placed; a scheme may start each step's tokens
    somewhere, but never before what has been placed.
    """

    def __init__(self, first: int, start_of: Callable[[int], int] | None = None) -> None:
        self.next, self._start_of, self._owner = first, start_of, 0

    def place(self, count: int, owner: int = 0) -> np.ndarray:
        """Positions of the next `count` tokens, (3, count)."""
        if self._start_of and owner > self._owner:
            self._owner = owner
            self.next = max(self.next, self._start_of(owner))
        first, self.next = self.next, self.next + count
        return text_positions(first, count)


class Timeline(Protocol):
    """The layout of one stream, step after step; used by its writer, tracks by theirs."""

    def step(self, height: int, width: int, frame: int | None = None) -> np.ndarray:
        """Positions of the next step of the video; `frame` its index in time, if not the next."""

    def tail(self) -> np.ndarray:
        """Positions of the tail, once the video has ended."""

    def narration(self) -> Track:
        """Return the track of the text that accompanies the video, assistant prefix included."""

    def answer(self, steps: int) -> Track:
        """Return a track for a text of its own, begun when `steps` steps are seen."""


class _VisualGroup:
    """
    A visual group that never depends on text: the steps of one video on Qwen2.5-VL's clock.

    Its text tracks start where `text_start` says.
    """

    def __init__(self, first: int, clock: VideoClock, text_start: int) -> None:
        self._first, self._clock, self._text_start = first, clock, text_start
        self._steps, self._end = 0, first

    def step(self, height: int, width: int, frame: int | None = None) -> np.ndarray:
        frame = self._steps if frame is None else frame
        tau = int(self._clock.tau(frame))
        self._steps = frame + 1
        self._end = max(self._end, self._first + max(tau, height - 1, width - 1) + 1)
        return step_positions(self._first, tau, height, width)

    def tail(self) -> np.ndarray:
        return text_positions(self._end, TAIL_TOKENS)

    def narration(self) -> Track:
        return Track(self._text_start)

    def answer(self, steps: int) -> Track:
        return Track(self._text_start)


class _Stock(_VisualGroup):
    """
    Offline ('origin'): text goes on after the tail of the video, as the stock model has it.

    Under a schedule that speaks before the video has ended, text leaves room for a video of
    `reserved` steps, whether or not it has ended by chance when the first token is placed.
    """

    def __init__(self, first: int, clock: VideoClock, reserved: int) -> None:
        super().__init__(first, clock, 0)
        self._reserved, self._side = reserved, 1
        self._ends: list[int] = []

    def step(self, height: int, width: int, frame: int | None = None) -> np.ndarray:
        self._side = max(self._side, height, width)
        placed = super().step(height, width, frame)
        self._ends.append(self._end)
        return placed

    def _after(self, steps: int) -> int:
        if not self._reserved:
            return self._ends[steps - 1] + TAIL_TOKENS
        last = int(self._clock.tau(max(self._reserved, self._steps) - 1))
        return self._first + max(last, self._side - 1) + 1 + TAIL_TOKENS

    def narration(self) -> Track:
        # Known once there is a step to see, so it is asked for with the first token only.
        return Track(0, lambda _: self._after(len(self._ends)))

    def answer(self, steps: int) -> Track:
        return Track(self._after(steps))


class _Overlapped:
    """
    OSPE: A_i and V_{i+1} both start at E_i + 1, E_{i+1} = max(E_i + m_{i+1}, E_i + k_i).

    Paper, equation 1, whose printed form has E_{i+1} on both sides. `k_i` is what the schedule
    grants step i (k_1 with the assistant prefix): the reserved bound. As it is known before A_i
    is spoken, the place of V_{i+1} does not depend on A_i, and both run in parallel; where
    k_i <= m_{i+1} it costs no positions at all. A text beyond its bound runs on and takes up
    later slack; it never moves the video.
    """

    def __init__(self, first: int, granted: Callable[[int], int], head: int) -> None:
        self._granted, self._head = granted, head
        self._ends = [first - 1]

    def _bound(self, step: int) -> int:
        """k_i of step i, from 1."""
        return self._granted(step) - self._granted(step - 1) + (self._head if step == 1 else 0)

    def step(self, height: int, width: int, frame: int | None = None) -> np.ndarray:
        base, extent = self._ends[-1] + 1, max(1, height, width)
        step = len(self._ends) - 1
        text = self._bound(step) if step else 0
        self._ends.append(self._ends[-1] + max(extent, text))
        return step_positions(base, 0, height, width)

    def tail(self) -> np.ndarray:
        return text_positions(self._ends[-1] + 1, TAIL_TOKENS)

    def narration(self) -> Track:
        return Track(0, lambda step: self._ends[step] + 1)

    def answer(self, steps: int) -> Track:
        return Track(self._ends[steps] + 1)


class _Interleaved:
    """
    One running index through V_1 A_1 V_2 A_2 ...: where V_{i+1} sits depends on A_i.

    A_1 begins with the assistant prefix; the tail follows the last step.
    """

    def __init__(self, first: int) -> None:
        self._running = Track(first)

    def step(self, height: int, width: int, frame: int | None = None) -> np.ndarray:
        base = int(self._running.place(max(1, height, width))[0, 0])
        return step_positions(base, 0, height, width)

    def tail(self) -> np.ndarray:
        return self._running.place(TAIL_TOKENS)

    def narration(self) -> Track:
        return self._running

    def answer(self, steps: int) -> Track:
        return Track(self._running.next)


DEFAULT_SCHEME = 'gdpe'
SCHEMES = (DEFAULT_SCHEME, 'gipe', 'ospe', 'interleaved', 'offline')


@dataclass(frozen=True)
class Scheme:
    """
    A position scheme, by name; `serial` where the video's positions depend on the text.

    `gdpe`: text groups count from 0 on their own; `gipe`: from `gap`; `ospe`: text and the next
    step share their positions; `interleaved`: one running index; `offline`: text after the
    video, as the stock model has it.
    """

    name: str
    clock: VideoClock = VideoClock()
    gap: int = GIPE_GAP

    @property
    def serial(self) -> bool:
        return self.name == 'interleaved'

    def timeline(self, first: int, granted: Callable[[int], int] = lambda steps: 0,
                 head_tokens: int = 0, reserved_steps: int = 0) -> Timeline:
        """
        Begin the layout of a stream whose first step sits at `first`, after the prefix.

        :param granted: how many narration tokens the schedule grants up to a number of steps
        :param head_tokens: length of the assistant prefix, which goes before the first of them
        :param reserved_steps: for `offline`, the longest that a video can be of which text is
            spoken before it has ended; 0: nothing is
        """
        if self.name == 'ospe':
            return _Overlapped(first, granted, head_tokens)
        if self.name == 'interleaved':
            return _Interleaved(first)
        if self.name == 'offline':
            return _Stock(first, self.clock, reserved_steps)
        return _VisualGroup(first, self.clock, self.gap if self.name == 'gipe' else 0)


def make_scheme(name: str, clock: VideoClock | None = None, gap: int = GIPE_GAP) -> Scheme:
    """
    Return the position scheme called `name`, one of SCHEMES.

    :raises ValueError: for a name that no scheme has
    """
    if name not in SCHEMES:
        raise ValueError(f'unknown position scheme {name!r}; one of {", ".join(sorted(SCHEMES))}')
    return Scheme(name, clock or VideoClock(), gap)
