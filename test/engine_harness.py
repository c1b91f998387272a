"""An engine with everything that it told, for tests of the client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import itertools
import os
from pathlib import Path
import threading
import time

from fake_session import SESSION
import numpy as np
from waiting import PATIENCE_S

from sww_ros.engine.client import EngineClient
from sww_ros.frames import CameraFrame
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import FramesDropped, TextDelta

START_S = PATIENCE_S
HERE = Path(__file__).parent
NAMES = (f'test_{os.getpid()}_{number}' for number in itertools.count())
"""Of shared engines, one for each test, in a domain that is not those of nodes in tests."""
DOMAIN = 0


class Listener:
    """An engine with everything it told."""

    def __init__(self, model: str, **options) -> None:
        self.events, self.lost, self.ready, self.lines = [], [], [], []
        self._changed = threading.Condition()
        config, session = (options.pop('config', SessionConfig()),
                           options.pop('session', SESSION))
        self.client = EngineClient(
            model, config, session=session, on_event=self._into(self.events),
            on_lost=self._into(self.lost), on_ready=self._into(self.ready),
            on_line=self._into(self.lines), **options)

    def _into(self, bucket: list):
        def take(item) -> None:
            with self._changed:
                bucket.append(item)
                self._changed.notify_all()
        return take

    def wait(self, condition, timeout_s: float = PATIENCE_S) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout_s), (self.events[-5:], self.lost)

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    def text(self, stream_id: str) -> list[TextDelta]:
        return [event for event in self.of(TextDelta) if event.stream_id == stream_id]

    def wait_final(self, stream_id: str) -> TextDelta:
        self.wait(lambda: any(delta.final for delta in self.text(stream_id)))
        return self.text(stream_id)[-1]


@contextmanager
def listening(model: str = 'fake', **options) -> Iterator[Listener]:
    """Start an engine, and end it."""
    listener = Listener(model, **options)
    try:
        listener.client.start(START_S)
        yield listener
    finally:
        listener.client.close()


def frame(stamp_ns: int = 0) -> CameraFrame:
    return CameraFrame(lambda: np.zeros((48, 64, 3), np.uint8), stamp_ns, time.monotonic_ns())


def speak(listener: Listener, steps: int = 1) -> None:
    """Feed steps, and wait until all is said of them."""
    said = len(listener.text('narration'))
    for number in range(1, steps + 1):
        listener.client.feed(frame())
        listener.client.feed(frame())
        listener.wait(lambda due=said + 3 * number: len(listener.text('narration')) >= due)
    assert not listener.of(FramesDropped)


def numbers(listener: Listener) -> list[int]:
    return [delta.seq for delta in listener.text('narration')]
