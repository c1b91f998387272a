"""The loop that plays a clip: what is fed when, whose events come when, which runs are refused."""

import numpy as np
import pytest

from sww_ros.library import ClipError, play_steps, settle
from sww_ros.streaming.events import FramesDropped, Restarted, Trouble

FRAME = np.zeros((2, 2, 3), np.uint8)
DROPPED = FramesDropped('error', 3)


class Rests:
    """A session that rests after so many waits; each wait brings events of its own."""

    info = dict(frames_per_step=2)

    def __init__(self, *events: list):
        self.fed, self._events, self._waits = [], [*events], 0

    def feed(self, pixels: np.ndarray, stamp_ns: int, last: bool) -> None:
        self.fed.append((stamp_ns, last))

    def wait_idle(self, timeout_s: float) -> bool:
        self._waits += 1
        return self._waits >= len(self._events)

    def drain(self) -> list:
        return self._events[self._waits - 1] if self._waits <= len(self._events) else []


@pytest.mark.parametrize('ends', [True, False])
def test_a_step_is_fed_once_all_is_said_of_the_one_before(ends):
    session, fed = Rests(), []
    for events in play_steps(session, ((FRAME, stamp) for stamp in range(5)), ends=ends):
        assert list(events) == []
        fed.append(len(session.fed))
    assert fed == [2, 4, 5], 'the last step is not whole'
    assert session.fed == [*((stamp, False) for stamp in range(4)), (4, ends)]


def test_events_come_before_the_session_rests():
    events = settle(Rests([Restarted('prompt')], [], [Restarted('reset')]))
    assert next(events) == Restarted('prompt')
    assert list(events) == [Restarted('reset')]


def test_the_reason_of_frames_dropped_is_told_although_it_comes_later():
    with pytest.raises(ClipError, match='trouble in the engine: no memory left'):
        list(settle(Rests([DROPPED], [Trouble('no memory left', '', False)])))
    with pytest.raises(ClipError, match=r'3 frames were dropped \(error\)'):
        list(settle(Rests([DROPPED], [])))
    assert list(settle(Rests([DROPPED], []), lossless=False)) == [DROPPED]


def test_a_session_that_does_not_rest_is_left():
    with pytest.raises(ClipError, match='did not come to rest within 0 s'):
        list(settle(Rests([], [], []), patience_s=0.0))
