"""
What is said, line by line, without ROS: a transcript of several streams, and how it is shown.

Lines grow in a terminal; a pipe gets whole lines. The node console is beside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
import math
from operator import itemgetter
import sys
import threading
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sww_ros.frames import NANOSECONDS
from sww_ros.streaming.events import NARRATION

STYLES = ('auto', 'rich', 'plain')
REFRESH_HZ = 20
ODD_ENDS = ('error', 'cancelled', 'interrupted', 'length', 'no_video')
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


def wall_clock(stamp_ns: int) -> str:
    """Return the local time of a stamp, to a tenth of a second."""
    at = datetime.fromtimestamp(stamp_ns / NANOSECONDS)
    return f'{at:%H:%M:%S}.{at.microsecond // 100_000}'


def seconds_since(start_ns: int) -> Callable[[int], str]:
    """Return a clock that counts from `start_ns`."""
    return lambda stamp_ns: f'{(stamp_ns - start_ns) / NANOSECONDS:6.1f} s'


class Display(ABC):
    """
    Where a transcript is shown.

    Each line has the time of its first token, and how old the newest frame was that the token
    could see. `clock` turns a time [ns] into words, and may be replaced. With `ordered`, nothing
    passes a line which began sooner and still grows, however long it does: lines stand in the order
    of their times. Otherwise each is shown once it is whole.
    """

    def __init__(self, ordered: bool) -> None:
        self.clock: Callable[[int], str] = wall_clock
        self._ordered = ordered
        self._growing: list[Line] = []
        self._waiting: list[tuple[int, Any]] = []

    def grow(self, lines: list[Line]) -> None:
        """Show the lines that still grow, in place of those of the last call."""
        self._growing = lines
        self._release()

    def line(self, line: Line, note: str = '') -> None:
        """Show a whole line in its turn, with a remark after it; it grows no more."""
        self._growing = [other for other in self._growing if other.stream_id != line.stream_id]
        self._enter(line.emitted_ns, self._written(line, note))

    def question(self, text: str, stamp_ns: int) -> None:
        """Show a question, asked at that time, in its turn."""
        self._enter(stamp_ns, self._asked(text, stamp_ns))

    def close(self) -> None:
        """Show what still waits for its turn, and leave the terminal as it should be."""
        self.grow([])

    @abstractmethod
    def note(self, text: str) -> None:
        """Show a remark."""

    @abstractmethod
    def warn(self, text: str) -> None:
        """Show a remark that should not be overlooked."""

    def _enter(self, at_ns: int, words: Any) -> None:
        insort(self._waiting, (at_ns, words), key=itemgetter(0))
        self._release()

    def _release(self) -> None:
        sooner = [line.emitted_ns for line in self._growing] if self._ordered else []
        begun_ns = min(sooner, default=math.inf)
        while self._waiting and self._waiting[0][0] <= begun_ns:
            self._show(self._waiting.pop(0)[1])

    @abstractmethod
    def _written(self, line: Line, note: str) -> Any:
        """Return what a whole line looks like."""

    @abstractmethod
    def _asked(self, text: str, stamp_ns: int) -> Any:
        """Return what a question looks like."""

    @abstractmethod
    def _show(self, words: Any) -> None:
        """Show what one of the two has returned; it stays."""


class PlainDisplay(Display):
    """Whole lines without colors, each flushed: for pipes and files, which get whole lines only."""

    def __init__(self, stream: TextIO, ordered: bool = False) -> None:
        super().__init__(ordered)
        self._stream = stream

    def note(self, text: str) -> None:
        """Write a remark."""
        self._show(f'# {text}')

    def warn(self, text: str) -> None:
        """Write a warning."""
        self.note(f'warning: {text}')

    def _written(self, line: Line, note: str) -> str:
        latency = f'({line.latency_s:.2f} s)' if line.tokens else ''
        name = 'answer: ' if line.is_answer else ''
        return _joined(self.clock(line.emitted_ns), name + line.text, _odd_end(line), latency,
                       note)

    def _asked(self, text: str, stamp_ns: int) -> str:
        return _joined(self.clock(stamp_ns), f'question: {text}')

    def _show(self, words: str) -> None:
        print(words, file=self._stream, flush=True)


def _joined(*parts: str) -> str:
    return '  '.join(part for part in parts if part)


class RichDisplay(Display):
    """
    Growing lines, and those that wait for them, at the bottom of a terminal, the others above.

    Latencies are dim; questions and answers have colors of their own.
    """

    def __init__(self, console: Console, ordered: bool = False) -> None:
        super().__init__(ordered)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()
        self._stale, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._refresh, name='display', daemon=True)
        self._thread.start()

    def note(self, text: str) -> None:
        """Print a remark."""
        self._live.console.print(Text(text, 'dim'))

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._live.console.print(Text(f'warning: {text}', 'yellow'))

    def draw(self) -> None:
        """Draw the bottom of the terminal now, not at its next turn."""
        self._stale.clear()
        self._live.refresh()

    def close(self) -> None:
        """Print what waits, take the growing lines away and give the cursor back."""
        super().close()
        self._closed.set()
        self._thread.join()
        self._live.stop()

    def _release(self) -> None:
        super()._release()
        self._update()
        self._stale.set()

    def _update(self) -> None:
        growing = [(line.emitted_ns, self._text(line)) for line in self._growing]
        bottom = sorted(growing + self._waiting, key=itemgetter(0))
        self._live.update(Group(*(words for _, words in bottom)))

    def _show(self, words: Text) -> None:
        self._update()
        self._live.refresh()  # Without this line among those below.
        self._live.console.print(words)

    def _written(self, line: Line, note: str) -> Text:
        text = self._text(line)
        if odd := _odd_end(line):
            text.append(f'  {odd}', 'red')
        if line.tokens:
            text.append(f'  {line.latency_s:.2f} s', 'dim')
        if note:
            text.append(f'  {note}', 'yellow')
        return text

    def _asked(self, text: str, stamp_ns: int) -> Text:
        return (Text().append(self.clock(stamp_ns), 'dim').append('  ? ', 'bold cyan')
                .append(text, 'cyan'))

    def _refresh(self) -> None:
        """Draw what has changed, at a rate that a fast model cannot drive up."""
        while not self._closed.wait(1 / REFRESH_HZ):
            if self._stale.is_set():
                self.draw()

    def _text(self, line: Line) -> Text:
        text = Text(overflow='fold').append(self.clock(line.emitted_ns), 'dim')
        if line.is_answer:
            return text.append('  > ', 'bold green').append(line.text, 'green')
        return text.append(f'    {line.text}')


def _odd_end(line: Line) -> str:
    return f'[{line.finish_reason}]' if line.finish_reason in ODD_ENDS else ''


def make_display(style: str = 'auto', stream: TextIO = sys.stdout,
                 ordered: bool = False) -> Display:
    """
    Return the display for a stream.

    :param style: 'rich', 'plain', or 'auto': rich in a terminal
    :param ordered: whether lines wait for those that began sooner and still grow
    :raises ValueError: for another style
    """
    if style not in STYLES:
        raise ValueError(f'style must be one of {", ".join(STYLES)}, not {style!r}')
    if style == 'plain' or style == 'auto' and not stream.isatty():
        return PlainDisplay(stream, ordered)
    return RichDisplay(Console(file=stream, force_terminal=True, highlight=False), ordered)
