"""Which text streams are open, so that each one ends exactly once, over restarts of the engine."""

from __future__ import annotations

from dataclasses import replace
import threading
import time

from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import (
    NARRATION,
    Event,
    FirstSight,
    QuestionState,
    Restarted,
    StepPerceived,
    TextDelta,
)


class OpenStreams:
    """
    Follows the events of a session: admits questions, and ends what the session leaves open.

    Whether there is room for a question is decided here, where it is asked, because the busy
    engine would answer too late.
    """

    def __init__(self, config: SessionConfig) -> None:
        self._limit = config.max_answers
        if config.question_policy == 'queue':
            self._limit += config.max_queued
        self._always_room = config.question_policy == 'interrupt'
        self._next_seq: dict[str, int] = {}
        self._last: dict[str, TextDelta] = {}
        self._reasons: dict[str, str] = {}
        self._first_video = self._newest_video = 0
        self._seen = self._begins_anew = False
        self._lock = threading.Lock()

    @property
    def seen(self) -> bool:
        """Whether anything has been perceived of the current video."""
        return self._seen

    @property
    def questions(self) -> list[str]:
        """Ids of the questions that are not answered yet, oldest first."""
        with self._lock:
            return [stream for stream in self._next_seq if stream != NARRATION]

    def admit(self, question_id: str) -> bool:
        """Open a question's stream, if there is room for it."""
        with self._lock:
            taken = sum(stream != NARRATION for stream in self._next_seq)
            if not self._always_room and taken >= self._limit:
                return False
            self._next_seq[question_id] = 0
            return True

    def name_end(self, question_id: str, reason: str) -> bool:
        """Have a question that is taken back end with this reason; False if it is not open."""
        with self._lock:
            if question_id not in self._next_seq:
                return False
            self._reasons[question_id] = reason
            return True

    def begin_anew(self) -> None:
        """Note that the session was told to begin another video: it has seen nothing of that."""
        self._seen, self._begins_anew = False, True

    def follow(self, event: Event) -> list[Event]:
        """Return what to tell the listener in place of the event."""
        if isinstance(event, (StepPerceived, TextDelta, FirstSight, Restarted)):
            # An engine that restarts counts from 0; for the listener it is one more video.
            event = replace(event, video=self._first_video + event.video)
            self._newest_video = max(self._newest_video, event.video)
        if isinstance(event, StepPerceived) and not self._begins_anew:
            self._seen = True
        if isinstance(event, Restarted):
            self._seen = self._begins_anew = False
        if isinstance(event, TextDelta):
            return self._follow_text(event)
        if isinstance(event, QuestionState) and event.state == 'rejected':
            return [event, *self.end([event.question_id])]
        return [event]

    def end_all(self) -> list[Event]:
        """Return the last events of all open streams, whose session is gone."""
        with self._lock:
            streams = list(self._next_seq)
        ended = self.end(streams)
        self._first_video = self._newest_video + 1
        self._seen = self._begins_anew = False
        return ended

    def _follow_text(self, event: TextDelta) -> list[Event]:
        stream = event.stream_id
        with self._lock:
            if stream != NARRATION and stream not in self._next_seq:
                return []  # Ended already: nothing may follow its last piece.
            # Numbered anew, so that an engine that restarts leaves no gap.
            event = replace(event, seq=self._next_seq.get(stream, 0))
            if event.finish_reason == 'cancelled':
                event = replace(event, finish_reason=self._reasons.get(stream, 'cancelled'))
            self._last[stream] = event
            self._count(event)
        return [event]

    def end(self, streams: list[str], reason: str = 'error') -> list[TextDelta]:
        """Return the last events of those of the streams that are open, which ends them."""
        now = time.monotonic_ns()
        ended = []
        with self._lock:
            for stream in streams:
                if stream not in self._next_seq or (
                        stream == NARRATION and self._last[stream].final):
                    continue
                last = self._last.get(stream) or TextDelta(
                    stream, 0, '', '', False, '', -1, 0, 0, 0, now, now, False)
                event = replace(
                    last, seq=self._next_seq[stream], delta='', sentence='', final=True,
                    finish_reason=reason, started_ns=now, emitted_ns=now, first_sight=False)
                self._last[stream] = event
                self._count(event)
                ended.append(event)
        return ended

    def _count(self, event: TextDelta) -> None:
        if event.final and event.stream_id != NARRATION:
            del self._next_seq[event.stream_id], self._last[event.stream_id]
            self._reasons.pop(event.stream_id, None)
        else:  # The narration goes on being numbered over its ends.
            self._next_seq[event.stream_id] = event.seq + 1
