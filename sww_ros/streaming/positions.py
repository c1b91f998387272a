"""
Where each token sits: three-dimensional M-RoPE positions (t, h, w) of every position scheme.

Source: "Speak While Watching", arXiv 2601.06843, section 3; Qwen2.5-VL's rule for video time.
All positions are int64 arrays of shape (3, n).

A `Timeline` lays out one stream as it goes on, however long: `step` after step, `tail` if the
video ends; `narration` and `answer` give the tracks on which text is placed. A new scheme is one
class here, with the words by which settings and docs describe it (`position_scheme`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

TAIL_TOKENS = 3
"""What follows a video that has ended, in Qwen2.5-VL's turns: `<|vision_end|><|im_end|>\\n`."""
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


def running_step(first: int, height: int, width: int, text: tuple[int, int] = (0, 0),
                 tau: int = 0) -> tuple[np.ndarray, int]:
    """
    Lay out a step as a video of one step from `first` on, between its own text if it has any.

    The stock model lays out such a part of a turn so: what follows begins after the largest
    position before it.

    :param text: how many tokens of text go before and after the visual rows
    :param tau: how many steps of the same video, which begins at `first`, are before it
    :return: positions of text, height x width merged tokens, text; and the next free position
    """
    base = first + text[0]
    end = base + max(1 + tau, height, width)
    parts = [text_positions(first, text[0]), step_positions(base, tau, height, width),
             text_positions(end, text[1])]
    return np.concatenate(parts, axis=1), end + text[1]


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

    def step(self, height: int, width: int, frame: int | None = None,
             text: tuple[int, int] = (0, 0)) -> np.ndarray:
        """
        Positions of the next step of the video.

        :param frame: its index in time, if not the next; for schemes that are `timed`
        :param text: how many tokens of text stand before and after its visual rows
        """

    def tail(self) -> np.ndarray:
        """Positions of the tail, once the video has ended."""

    def narration(self) -> Track:
        """Return the track of the text that accompanies the video, assistant prefix included."""

    def answer(self, steps: int) -> Track:
        """Return a track for a text of its own, begun when `steps` steps are seen."""


@dataclass(frozen=True)
class Start:
    """
    What a timeline begins with; the first step sits at `first`, after the prefix.

    `granted` is how many narration tokens the schedule grants up to a number of steps,
    `head_tokens` the length of the assistant prefix, which goes before the first of them.
    `reserved_steps` is the longest that a video can be of which text is spoken before it has
    ended; 0: nothing is. `gap` is where GIPE's text starts. `joined` says how many steps before a
    step, from 0, are in the same video of a turn, where turns have several.
    """

    first: int
    clock: VideoClock
    gap: int
    granted: Callable[[int], int]
    head_tokens: int
    reserved_steps: int
    tail_tokens: int
    joined: Callable[[int], int]


@dataclass(frozen=True)
class SchemeInfo:
    """
    A position scheme as it is registered: how to lay out, and what to say of it.

    `text` and `answers` say where they sit; `published` is its name in the layouts of the
    paper's authors. `serial`: the video's positions depend on the text. `timed`: a step's
    position is its time, so that steps may be left out. `uses_gap`: `gap` means something.
    `after_video`: text sits after the longest video there can be.
    """

    layout: Callable[[Start], Timeline]
    text: str
    answers: str
    published: str
    serial: bool
    timed: bool
    uses_gap: bool
    after_video: bool


SCHEMES: dict[str, SchemeInfo] = {}
"""The position schemes by name. Read it when needed: a scheme may be registered later."""
DEFAULT_SCHEME = 'gdpe'

_Layout = TypeVar('_Layout', bound=Callable[[Start], Timeline])


def position_scheme(name: str, text: str, answers: str, published: str = '', serial: bool = False,
                    timed: bool = False, uses_gap: bool = False, after_video: bool = False,
                    ) -> Callable[[_Layout], _Layout]:
    """Register a class that makes a timeline of a `Start`; parameters as in `SchemeInfo`."""
    def register(layout: _Layout) -> _Layout:
        SCHEMES[name] = SchemeInfo(layout, text, answers, published or name, serial, timed,
                                   uses_gap, after_video)
        return layout
    return register


class _VisualGroup:
    """
    A visual group that never depends on text: the steps of one video on Qwen2.5-VL's clock.

    From the first step on that carries text of its own, each step is laid out as a video of one
    step after what comes before it, as the stock model has it: where time is written, it is not
    a position. Text tracks start where `text_start` says.
    """

    def __init__(self, start: Start, text_start: int = 0) -> None:
        self._start, self._text_start = start, text_start
        self._steps, self._end, self._running = 0, start.first, False

    def step(self, height: int, width: int, frame: int | None = None,
             text: tuple[int, int] = (0, 0)) -> np.ndarray:
        first, frame = self._start.first, self._steps if frame is None else frame
        self._steps = frame + 1
        self._running = self._running or any(text)
        if self._running:
            placed, self._end = running_step(self._end, height, width, text)
            return placed
        tau = int(self._start.clock.tau(frame))
        self._end = max(self._end, first + max(tau, height - 1, width - 1) + 1)
        return step_positions(first, tau, height, width)

    def tail(self) -> np.ndarray:
        return text_positions(self._end, self._start.tail_tokens)

    def narration(self) -> Track:
        return Track(self._text_start)

    def answer(self, steps: int) -> Track:
        return Track(self._text_start)


@position_scheme('gdpe', 'from 0 on, in a group of its own', 'each from 0 on', 'group',
                 timed=True)
class _Decoupled(_VisualGroup):
    """GDPE: text groups count from 0 on their own."""


@position_scheme('gipe', f'from `position_gap` ({GIPE_GAP}) on', 'each from the gap on', 'gap',
                 timed=True, uses_gap=True)
class _Isolated(_VisualGroup):
    """GIPE: text groups count from the gap on."""

    def __init__(self, start: Start) -> None:
        super().__init__(start, start.gap)


@position_scheme('ospe', 'A_i where V_{i+1} sits; what is granted is reserved',
                 'from where the next step would sit', 'overlap')
class _Overlapped:
    """
    OSPE: A_i and V_{i+1} both start at E_i + 1, E_{i+1} = max(E_i + m_{i+1}, E_i + k_i).

    Paper, equation 1, whose printed form has E_{i+1} on both sides. `k_i` is what the schedule
    grants step i (k_1 with the assistant prefix): the reserved bound. As it is known before A_i
    is spoken, the place of V_{i+1} does not depend on A_i, and both run in parallel; where
    k_i <= m_{i+1} it costs no positions at all. A text beyond its bound runs on and takes up
    later slack; it never moves the video.
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        self._ends = [start.first - 1]

    def _bound(self, step: int) -> int:
        """k_i of step i, from 1."""
        granted = self._start.granted
        head = self._start.head_tokens if step == 1 else 0
        return granted(step) - granted(step - 1) + head

    def step(self, height: int, width: int, frame: int | None = None,
             text: tuple[int, int] = (0, 0)) -> np.ndarray:
        before, step = self._ends[-1], len(self._ends) - 1
        placed, free = running_step(before + 1, height, width, text)
        spoken = self._bound(step) if step else 0
        self._ends.append(max(free - 1, before + spoken))
        return placed

    def tail(self) -> np.ndarray:
        return text_positions(self._ends[-1] + 1, self._start.tail_tokens)

    def narration(self) -> Track:
        return Track(0, lambda step: self._ends[step] + 1)

    def answer(self, steps: int) -> Track:
        return Track(self._ends[steps] + 1)


@position_scheme('interleaved', 'after its step; the next step after it',
                 'a fork of the running sequence', serial=True)
class _Interleaved:
    """
    One running index through V_1 A_1 V_2 A_2 ...: where V_{i+1} sits depends on A_i.

    A_1 begins with the assistant prefix; the tail follows the last step.
    """

    def __init__(self, start: Start) -> None:
        self._start, self._running = start, Track(start.first)
        self._steps = self._video = 0

    def step(self, height: int, width: int, frame: int | None = None,
             text: tuple[int, int] = (0, 0)) -> np.ndarray:
        before, self._steps = self._start.joined(self._steps), self._steps + 1
        first = self._video if before else self._running.next
        placed, self._running.next = running_step(first, height, width, text, before)
        self._video = first if before else first + text[0]
        return placed

    def tail(self) -> np.ndarray:
        return self._running.place(self._start.tail_tokens)

    def narration(self) -> Track:
        return self._running

    def answer(self, steps: int) -> Track:
        return Track(self._running.next)


@position_scheme('offline', 'after the tail of the video', 'after the tail', 'origin', timed=True,
                 after_video=True)
class _Stock(_VisualGroup):
    """
    Offline ('origin'): text goes on after the tail of the video, as the stock model has it.

    Under a schedule that speaks before the video has ended, text leaves room for a video of
    `reserved_steps`, whether or not it has ended by chance when the first token is placed. Steps
    that carry text are taken to be as long as the longest of them yet.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._side, self._longest = 1, 0
        self._ends: list[int] = []

    def step(self, height: int, width: int, frame: int | None = None,
             text: tuple[int, int] = (0, 0)) -> np.ndarray:
        self._side = max(self._side, height, width)
        self._longest = max(self._longest, max(1, height, width) + sum(text))
        placed = super().step(height, width, frame, text)
        self._ends.append(self._end)
        return placed

    def _after(self, steps: int) -> int:
        first, reserved = self._start.first, self._start.reserved_steps
        if not reserved:
            return self._ends[steps - 1] + self._start.tail_tokens
        reserved = max(reserved, self._steps)
        if self._running:
            return first + reserved * self._longest + self._start.tail_tokens
        last = int(self._start.clock.tau(reserved - 1))
        return first + max(last, self._side - 1) + 1 + self._start.tail_tokens

    def narration(self) -> Track:
        # Known once there is a step to see, so it is asked for with the first token only.
        return Track(0, lambda _: self._after(len(self._ends)))

    def answer(self, steps: int) -> Track:
        return Track(self._after(steps))


@dataclass(frozen=True)
class Scheme:
    """A position scheme, by name, on a clock; `gap` is where GIPE's text starts."""

    name: str
    clock: VideoClock = VideoClock()
    gap: int = GIPE_GAP

    @property
    def info(self) -> SchemeInfo:
        """What is registered of it."""
        return SCHEMES[self.name]

    @property
    def serial(self) -> bool:
        """Whether the video's positions depend on the text."""
        return self.info.serial

    def timeline(self, first: int, granted: Callable[[int], int] = lambda steps: 0,
                 head_tokens: int = 0, reserved_steps: int = 0,
                 tail_tokens: int = TAIL_TOKENS,
                 joined: Callable[[int], int] = lambda step: 0) -> Timeline:
        """Begin the layout of a stream; the parameters are those of `Start`."""
        return self.info.layout(Start(first, self.clock, self.gap, granted, head_tokens,
                                      reserved_steps, tail_tokens, joined))


def make_scheme(name: str, clock: VideoClock | None = None, gap: int = GIPE_GAP) -> Scheme:
    """
    Return the position scheme called `name`, one of SCHEMES.

    :raises ValueError: for a name that no scheme has
    """
    if name not in SCHEMES:
        raise ValueError(f'unknown position scheme {name!r}; one of {", ".join(sorted(SCHEMES))}')
    return Scheme(name, clock or VideoClock(), gap)


def described() -> str:
    """Return the schemes as the rows of a table in Markdown, as docs/schemes.md has it."""
    rows = ['| `position_encoding` | text sits | the next step waits for the text | answers |',
            '|---|---|---|---|']
    rows += [f'| `{name}` | {info.text} | {"yes" if info.serial else "no"} | {info.answers} |'
             for name, info in SCHEMES.items()]
    return '\n'.join(rows)
