"""The core alone: inputs in, events and jobs out; no thread, no clock, no model."""

from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.core import Core
from sww_ros.streaming.jobs import Fed, Frame, Opened, Perceived, Reset


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
