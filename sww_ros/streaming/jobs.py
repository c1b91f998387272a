"""
What goes into the core and what comes out of it as work: plain data, no tensor is looked at.

Inputs tell the core what happened; jobs tell an executor what to compute. A job holds the `Video`
and `Question` objects it is about. Their `work` is a place for whoever computes to hang lanes on:
the core never reads it, and what it forgets takes its tensors along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sww_ros.streaming.gate import Gate, Weighed
from sww_ros.streaming.recall import Past, StepInfo
from sww_ros.streaming.schedule import NarrationBudget

if TYPE_CHECKING:
    import numpy as np
from collections import deque


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame on its way to perception; times are `time.monotonic_ns()`."""

    pixels: np.ndarray
    stamp_ns: int = 0
    received_ns: int = 0
    fed_ns: int = 0
    last: bool = False


class Word(NamedTuple):
    """
    A token that the narration has spoken, silence included (a value, to the core).

    It belongs to the text of step `owner`, from 1, and was chosen seeing `sees` steps.
    """

    token: int
    owner: int
    sees: int


@dataclass(eq=False)
class Sights:
    """How many steps of a video, over all its streams, some token could see."""

    count: int = 0


@dataclass(eq=False)
class Video:
    """
    One stream: a video from its prompt to the last word about it, or a part of one.

    Where a stream is relieved (relay.py), its successor goes on with the same video, under the
    same `number`; `base` counts the video's steps before its own first, `first` those of the
    stream that it is to relieve. `stream` numbers all streams of a session.

    `told` are the narration's last sentences, each after the step of the video that it belongs to;
    `before` those that were said before the stream's own steps, to be put into its prefix.
    `said_before` is the text of `elapsed` steps of streams that it begins anew after, for
    checkpoints that are told, and `said` its own.

    `opened` says that its prefix is in the cache, `ended` that its last step is perceived,
    `spoken` that its narration is over, `unfinished` that it is within a sentence. `words` are
    what its narration has said, the first `fed` of which its own cache has been given. `past` is
    what is remembered of the video over all its streams, `gate` has its narration rest. A stream
    that is made for one answer, of steps that have left the stream `beside` it, is to have those
    `recalled`.
    """

    number: int
    prompt: str
    budget: NarrationBudget
    stream: int = 0
    base: int = 0
    first: int = 0
    steps: list[StepInfo] = field(default_factory=list)
    opened: bool = False
    ended: bool = False
    spoken: bool = False
    unfinished: bool = False
    sights: Sights = field(default_factory=Sights)
    words: list[Word] = field(default_factory=list)
    fed: int = 0
    successor: Video | None = None
    alone: bool = False
    told: list[tuple[int, str]] = field(default_factory=list)
    before: str = ''
    said_before: str = ''
    said: str = ''
    elapsed: int = 0
    past: Past = field(default_factory=Past)
    gate: Gate = field(default_factory=Gate)
    recalled: tuple[StepInfo, ...] = ()
    beside: Video | None = None
    work: Any = None

    @property
    def standing(self) -> str:
        """What stands before its first step: the prompt, and what was said before."""
        return f'{self.prompt}\n{self.before}' if self.before else self.prompt

    @property
    def is_ready(self) -> bool:
        """Whether it has all that it is to begin with, so that it can be asked about."""
        return len(self.steps) >= len(self.recalled)


@dataclass(eq=False)
class Question:
    """
    A question: `head` is what is fed before its answer, `about` are the tokens of the words that
    tell what it is about (token ids, to the core just values).

    Once it is answered, `video` is the one it is about.
    """

    question_id: str
    head: Sequence[int]
    asked_ns: int
    about: tuple[int, ...] = ()
    video: Video | None = None
    spoken: int = 0
    work: Any = None


# Jobs.

@dataclass(frozen=True, eq=False)
class Open:
    """
    Prefill the prefix of a video, or of a stream that is to relieve `source`.

    Or of one that is made for an answer, beside it.
    """

    video: Video
    source: Video | None = None


@dataclass(frozen=True, eq=False)
class Perceive:
    """
    Perceive the frames of one step; with `last` the video ends with it.

    The step goes into `also` too: the successor of the stream, which is abreast of it.
    """

    video: Video
    frames: tuple[Frame, ...]
    last: bool
    also: Video | None = None


@dataclass(frozen=True, eq=False)
class Carry:
    """
    Put step `index` of the stream `source` into its successor `video`, as it was embedded.

    Before it go `words`, which see the steps that are there already. A step that is recalled is
    counted by the stream that it goes into, which is `source` then.
    """

    video: Video
    source: Video
    index: int
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, eq=False)
class Words:
    """What the narration has said before, to be put into its lane over the stream `video`."""

    video: Video
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Turn:
    """
    A speaker's part in a decode step: the narration, or the answer to `question`.

    It sees the first `sees` steps of the video; the token to be chosen belongs to the text of
    step `owner`, from 1.
    """

    video: Video
    question: Question | None
    sees: int
    owner: int


class Again(NamedTuple):
    """What a video's narration has said, to be weighed as if it had seen `sees` steps then."""

    video: Video
    said: Weighed
    sees: int


@dataclass(frozen=True, eq=False)
class Decode:
    """
    One decode step over all speakers that have something to say, neighbours by video.

    With `riding` it goes into the pass that perceives a step, which its turns may see. `words`
    are due in the lane of a stream that has just taken over, or of one that will. With `again`,
    what was said before is weighed beside them.
    """

    turns: tuple[Turn, ...]
    started_ns: int
    riding: Perceive | None = None
    words: Words | None = None
    again: Again | None = None


Job = Open | Perceive | Carry | Decode


# Inputs.

@dataclass(frozen=True)
class Fed:
    """A frame came."""

    frame: Frame


@dataclass(frozen=True)
class Asked:
    """A question came."""

    question_id: str
    head: Sequence[int]
    about: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cancelled:
    """A question is taken back."""

    question_id: str


@dataclass(frozen=True)
class Prompted:
    """There is another prompt; the stream begins anew, answers in progress go on."""

    prompt: str


@dataclass(frozen=True)
class Reset:
    """What was seen, said and asked is to be forgotten."""


@dataclass(frozen=True)
class Paused:
    """Watching and narrating stop, or go on."""

    paused: bool


@dataclass(frozen=True)
class Ticked:
    """Time has passed; sent when `Core.deadline_ns` is reached."""


@dataclass(frozen=True)
class Closed:
    """The session ends."""


@dataclass(frozen=True)
class Opened:
    """A job is done: the prefix is in the cache."""

    job: Open


@dataclass(frozen=True)
class Perceived:
    """
    A job is done: the step, of so many visual tokens, is in the cache.

    The next decode step can read it. `changed` is the share of its visual tokens that are unlike
    those of the step before, where it is measured.
    """

    job: Perceive
    started_ns: int = 0
    preprocessed_ns: int = 0
    vision_ns: int = 0
    perceived_ns: int = 0
    tokens: int = 0
    changed: float = 1.0


@dataclass(frozen=True)
class Carried:
    """A job is done: the successor has one more step, and the words before it."""

    job: Carry


@dataclass(frozen=True)
class Spoken:
    """
    What a turn has come to: a token of `kind` text | silence | stop.

    `delta` is the new text, `sentence` the whole sentence if one ends here, `unfinished` what
    has been said since the last one, which is told where the text ends with this token. `token`
    is the token itself, to the core just a value.
    """

    kind: str
    delta: str = ''
    sentence: str = ''
    unfinished: str = ''
    token: int = -1


@dataclass(frozen=True)
class Decoded:
    """
    A job is done: what each turn has come to, None where its head is not all fed yet.

    `surprise` is what weighing has come to, as `Gate.weighed` takes it.
    """

    job: Decode
    spoken: tuple[Spoken | None, ...]
    decoded_ns: int = 0
    surprise: float = 0.0


@dataclass(frozen=True)
class Failed:
    """Jobs of one pass could not be done; `fatal` if no later one can."""

    jobs: tuple[Job, ...]
    message: str
    fatal: bool = False


Input = (Fed | Asked | Cancelled | Prompted | Reset | Paused | Ticked | Closed
         | Opened | Perceived | Carried | Decoded | Failed)


class PendingFrames:
    """
    A queue of steps, the newest of which may be incomplete.

    A step is complete with `per_step` frames, or with the last frame of a video. `cut` says that
    the next step begins another video, because the end of the one before was dropped.
    """

    def __init__(self, per_step: int, limit: int) -> None:
        """:param limit: the most frames that wait, at least a step's"""
        self._per_step, self._limit = per_step, max(limit, per_step)
        self._steps: deque[list[Frame]] = deque()
        self.cut = False

    @property
    def complete(self) -> bool:
        """Whether the frames of a step are all there."""
        return bool(self._steps) and self._is_complete(self._steps[0])

    def __len__(self) -> int:
        return sum(map(len, self._steps))

    @property
    def full(self) -> bool:
        """Whether the next frame has the oldest step dropped."""
        return len(self) >= self._limit

    def put(self, frame: Frame) -> int:
        """Add a frame; return how many were dropped to make room: those of the oldest step."""
        dropped = 0
        if self.full:
            oldest = self._steps.popleft()
            self.cut |= oldest[-1].last
            dropped = len(oldest)
        if not self._steps or self._is_complete(self._steps[-1]):
            self._steps.append([])
        self._steps[-1].append(frame)
        return dropped

    @property
    def first(self) -> tuple[Frame, ...]:
        """The frames of the next step, which is complete; they stay."""
        return tuple(self._steps[0])

    def take(self) -> tuple[Frame, ...]:
        """Take the frames of the next step, which is complete."""
        self.cut = False
        return tuple(self._steps.popleft())

    def clear(self) -> int:
        """Throw all frames away; return how many they were."""
        count = len(self)
        self.cut |= any(step[-1].last for step in self._steps)
        self._steps.clear()
        return count

    def _is_complete(self, step: list[Frame]) -> bool:
        return len(step) == self._per_step or step[-1].last
