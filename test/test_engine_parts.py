"""The engine's parts without a process: wire, sampler, memory, open streams."""

from dataclasses import replace
import socket
import threading

from hypothesis import given, settings, strategies
import numpy as np
import pytest

from sww_ros.engine.supervision import OpenAnswers
from sww_ros.frames import FrameChoice, FrameSampler
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import (
    NARRATION,
    FirstSight,
    QuestionState,
    Restarted,
    StepPerceived,
    TextDelta,
)
from sww_ros.wire import BUFFER_BYTES, MAX_PAYLOAD_BYTES, PREFIX, Channel

SECOND = 1_000_000_000
NOW = 9
DELTA = TextDelta('q', 0, 'a', '', False, '', 3, 4, 8, 5, 0, 0, False)


def taken(sampler: FrameSampler, stamps: list[int]) -> list[int]:
    return [stamp for stamp in stamps
            if sampler.choose(stamp) in (FrameChoice.TAKE, FrameChoice.RESTART)]


def test_channel_carries_whole_messages_both_ways():
    a, b = (Channel(end) for end in socket.socketpair())
    pixels = np.arange(3 * 640 * 480, dtype=np.uint8).reshape(480, 640, 3)
    sender = threading.Thread(target=lambda: [
        a.send({'n': i, 'word': 'grün'}, pixels.data) for i in range(3)])
    sender.start()
    for i in range(3):
        header, payload = b.receive()
        assert header == {'n': i, 'word': 'grün'}
        assert np.array_equal(np.frombuffer(payload, np.uint8).reshape(pixels.shape), pixels)
    sender.join()
    b.send({})
    assert a.wait_readable(1.0)
    assert a.receive() == ({}, b'')
    assert not a.wait_readable(0.0)
    b.close()
    assert a.receive() is None
    with pytest.raises(OSError):
        a.send({}, bytes(1 << 20))


class CountedSocket:
    """A socket, and how often it was called to send or to receive."""

    def __init__(self, end: socket.socket) -> None:
        self._end, self.fileno, self.calls = end, end.fileno, 0

    def sendall(self, data: bytes) -> None:
        self.calls += 1
        self._end.sendall(data)

    def recv_into(self, room: memoryview) -> int:
        self.calls += 1
        return self._end.recv_into(room)


def test_channel_has_small_messages_go_and_come_in_one_call_each():
    """Or in fewer: each call waits for the interpreter, where another thread computes."""
    ours, theirs = map(CountedSocket, socket.socketpair())
    a, b = Channel(ours), Channel(theirs)
    sizes = (0, 21_168, 5, 30_000)
    for size in sizes:
        a.send({'size': size}, bytes(size))
    assert ours.calls == 4
    for count, size in enumerate(sizes):
        assert b.receive() == ({'size': size}, bytes(size))
        assert b.wait_readable(0.0) == (count < 3), 'what has come is not forgotten'
    assert theirs.calls == 1


@pytest.mark.parametrize('size', [BUFFER_BYTES - 100, BUFFER_BYTES, BUFFER_BYTES + 1, 1_000_000])
def test_channel_carries_messages_about_as_large_as_its_buffer(size: int):
    a, b = (Channel(end) for end in socket.socketpair())
    pixels = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    sender = threading.Thread(target=lambda: [a.send({'n': n}, pixels.data) for n in range(3)])
    sender.start()
    for n in range(3):
        assert b.receive() == ({'n': n}, pixels.tobytes())
    sender.join()
    a.close()
    assert b.receive() is None


def test_channel_refuses_what_is_too_large():
    sender, end = socket.socketpair()
    channel = Channel(end)
    with pytest.raises(ValueError, match='too large'):
        channel.send({'x': 'x' * (1 << 21)})
    sender.sendall(PREFIX.pack(2, MAX_PAYLOAD_BYTES + 1))
    with pytest.raises(ValueError, match='too large'):
        channel.receive()
    sender.close()
    channel.close()


@pytest.mark.parametrize('camera_rate', [2.0, 3.0, 5.0, 10.0, 15.0, 29.97, 30.0, 60.0])
def test_sampler_takes_the_rate_of_the_model_from_any_faster_camera(camera_rate: float):
    stamps = [round(i * SECOND / camera_rate) for i in range(round(camera_rate * 60))]
    assert len(taken(FrameSampler(2.0), stamps)) == pytest.approx(120, abs=1)


@given(strategies.lists(strategies.integers(-100_000_000, 100_000_000), min_size=20, max_size=40))
@settings(max_examples=50, deadline=None)
def test_sampler_loses_no_frame_of_a_jittering_camera_of_its_own_rate(jitter: list[int]):
    stamps = [i * SECOND // 2 + shift for i, shift in enumerate(jitter)]
    assert len(taken(FrameSampler(2.0), stamps)) >= len(stamps) - 1


@given(strategies.lists(strategies.integers(0, 2 * SECOND), max_size=60))
@settings(max_examples=100, deadline=None)
def test_sampler_keeps_taken_frames_half_a_period_apart(gaps: list[int]):
    stamps = [sum(gaps[:i]) for i in range(len(gaps))]
    kept = taken(FrameSampler(2.0), stamps)
    assert all(b - a >= SECOND // 4 for a, b in zip(kept, kept[1:]))


def test_sampler_begins_anew_when_stamps_jump_back():
    sampler = FrameSampler(2.0)
    times = (100, 100.1, 100.05, 100.5, 2, 2.1, 2.1, 2.5)
    choices = [sampler.choose(round(t * SECOND)) for t in times]
    assert [choice.value for choice in choices] == [
        'take', 'skip', 'old', 'take', 'restart', 'skip', 'old', 'take']
    sampler.reset()
    assert sampler.choose(2 * SECOND) is FrameChoice.TAKE
    with pytest.raises(ValueError, match='positive'):
        FrameSampler(0.0)


@pytest.mark.parametrize('policy, room', [('queue', 3), ('reject', 1), ('interrupt', 9)])
def test_questions_are_admitted_as_the_policy_says(policy: str, room: int):
    streams = OpenAnswers(SessionConfig(max_answers=1, max_queued=2, question_policy=policy))
    assert [streams.admit(str(i)) for i in range(9)] == [i < room for i in range(9)]
    assert streams.questions == [str(i) for i in range(room)]


def test_streams_end_once_and_without_gaps():
    streams = OpenAnswers(SessionConfig())
    assert streams.follow(DELTA, NOW) == []
    assert streams.admit('q')
    assert streams.follow(DELTA, NOW) == [DELTA]
    narrated = replace(DELTA, stream_id=NARRATION, seq=70)
    assert [e.seq for _ in range(3) for e in streams.follow(narrated, NOW)] == [0, 1, 2]
    ends = streams.end_all(NOW)
    assert [(e.stream_id, e.seq, e.final, e.finish_reason, e.step) for e in ends] == [
        ('q', 1, True, 'error', 3), (NARRATION, 3, True, 'error', 3)]
    assert streams.end_all(NOW) == []
    assert streams.follow(DELTA, NOW) == []
    assert [e.seq for e in streams.follow(narrated, NOW)] == [4]


def test_a_question_taken_back_ends_for_the_reason_it_was_taken_back_for():
    streams = OpenAnswers(SessionConfig())
    cancelled = replace(DELTA, final=True, finish_reason='cancelled')
    for name, ended in (('deactivated', cancelled), ('timeout', cancelled),
                        ('timeout', replace(cancelled, finish_reason='stop')), ('', cancelled)):
        assert streams.admit('q')
        assert streams.name_end('q', name) if name else True
        told, = streams.follow(ended, NOW)
        assert told.finish_reason == ('stop' if ended.finish_reason == 'stop'
                                      else name or 'cancelled')
    assert not streams.name_end('q', 'timeout')
    assert streams.admit('q')
    assert [e.finish_reason for e in streams.end(['q', 'unknown'], NOW, 'deactivated')] == [
        'deactivated']
    assert streams.follow(cancelled, NOW) == []


def test_what_has_been_seen_is_of_the_current_video():
    streams, step = OpenAnswers(SessionConfig()), StepPerceived(0, *range(10))
    assert not streams.seen
    streams.follow(step, NOW)
    assert streams.seen
    streams.begin_anew()
    streams.follow(step, NOW)  # Was on its way, and is of the video before.
    assert not streams.seen
    streams.follow(Restarted('reset', 1), NOW)
    assert not streams.seen
    streams.follow(replace(step, video=1), NOW)
    assert streams.seen
    streams.follow(Restarted('relay', 1), NOW)
    assert streams.seen
    streams.follow(Restarted('capacity', 2), NOW)
    assert not streams.seen
    streams.follow(replace(step, video=2), NOW)
    streams.end_all(NOW)
    assert not streams.seen


def test_an_engine_that_restarts_goes_on_counting_videos():
    streams = OpenAnswers(SessionConfig())
    events = [Restarted('reset', 1), FirstSight(0, 0, 0, 0, video=1), Restarted('ended', 2)]
    assert [e.video for event in events for e in streams.follow(event, NOW)] == [1, 1, 2]
    streams.end_all(NOW)
    assert [e.video for e in streams.follow(FirstSight(0, 0, 0, 0), NOW)] == [3]
    assert [e.video for event in events for e in streams.follow(event, NOW)] == [4, 4, 5]


def test_a_rejected_question_ends():
    streams = OpenAnswers(SessionConfig())
    streams.admit('q')
    told = streams.follow(QuestionState('q', 'rejected', 'full'), NOW)
    assert [type(event) for event in told] == [QuestionState, TextDelta]
    assert (told[1].final, told[1].finish_reason, told[1].step) == (True, 'error', -1)
    assert streams.questions == []
