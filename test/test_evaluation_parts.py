"""The parts of evaluation: lateness, scores, clips, the log of a run, settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sww_ros.evaluation.__main__ import main
from sww_ros.evaluation.clips import ClipLog, Played, Said, lateness, read_clips
from sww_ros.evaluation.run import MIN_CLIPS, score_texts
from sww_ros.models.loading import load
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.training.annotations import Report

pytest.importorskip('av')

CLIPS = Path(__file__).resolve().parents[1] / 'test/data/clips'
CAPTIONS, QUESTIONS = CLIPS / 'pe_video.jsonl', CLIPS / 'funqa.json'


@pytest.fixture(scope='module')
def builtin() -> Checkpoint:
    return load('builtin')


def test_lateness_by_hand():
    clips = [Played(4, (Said(1, 3, ''), Said(3, 3, ''), Said(4, 6, ''))),
             Played(2, (Said(2, 4, ''),)), Played(2, ())]
    found = lateness(clips, 2, 1.5)
    assert found == dict(
        silent=1, before_end=6 / 16, first_step=1.5, median_first_step=1.5, first_s=2.25,
        median_first_s=2.25, tail_s=(6 + 4) / 2 / 2 * 1.5, median_tail_s=3.75, tokens=16 / 3,
        median_tokens=4)
    assert lateness([Played(2, ())], 2, 1.0) == dict(silent=1, tokens=0, median_tokens=0)


def test_scores_of_each_clip_and_intervals():
    wanted = [f'A {color} {shape} appears and it moves away.' for color in (
        'red', 'green', 'blue', 'yellow') for shape in ('circle', 'square', 'triangle')]
    said = [text if i % 3 else 'A red square appears.' for i, text in enumerate(wanted)]
    found = score_texts(said, wanted, seed=1)
    assert found.metrics['METEOR'] == pytest.approx(np.mean(found.of_each['METEOR']))
    for name, (low, high) in found.intervals.items():
        assert low < found.metrics[name] < high, name
    assert found == score_texts(said, wanted, seed=1) != score_texts(said, wanted, seed=2)
    few = MIN_CLIPS - 1
    assert score_texts(said[:few], wanted[:few]).intervals == {}


def test_bleurt_and_a_judge_join_in():
    bleurt = SimpleNamespace(mean=lambda said, wanted: 0.5 + (said[0] == wanted[0][0]) / 4)
    judge = SimpleNamespace(rate=lambda text: len(text) if text else None)
    wanted = ['x', 'y', 'z'] * 4
    found = score_texts(['x', '', 'zzz'] * 4, wanted, bleurt=bleurt, judge=judge)
    assert found.metrics['BLEURT'] == pytest.approx((75 + 50 + 50) / 3)
    assert (found.metrics['fluency'], found.judged) == (2, 8)
    assert {'BLEURT', 'fluency'} < set(found.intervals)


def test_clips_of_all_forms(tmp_path: Path):
    report = Report()
    clips = read_clips([CAPTIONS, QUESTIONS], prompt='What now?', report=report)
    assert len(clips) == report.kept == 20
    assert {clip.prompt for clip in clips[:10]} == {'What now?'}
    assert clips[10].prompt == 'Did the triangle stop?'
    (tmp_path / 'a.mp4').touch()
    mixed = tmp_path / 'a.jsonl'
    mixed.write_text('no JSON\n{"video": "a.mp4", "caption": "..."}\n'
                     '{"video": "a.mp4", "caption": "A cat."}\n')
    report = Report()
    assert [clip.answer for clip in read_clips([mixed], prompt='?', report=report)] == ['A cat.']
    assert (report.kept, report.left_out) == (1, {'malformed': 1, 'without words': 1})
    mixed.write_text('{"video": "a.mp4"}\n')
    with pytest.raises(ValueError, match='has one of bag, text_stream, caption, instruction, '
                       'question: give'):
        read_clips([mixed], prompt='?')
    mixed.write_text('{"video": "a.mp4", "caption": "x", "question": "?!", "answer": "A cat."}\n')
    said = {form: read_clips([mixed], prompt='?', form=form)[0].prompt for form in ('', 'funqa')}
    assert said == {'': '?', 'funqa': '?!'}


def test_paper_filter_is_for_captions(builtin: Checkpoint):
    clips = read_clips([CAPTIONS, QUESTIONS], prompt='?', tokenizer=builtin.tokenizer)
    assert len(clips) == 9 + 10


def test_log_refuses_what_is_not_its_own(tmp_path: Path):
    path = tmp_path / 'a.jsonl'
    ClipLog(path, dict(a=1)).add('wait_k', 3, dict(said=()))
    assert ClipLog(path, dict(a=1)).get('wait_k', 3) == dict(said=[])
    with pytest.raises(ValueError, match='a was 1, is None; b was None, is 2'):
        ClipLog(path, dict(b=2))
    path.write_text('a diary\n')
    with pytest.raises(ValueError, match='holds no results of an evaluation'):
        ClipLog(path, dict(a=1))
    with pytest.raises(ValueError, match='cannot keep the results'):
        ClipLog(tmp_path, dict(a=1))


@pytest.mark.parametrize('arguments, error', [
    (['--repetition-penalty', '0.5'], 'repetition_penalty must be at least 1.0, not 0.5'),
    (['--max-rest-tokens', '0'], 'max_rest_tokens must be 1 to 100000, not 0'),
    (['--resamples', '-1'], 'resamples must not be negative, not -1'),
    (['--judge-model', 'x'], '--judge-url and --judge-model go together'),
    (['--model', './nowhere'], "no checkpoint at './nowhere'"),
    (['--data', 'none.json'], 'cannot read the annotations none.json'),
])
def test_settings_that_cannot_be_used_are_told(capsys, arguments: Sequence[str], error: str):
    assert main(['--data', str(CAPTIONS), *arguments]) == 2
    assert error in capsys.readouterr().err


@pytest.mark.parametrize('options, said', [
    (['--data', '/nowhere.jsonl'], 'cannot read the annotations /nowhere.jsonl'),
    (['--json', '/proc/none/out.json'], '/proc/none'),
])
def test_what_is_wrong_with_the_files_is_said_before_a_model_is_loaded(monkeypatch, capsys,
                                                                       options, said):
    def load(*_, **__):
        raise AssertionError('loaded')

    monkeypatch.setattr('sww_ros.evaluation.__main__.load', load)
    assert main(['--data', str(CLIPS / 'pe_video.jsonl'), *options]) == 2
    assert said in capsys.readouterr().err
