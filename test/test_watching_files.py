"""`python -m sww_ros`: what is wrong is said before a model is loaded; what runs is shown."""

import os
import re

import numpy as np
import pytest
from video_kit import write_video

from sww_ros.__main__ import main
from sww_ros.streaming.session import Session


class Loaded(Exception):
    """A model was loaded."""


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / 'a.mp4', range(0, 4000, 250))


@pytest.fixture
def unloaded(monkeypatch):
    def load(*_):
        raise Loaded

    monkeypatch.setattr(Session, 'open', load)


@pytest.fixture
def strange(tmp_path, video):
    """Paths by what is strange about them."""
    os.mkfifo(tmp_path / 'fifo')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.mp4').write_text('no video')
    return dict(missing=tmp_path / 'none.mp4', fifo=tmp_path / 'fifo', empty=tmp_path / 'empty',
                text=tmp_path / 'text.mp4')


@pytest.mark.parametrize('kind, words', [
    ('missing', 'No such file'), ('fifo', 'is neither a file nor a folder'),
    ('empty', 'no pictures in'), ('text', 'cannot read the video')])
def test_a_video_that_cannot_be_read_loads_nothing(unloaded, strange, capsys, kind, words):
    assert main([str(strange[kind])]) == 1
    said = capsys.readouterr().err
    assert words in said and str(strange[kind]) in said


@pytest.mark.parametrize('place, words', [
    ('none/run.safetensors', 'none is not there'), ('.', 'is a folder'),
    ('a.mp4/run.safetensors', 'a.mp4 is not a folder')])
def test_a_trace_that_cannot_be_written_loads_nothing(unloaded, video, capsys, place, words):
    assert main([str(video), '--trace', str(video.parent / place)]) == 1
    assert words in capsys.readouterr().err


def test_a_question_past_the_end_loads_nothing(unloaded, video, capsys):
    assert main([str(video), '--ask', '1: What?', '--ask', '99: And now?']) == 1
    said = capsys.readouterr().err
    assert '99 s' in said and 'And now?' in said and 'ends at 3.751 s' in said


@pytest.mark.parametrize('question', ['5:', '-1: What?', 'nan: What?', 'inf: What?',
                                      '1: ' + 'x' * 3000],
                         ids=['empty', 'before', 'nan', 'inf', 'long'])
def test_a_question_that_cannot_be_asked_is_refused_at_once(unloaded, video, capsys, question):
    with pytest.raises(SystemExit):
        main([str(video), '--ask', question])
    assert 'argument --ask' in capsys.readouterr().err


def test_a_question_past_the_last_picture_of_a_folder_is_found_before_it_is_watched(tmp_path,
                                                                                    capsys):
    import cv2
    for index in range(4):
        cv2.imwrite(str(tmp_path / f'{index}.png'), np.zeros((84, 84, 3), np.uint8))
    assert main([str(tmp_path), '--ask', '99: What?']) == 1
    printed = capsys.readouterr()
    assert 'ends at 2 s' in printed.err and not printed.out


def test_a_question_at_the_very_end_is_answered(video, capsys):
    """The last frame that is perceived is a quarter of a second before the end."""
    assert main([str(video), '--ask', '3.7: How many shapes are there?']) == 0
    assert 'How many shapes are there? → ' in capsys.readouterr().out


def test_what_happens_is_told_while_it_is_waited_for(video, capsys):
    assert main([str(video)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == 'loading the model builtin'
    assert re.match(r'a step of 1 s takes about [\d.]+ s here, a token [\d.]+ s', said[1]), said[1]
