"""What is told, for whoever listens: taken in order, waited for or not, until it is closed."""

from __future__ import annotations

import queue

from sww_ros.streaming.events import Event


class Mailbox:
    """Events from any thread to any thread; closing it is told once all of them are taken."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

    def put(self, event: Event) -> None:
        """Put an event behind those that wait."""
        self._events.put(event)

    def close(self) -> None:
        """Have `poll` return None once all that waits is taken."""
        self._events.put(None)

    def poll(self, timeout_s: float | None = None) -> Event | None:
        """Return the next event, or None after `timeout_s` seconds or once closed."""
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if event is None:
            self._events.put(None)  # For whoever else listens, and for the next call.
        return event

    def drain(self) -> list[Event]:
        """Return all events that wait, without waiting."""
        found = []
        while (event := self.poll(0)) is not None:
            found.append(event)
        return found
