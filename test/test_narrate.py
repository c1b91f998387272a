"""`python -m sww_ros.narrate`: subtitles, lines and videos; questions; folders; what is refused."""

from __future__ import annotations

from fractions import Fraction
import json
from pathlib import Path
import re
import shutil
import subprocess
import sys

import cv2
from narrate_kit import (
    COMMAND,
    QUESTION,
    RATE,
    SECONDS,
    camera,
    checkpoint,
    long_pictures,
    narrate,
    pictures,
    write_bag,
)
import numpy as np
import pytest

import sww_ros
from sww_ros import recordings
from sww_ros.bags import Capture
from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.library import play_steps
from sww_ros.recordings import viewing
from sww_ros.recordings.viewing import Account
from sww_ros.recordings.writing import cues, write_subtitles
from sww_ros.sources import VideoFile
from sww_ros.streaming.events import NARRATION, TextDelta

av = pytest.importorskip('av')
__all__ = ['checkpoint', 'long_pictures', 'narrate', 'pictures']


def write_video(path: Path, frames: list[np.ndarray]) -> Path:
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mpeg4', rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 84, 84, 'yuv420p'
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope='module')
def video(pictures, tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp('video') / 'in.mp4', pictures)


@pytest.fixture
def unloaded(narrate, monkeypatch):
    """The command, and no model."""
    def refuse(*_, **__):
        raise AssertionError('a model was loaded')

    monkeypatch.setattr(recordings, 'load', refuse)
    return narrate


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_function_keeps_its_name():
    code = ('import sww_ros\ntry:\n    import sww_ros.narrate\nexcept ImportError as error:\n'
            '    print(error)\nprint(callable(sww_ros.narrate))')
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, check=True, text=True)
    assert 'the function sww_ros.narrate\nTrue' in said.stdout


def test_it_is_a_command():
    said = subprocess.run([sys.executable, '-m', 'sww_ros.narrate', 'none.mp4', 'out.vtt'],
                          capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (
        1, 'error: there is no none.mp4: name a bag, a video, or a folder\n')


def test_a_folder_of_pictures_says_what_the_library_says(narrate, pictures, tmp_path):
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for number, frame in enumerate(pictures[::RATE // 2]):
        cv2.imwrite(str(folder / f'{number}.png'), frame[..., ::-1])
    assert narrate(folder, tmp_path / 'out.jsonl') == 0
    config = sww_ros.SessionConfig(schedule='wait_k')
    assert [(each['end'], each['text']) for each in lines(tmp_path / 'out.jsonl')] == list(
        sww_ros.narrate(folder, config=config)) != []
    for each in lines(tmp_path / 'out.jsonl'):
        assert each['stream_id'] == NARRATION and 0 < each['start'] <= each['end'] < SECONDS
        assert each['end_stamp_ns'] == each['end'] * 1e9


def account(*pieces: tuple[int, str, str], asked: dict[str, str] | None = None):
    """Return what was told: seconds, stream, text; a full stop ends a sentence, ! an answer."""
    told, running = [], ''
    for at_s, stream, text in pieces:
        running = running + text if stream == NARRATION else running
        sentence = running if text.endswith('.') and stream == NARRATION else ''
        running = '' if sentence else running
        told.append((TextDelta(
            stream_id=stream, seq=0, delta=text, sentence=sentence, final=text.endswith('!'),
            finish_reason='stop' if text.endswith('!') else '', step=0, steps_seen=0, frames_seen=0,
            stamp_ns=0, started_ns=0, emitted_ns=0, first_sight=False),
            Capture(at_s * 10**9)))
    return Account(told, asked or {})


def test_words_are_shown_from_their_first_token_until_others_come():
    said = account((1, NARRATION, 'A dog'), (2, NARRATION, ' runs.'), (4, NARRATION, ' It'),
                   (4, NARRATION, ' sits.'), (4, NARRATION, ' A cat'), (5, NARRATION, ' comes.'),
                   (20, NARRATION, ' It is cut'))
    assert [tuple(cue) for cue in cues(said)] == [
        (1 * 10**9, 4 * 10**9, 'A dog runs.'), (4 * 10**9, 9 * 10**9, 'It sits. A cat comes.')]
    said = account((1, NARRATION, 'A dog.'), (2, 'q1', 'Yes'), (3, 'q1', ', it is!'),
                   asked={'q1': 'Is it a dog?'})
    assert [tuple(cue) for cue in cues(said)] == [
        (1 * 10**9, 5 * 10**9, 'A dog.'), (2 * 10**9, 7 * 10**9, 'Is it a dog?\nYes, it is!')]


def test_subtitles_are_what_players_read(tmp_path):
    said = account((3661, NARRATION, 'It is <b>1 --> 2</b> & so on.'))
    write_subtitles(tmp_path / 'a.vtt', said)
    write_subtitles(tmp_path / 'a.srt', said)
    assert (tmp_path / 'a.vtt').read_text() == (
        'WEBVTT\n\n1\n01:01:01.000 --> 01:01:05.000\n'
        'It is &lt;b&gt;1 --&gt; 2&lt;/b&gt; &amp; so on.\n')
    assert (tmp_path / 'a.srt').read_text() == (
        '1\n01:01:01,000 --> 01:01:05,000\nIt is <b>1 -> 2</b> & so on.\n')


def test_questions_of_a_file_are_answered_at_their_times(narrate, video, tmp_path):
    questions = tmp_path / 'questions.txt'
    questions.write_text(f'# when: what\n\n7.85: {QUESTION}\n3: {QUESTION}\n')
    assert narrate(video, tmp_path / 'a.jsonl', '--questions', questions) == 0
    answers = [each for each in lines(tmp_path / 'a.jsonl') if 'question' in each]
    assert [each['stream_id'] for each in answers] == ['q1', 'q2']
    assert all(each['question'] == QUESTION and each['finish_reason'] == 'stop'
               and re.search(r'\w', each['text']) for each in answers)
    assert 3 <= answers[0]['start'] < 4.5 and 7 < answers[1]['start'] < SECONDS
    assert narrate(video, tmp_path / 'plain.jsonl') == 0
    # Answers are lanes of their own: the narration is the same.
    assert [each for each in lines(tmp_path / 'a.jsonl') if 'question' not in each] == lines(
        tmp_path / 'plain.jsonl')


@pytest.mark.parametrize('line, words', [
    ('What?', "line 2: 'What?' does not say when"), ('1:', 'line 2: the question is empty'),
    ('99: What?', "cannot ask 'What?' at 99 s: the video ends at 7.9 s")])
def test_a_question_that_cannot_be_asked_is_named(unloaded, video, tmp_path, capsys, line, words):
    (tmp_path / 'questions.txt').write_text(f'1: What?\n{line}\n')
    assert unloaded(video, tmp_path / 'a.vtt', '--questions', tmp_path / 'questions.txt') == 1
    assert words in capsys.readouterr().err


def content(path: Path) -> dict[str, bytes]:
    files = path.rglob('*') if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize('ending', ['.vtt', '.srt', '.jsonl', '.mp4', ''])
def test_interrupted_and_begun_again_it_writes_the_same(narrate, long_pictures, tmp_path,
                                                        monkeypatch, ending):
    source = write_bag(tmp_path / 'in', camera(long_pictures, rate=2))
    (tmp_path / 'questions.txt').write_text(f'4: {QUESTION}\n47.2: {QUESTION}\n')
    options = ['--no-latency', '--questions', tmp_path / 'questions.txt']
    (tmp_path / 'whole').mkdir()
    assert narrate(source, tmp_path / f'whole/out{ending}', *options) == 0
    out = tmp_path / f'out{ending}'

    def interrupted(*arguments, **options):
        for number, events in enumerate(play_steps(*arguments, **options)):
            if number == 50:
                raise KeyboardInterrupt
            yield events

    with monkeypatch.context() as broken:
        broken.setattr(viewing, 'play_steps', interrupted)
        assert narrate(source, out, *options) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in', 'questions.txt', 'whole']
    # One that was killed has left a part behind.
    part = tmp_path / f'.out{ending}.part'
    part.mkdir()
    (part / out.name).write_text('half')
    assert narrate(source, out, *options) == 0
    assert content(out) == content(tmp_path / f'whole/out{ending}') and not part.exists()


def test_a_folder_is_gone_on_with_where_it_was_left(narrate, video, pictures, tmp_path, capsys):
    folder, out = tmp_path / 'in', tmp_path / 'out'
    folder.mkdir()
    shutil.copy(video, folder / 'a.mp4')
    write_bag(folder / 'b', camera(pictures[:30]))
    (folder / 'c.mkv').write_text('no video')
    (folder / 'notes.txt').write_text('no video either')
    assert narrate(folder, out) == 1
    assert 'c.mkv: Invalid data' in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ['a.vtt', 'b.vtt', 'narrate.json']
    words = content(out)
    (out / 'a.vtt').write_text('kept')
    (out / 'b.vtt').unlink()
    write_video(folder / 'c.mkv', pictures[:30])
    assert narrate(folder, out) == 0
    assert f'{out / "a.vtt"}: is there already' in capsys.readouterr().out
    assert content(out) == words | {'a.vtt': b'kept', 'c.vtt': (out / 'c.vtt').read_bytes()}
    assert narrate(folder, out, '--wait-k', '5') == 1
    said = capsys.readouterr().err
    assert 'was begun with other settings: wait_k was not set, and is 5 now' in said


def test_recordings_of_one_name_are_told_apart(narrate, video, tmp_path):
    (tmp_path / 'in').mkdir()
    for name in ('a.mp4', 'a.m4v'):
        shutil.copy(video, tmp_path / 'in' / name)
    assert narrate(tmp_path / 'in', tmp_path / 'out', '--as', 'srt') == 0
    assert {path.name for path in (tmp_path / 'out').glob('*.srt')} == {'a.mp4.srt', 'a.m4v.srt'}


def test_words_are_burned_into_all_pictures_at_their_times(narrate, video, pictures, tmp_path):
    assert narrate(video, tmp_path / 'a.jsonl') == 0
    first = lines(tmp_path / 'a.jsonl')[0]
    assert narrate(video, tmp_path / 'a.mp4') == 0
    with av.open(str(tmp_path / 'a.mp4')) as container:
        shown = [(float(frame.pts * frame.time_base), frame.to_ndarray(format='rgb24'))
                 for frame in container.decode(video=0)]
    assert [at_s for at_s, _ in shown[:len(pictures)]] == pytest.approx(
        [number / RATE for number in range(len(pictures))], abs=1e-3)
    original = {round(frame.offset_ns / 1e9, 3): frame.load()
                for frame in VideoFile(video).frames()}

    def differs(at_s: float) -> float:
        """How far the foot of the picture is from the video's own."""
        pixels = dict(shown)[float(Fraction(at_s).limit_denominator(1000))]
        return float(np.abs(pixels[-20:].astype(int) - original[at_s][-20:]).mean())

    assert differs(0.0) < 8 < 15 < differs(round(first['end'], 3))


def test_a_checkpoint_that_will_disappoint_is_warned_of_once(narrate, video, tmp_path, capsys,
                                                            monkeypatch):
    monkeypatch.setattr(recordings, 'load', lambda *_, **__: random_checkpoint(SMALL, 3)[1])
    (tmp_path / 'in').mkdir()
    for name in ('a.mp4', 'b.mp4'):
        shutil.copy(video, tmp_path / 'in' / name)
    assert narrate(tmp_path / 'in', tmp_path / 'out') == 0
    assert capsys.readouterr().err.count('was not trained to stream') == 1


@pytest.mark.parametrize('source, out, options, words', [
    ('none.mp4', 'a.vtt', [], 'there is no'), ('in.mp4', 'a.txt', [], 'ends in .txt: write .vtt'),
    ('in.mp4', 'there.vtt', [], 'there.vtt is there already'),
    ('in.mp4', 'none/a.vtt', [], 'none is not there'),
    ('in.mp4', 'a.vtt', ['--as', 'srt'], '--as srt is for a folder'),
    ('in.mp4', 'a', ['--carry'], '--carry takes the topics of a bag'),
    ('in.mp4', 'a.vtt', ['--topic', '/image'], '--topic /image'),
    ('text.mp4', 'a.vtt', [], 'cannot read the video'), ('empty', 'a.vtt', [], 'no pictures in'),
    ('folder', 'a.vtt', [], 'is a folder of 1 recordings, and'),
    ('folder', 'folder', ['--as', 'mp4'], 'holds the recordings themselves'),
    ('mixed', 'a', [], 'holds pictures and recordings')])
def test_what_cannot_be_is_said_before_a_model_is_loaded(unloaded, video, tmp_path, capsys, source,
                                                         out, options, words):
    for folder in ('empty', 'folder', 'mixed'):
        (tmp_path / folder).mkdir()
    for copy in ('in.mp4', 'folder/in.mp4', 'mixed/in.mp4'):
        shutil.copy(video, tmp_path / copy)
    for name in ('text.mp4', 'there.vtt', 'mixed/1.png'):
        (tmp_path / name).write_text('text')
    before = sorted(tmp_path.rglob('*'))
    assert unloaded(tmp_path / source, tmp_path / out, *options) == 1
    assert words in capsys.readouterr().err
    assert sorted(tmp_path.rglob('*')) == before


def test_help_tells_all_that_can_be_written_and_set(capsys):
    with pytest.raises(SystemExit):
        COMMAND['main'](['--help'])
    said = capsys.readouterr().out
    page = (Path(__file__).resolve().parents[1] / 'docs/recordings.md').read_text()
    for word in ('.vtt', '.srt', '.jsonl', '.mp4', 'bag', '--topic', '--questions', '--carry',
                 '--as', '--no-latency', '--model', '--device', 'nterrupted'):
        assert word in said, word
        assert word in page, word
