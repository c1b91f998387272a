"""
What goes into the core and what comes out of it as work: plain data, no tensor is looked at.

Inputs tell the core what happened; jobs tell an executor what to compute. A job holds the `Video`
and `Question` objects it is about. Their `work` is a place for whoever computes to hang lanes on:
the core never reads it, and what it forgets takes its tensors along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sww_ros.streaming.schedule import NarrationBudget

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame on its way to perception; times are `time.monotonic_ns()`."""

    pixels: np.ndarray
    stamp_ns: int = 0
    received_ns: int = 0
    fed_ns: int = 0
    last: bool = False


@dataclass(frozen=True)
class StepInfo:
    """What is remembered of a perceived step."""

    stamp_ns: int
    frames_total: int


@dataclass(eq=False)
class Video:
    """
    One video, from its prompt to the last word about it.

    `opened` says that its prefix is in the cache, `ended` that its last step is perceived,
    `spoken` that its narration is over, `sighted` how many steps some token could see.
    """

    number: int
    prompt: str
    budget: NarrationBudget
    steps: list[StepInfo] = field(default_factory=list)
    opened: bool = False
    ended: bool = False
    spoken: bool = False
    sighted: int = 0
    work: object = None


@dataclass(eq=False)
class Question:
    """
    A question: `head` is what is fed before its answer (token ids, to the core just a value).

    Once it is answered, `video` is the one it is about.
    """

    question_id: str
    head: Sequence[int]
    asked_ns: int
    video: Video | None = None
    spoken: int = 0
    work: object = None


# Jobs.

@dataclass(frozen=True, eq=False)
class Open:
    """Prefill the prefix of a video."""

    video: Video


@dataclass(frozen=True, eq=False)
class Perceive:
    """Perceive the frames of one step; with `last` the video ends with it."""

    video: Video
    frames: tuple[Frame, ...]
    last: bool


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


@dataclass(frozen=True, eq=False)
class Decode:
    """
    One decode step over all speakers that have something to say, neighbours by video.

    With `riding` it goes into the pass that perceives a step, which its turns may see.
    """

    turns: tuple[Turn, ...]
    started_ns: int
    riding: Perceive | None = None


Job = Open | Perceive | Decode


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
    """A job is done: the step is in the cache, readable by the next decode step."""

    job: Perceive
    started_ns: int = 0
    preprocessed_ns: int = 0
    vision_ns: int = 0
    perceived_ns: int = 0


@dataclass(frozen=True)
class Spoken:
    """
    What a turn has come to: a token of `kind` text | silence | stop.

    `delta` is the new text, `sentence` the whole sentence if one ends here, `unfinished` what
    has been said since the last one, which is told where the text ends with this token.
    """

    kind: str
    delta: str = ''
    sentence: str = ''
    unfinished: str = ''


@dataclass(frozen=True)
class Decoded:
    """A job is done: what each turn has come to, None where its head is not all fed yet."""

    job: Decode
    spoken: tuple[Spoken | None, ...]
    decoded_ns: int = 0


@dataclass(frozen=True)
class Failed:
    """Jobs of one pass could not be done; `fatal` if no later one can."""

    jobs: tuple[Job, ...]
    message: str
    fatal: bool = False


Input = (Fed | Asked | Cancelled | Prompted | Reset | Paused | Ticked | Closed
         | Opened | Perceived | Decoded | Failed)
