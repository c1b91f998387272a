"""Schedules: what is granted, what is seen, and that the live run obeys."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.schedule import SCHEDULES, NarrationBudget, make_schedule, spread
from sww_ros.streaming.session import Session

STREAMING = [name for name in SCHEDULES if name != 'offline']


@given(k=st.integers(1, 6), steps=st.integers(1, 20), index=st.integers(0, 80))
def test_wait_k_is_the_training_rule(k, steps, index):
    """Token j sees steps 0..min(floor(j / K), F - 1), as the paper trains it."""
    assert make_schedule('wait_k', k).sees(index, steps) == min(index // k, steps - 1) + 1


def test_what_is_due_is_said_as_soon_as_it_may_be():
    assert spread([[1, 2, 3], [], [4], [5, 6]], [2, 2, 2, 1], 0) == [1, 2, 3, 0, 4, 0, 5]


@given(name=st.sampled_from(STREAMING), k=st.integers(1, 6), seed=st.integers(0, 99))
def test_no_token_sees_what_was_not_there_when_it_was_granted(name, k, seed):
    schedule = make_schedule(name, k, seed)
    for steps in range(1, 12):
        before, after = schedule.granted(steps - 1), schedule.granted(steps)
        drawn = range(max(1, k // 2), k + 1)
        assert after - before in (drawn if name == 'random_wait_k' else [k])
        for index in range(before, after):
            assert schedule.sees(index, steps) == schedule.step_of(index) == steps
            if name != 'live':
                assert schedule.sees(index, steps + 5) == steps, 'perception may run ahead'


def test_the_cap_forfeits_the_oldest():
    budget = NarrationBudget(make_schedule('live', 3), cap=6)
    budget.perceived(10)
    assert (budget.left, budget.index) == (6, 24)
    budget.spend()
    budget.rest()
    assert budget.left == 0
    budget.perceived(11)
    assert budget.left == 3


def test_once_the_video_has_ended_the_rest_is_due():
    budget = NarrationBudget(make_schedule('wait_k', 3), rest_tokens=5)
    budget.perceived(2)
    for _ in range(6):
        budget.spend()
    assert budget.left == 0
    budget.perceived(2, ended=True)
    assert (budget.left, budget.owner, budget.sees, budget.in_rest) == (5, 2, 2, True)
    budget.rest()
    budget.perceived(2, ended=True)
    assert budget.left == 0, 'what has been given up is not granted again'


def test_offline_says_nothing_before_the_end():
    budget = NarrationBudget(make_schedule('offline', 3), rest_tokens=40)
    budget.perceived(9)
    assert budget.left == 0
    budget.perceived(10, ended=True)
    assert (budget.left, budget.owner, budget.sees) == (40, 10, 10)


@pytest.mark.parametrize('name', STREAMING)
def test_a_live_run_obeys_its_schedule(name):
    _, checkpoint = random_checkpoint(SMALL, 3, silence_token='<|silence|>', max_steps=50)
    config = SessionConfig(schedule=name, wait_k=2, record_trace=True, max_pending_frames=40)
    with Session(checkpoint, config) as session:
        for _ in range(12):
            session.feed(np.zeros((56, 56, 3), np.uint8))
        assert session.wait_idle(30)
        trace = session.trace()
    schedule = make_schedule(name, 2)
    spoken = trace.sees[trace.predicted >= 0].tolist()
    if name == 'live':
        assert spoken == sorted(spoken)
    else:
        assert not checkpoint.vocabulary.stop & set(trace.predicted.tolist()), (
            'after the end of a turn this test would compare other things: take another seed')
        assert spoken == [schedule.sees(i, 6) for i in range(len(spoken))]
        assert len(spoken) == schedule.granted(6)


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="unknown schedule 'later'; one of live, wait_k"):
        make_schedule('later', 3)
    with pytest.raises(ValueError, match='schedule must be one of'):
        SessionConfig(schedule='later')


@pytest.mark.parametrize('name', SCHEDULES)
def test_what_is_left_of_a_schedule_grants_what_it_would_have_granted(name):
    """A stream that relieves another goes on with its schedule, and remembers none of its past."""
    whole = make_schedule(name, 4, seed=7)
    whole.granted(3)
    rest = whole.after(5).after(2)
    assert [rest.granted(steps) for steps in range(20)] == [
        whole.granted(7 + steps) - whole.granted(7) for steps in range(20)]
    if name != 'offline':
        first = whole.granted(7)
        for index in range(30):
            assert rest.step_of(index) == whole.step_of(first + index) - 7
            assert rest.sees(index, 9) == whole.sees(first + index, 16) - 7


def test_what_is_left_of_a_budget_is_spent_by_the_next_stream():
    budget = NarrationBudget(make_schedule('wait_k', 3), None, 5)
    budget.perceived(6)
    for _ in range(14):
        budget.spend()
    rest = budget.after(4)
    assert (rest.left, rest.owner, rest.sees) == (budget.left, 1, 1) == (4, 1, 1)
    rest.perceived(3)
    assert rest.left == 7
    # What is owed about steps that are left behind is forfeited, and not more.
    assert budget.after(5).left == 3 and budget.after(5).owner == 1


@pytest.mark.parametrize('name', ['live', 'wait_k'])
def test_tokens_may_be_granted_for_several_steps_at_once(name):
    schedule = make_schedule(name, 4, every=2)
    assert [schedule.granted(steps) for steps in range(6)] == [0, 0, 4, 4, 8, 8]
    assert [schedule.step_of(index) for index in (0, 3, 4, 8)] == [2, 2, 4, 6]
