"""Puts chunks of several streams together again, line by line, without ROS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sww_ros.frames import NANOSECONDS
from sww_ros.streaming.events import NARRATION

MISSING = '…'
"""Stands for text that was lost on the way."""


@dataclass
class Line:
    """
    A sentence of the narration, or an answer, as far as it has come.

    `seen_ns` and `last_seen_ns` are the stamps of the newest frames that its first and its last
    token could see, `latency_s` how old the former was when the first token was published,
    `emitted_ns` when that was, `tokens` the number of chunks with text.
    """

    stream_id: str
    text: str = ''
    seen_ns: int = 0
    last_seen_ns: int = 0
    emitted_ns: int = 0
    latency_s: float = 0.0
    tokens: int = 0
    finish_reason: str = ''

    @property
    def is_answer(self) -> bool:
        return self.stream_id != NARRATION


class Transcript:
    """Follows TextChunk messages; `open_lines` are those that still grow."""

    def __init__(self) -> None:
        self._open: dict[str, Line] = {}
        self._next_seq: dict[str, int] = {}

    @property
    def open_lines(self) -> list[Line]:
        """Narration first, then the answers in the order in which they began."""
        return sorted((line for line in self._open.values() if line.text),
                      key=lambda line: line.is_answer)

    def feed(self, chunk: Any) -> Line | None:
        """Take a TextChunk, or anything with its fields; return the line that it completes."""
        stream = chunk.stream_id
        line = self._open.setdefault(stream, Line(stream))
        expected = self._next_seq.get(stream)
        if expected is not None and chunk.seq > expected:
            line.text += MISSING
        self._next_seq[stream] = chunk.seq + 1
        if chunk.delta or chunk.is_final:
            if not line.tokens:
                line.seen_ns = nanoseconds(chunk.header.stamp)
                line.emitted_ns = nanoseconds(chunk.emitted)
                line.latency_s = nanoseconds(chunk.latency) / NANOSECONDS
            line.last_seen_ns = nanoseconds(chunk.header.stamp)
            line.text = (line.text + chunk.delta).lstrip()
            line.tokens += bool(chunk.delta)
        if chunk.is_final:
            del self._open[stream], self._next_seq[stream]
            line.finish_reason = chunk.finish_reason
        elif not chunk.sentence or line.is_answer:
            return None
        else:
            del self._open[stream]
        line.text = ' '.join(line.text.split())
        return line if line.text or line.is_answer else None


def nanoseconds(time: Any) -> int:
    """Return a Time or Duration message as nanoseconds."""
    return time.sec * NANOSECONDS + time.nanosec
