"""Whether the demo asks, judges, sums up, ends with the right code, and leaves nothing behind."""

from __future__ import annotations

from contextlib import contextmanager
import io
import json
import os
from pathlib import Path
import re
import shlex
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

from narrator_harness import is_gone
import numpy as np
import pytest
from test_console import chunk
from test_readers import write_video
from waiting import PATIENCE_S

from experiments import figures
from sww_ros.demo.__main__ import DemoOptions, advice, bounded, in_words, parse
from sww_ros.demo.processes import ChildDied, Household, children
from sww_ros.demo.record import (
    DemoRecord,
    Exchange,
    NarratedSentence,
    Recording,
    Step,
    percentiles,
    report,
    summarize,
)
from sww_ros.demo.rerun import frames_of
from sww_ros.demo.rerun import write as write_rerun
from sww_ros.shapes.grammar import is_known_question
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import generate
from sww_ros.shapes.truth import Witness
from sww_ros.terminal import Line, PlainDisplay, seconds_since

HERE = Path(__file__).parent
START_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000


def at(seconds: float) -> int:
    return START_NS + round(seconds * SECOND_NS)


@pytest.fixture
def witness() -> Witness:
    return Witness(generate(7, 30.0, 'normal', 2), START_NS)


# Truth.

def test_a_sentence_is_true_once_and_not_too_early(witness: Witness):
    fact = witness.scene.facts[1]
    sentence = fact.claim.sentence
    assert witness.judge(sentence, at(fact.visible_s - 0.1)) is None
    assert witness.judge(sentence, at(fact.visible_s)) is fact
    assert witness.judge(sentence, at(fact.visible_s + 1)) is None
    assert witness.judge('A pink square sings.', at(20.0)) is None


def test_who_begins_anew_may_say_again_who_is_there(witness: Witness):
    first = witness.scene.facts[0]
    assert witness.judge(first.claim.sentence, at(5.0)) is first
    witness.restarted(at(5.0))
    assert witness.judge(first.claim.sentence, at(6.0)) is first
    assert witness.judge(first.claim.sentence, at(6.0)) is None


def test_who_has_another_colour_by_now_may_be_said_to_be_there_again():
    witness = Witness(generate(7, 30.0, 'normal', 2), START_NS)
    painted = next(fact for fact in witness.scene.facts if fact.claim.kind == 'becomes')
    stamp_ns = at(painted.visible_s + 0.1)
    sentence = f'A {painted.claim.argument} {painted.claim.shape} appears.'
    assert witness.judge(sentence, stamp_ns) is None
    witness.restarted(stamp_ns)
    fact = witness.judge(sentence, stamp_ns)
    assert (fact.claim.sentence, fact.object_id) == (sentence, painted.object_id)
    assert witness.judge(sentence, stamp_ns) is None


def test_what_a_restart_allowed_and_was_not_said_is_no_news_after_the_next(witness: Witness):
    first = witness.scene.facts[0]
    assert witness.judge(first.claim.sentence, at(5.0)) is first
    witness.restarted(at(5.0))
    witness.restarted(at(6.0))
    assert witness.judge(first.claim.sentence, at(7.0)) is first
    assert witness.judge(first.claim.sentence, at(7.0)) is None


def test_the_announced_scene_is_the_same_scene(witness: Witness):
    told = json.dumps(dict(seed=7, seconds=30.0, difficulty='normal', max_objects=2,
                           start_stamp_ns=START_NS))
    again = Witness.from_json(told)
    assert (again.scene.facts, again.start_ns) == (witness.scene.facts, START_NS)


def test_questions_differ_in_kind_and_have_true_answers(witness: Witness):
    used = []
    for second in (5.0, 8.0, 11.0, 14.0):
        question = witness.question(at(second), used)
        assert question.kind not in used
        assert witness.answer(question.text, at(second)) == question.answer
        used.append(question.kind)
    assert witness.answer('What is the meaning of life?', at(5.0)) is None


# Figures.

def make_record(witness: Witness | None) -> DemoRecord:
    frames = dict(received=20, perceived=4, dropped=16)
    record = DemoRecord('builtin', 'scene 7', START_NS, 5.0, 6.5, witness, dict(
        seed=7, seconds=30.0, difficulty='normal', max_objects=2))
    record.steps = [Step(0, at(n + 0.5), 2_000_000, 8_000_000, 1_000_000 if n < 9 else None,
                         0.25 * (n % 2), frames) for n in range(10)]
    said = Line('narration', 'A purple square appears.', at(1.5), at(2.5), at(1.6), 0.1, 5)
    nonsense = Line('narration', 'Nonsense.', at(3.5), at(3.5), at(3.6), 0.1, 2)
    record.sentences = [NarratedSentence(said), NarratedSentence(nonsense)]
    if witness is not None:
        record.sentences[0].fact = witness.scene.facts[0]
    record.exchanges = [
        Exchange('How many?', 'count', at(4.0), 'q1', '', Line('q1', 'One.', at(3.5), at(3.5),
                 at(4.25), 0.75, 2, 'stop'), ['One.'] if witness else []),
        Exchange('Why?', refused='it is closed', asked_ns=at(5.0))]
    record.heard = [dict(kind='text', stream=stream, delta='word', at=at(said_s) / 1e9,
                         seen=at(seen_s) / 1e9) for stream, said_s, seen_s in (
        ('narration', 1.6, 1.5), ('narration', 1.61, 1.5), ('narration', 2.6, 2.5),
        ('q1', 4.25, 3.5))]
    return record


def test_a_run_is_written_for_rerun(witness: Witness, tmp_path: Path):
    pytest.importorskip('rerun', reason='rerun-sdk is not installed: requirements/rerun.txt')
    from rerun.chunk import RrdReader
    record, begun_s = make_record(witness), START_NS / 1e9
    said = dict(kind='text', stream='narration', sentence='', end=False, seen=begun_s)
    record.heard = [
        dict(kind='step', video=0, step=3, captured=begun_s + 1, started=begun_s + 1.25,
             perceived=begun_s + 1.5, first=begun_s + 1.75, overlap=0.5),
        dict(said, seq=0, delta='A red', at=begun_s + 1.75),
        dict(said, seq=1, delta=' one.', sentence='A red one.', at=begun_s + 2),
        dict(said, stream='q1', seq=0, delta='One.', end='stop', at=begun_s + 4.5)]
    run = Recording(json.loads(json.dumps(summarize(record))))
    write_rerun(tmp_path / 'run.rrd', run, frames_of(run))
    found: dict[str, list] = {}
    for part in RrdReader(tmp_path / 'run.rrd').stream().to_chunks():
        batch = part.to_record_batch()
        if 'run' in batch.schema.names and part.entity_path != '/camera':
            found.setdefault(part.entity_path, []).extend(zip(
                (at_ns / 1e9 for at_ns in batch.column('run').cast('int64').to_pylist()),
                (value[0] for value in batch.columns[-1].to_pylist())))
        elif part.entity_path == '/camera':
            found.setdefault('frames', []).append(part.num_rows)
    assert sum(found.pop('frames')) == 45
    assert found == {
        '/lanes/perceiving': [(1.25, 'step 3'), (1.5, '')],
        '/lanes/narration': [(1.75, 'A red'), (2.0, '')], '/lanes/q1': [(4.5, '')],
        '/words/narration': [(2.0, 'A red one.')],
        '/words/q1': [(4.0, 'How many?'), (4.5, 'One.')],
        '/latency/first_word_ms': [(1.75, pytest.approx(750))]}


def test_frames_of_a_file_are_those_that_were_watched(witness: Witness, tmp_path: Path):
    run = Recording(json.loads(json.dumps(summarize(make_record(witness)))))
    video = write_video(tmp_path / 'video.mp4')
    times_s, frames = zip(*frames_of(run, str(video)))
    assert times_s[0] == 0 and [*times_s] == sorted(times_s) and times_s[-1] <= run.seconds
    assert frames[0].dtype == np.uint8 and frames[0].shape[2] == 3
    assert [*frames_of(run, '/dev/null')] == []


def test_without_its_package_nothing_is_promised(monkeypatch, capsys):
    monkeypatch.setattr('sww_ros.demo.__main__.find_spec', lambda name: None)
    with pytest.raises(SystemExit):
        parse(['--rerun', 'run.rrd'])
    assert 'rerun-sdk is not installed: pip install -r requirements/rerun.txt' in (
        capsys.readouterr().err)


def test_summary_holds_the_figures(witness: Witness):
    summary = json.loads(json.dumps(summarize(make_record(witness))))
    assert summary['narration'][0] == dict(
        text='A purple square appears.', time=1.5, last_time=2.5, spoken=1.6, latency_s=0.1,
        true=True)
    assert summary['answers'][0]['right'] is True and summary['answers'][0]['truth'] == 'One.'
    assert summary['answers'][1]['answer'] is None
    latency = summary['latency']
    assert latency['callback_to_perceived'] == dict(p50_ms=8.0, p95_ms=8.0, count=10)
    assert latency['perceived_to_first_token']['count'] == 9
    assert latency['capture_to_first_token']['p50_ms'] == 11.0
    assert latency['question_to_first_word']['p50_ms'] == 250.0
    assert latency['token_gap'] == dict(p50_ms=10.0, p95_ms=10.0, count=1)
    # The first fact is visible at the scene's time of its own, the step that shows it ends later.
    first = witness.scene.facts[0].visible_s
    assert latency['event_to_first_word']['p50_ms'] == pytest.approx(1000 * (1.6 - first), abs=.01)
    assert latency['hazard']['count'] >= 3 and 0 < latency['hazard']['p50_ms'] < 1100
    assert summary['overlap_ratio'] == 0.125
    assert summary['tokens'] == dict(narration=3, answers=1, watched_s=9.5, per_s=0.42)
    assert summary['truth']['sentences_true'] == 1 and summary['truth']['answers_right'] == 1


def test_video_has_no_truth_and_silence_no_figures():
    summary = summarize(make_record(None))
    assert summary['truth'] is None and 'hazard' not in summary['latency']
    assert 'true' not in summary['narration'][0]
    empty = summarize(DemoRecord('builtin', 'scene 7'))
    assert empty['frames'] is None and empty['overlap_ratio'] is None
    stream = io.StringIO()
    for told in (summary, empty):
        report(told, stream)
    assert 'not a sentence was completed' in stream.getvalue()


def test_report_shows_the_truth_beside_the_answers(witness: Witness):
    stream = io.StringIO()
    report(summarize(make_record(witness)), stream)
    lines = stream.getvalue().splitlines()
    assert any(line.split() == ['4.0', 's', 'How', 'many?', 'One.', 'One.', 'right']
               for line in lines), lines
    assert any('(refused: it is closed)' in line for line in lines)
    assert any('1 of 2 sentences true' in line for line in lines)
    assert not any(line != line.rstrip() for line in lines)


def test_report_takes_no_markup_from_questions_and_answers():
    record, stream = make_record(None), io.StringIO()
    record.exchanges[0].text, record.exchanges[0].line.text = 'Is it [/b]?', '[red]Yes.'
    report(summarize(record), stream)
    assert 'Is it [/b]?' in stream.getvalue() and '[red]Yes.' in stream.getvalue()


def test_percentiles():
    assert percentiles([]) is None
    assert percentiles([1e6, 2e6, 3e6]) == dict(p50_ms=2.0, p95_ms=2.9, count=3)


def test_picture_shows_what_was_said(witness: Witness, tmp_path: Path):
    pytest.importorskip('matplotlib')
    summary = summarize(make_record(witness))
    assert [moment['time'] for moment in figures.moments(summary)] == [1.5, 3.5, 3.5]
    assert len(figures.moments(summary, count=2)) == 2
    (tmp_path / 'summary.json').write_text(json.dumps(summary))
    out = tmp_path / 'demo.png'
    assert figures.main(['--strip', str(tmp_path / 'summary.json'), str(out)]) == 0
    assert out.read_bytes().startswith(b'\x89PNG') and out.stat().st_size < 800_000


def test_picture_of_a_video_is_refused_in_words(tmp_path: Path, capsys):
    path = tmp_path / 'summary.json'
    path.write_text(json.dumps(summarize(make_record(None)) | dict(scene=None)))
    assert figures.main(['--strip', str(path), str(tmp_path / 'demo.png')]) == 1
    assert 'not a video' in capsys.readouterr().err


# What is shown.

def test_an_answer_waits_for_the_sentence_that_began_before_its_question():
    pytest.importorskip('rclpy')
    from sww_ros.demo.director import DemoEvent, Director
    stream = io.StringIO()
    display = PlainDisplay(stream, ordered=True)
    display.clock = seconds_since(0)
    director = Director(DemoOptions(video='a.mp4'), display, 0.0)
    # What is said when: the sentence ends after the answer.
    for said in (chunk('A red', 0, stamp=1.0), chunk('Two.', 0, 'q1', stamp=2.0),
                 chunk('', 1, 'q1', final='stop', stamp=2.1)):
        director._on_text(DemoEvent('text', said))
    director.record.exchanges.append(Exchange('How many?', asked_ns=2_400_000_000))
    display.question('How many?', 2_400_000_000)
    # The service's response comes last.
    director._on_text(DemoEvent('text', chunk(' one.', 1, sentence='A red one.', stamp=3.0)))
    assert stream.getvalue().splitlines() == [
        '   1.5 s  A red one.  (0.50 s)', '   2.4 s  question: How many?']
    accepted = SimpleNamespace(accepted=True, question_id='q1')
    director._on_asked(DemoEvent('asked', (0, accepted)))
    assert stream.getvalue().splitlines()[2:] == [
        '   2.5 s  answer: Two.  (0.50 s)  not taught to read this']


# Options.

def test_the_script_is_there():
    script = HERE.parent / 'scripts/demo'
    assert os.access(script, os.X_OK)
    subprocess.run(['bash', '-n', str(script)], check=True)


def test_options_have_one_set_of_defaults():
    assert parse([]) == DemoOptions()
    assert parse(['--questions', 'a?', 'b?']).questions == ('a?', 'b?')


@pytest.mark.parametrize('arguments', [
    ['--seconds', '0'], ['--seconds', 'x'], ['--seed', '-1'], ['--json', '/no/such/folder/x'],
    ['--rerun', '/no/such/folder/x']])
def test_bad_options_end_with_words(arguments: list[str], capsys):
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize('option, value, words', [
    ('--seconds', 'abc', "seconds must be a double, not 'abc'"),
    ('--seconds', 'nan', 'seconds must be 1 to 3600, not nan'),
    ('--seed', '-7', 'seed must be 0 to 2147483647, not -7'),
    ('--seed', '7.5', "seed must be an integer, not '7.5'")])
def test_what_is_no_number_is_said_in_the_users_words(option: str, value: str, words: str, capsys):
    with pytest.raises(SystemExit):
        parse([option, value])
    assert f'argument {option}: {words}' in capsys.readouterr().err


@pytest.mark.parametrize('seconds, words', [(30.0, '30 s'), (23.2903, '23.3 s'), (8.02, '8 s')])
def test_times_have_digits_that_mean_something(seconds: float, words: str):
    assert in_words(seconds) == words


def test_the_builtin_says_what_it_knows_where_that_matters():
    assert advice(DemoOptions()) == []
    assert advice(DemoOptions(video='a.mp4', model='/some/model')) == []
    known, = advice(DemoOptions(video='a.mp4'))
    assert 'knows coloured shapes' in known and '--model' in known
    readable = DemoOptions(questions=('What colour is the circle?', 'how many SHAPES are there?'))
    assert advice(readable) == []
    unread, = advice(DemoOptions(questions=('What do you see?', 'Where is the square?')))
    assert '"What do you see?"' in unread and 'Where is the square' not in unread
    assert 'How many shapes are there?' in unread


def test_the_demo_asks_of_a_video_what_the_model_can_read():
    assert all(map(is_known_question, DemoOptions(video='a.mp4').video_questions))
    assert DemoOptions(video='a.mp4', model='/some/model').video_questions[0] == 'What do you see?'
    assert DemoOptions(questions=('Why?',)).video_questions == ('Why?',)


def test_a_video_bounds_the_run(tmp_path: Path, capsys):
    video = write_video(tmp_path / 'a.mp4', count=20, rate=10)
    assert bounded(parse(['--video', str(video)])).seconds == pytest.approx(2.0, abs=0.1)
    with pytest.raises(SystemExit) as caught:
        bounded(parse(['--video', str(tmp_path / 'none.mp4')]))
    assert caught.value.code == 1 and 'there is no file' in capsys.readouterr().err


# Processes.

def test_a_child_that_dies_is_reported_with_its_last_words():
    with Household() as house:
        house.start('cook', [sys.executable, '-c', 'print("no salt"); raise SystemExit(3)'])
        with pytest.raises(ChildDied, match='cook ended with exit code 3\n  no salt'):
            for _ in range(1000):
                house.check()
                time.sleep(0.02)


def test_grandchildren_and_the_deaf_are_ended_too():
    deaf = ('import signal, subprocess, sys, time; '
            'signal.signal(signal.SIGINT, signal.SIG_IGN); '
            'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], '
            'start_new_session=True); print(child.pid, flush=True); time.sleep(600)')
    lines = []
    with Household(lambda _, line: lines.append(line)) as house:
        child = house.start('deaf', [sys.executable, '-c', deaf])
        while not lines:
            time.sleep(0.02)
        house.stop(grace_s=0.2)
    assert is_gone(int(lines[0])) and is_gone(child.process.pid)


# All of it, with real processes and a session without a model.

NARRATOR = ('from sww_ros.nodes.narrator import main; '
            'main(session="fake_session:FakeSession.open")')


@contextmanager
def demo(*arguments: str, narrator: str = NARRATOR):
    pytest.importorskip('rclpy')
    process = subprocess.Popen(
        [sys.executable, '-m', 'sww_ros.demo', *arguments, '--narrator-command',
         shlex.join([sys.executable, '-c', narrator])],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def family(pid: int) -> set[int]:
    """Return all descendants of a process."""
    found: set[int] = set()
    for child in children(pid):
        found |= {child} | family(child)
    return found


def test_demo_narrates_asks_and_sums_up(ros_domain: int, tmp_path: Path):
    summary_file = tmp_path / 'summary.json'
    with demo('--seconds', '6', '--json', str(summary_file)) as process:
        out, err = process.communicate(timeout=5 * PATIENCE_S)
    assert process.returncode == 0, out + err
    summary = json.loads(summary_file.read_text())
    assert summary['narration'][0]['text'] == 'step 0.'
    assert len({answer['kind'] for answer in summary['answers']}) == 3
    for answer in summary['answers']:
        assert answer['answer'] == answer['question'] and answer['truth']
        assert answer['question'] in out
    assert 'capture → callback' in out and 'overlap' in out and summary['frames']['received'] > 10
    assert 'Traceback' not in out + err
    # The measurement comes after the summary, and is announced.
    assert out.index('# measuring') > out.index('narration')
    assert out.index('at full load') > out.index('# measuring')
    load = summary['full_load']
    assert load['summary'][0]['speedup'] > 0 and load['machine']['cores'] > 0
    assert f'with overlap: {load["summary"][0]["chosen"]}' in ' '.join(out.split())


def test_demo_of_a_video_asks_my_questions(ros_domain: int, tmp_path: Path):
    white = np.full((64, 64, 3), 255, np.uint8)
    video = write_video(tmp_path / 'a.mp4', rate=10, frames=40 * [white])
    with demo('--video', str(video), '--questions', 'Is it gray?') as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out + err
    assert 'answer: Is it gray?' in out and 'truth' not in out
    assert out.count('knows coloured shapes') == 1
    assert out.count('warning: this picture is unlike its world: its ground is white') == 1
    assert 'was not taught to read "Is it gray?"' in out
    assert re.search('answer: Is it gray\\?.*not taught to read this', out)
    assert 'full load' not in out


def test_demo_does_not_warn_of_its_own_world(ros_domain: int, tmp_path: Path):
    renderer = Renderer(generate(7, 30.0), 160, 120)
    video = write_video(tmp_path / 'a.mp4', count=20, rate=10,
                        frames=[renderer.frame(5 + n / 10) for n in range(20)])
    with demo('--video', str(video)) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out + err
    assert 'unlike its world' not in out
    for question in DemoOptions(video=str(video)).video_questions:
        assert f'answer: {question}' in out


def test_demo_does_not_miss_the_camera_once_its_video_is_over(ros_domain: int, tmp_path: Path):
    video = write_video(tmp_path / 'a.mp4', count=20, rate=10)
    with demo('--video', str(video), '--questions', 'late') as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out + err
    assert 'answer: late' in out and 'no frame on' not in out


def test_interrupted_demo_leaves_no_process_behind(ros_domain: int):
    with demo() as process:
        for line in process.stdout:
            if 'step 3.' in line:
                break
        started = family(process.pid)
        assert len(started) >= 3  # Narrator, its engine, camera.
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert 'Traceback' not in process.stderr.read()
    assert all(map(is_gone, started))


def test_demo_says_what_died(ros_domain: int):
    with demo(narrator='print("out of breath"); raise SystemExit(4)') as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, out
    assert err == 'demo: narrator ended with exit code 4\n  out of breath\n'
