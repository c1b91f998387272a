"""Shows a transcript: lines that grow in a terminal, whole lines in a pipe."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
import sys
import threading
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sww_ros.nodes.frame import NANOSECONDS
from sww_ros.nodes.transcript import Line

STYLES = ('auto', 'rich', 'plain')
REFRESH_HZ = 20
ODD_ENDS = ('error', 'cancelled', 'interrupted', 'length', 'no_video')


def wall_clock(stamp_ns: int) -> str:
    """Return the local time of a stamp, to a tenth of a second."""
    at = datetime.fromtimestamp(stamp_ns / NANOSECONDS)
    return f'{at:%H:%M:%S}.{at.microsecond // 100_000}'


def seconds_since(start_ns: int) -> Callable[[int], str]:
    """Return a clock that counts from `start_ns`."""
    return lambda stamp_ns: f'{(stamp_ns - start_ns) / NANOSECONDS:6.1f} s'


class Display(Protocol):
    """
    Where a transcript is shown.

    Each line has the time of its first token, and how old the newest frame was that the token
    could see. `clock` turns a time [ns] into words, and may be replaced.
    """

    clock: Callable[[int], str]

    def grow(self, lines: list[Line]) -> None:
        """Show the lines that still grow, in place of those of the last call."""

    def line(self, line: Line, note: str = '') -> None:
        """Show a whole line, with a remark after it."""

    def question(self, text: str, stamp_ns: int) -> None:
        """Show a question at the moment of asking."""

    def note(self, text: str) -> None:
        """Show a remark."""

    def close(self) -> None:
        """Leave the terminal as it should be."""


class PlainDisplay:
    """Whole lines without colors, each flushed: for pipes and files."""

    def __init__(self, stream: TextIO, clock: Callable[[int], str] = wall_clock) -> None:
        self.clock = clock
        self._stream = stream

    def grow(self, lines: list[Line]) -> None:
        """A pipe gets whole lines only."""

    def line(self, line: Line, note: str = '') -> None:
        """Write a whole line."""
        latency = f'({line.latency_s:.2f} s)' if line.tokens else ''
        name = 'answer: ' if line.is_answer else ''
        self._write(self.clock(line.emitted_ns), name + line.text, _odd_end(line), latency, note)

    def question(self, text: str, stamp_ns: int) -> None:
        """Write a question."""
        self._write(self.clock(stamp_ns), f'question: {text}')

    def note(self, text: str) -> None:
        """Write a remark."""
        self._write(f'# {text}')

    def close(self) -> None:
        """Nothing to put right."""

    def _write(self, *parts: str) -> None:
        print('  '.join(part for part in parts if part), file=self._stream, flush=True)


class RichDisplay:
    """
    Growing lines at the bottom of a terminal, whole ones above them, so that nothing garbles.

    Latencies are dim; questions and answers have colors of their own.
    """

    def __init__(self, console: Console, clock: Callable[[int], str] = wall_clock) -> None:
        self.clock = clock
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()
        self._stale, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._refresh, name='display', daemon=True)
        self._thread.start()

    def grow(self, lines: list[Line]) -> None:
        """Show the growing lines below all others."""
        self._live.update(Group(*(self._text(line) for line in lines)))
        self._stale.set()

    def line(self, line: Line, note: str = '') -> None:
        """Print a whole line above those that grow."""
        text = self._text(line)
        if odd := _odd_end(line):
            text.append(f'  {odd}', 'red')
        if line.tokens:
            text.append(f'  {line.latency_s:.2f} s', 'dim')
        if note:
            text.append(f'  {note}', 'yellow')
        self._live.refresh()  # Without this line among those that grow.
        self._live.console.print(text)

    def question(self, text: str, stamp_ns: int) -> None:
        """Print a question."""
        self._live.console.print(Text().append(self.clock(stamp_ns), 'dim')
                                 .append('  ? ', 'bold cyan').append(text, 'cyan'))

    def note(self, text: str) -> None:
        """Print a remark."""
        self._live.console.print(Text(text, 'dim'))

    def close(self) -> None:
        """Take the growing lines away and give the cursor back."""
        self._closed.set()
        self._thread.join()
        self._live.update(Group())
        self._live.stop()

    def _refresh(self) -> None:
        """Draw what has changed, at a rate that a fast model cannot drive up."""
        while not self._closed.wait(1 / REFRESH_HZ):
            if self._stale.is_set():
                self._stale.clear()
                self._live.refresh()

    def _text(self, line: Line) -> Text:
        text = Text(overflow='fold').append(self.clock(line.emitted_ns), 'dim')
        if line.is_answer:
            return text.append('  > ', 'bold green').append(line.text, 'green')
        return text.append(f'    {line.text}')


def _odd_end(line: Line) -> str:
    return f'[{line.finish_reason}]' if line.finish_reason in ODD_ENDS else ''


def make_display(style: str = 'auto', stream: TextIO = sys.stdout) -> Display:
    """
    Return the display for a stream.

    :param style: 'rich', 'plain', or 'auto': rich in a terminal
    :raises ValueError: for another style
    """
    if style not in STYLES:
        raise ValueError(f'style must be one of {", ".join(STYLES)}, not {style!r}')
    if style == 'plain' or style == 'auto' and not stream.isatty():
        return PlainDisplay(stream)
    return RichDisplay(Console(file=stream, force_terminal=True, highlight=False))
