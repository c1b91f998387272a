"""
What browsers are told, without ROS and without a server: the node page and its server are beside.

A message is JSON: its `kind`, the number of its `tab`, and times in seconds on the clock of that
tab's stamps. `hello` names the tabs; `text` and `step` are a TextChunk and a StepLatency,
`question` is what was asked, `health` what /diagnostics says, `pulse` what time it is and whether
the narrator is there, `anew` begins a replay; `reply` and `skipped` go to one browser alone. A
frame is binary: a byte for the tab, its stamp as a double, big-endian, and a JPEG.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
import json
import math
import struct
import threading
import time
from typing import Any

HISTORY = 2000
"""Messages of a tab that a browser is told which comes later, or again."""
OUTBOX = 4000
"""Messages that may wait for a slow browser; the oldest give way."""
UNDELIVERED = 20_000
FRAMES_AHEAD = 2
"""Frames that a browser may be sent before it says that it has shown one of them."""
STATES = ('health', 'pulse')
"""Kinds of messages of which only the newest counts."""
MAX_TEXT = 4000
"""Characters of one text that are shown."""
WRONG_TOKEN, CROWDED = 4401, 4429
"""Codes with which the WebSocket of one who is not let in is closed."""
WRONG_TOKEN_S = 0.5
"""How long a wrong token is thought about: nobody shall try many."""
TIMES = ('at', 'seen', 'captured', 'started', 'perceived', 'first')
"""What a message calls its times."""


def encoded(kind: str, **content: Any) -> str:
    """Return a message as JSON."""
    return json.dumps({'kind': kind, **content}, separators=(',', ':'))


def seconds(stamp: Any) -> float:
    """Return a Time or Duration message in seconds."""
    return stamp.sec + stamp.nanosec / 1e9


def text_of(chunk: Any) -> dict[str, Any]:
    """Return the message of a TextChunk, or of anything with its fields; `end` says why it ends."""
    return dict(stream=chunk.stream_id, seq=chunk.seq, delta=chunk.delta[:MAX_TEXT],
                sentence=chunk.sentence[:MAX_TEXT], end=chunk.is_final and chunk.finish_reason,
                seen=seconds(chunk.header.stamp), at=seconds(chunk.emitted))


def step_of(latency: Any) -> dict[str, Any]:
    """Return the message of a StepLatency; `first` is when the first token that saw it came."""
    captured = seconds(latency.header.stamp)
    arrived = captured + seconds(latency.capture_to_callback)
    perceived = arrived + seconds(latency.perceived)
    overlap = latency.overlap_ratio
    return dict(
        video=latency.video, step=latency.step, captured=captured,
        started=arrived + seconds(latency.callback_to_engine), perceived=perceived,
        first=perceived + seconds(latency.first_token) if latency.has_first_token else None,
        overlap=overlap if math.isfinite(overlap) else 0.0)


class Allowance:
    """How often something may be done: `burst` times at once, and `rate` times a second."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = burst, time.monotonic()

    def take(self, count: float = 1) -> bool:
        """Return whether it may be done now, so many times."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        allowed = self._left >= count
        self._left -= count * allowed
        return allowed


class Outbox:
    """What one browser is still to be told; for the server's thread alone."""

    def __init__(self, backlog: Sequence[str]) -> None:
        self.news = asyncio.Event()
        self.news.set()
        self.tab = 0
        self._backlog = list(backlog)
        self._texts: deque[str] = deque(maxlen=OUTBOX)
        self._skipped = 0
        self._frame = b''
        self._ahead = 0

    def put(self, text: str) -> None:
        """Add a message; the oldest one gives way where too many wait."""
        self._skipped += len(self._texts) == OUTBOX
        self._texts.append(text)
        self.news.set()

    def put_frame(self, frame: bytes) -> None:
        """Have this frame shown, and none that still waits."""
        self._frame = frame
        self._offer_frame()

    def shown(self) -> None:
        """Take note that the browser has shown a frame."""
        self._ahead = max(0, self._ahead - 1)
        self._offer_frame()

    def take(self) -> tuple[str, bytes]:
        """Return what can be sent: a JSON list of messages, and a frame; empty where none is."""
        self.news.clear()
        told = [*self._backlog, *self._texts]
        if self._skipped:
            told.append(encoded('skipped', count=self._skipped))
        self._backlog, self._skipped = [], 0
        self._texts.clear()
        frame = b''
        if self._frame and self._ahead < FRAMES_AHEAD:
            frame, self._frame = self._frame, b''
            self._ahead += 1
        return f'[{",".join(told)}]' if told else '', frame

    def _offer_frame(self) -> None:
        if self._frame and self._ahead < FRAMES_AHEAD:
            self.news.set()


class Broadcast:
    """
    Brings messages from any thread to all browsers, and never waits for one.

    `publish` and `show` may be called from any thread, and `watched` may be read; the rest is for
    the server's thread, which is woken by `on_news` to call `deliver`.
    """

    def __init__(self) -> None:
        self.tabs: list[str] = []
        self.watched: frozenset[int] = frozenset()
        self.on_news: Callable[[], None] = lambda: None
        self.outboxes: set[Outbox] = set()
        self._lock = threading.Lock()
        self._new: deque[tuple[int, str, str]] = deque(maxlen=UNDELIVERED)
        self._new_frames: dict[int, bytes] = {}
        self._history: list[deque[str]] = []
        self._states: list[dict[str, str]] = []

    def add_tab(self, name: str) -> int:
        """Return the number of one tab more; before the server starts."""
        self.tabs.append(name)
        self._history.append(deque(maxlen=HISTORY))
        self._states.append({})
        return len(self.tabs) - 1

    def publish(self, tab: int, kind: str, **content: Any) -> None:
        """Tell all browsers something about a tab."""
        text = encoded(kind, tab=tab, **content)
        with self._lock:
            woken = bool(self._new or self._new_frames)
            self._new.append((tab, kind, text))
        if not woken:
            self.on_news()

    def show(self, tab: int, stamp_s: float, jpeg: bytes) -> None:
        """Show a frame in the browsers that watch the tab."""
        with self._lock:
            woken = bool(self._new or self._new_frames)
            self._new_frames[tab] = struct.pack('>Bd', tab, stamp_s) + jpeg
        if not woken:
            self.on_news()

    def deliver(self) -> None:
        """Put what is new into the outboxes, and remember it for browsers that come later."""
        with self._lock:
            new, self._new = self._new, deque(maxlen=UNDELIVERED)
            frames, self._new_frames = self._new_frames, {}
        for tab, kind, text in new:
            self._remember(tab, kind, text)
            for outbox in self.outboxes:
                outbox.put(text)
        for outbox in self.outboxes:
            if outbox.tab in frames:
                outbox.put_frame(frames[outbox.tab])

    def join(self) -> Outbox:
        """Return the outbox of a browser that has come, with all that it has to know."""
        told = [encoded('hello', tabs=self.tabs)]
        for history, states in zip(self._history, self._states):
            told += [*history, *states.values()]
        outbox = Outbox(told)
        self.outboxes.add(outbox)
        self.watch(outbox, 0)
        return outbox

    def leave(self, outbox: Outbox) -> None:
        """Forget a browser."""
        self.outboxes.discard(outbox)
        self._look()

    def watch(self, outbox: Outbox, tab: int) -> None:
        """Send a browser the frames of this tab and of no other; -1: of none."""
        outbox.tab = tab
        self._look()

    def _look(self) -> None:
        self.watched = frozenset(outbox.tab for outbox in self.outboxes)

    def _remember(self, tab: int, kind: str, text: str) -> None:
        if kind in STATES:
            self._states[tab][kind] = text
            return
        if kind == 'anew':
            self._history[tab].clear()
        self._history[tab].append(text)
