"""One rule for the repetition penalty: as the checkpoint says, whoever speaks with it."""

import json

import pytest
import torch
from training_kit import noise

from sww_ros import nodes
from sww_ros.evaluation.clips import Player
from sww_ros.evaluation.run import Options, run_settings
from sww_ros.models.loading import load, load_stock
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.generation import TextLane
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import replay


@pytest.fixture(scope='module')
def penalized(folder):
    """A checkpoint whose generation_config.json asks for a penalty, as Qwen's own do."""
    file = folder / 'generation_config.json'
    file.write_text(json.dumps(dict(json.loads(file.read_text()), repetition_penalty=1.05)))
    return load(str(folder))


@pytest.fixture(scope='module')
def plain():
    return load('builtin')


@pytest.fixture
def used(monkeypatch):
    """The penalties that text lanes are opened with."""
    found, honest = [], TextLane.__init__

    def noted(self, *arguments, **options):
        honest(self, *arguments, **options)
        found.append(self._sampling.repetition_penalty)

    monkeypatch.setattr(TextLane, '__init__', noted)
    return found


def say(session):
    for frame in noise(1):
        session.feed(frame)
    assert session.wait_idle(60)
    session.ask('What?')
    assert session.wait_idle(60)


@pytest.mark.parametrize('given, expected', [(0.0, 1.05), (1.0, 1.0), (1.3, 1.3)])
def test_a_session_speaks_with_the_checkpoints_penalty_unless_told(penalized, used, given,
                                                                   expected):
    config = SessionConfig(repetition_penalty=given, max_answer_tokens=2)
    with Session(penalized, config) as session:
        say(session)
        assert session.info['repetition_penalty'] == expected
        assert session.config == config
    assert set(used) == {expected} and len(used) >= 2


def test_a_checkpoint_that_names_none_has_none(plain, used):
    with Session(plain, SessionConfig(max_answer_tokens=2)) as session:
        say(session)
        assert session.info['repetition_penalty'] == 1.0
    assert set(used) == {1.0}


@pytest.mark.parametrize('given, expected', [(0.0, 1.05), (1.15, 1.15)])
def test_evaluation_follows_the_same_rule(penalized, used, given, expected):
    options = Options(session=SessionConfig(repetition_penalty=given)).resolved(penalized)
    assert run_settings(penalized, [], options)['repetition_penalty'] == expected
    with Player(penalized, options.played('wait_k')) as player:
        player.play(noise(1), 'Say.')
    assert set(used) == {expected}
    assert Options().session.repetition_penalty == SessionConfig().repetition_penalty == 0.0


def test_the_node_follows_the_same_rule():
    setting = nodes.BY_NAME['repetition_penalty']
    assert (setting.default, setting.low) == (0.0, 0.0)
    assert 'checkpoint' in setting.description


@pytest.mark.parametrize('value, words', [
    (0.5, 'at least 1.0, not 0.5; 0 means'), (-1.0, '0 to 10, not -1.0'),
    (float('nan'), '0 to 10, not nan'), (float('inf'), '0 to 10, not inf')])
def test_a_penalty_that_rewards_is_refused(value, words):
    with pytest.raises(ValueError, match=f'repetition_penalty must be {words}'):
        SessionConfig(repetition_penalty=value)


def test_a_run_is_replayed_with_the_penalty_of_the_checkpoint(penalized):
    with Session(penalized, SessionConfig(record_trace=True, max_answer_tokens=9)) as session:
        say(session)
        trace = session.trace()
    assert trace.sampling.repetition_penalty == 1.05
    found = replay(trace, load_stock(penalized.name, torch.float32))
    assert found.compared > 9 and not found.differing
