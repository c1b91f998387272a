"""Whether table, session, file and launch arguments agree on the narrator's parameters."""

import ast
from dataclasses import fields, replace
from pathlib import Path
import sys
import types

import pytest
from rclpy.parameter import Parameter
import yaml

from sww_ros.nodes import narrator_parameters
from sww_ros.nodes.narrator_parameters import BY_NAME, SETTINGS, check, session_config
from sww_ros.streaming.config import SessionConfig

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / 'launch/narrate.launch.py'
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
    assert session_config(DEFAULTS) == SessionConfig()


@pytest.mark.parametrize('setting', SETTINGS, ids=lambda setting: setting.name)
def test_defaults_are_within_their_ranges(setting):
    assert setting.check(setting.default) == setting.default
    descriptor = setting.descriptor()
    assert descriptor.description and len(descriptor.description) < 300
    assert (setting.kind == 'integer') == bool(descriptor.integer_range)
    assert (setting.kind == 'double') == bool(descriptor.floating_point_range)


@pytest.mark.parametrize('setting', [s for s in SETTINGS if s.kind == 'integer'],
                         ids=lambda setting: setting.name)
def test_both_ends_of_a_range_make_a_session(setting):
    if setting in narrator_parameters.SESSION_SETTINGS:
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


class FakeLaunch:
    """As much of `launch` as the file needs, to see what it declares and starts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **given: str) -> None:
        self.configurations = dict(given)
        self.declared, self.nodes = {}, []
        record = types.SimpleNamespace
        modules = {
            'launch': record(LaunchContext=object, LaunchDescription=list),
            'launch.actions': record(DeclareLaunchArgument=self._declare,
                                     OpaqueFunction=self._function),
            'launch.substitutions': record(LaunchConfiguration=lambda name: record(
                perform=lambda context: context.launch_configurations[name])),
            'launch_ros': record(),
            'launch_ros.actions': record(Node=lambda **options: options),
            'launch_ros.parameter_descriptions': record(
                ParameterValue=lambda text, value_type: (text, value_type)),
        }
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        space: dict = {}
        exec(compile(LAUNCH.read_text(), str(LAUNCH), 'exec'), space)
        for action in space['generate_launch_description']():
            self.nodes += action() or []

    def _declare(self, name, *, default_value, description, choices=None):
        def action():
            assert description and (choices is None or default_value in choices), name
            self.declared[name] = default_value
            self.configurations.setdefault(name, default_value)
        return action

    def _function(self, *, function, args=()):
        context = types.SimpleNamespace(launch_configurations=self.configurations)
        return lambda: function(context, *args)


def test_launch_arguments_are_the_parameters(monkeypatch: pytest.MonkeyPatch):
    launch = FakeLaunch(monkeypatch)
    text = {name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in DEFAULTS.items()}
    assert text.items() <= launch.declared.items()
    assert set(launch.declared) - set(text) == {
        'image', 'namespace', 'name', 'params_file', 'use_sim_time', 'log_level'}
    node, = launch.nodes
    assert (node['package'], node['executable']) == ('sww_ros', 'narrator')
    assert node['parameters'] == [{'use_sim_time': False}]


def test_launch_arguments_override_the_file_only_when_given(monkeypatch: pytest.MonkeyPatch):
    node, = FakeLaunch(monkeypatch, params_file='mine.yaml', max_answers='4', image='/camera',
                       use_sim_time='true').nodes
    assert node['parameters'] == [
        'mine.yaml', {'max_answers': ('4', int), 'use_sim_time': True}]
    assert node['remappings'] == [('image', '/camera')]


def test_launch_file_is_standard():
    tree = ast.parse(LAUNCH.read_text())
    imported = {node.module.partition('.')[0] for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom)}
    assert imported == {'launch', 'launch_ros', 'sww_ros'}
    assert BY_NAME['model'].default == 'builtin'


def test_launch_starts_the_narrator(ros_domain: int):
    pytest.importorskip('launch_ros', reason='ROS 2 from apt brings it')
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    import launch
    service = launch.LaunchService()
    service.include_launch_description(launch.LaunchDescription([
        launch.actions.IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(LAUNCH)),
            launch_arguments={'autostart': 'false', 'namespace': 'here'}.items()),
        launch.actions.TimerAction(
            period=5.0, actions=[launch.actions.Shutdown(reason='seen enough')])]))
    assert service.run() == 0
