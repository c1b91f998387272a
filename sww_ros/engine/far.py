"""Sessions of an engine far away, for a program: fed, asked and listened to as any other."""

from __future__ import annotations

from collections.abc import Iterator
import time

import numpy as np

from sww_ros.engine.client import EngineClient, EngineError
from sww_ros.engine.process import Launcher
from sww_ros.frames import CameraFrame
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import Event, SessionClosed
from sww_ros.streaming.mailbox import Mailbox

START_S = 60.0


class FarSession:
    """
    A session over a link, with the methods of a `Session` by which it is fed, asked and read.

    When the link drops, frames are dropped ('link'), questions end ('error'), and it begins anew
    once the link is back.

    :raises ValueError: in words, where there is no way there, or none in
    """

    def __init__(self, link: Launcher, config: SessionConfig) -> None:
        self._events = Mailbox()
        self._client = EngineClient('', config, host=link, on_event=self._events.put)
        try:
            self._client.start(START_S)
        except EngineError as error:
            raise ValueError(str(error)) from None
        self._closed = False

    @property
    def info(self) -> dict:
        """What is running, as of `Session.info`."""
        return self._client.info

    def feed(self, frame: np.ndarray, stamp_ns: int = 0, received_ns: int = 0) -> None:
        """Take the next frame, as `Session.feed` does; the video does not end."""
        self._check()
        self._client.feed(CameraFrame(lambda: np.ascontiguousarray(frame), stamp_ns,
                                      received_ns or time.monotonic_ns()))

    def ask(self, question: str, question_id: str = '') -> str:
        """
        Ask, as `Session.ask` does.

        :raises EngineError: while the link is down, or when too many questions wait
        """
        self._check()
        return self._client.ask(question, question_id)

    def cancel(self, question_id: str) -> None:
        """End an answer, as `Session.cancel` does."""
        self._client.cancel(question_id)

    def set_prompt(self, prompt: str) -> None:
        """Change the standing question, as `Session.set_prompt` does; errors as of `ask`."""
        self._check()
        self._client.set_prompt(prompt)

    def reset(self) -> None:
        """Forget what has been seen and said."""
        self._check()
        self._client.reset()

    def pause(self, paused: bool) -> None:
        """Stop or resume watching and narrating."""
        self._check()
        self._client.pause(paused)

    def poll(self, timeout_s: float | None = None) -> Event | None:
        """Return the next event, or None after `timeout_s` seconds or once closed."""
        return self._events.poll(timeout_s)

    def events(self) -> Iterator[Event]:
        """Yield events until the session is closed."""
        while (event := self.poll()) is not None:
            yield event

    def drain(self) -> list[Event]:
        """Return all events that wait, without waiting."""
        return self._events.drain()

    def close(self) -> None:
        """End it, and `events()`."""
        self._closed = True
        self._client.close()
        self._events.close()

    def __enter__(self) -> FarSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        if self._closed:
            raise SessionClosed('the session is closed: open another one')


class FarEngine:
    """An engine at an address, for any number of sessions at a time, as an `Engine` is here."""

    def __init__(self, link: Launcher, config: SessionConfig) -> None:
        self._link, self._config = link, config
        self._sessions: list[FarSession] = []

    def session(self, config: SessionConfig | None = None) -> FarSession:
        """Begin to watch one more video; errors as of `FarSession`."""
        self._sessions.append(FarSession(self._link, config or self._config))
        return self._sessions[-1]

    def close(self) -> None:
        """Close all sessions."""
        for session in self._sessions:
            session.close()

    def __enter__(self) -> FarEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
