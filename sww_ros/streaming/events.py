"""
What a session tells its listener: steps perceived, text spoken, frames dropped, troubles.

Steps are numbered within a video. `video` rises by one with each that begins, and tells apart
what is said of the last one, by answers that go on, from what is said of this one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

NARRATION = 'narration'
"""Stream id of the narration; answers carry their question's id."""


@dataclass(frozen=True)
class StepPerceived:
    """
    One step of video is in the visual cache and can be seen by the next token.

    Times are `time.monotonic_ns()`; `stamp_ns` is the stamp of the newest frame, as given to
    `feed`. `overlap_ns` is how much of the perception time decoding was running too. `tokens` are
    the visual tokens that went into the cache.
    """

    type: ClassVar[str] = 'step'
    index: int
    stamp_ns: int
    frames: int
    received_ns: int
    fed_ns: int
    started_ns: int
    preprocessed_ns: int
    vision_ns: int
    perceived_ns: int
    overlap_ns: int
    video: int = 0
    tokens: int = 0

    @property
    def stages_ns(self) -> dict[str, int]:
        """How long its stages took [ns], by their names in sww_interfaces/StepLatency."""
        return dict(
            callback_to_engine=self.started_ns - self.received_ns,
            preprocess=self.preprocessed_ns - self.started_ns,
            vision=self.vision_ns - self.preprocessed_ns,
            prefill=self.perceived_ns - self.vision_ns,
            perceived=self.perceived_ns - self.received_ns)

    @property
    def overlap_ratio(self) -> float:
        """Share of its perception during which decoding ran too."""
        duration = self.perceived_ns - self.started_ns
        return min(1.0, self.overlap_ns / duration) if duration > 0 else 0.0


@dataclass(frozen=True)
class TextDelta:
    """
    One piece of text of a stream: usually one token, never silence.

    `sentence` holds the whole sentence when this piece ends one: one that is cut short never
    does. `final` ends the stream, for the reason in `finish_reason`. `step` is the newest step
    the token could see (-1: none), `stamp_ns` the stamp of that step's newest frame.
    `first_sight` says that no token of any stream could see that step before.

    `finish_reason` is stop (the model has ended) or length (no more tokens are allowed). Of an
    answer it may be cancelled (taken back), interrupted (another question took its place), reset,
    no_video (nothing was seen for `question_timeout_s`) or error. A narration that is cut says
    by what: reset, prompt, capacity (no room for more steps), ended (the next video began) or
    error; another one follows under the same stream id.
    """

    type: ClassVar[str] = 'text'
    stream_id: str
    seq: int
    delta: str
    sentence: str
    final: bool
    finish_reason: str
    step: int
    steps_seen: int
    frames_seen: int
    stamp_ns: int
    started_ns: int
    emitted_ns: int
    first_sight: bool
    video: int = 0

    @property
    def published(self) -> dict[str, str | int | bool]:
        """What of it is published as it is, by the names in sww_interfaces/TextChunk."""
        return dict(
            stream_id=self.stream_id, seq=self.seq, delta=self.delta, sentence=self.sentence,
            is_final=self.final, finish_reason=self.finish_reason, video=self.video,
            steps_seen=self.steps_seen, frames_seen=self.frames_seen)


@dataclass(frozen=True)
class FirstSight:
    """A decode step, spoken or silent, was the first that could see step `index`."""

    type: ClassVar[str] = 'sight'
    index: int
    stamp_ns: int
    started_ns: int
    decoded_ns: int
    video: int = 0


@dataclass(frozen=True)
class FramesDropped:
    """Frames that were not perceived, with the reason: overrun | paused | reset | bad."""

    type: ClassVar[str] = 'dropped'
    reason: str
    count: int


@dataclass(frozen=True)
class QuestionState:
    """A question moved on: queued | answering | rejected; the text comes as TextDelta."""

    type: ClassVar[str] = 'question'
    question_id: str
    state: str
    reason: str


@dataclass(frozen=True)
class Trouble:
    """Something failed; the session goes on unless `fatal`. `stream_id` may be empty."""

    type: ClassVar[str] = 'trouble'
    message: str
    stream_id: str
    fatal: bool


@dataclass(frozen=True)
class Restarted:
    """
    A new video began (reset | prompt | capacity | ended | error); steps count from 0 again.

    With the reason `relay` the same video goes on in another stream, with its last steps and the
    words about them: `video`, steps, frames, `seq` and sentences go on too.
    """

    type: ClassVar[str] = 'restarted'
    reason: str
    video: int = 0


class SessionClosed(ValueError):
    """Something was asked of a session that has been closed, or has given up."""


Event = (StepPerceived | TextDelta | FirstSight | FramesDropped | QuestionState | Trouble
         | Restarted)
_TYPES = {cls.type: cls for cls in Event.__args__}


def event_to_dict(event: Event) -> dict:
    """Return the event as plain data, ready for JSON."""
    return {'type': event.type, **asdict(event)}


def event_from_dict(data: dict) -> Event:
    """
    Return the event of `event_to_dict`.

    :raises ValueError: for a type that no event has
    """
    fields = dict(data)
    kind = fields.pop('type', None)
    if kind not in _TYPES:
        raise ValueError(f'unknown event type {kind!r}; one of {", ".join(_TYPES)}')
    return _TYPES[kind](**fields)
