"""The package as a library: what it exports, its simplest call, the README's examples."""

import itertools
from pathlib import Path
import re
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
from session_kit import FRAME, feed, opened
from test_readers import write_video

import sww_ros
from sww_ros.evaluation.random_model import SMALL, random_checkpoint, save_random
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import TICK_S, generate
from sww_ros.streaming import events
from sww_ros.streaming.events import FramesDropped, StepPerceived, TextDelta, Trouble

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = re.findall(r'```python\n(.+?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
STEPS = 4


@pytest.fixture(scope='module')
def frames() -> list[np.ndarray]:
    renderer = Renderer(generate(1001, STEPS + 1.0, max_objects=2))
    return [renderer.frame(number * TICK_S) for number in range(2 * STEPS)]


@pytest.fixture(scope='module')
def checkpoint():
    return random_checkpoint(SMALL, 3, silence_token='<|silence|>', max_steps=50)[1]


@pytest.fixture
def session_threads():
    """Return the threads begun in this test, but that of a progress bar (of loading a model)."""
    before = threading.enumerate()
    return lambda: [thread for thread in threading.enumerate()
                    if thread not in before and type(thread).__name__ != 'TMonitor']


def test_to_import_the_package_loads_no_model_code():
    code = ("import sys, sww_ros; dir(sww_ros); "
            "print(sorted({'torch', 'cv2', 'numpy', 'transformers', 'rclpy'} & {*sys.modules}))")
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, check=True, text=True)
    assert said.stdout.strip() == '[]'


def test_the_streaming_package_needs_no_opencv():
    code = 'import sys, sww_ros.streaming.session; print("cv2" in sys.modules)'
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, check=True, text=True)
    assert said.stdout.strip() == 'False'


def test_public_names_are_at_the_top():
    told = {cls.__name__ for cls in events.Event.__args__}
    assert {'Session', 'SessionClosed', 'SessionConfig', 'narrate', 'NARRATION', *told} <= set(
        sww_ros.__all__)
    for name in sww_ros.__all__:
        assert getattr(sww_ros, name) is not None
        assert name in dir(sww_ros)
    assert sww_ros.TextDelta is TextDelta
    with pytest.raises(AttributeError, match="'sww_ros' has no attribute 'Sessions'"):
        sww_ros.Sessions  # noqa: B018


def test_types_are_for_whoever_installs_it():
    assert (ROOT / 'sww_ros/py.typed').exists()
    assert "PACKAGE: ['py.typed']" in (ROOT / 'setup.py').read_text()


def test_frames_are_narrated_to_their_end(frames, session_threads):
    said = list(sww_ros.narrate(iter(frames)))
    assert any('circle' in sentence.text for sentence in said)
    assert [s.seconds for s in said] == sorted(s.seconds for s in said)
    assert all(0 < s.seconds < STEPS and s.text.endswith('.') for s in said)
    assert not session_threads()


def test_a_folder_and_a_file_are_narrated_as_their_frames_are(frames, tmp_path):
    for number, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / f'{number}.png'), frame[..., ::-1])
    config = sww_ros.SessionConfig(overlap='fused')

    def said(video) -> list[sww_ros.Sentence]:
        return list(sww_ros.narrate(video, config=config))

    assert said(tmp_path) == said(str(tmp_path)) == said(frames) != []
    assert isinstance(said(write_video(tmp_path / 'a.mp4')), list)


def test_whoever_has_heard_enough_may_leave(frames, session_threads):
    narration = sww_ros.narrate(itertools.cycle(frames))
    next(narration)
    assert session_threads()
    narration.close()
    assert not session_threads()


def test_what_cannot_be_narrated_is_refused_in_words(tmp_path, session_threads):
    # At once, not when the first sentence is asked for, after a model has been loaded.
    with pytest.raises(ValueError, match=r'cannot read the video .*nowhere\.mp4'):
        sww_ros.narrate(tmp_path / 'nowhere.mp4', model='no-such-model')
    with pytest.raises(ValueError, match='no pictures in'):
        sww_ros.narrate(tmp_path, model='no-such-model')
    with pytest.raises(ValueError, match='a video file, a folder of pictures, or frames, not 3'):
        sww_ros.narrate(3)
    with pytest.raises(ValueError, match=r'not \(4, 4\)'):
        list(sww_ros.narrate([np.zeros((4, 4), np.uint8)]))
    assert not session_threads()


def test_trouble_ends_a_narration(frames, session_threads, monkeypatch):
    from sww_ros.streaming.perception import Perception
    # In a process of its own, perception would not meet what is broken here.
    config = sww_ros.SessionConfig(overlap='serial')
    narration = sww_ros.narrate(itertools.cycle(frames), config=config)
    next(narration)
    monkeypatch.setattr(Perception, 'embed', lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match='division by zero'):
        list(narration)
    assert not session_threads()


def test_a_model_may_be_a_path(tmp_path):
    save_random(tmp_path, SMALL, 3)
    with sww_ros.Session.open(tmp_path, sww_ros.SessionConfig(overlap='fused')) as session:
        assert session.info['model'] == str(tmp_path)


def test_a_closed_session_says_so_whatever_is_asked_of_it(checkpoint):
    with opened(checkpoint) as session:
        feed(session)
    assert_closed(session, 'the session is closed: open another one')
    assert isinstance([*session.events()][0], StepPerceived)


def test_a_session_that_gave_up_says_why(checkpoint, monkeypatch):
    with opened(checkpoint) as session:
        with monkeypatch.context() as broken:
            broken.setattr(checkpoint.decoder, 'step', lambda chunks: 1 / 0)
            session.reset()
            assert session.wait_idle(30)
        assert [e.fatal for e in session.drain() if isinstance(e, Trouble)][-1]
        assert_closed(session, 'the session is closed, after ZeroDivisionError: division by zero')


def assert_closed(session: sww_ros.Session, words: str) -> None:
    for call in (lambda: session.feed(FRAME), lambda: session.ask('what?'), session.reset,
                 lambda: session.set_prompt('Look.'), lambda: session.pause(True),
                 lambda: session.pause(False)):
        with pytest.raises(sww_ros.SessionClosed, match=words):
            call()
    # All questions have ended, and a question that has ended is left alone.
    session.cancel('q1')
    assert session.wait_idle(1)


@pytest.mark.parametrize('example', EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_of_the_readme_run_and_end(
        example, frames, session_threads, tmp_path, monkeypatch):
    write_video(tmp_path / 'video.mp4')
    monkeypatch.chdir(tmp_path)
    told = []
    names = {'frames': frames, 'print': told.append}
    exec(compile(example, 'README.md', 'exec'), names)
    assert not session_threads()
    if 'Session' in example:
        assert [e.index for e in told if isinstance(e, StepPerceived)] == list(range(STEPS))
        assert not any(isinstance(e, (FramesDropped, Trouble)) for e in told)
        assert sorted(e.stream_id for e in told if isinstance(e, TextDelta) and e.final) == [
            'narration', 'q1']


def test_the_readme_shows_both_ways():
    assert len(EXAMPLES) == 2
    assert len(EXAMPLES[0].strip().splitlines()) <= 4 and 'narrate(' in EXAMPLES[0]
