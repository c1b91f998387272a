"""Whether a setting is written once: everything that shows it is made from where it is declared."""

from __future__ import annotations

import argparse
import ast
from dataclasses import dataclass, fields, replace
from pathlib import Path
import shutil

import numpy as np
import pytest
from session_kit import opened
from training_kit import noise

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.settings import (
    CONFIGURE,
    Setting,
    add_option,
    main,
    setting,
    settings_of,
    table_of,
    written,
)
from sww_ros.streaming import positions
from sww_ros.streaming.config import SETTINGS, SessionConfig
from sww_ros.streaming.session import Session

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = [s for s in SETTINGS if s.kind in ('integer', 'double')]


@dataclass(frozen=True)
class Longer(SessionConfig):
    """A session with a setting more: one line."""

    mood: str = setting('calm', 'How it speaks.', choices=('calm', 'brisk'))


# What is made from the table.

def test_what_is_committed_is_what_the_tables_say(capsys):
    assert main(['--check'], ROOT) == 0, capsys.readouterr().out


def test_a_stale_file_is_found_and_written(tmp_path, capsys):
    for path in written(ROOT):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    (tmp_path / 'config/narrator.yaml').write_text('stale')
    page = tmp_path / 'docs/node.md'
    page.write_text(page.read_text().replace('| `max_answers` | 4 |', '| `max_answers` | 5 |'))
    assert main(['--check'], tmp_path) == 1
    told = capsys.readouterr().out
    assert 'narrator.yaml is out of date' in told and 'node.md is out of date' in told
    assert 'sources.md' not in told
    assert main(['--write'], tmp_path) == 0 and main(['--check'], tmp_path) == 0
    for path, text in written(ROOT).items():
        assert (tmp_path / path.relative_to(ROOT)).read_text() == text


def test_every_setting_of_a_session_is_in_the_table():
    assert [s.name for s in SETTINGS] == [field.name for field in fields(SessionConfig)]
    assert all(s.description.endswith('.') or s.description.endswith('...') for s in SETTINGS)


def test_a_setting_more_is_one_line():
    more = settings_of(Longer)[-1]
    assert more == Setting('mood', 'calm', 'How it speaks.', choices=('calm', 'brisk'),
                           changes=CONFIGURE)
    assert more.launch_argument == dict(name='mood', default_value='calm',
                                        description='How it speaks.', choices=['calm', 'brisk'])
    assert '| `mood` | calm | calm, brisk | unconfigured | How it speaks. |' in table_of([more])
    parser = argparse.ArgumentParser()
    add_option(parser, more)
    assert vars(parser.parse_args([])) == {}
    assert vars(parser.parse_args(['--mood', 'brisk'])) == {'mood': 'brisk'}


def test_a_command_line_gives_each_setting_its_type():
    parser = argparse.ArgumentParser()
    for declared in SETTINGS:
        add_option(parser, declared)
    given = parser.parse_args(['--max-steps', '7', '--question-timeout-s', '2.5', '--schedule',
                               'offline', '--record-trace', '--device', 'cuda'])
    assert SessionConfig(**vars(given)) == SessionConfig(
        max_steps=7, question_timeout_s=2.5, schedule='offline', record_trace=True, device='cuda')
    assert 'default: 128' in parser.format_help()


def test_a_scheme_more_can_be_chosen_at_once(monkeypatch):
    monkeypatch.setattr(positions, 'SCHEMES', (*positions.SCHEMES, 'toy'))
    assert SessionConfig(position_encoding='toy').position_encoding == 'toy'
    scheme = next(s for s in SETTINGS if s.name == 'position_encoding')
    assert scheme.range_text.endswith('offline, toy')


# Ranges and defaults.

@pytest.mark.parametrize('declared', NUMBERS, ids=lambda declared: declared.name)
def test_a_number_out_of_its_range_is_refused(declared: Setting):
    for value in (declared.low - 1, declared.high + 1):
        with pytest.raises(ValueError, match=f'^{declared.name} must be .*, not'):
            replace(SessionConfig(), **{declared.name: type(declared.default)(value)})
    replace(SessionConfig(), **{declared.name: type(declared.default)(declared.high)})


def test_an_unknown_scheme_is_named_before_a_model_is_loaded():
    with pytest.raises(ValueError, match="position_encoding must be one of gdpe, .*, not 'magic'"):
        SessionConfig(position_encoding='magic')


def test_the_default_scheme_stands_once():
    """Where text says which scheme is taken if none is named: one constant."""
    found = []
    for path in (ROOT / 'sww_ros').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            values = []
            if isinstance(node, ast.Assign | ast.AnnAssign):
                values = [node.value]
            elif isinstance(node, ast.arguments):
                values = [*node.defaults, *node.kw_defaults]
            elif isinstance(node, ast.keyword) and node.arg == 'default':
                values = [node.value]
            found += [path.name for value in values
                      if isinstance(value, ast.Constant) and value.value == 'gdpe']
    assert found == ['positions.py']


def test_what_is_left_open_is_what_the_checkpoint_says():
    _, checkpoint = random_checkpoint(SMALL, 6, position_encoding='gipe', position_gap=500,
                                      wait_k=2, prompt='Say.', max_steps=30)
    found = SessionConfig().resolved(checkpoint)
    assert (found.prompt, found.position_encoding, found.position_gap, found.wait_k,
            found.max_steps, found.repetition_penalty) == ('Say.', 'gipe', 500, 2, 30, 1.0)
    given = SessionConfig(prompt='Look.', position_encoding='ospe', position_gap=7, wait_k=5,
                          max_steps=8, capacity=6, memory=3, previous_sentences=1, reserved_steps=9,
                          frame_rate=4.0, repetition_penalty=1.5, temperature=0.5, top_k=9)
    assert given.resolved(checkpoint) == given


# The bound of memory, and where offline text begins.

@pytest.fixture(scope='module')
def offline():
    """A checkpoint that was trained with text after videos of 12 steps."""
    return random_checkpoint(SMALL, 6, position_encoding='offline', max_steps=12)[1]


def first_text(checkpoint, **settings) -> int:
    """Return the position of the first row of text of a stream."""
    with opened(checkpoint, record_trace=True, wait_k=1, **settings) as session:
        for frame in noise(1):
            session.feed(frame)
        assert session.wait_idle(60)
        trace = session.trace()
    return int(trace.positions[0, np.flatnonzero(trace.predicted >= 0)[0]])


def test_less_memory_leaves_offline_text_where_it_was_trained(offline):
    trained = first_text(offline)
    assert first_text(offline, max_steps=3) == trained
    with Session(offline, SessionConfig(max_steps=3)) as session:
        assert session.info['mismatch'] == '' and session.info['max_steps'] == 3


def test_offline_text_can_be_moved_alone(offline):
    assert first_text(offline, reserved_steps=20) > first_text(offline)
    with Session(offline, SessionConfig(reserved_steps=20)) as session:
        assert session.info['max_steps'] == 12
        assert 'reserved_steps 20, after which' in session.info['mismatch']
        assert 'was trained with 12' in session.info['mismatch']


def test_more_memory_moves_offline_text_behind_it(offline):
    with Session(offline, SessionConfig(max_steps=20)) as session:
        assert 'reserved_steps 20, after which' in session.info['mismatch']


def test_offline_text_is_not_put_among_video(offline):
    with pytest.raises(ValueError, match='reserved_steps must be at least max_steps, 12, not 5'):
        Session(offline, SessionConfig(reserved_steps=5))


@pytest.mark.parametrize('name, value', [
    ('position_gap', None), ('wait_k', 'three'), ('max_steps', 2.5), ('question_timeout_s', []),
    ('repetition_penalty', 'much'), ('device', 3), ('dtype', None), ('prompt', 7),
    ('overlap', ['fused']), ('schedule_seed', {})])
def test_a_setting_of_another_type_is_refused_in_words(name, value):
    """Found by test/fuzz.py: a TypeError, or later on one of whatever used it."""
    with pytest.raises(ValueError, match=f'{name} must be .*, not'):
        SessionConfig(**{name: value})


def test_numbers_of_numpy_and_whole_seconds_are_settings():
    config = SessionConfig(max_steps=np.int64(5), question_timeout_s=3, narrate=np.bool_(False))
    assert (config.max_steps, config.question_timeout_s, bool(config.narrate)) == (5, 3, False)
