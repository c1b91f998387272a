"""A session on a random checkpoint that says what a test wants, for tests through the façade."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from waiting import PATIENCE_S

from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import Event, QuestionState, TextDelta
from sww_ros.streaming.session import Session

FRAME = np.zeros((56, 56, 3), np.uint8)


@contextmanager
def opened(checkpoint: Checkpoint, **settings) -> Iterator[Session]:
    with Session(checkpoint, SessionConfig(**{'max_pending_frames': 64, **settings})) as session:
        yield session


def feed(session: Session, steps: int = 1, last: bool = False) -> None:
    """Feed whole steps, and wait until all is said of them."""
    for left in reversed(range(2 * steps)):
        session.feed(FRAME, last=last and not left)
    assert session.wait_idle(PATIENCE_S)


def until(session: Session, condition) -> list[Event]:
    """All events up to the first that meets the condition."""
    events: list[Event] = []
    while not events or not condition(events[-1]):
        event = session.poll(PATIENCE_S)
        assert event is not None, f'not among {events}'
        events.append(event)
    return events


def texts(events: list[Event], stream_id: str) -> list[TextDelta]:
    return [e for e in events if isinstance(e, TextDelta) and e.stream_id == stream_id]


def states(events: list[Event], question_id: str) -> list[str]:
    return [e.state for e in events
            if isinstance(e, QuestionState) and e.question_id == question_id]


def speak_only(monkeypatch, checkpoint: Checkpoint, text: str) -> None:
    """Let every token that is chosen be that of a text of one token."""
    token, = checkpoint.encode(text)
    honest = checkpoint.decoder.step

    def step(chunks):
        found = [logits if logits is None else logits.clone() for logits in honest(chunks)]
        for logits in found:
            if logits is not None:
                logits[token] = 1e9
        return found

    monkeypatch.setattr(checkpoint.decoder, 'step', step)
