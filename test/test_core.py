"""The core alone: inputs in, events and jobs out; no thread, no clock, no model."""

from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.core import Core
from sww_ros.streaming.events import QuestionState
from sww_ros.streaming.jobs import Asked, Fed, Frame, Opened, Perceived, Prompted, Reset, Ticked

SECOND_NS = 1_000_000_000


def make(serial: bool = False, **settings) -> Core:
    return Core(SessionConfig(**settings), prompt='?', wait_k=2, max_steps=8, frames_per_step=1,
                serial=serial)


def feed(core: Core, last: bool = False) -> list:
    return core.handle(Fed(Frame(None, last=last)), 0)


def perceive(core: Core) -> list:
    """Perceive a frame, after the prefix where a video begins."""
    events = feed(core)
    if not core.video.opened:
        events += core.handle(Opened(core.next_perception()), 0)
    return events + core.handle(Perceived(core.next_perception()), 0)


def test_interleaved_no_video_is_opened_while_a_word_about_the_last_one_is_computed():
    core = make(serial=True)
    perceive(core)
    assert core.next_decode(0)
    core.handle(Reset(), 0)
    assert core.next_perception() is None


def test_the_only_step_of_a_video_lets_a_question_in_that_waits_for_it():
    """The next video had begun by then; with a step each, a question waited for ever."""
    core = make(narrate=False)
    core.handle(Asked('a', ()), 0)
    feed(core, last=True)
    events = perceive(core)
    assert [(e.question_id, e.state) for e in events if isinstance(e, QuestionState)] == [
        ('a', 'answering')]
    assert core.next_decode(0).turns[0].video.number == 0 != core.video.number


def test_waiting_for_a_place_is_not_waiting_for_a_video():
    """Another video began, and a question that had waited for a place was ended as `no_video`."""
    core = make(max_answers=1, question_timeout_s=2.0)
    perceive(core)
    core.handle(Asked('a', ()), 0)
    core.handle(Asked('b', ()), 0)
    assert core.open_questions == ['a', 'b']
    core.handle(Prompted('!'), 3 * SECOND_NS)
    assert core.deadline_ns == 5 * SECOND_NS
    assert core.handle(Ticked(), 3 * SECOND_NS) == []
    # A video of which nothing was seen leaves it as it is: prompts do not put it off for ever.
    core.handle(Prompted('?'), 4 * SECOND_NS)
    events = core.handle(Ticked(), 5 * SECOND_NS)
    assert [(e.stream_id, e.finish_reason) for e in events] == [('b', 'no_video')]
