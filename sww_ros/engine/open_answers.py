"""Which text streams are open, so that each one ends exactly once, over restarts of the engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
import math

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


@dataclass
class _Stream:
    """How far a stream is; `reason` is why it ends if the session says that it was cancelled."""

    last: TextDelta | None = None
    next_seq: int = 0
    reason: str = 'cancelled'


class OpenAnswers:
    """
    Follows the events of a session: admits questions, and ends what the session leaves open.

    The one register of open questions, and the one place where text and videos are numbered for
    the listener. Whether there is room for a question is decided here, where it is asked, because
    the busy engine would answer too late. `seen` says whether anything has been perceived of the
    current video.
    """

    def __init__(self, config: SessionConfig) -> None:
        room = {'queue': config.max_queued, 'reject': 0, 'interrupt': math.inf}
        self._limit = config.max_answers + room[config.question_policy]
        self._streams = {NARRATION: _Stream()}
        self._first_video = self._newest_video = 0
        self.seen = self._begins_anew = False

    @property
    def questions(self) -> list[str]:
        """Ids of the questions that are not answered yet, oldest first."""
        return [stream for stream in self._streams if stream != NARRATION]

    def admit(self, question_id: str) -> bool:
        """
        Open a question's stream, if there is room for it.

        :raises ValueError: for an id that is in use
        """
        if question_id in self._streams:
            raise ValueError(f'the id {question_id!r} is in use: give each question its own')
        if len(self.questions) >= self._limit:
            return False
        self._streams[question_id] = _Stream()
        return True

    def name_end(self, question_id: str, reason: str) -> bool:
        """Have a question that is taken back end with this reason; False if it is not open."""
        if question_id not in self.questions:
            return False
        self._streams[question_id].reason = reason
        return True

    def begin_anew(self) -> None:
        """Note that the session was told to begin another video: it has seen nothing of that."""
        self.seen, self._begins_anew = False, True

    def follow(self, event: Event, now_ns: int) -> list[Event]:
        """Return what to tell the listener in place of the event."""
        if isinstance(event, (StepPerceived, TextDelta, FirstSight, Restarted)):
            # An engine that restarts counts from 0; for the listener it is one more video.
            event = replace(event, video=self._first_video + event.video)
            self._newest_video = max(self._newest_video, event.video)
        if isinstance(event, StepPerceived) and not self._begins_anew:
            self.seen = True
        if isinstance(event, Restarted) and event.reason != 'relay':
            self.seen = self._begins_anew = False
        if isinstance(event, QuestionState) and event.state == 'rejected':
            return [event, *self.end([event.question_id], now_ns)]
        if not isinstance(event, TextDelta):
            return [event]
        if (stream := self._streams.get(event.stream_id)) is None:
            return []  # Ended already: nothing may follow its last piece.
        reason = stream.reason if event.finish_reason == 'cancelled' else event.finish_reason
        return [self._number(replace(event, finish_reason=reason))]

    def end(self, streams: Iterable[str], now_ns: int, reason: str = 'error') -> list[Event]:
        """Return the last events of those of the streams that are open, which ends them."""
        ended: list[Event] = []
        for stream_id in streams:
            stream = self._streams.get(stream_id)
            # Between its ends, the narration is not open.
            if not stream or stream_id == NARRATION and (not stream.last or stream.last.final):
                continue
            last = stream.last or TextDelta(
                stream_id, 0, '', '', False, '', -1, 0, 0, 0, now_ns, now_ns, False)
            ended.append(self._number(replace(
                last, delta='', sentence='', final=True, finish_reason=reason,
                started_ns=now_ns, emitted_ns=now_ns, first_sight=False)))
        return ended

    def end_all(self, now_ns: int) -> list[Event]:
        """Return the last events of all open streams, whose session is gone."""
        self._first_video = self._newest_video + 1
        self.seen = self._begins_anew = False
        return self.end([*self.questions, NARRATION], now_ns)

    def _number(self, event: TextDelta) -> TextDelta:
        """Number a piece of text anew, so that an engine that restarts leaves no gap."""
        stream = self._streams[event.stream_id]
        event = replace(event, seq=stream.next_seq)
        stream.last, stream.next_seq = event, stream.next_seq + 1
        if event.final and event.stream_id != NARRATION:  # Which goes on over its ends.
            del self._streams[event.stream_id]
        return event
