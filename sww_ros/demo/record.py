"""What the demo heard in one run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sww_ros.demo.truth import Witness
from sww_ros.shapes.scene import Fact
from sww_ros.terminal.transcript import Line, nanoseconds


@dataclass
class Sentence:
    """A narrated sentence, and the fact that makes it true, where the truth is known."""

    line: Line
    fact: Fact | None = None


@dataclass
class Exchange:
    """A question, and what came of it; `truths` are the answers that were true while it came."""

    text: str
    kind: str = ''
    asked_ns: int = 0
    question_id: str = ''
    refused: str = ''
    line: Line | None = None
    truths: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.line is not None or bool(self.refused)

    @property
    def right(self) -> bool | None:
        """Whether the answer is true; None where the truth is not known."""
        if self.line is None:
            # A question of the demo's own had an answer when it was asked.
            return False if self.kind else None
        return self.line.text in self.truths if self.truths else None


@dataclass(frozen=True)
class Step:
    """The latencies of one perceived step [ns], and the counters of frames by then."""

    video: int
    stamp_ns: int
    capture_to_callback_ns: int
    perceived_ns: int
    first_token_ns: int | None
    overlap_ratio: float
    frames: dict[str, int]

    @classmethod
    def from_message(cls, message: Any) -> Step:
        """Return what counts of a StepLatency."""
        return cls(
            message.video, nanoseconds(message.header.stamp),
            nanoseconds(message.capture_to_callback), nanoseconds(message.perceived),
            nanoseconds(message.first_token) if message.has_first_token else None,
            message.overlap_ratio,
            {name: getattr(message, f'frames_{name}')
             for name in ('received', 'perceived', 'dropped')})

    @property
    def seen_ns(self) -> int | None:
        """When the first token that could see this step was decoded, on the stamps' clock."""
        if self.first_token_ns is None:
            return None
        return (self.stamp_ns + self.capture_to_callback_ns + self.perceived_ns
                + self.first_token_ns)


@dataclass(frozen=True)
class Piece:
    """When a piece of text was published, and the newest frame that it could see [ns]."""

    emitted_ns: int
    seen_ns: int


@dataclass
class Record:
    """
    All of a run; `start_ns` is the time 0 of the scene or video on the stamps' clock.

    `pieces` of text are kept by stream.
    """

    model: str
    source: str
    start_ns: int = 0
    ready_s: float = 0.0
    first_word_s: float | None = None
    witness: Witness | None = None
    scene: dict | None = None
    sentences: list[Sentence] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    pieces: dict[str, list[Piece]] = field(default_factory=dict)
