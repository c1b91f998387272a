"""Whether table, session and file agree on the narrator's parameters."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
from rclpy.parameter import Parameter
import yaml

from sww_ros import nodes
from sww_ros.node import descriptor
from sww_ros.nodes import SETTINGS, check, session_config
from sww_ros.streaming.config import SessionConfig

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = {setting.name: setting.default for setting in SETTINGS}
NOT_OFFERED = {'record_trace', 'max_rest_tokens', 'single_turn'}
"""For tests and for videos that end, which no camera does."""


def test_the_file_holds_each_parameter_with_its_default():
    written = yaml.safe_load((ROOT / 'config/narrator.yaml').read_text())
    assert list(written['/**']['ros__parameters'].items()) == list(DEFAULTS.items())


def test_the_file_describes_each_parameter():
    text = ' '.join((ROOT / 'config/narrator.yaml').read_text().replace('#', ' ').split())
    for setting in SETTINGS:
        assert ' '.join(setting.description.split()) in text, setting.name


def test_each_setting_of_a_session_is_a_parameter():
    names = {field.name for field in fields(SessionConfig)}
    assert names - NOT_OFFERED <= set(DEFAULTS)
    assert not NOT_OFFERED & set(DEFAULTS)
    assert session_config(DEFAULTS) == SessionConfig()


@pytest.mark.parametrize('setting', SETTINGS, ids=lambda setting: setting.name)
def test_defaults_are_within_their_ranges(setting):
    assert setting.check(setting.default) == setting.default
    described = descriptor(setting)
    assert described.description and len(described.description) < 300
    assert (setting.kind == 'integer') == bool(described.integer_range)
    assert (setting.kind == 'double') == bool(described.floating_point_range)


@pytest.mark.parametrize('setting', [s for s in SETTINGS if s.kind == 'integer'],
                         ids=lambda setting: setting.name)
def test_both_ends_of_a_range_make_a_session(setting):
    if setting in nodes.SESSION_SETTINGS:
        for end in (setting.low, setting.high):
            replace(SessionConfig(), **{setting.name: int(end)})


@pytest.mark.parametrize('name, value, configured, reason', [
    ('prompt', 'Look.', True, ''),
    ('prompt', 'x' * 5000, True, 'shorten it'),
    ('model', 'other', True, 'takes effect when the node is configured'),
    ('model', 'builtin', True, ''),
    ('model', 'other', False, ''),
    ('image_transport', 'theora', False, 'one of raw, compressed'),
    ('question_policy', 'shrug', False, 'one of queue, interrupt, reject'),
    ('qos_overrides./image.subscription.depth', 3, True, ''),
])
def test_changes_are_checked(name, value, configured, reason):
    result = check([Parameter(name, value=value)], DEFAULTS, configured)
    assert result.successful == (not reason)
    assert reason in result.reason
