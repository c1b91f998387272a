"""Overlap is real: decoding runs while a step is being prefilled, speakers share decode steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition
import time

import pytest
from session_kit import feed
from waiting import PATIENCE_S

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import StepPerceived
from sww_ros.streaming.executors import Executor
from sww_ros.streaming.session import Session


class Passes:
    """The passes of a decoder: when each ran and for how many lanes; either kind can be held."""

    def __init__(self, checkpoint) -> None:
        self._honest, self._changed = checkpoint.decoder.step, Condition()
        self.prefills: list[tuple[int, int, int]] = []
        self.decodes: list[tuple[int, int, int]] = []
        self.hold_prefill = self.hold_decode = lambda: False
        self.begun = 0
        """How many prefills have begun."""
        checkpoint.decoder.step = self._step

    def _step(self, chunks):
        decoding, start = chunks[0].predict, time.monotonic_ns()
        with self._changed:
            self.begun += not decoding
            self._changed.notify_all()
        result = self._honest(chunks)
        with self._changed:
            assert self._changed.wait_for(lambda: not (
                self.hold_decode() if decoding else self.hold_prefill()), PATIENCE_S)
            (self.decodes if decoding else self.prefills).append(
                (start, time.monotonic_ns(), len(chunks)))
            self._changed.notify_all()
        return result

    @property
    def overlapping(self) -> int:
        """How many decode steps ran wholly within one prefill."""
        return sum(any(p[0] <= d[0] and d[1] <= p[1] for p in self.prefills)
                   for d in self.decodes)


@contextmanager
def answering(overlap: str) -> Iterator[tuple[Session, Passes]]:
    """Give a session that has seen a step and answers two questions, and its passes."""
    checkpoint = random_checkpoint(SMALL, 5, silence_token='<|silence|>', max_steps=100)[1]
    config = SessionConfig(overlap=overlap, wait_k=4, max_answer_tokens=40,
                           max_pending_frames=100)
    passes = Passes(checkpoint)
    with Session(checkpoint, config) as session:
        feed(session)
        del passes.decodes[:], passes.prefills[:]
        passes.begun = 0
        yield session, passes


def ask_and_feed(session: Session) -> list[StepPerceived]:
    """Return the steps that are perceived while two questions are answered."""
    session.drain()
    session.ask('one?')
    session.ask('two?')
    feed(session, 6)
    return [event for event in session.drain() if isinstance(event, StepPerceived)]


def test_decoding_goes_on_while_a_step_is_prefilled():
    with answering('threads') as (session, passes):
        # The first prefill ends after five decode steps, of which one may have begun before it.
        passes.hold_decode = lambda: not passes.begun
        passes.hold_prefill = lambda: len(passes.decodes) < 5
        steps = ask_and_feed(session)
    assert passes.overlapping >= 4
    ratios = [step.overlap_ns / (step.perceived_ns - step.started_ns) for step in steps]
    assert 0 < max(ratios) and all(0 <= ratio <= 1.001 for ratio in ratios)


def test_narration_and_two_answers_advance_in_the_same_decode_steps():
    with answering('threads') as (session, passes):
        # Nobody goes on before the narration has something to say too.
        passes.hold_decode = lambda: len(passes.prefills) < 6
        ask_and_feed(session)
    assert sum(lanes == 3 for _, _, lanes in passes.decodes) >= 5


def test_the_serial_baseline_never_overlaps():
    with answering('serial') as (session, passes):
        steps = ask_and_feed(session)
    assert passes.decodes and passes.prefills and not passes.overlapping
    assert len(steps) == 6 and all(step.overlap_ns == 0 for step in steps)


def test_an_unknown_executor_is_named():
    with pytest.raises(ValueError, match="unknown overlap 'gpu'"):
        Executor('gpu', None, list)


class _Desk:
    """Hands out numbers as jobs, and notes what comes back; then nothing waits."""

    def __init__(self, count: int) -> None:
        self.left, self.log = list(range(count)), []

    def take(self, rule, wait=True):
        self.log.append(f'take {"and wait" if wait else "at once"}')
        return [self.left.pop(0)] if self.left else ()

    def hand_in(self, results) -> None:
        self.log.append(results)


def test_perception_in_a_process_is_begun_two_at_a_time_and_handed_in_in_order():
    desk, begun = _Desk(4), []

    def begin(jobs):
        begun.append(jobs[0])
        return lambda: [(jobs[0], len(begun))]

    worker = next(each for each in Executor('processes', desk, begin)._workers
                  if each.name == 'perception')
    worker.run()
    assert [each for each in desk.log if isinstance(each, list)] == [
        [(0, 2)], [(1, 3)], [(2, 4)], [(3, 4)]]
    assert desk.log[:2] == ['take and wait', 'take at once']


def test_what_cannot_be_begun_is_told_in_its_turn():
    desk = _Desk(2)

    def begin(jobs):
        if jobs[0] == 1:
            raise ValueError('no')
        return lambda: ['done']

    next(each for each in Executor('processes', desk, begin)._workers
         if each.name == 'perception').run()
    done, failed = (each for each in desk.log if isinstance(each, list))
    assert done == ['done']
    assert (failed[0].jobs, failed[0].message) == ((1,), 'ValueError: no')
