"""Overlap is real: decoding runs while a step is being prefilled, speakers share decode steps."""

from contextlib import contextmanager
import time

import numpy as np
import pytest

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import StepPerceived
from sww_ros.streaming.executors import Executor
from sww_ros.streaming.session import Session

FRAME = np.zeros((56, 56, 3), np.uint8)
PREFILL_S, DECODE_S = 0.03, 0.004


@contextmanager
def instrumented(checkpoint):
    """Make both stages take a known time, and note when each ran and for how many lanes."""
    decoder, honest = checkpoint.decoder, checkpoint.decoder.step
    prefills, decodes = [], []

    def step(chunks):
        decoding = chunks[0].predict
        start = time.monotonic_ns()
        result = honest(chunks)
        time.sleep(DECODE_S if decoding else PREFILL_S)
        (decodes if decoding else prefills).append((start, time.monotonic_ns(), len(chunks)))
        return result

    decoder.step = step
    try:
        yield prefills, decodes
    finally:
        del decoder.step


def inside(decodes, prefills) -> int:
    """How many decode steps ran wholly within one prefill."""
    return sum(any(p[0] <= d[0] and d[1] <= p[1] for p in prefills) for d in decodes)


def play(overlap: str):
    _, checkpoint = random_checkpoint(SMALL, 5, silence_token='<|silence|>', max_steps=100)
    config = SessionConfig(overlap=overlap, wait_k=4, max_answer_tokens=40,
                           max_pending_frames=100)
    with instrumented(checkpoint) as (prefills, decodes), Session(checkpoint, config) as session:
        session.feed(FRAME)
        session.feed(FRAME)
        assert session.wait_idle(30)
        session.ask('one?')
        session.ask('two?')
        for _ in range(12):
            session.feed(FRAME)
        assert session.wait_idle(60)
        steps = [e for e in session.drain() if isinstance(e, StepPerceived)]
    return prefills, decodes, steps


def test_decoding_goes_on_while_a_step_is_prefilled():
    prefills, decodes, steps = play('threads')
    assert inside(decodes, prefills) >= 5
    ratios = [e.overlap_ns / (e.perceived_ns - e.started_ns) for e in steps[1:]]
    assert max(ratios) > 0.5
    assert all(0 <= ratio <= 1.001 for ratio in ratios)


def test_narration_and_two_answers_advance_in_the_same_decode_steps():
    _, decodes, _ = play('threads')
    assert sum(lanes == 3 for _, _, lanes in decodes) >= 5


def test_the_serial_baseline_never_overlaps():
    prefills, decodes, steps = play('serial')
    assert inside(decodes, prefills) == 0
    assert all(e.overlap_ns == 0 for e in steps)


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
