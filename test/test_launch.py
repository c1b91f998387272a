"""
What the launch files start, and with which parameters.

Where `launch` is absent (PyPI has none), a stand-in that is as strict where it matters takes its
place; where it is there, the same files are run for real.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import types

from narrator_harness import probing
import pytest
from rclpy.parameter import parameter_value_to_python
from waiting import PATIENCE_S, wait_until
import yaml

from sww_ros.nodes import SETTINGS, console, shapes_camera

ROOT = Path(__file__).resolve().parents[1]
NARRATE, DEMO = ROOT / 'launch/narrate.launch.py', ROOT / 'launch/demo.launch.py'
CAMERAS = ROOT / 'launch/multi_camera.launch.py'
OTHERS = {'image', 'namespace', 'name', 'params_file', 'use_sim_time', 'log_level', 'page',
          'page_host', 'respawn', 'respawn_delay'}
"""The arguments of narrate.launch.py that are no parameters of the narrator."""

DEMO_SETTINGS = (*shapes_camera.SETTINGS, *console.SETTINGS)
IMPORTS = """
import runpy

import pytest


def pytest_pycollect_makemodule(module_path, parent):
    runpy.run_path(module_path)
    return pytest.Module.from_parent(parent, path=module_path)
"""
TWICE = """
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

NARRATE = {path!r}


def generate_launch_description():
    return LaunchDescription([
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(NARRATE),
            launch_arguments=[('namespace', 'left'), ('autostart', 'false')]),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(NARRATE),
            launch_arguments=[('namespace', 'right'), ('max_queued', '5'),
                              ('params_file', {file!r})])])
"""


def another_value(setting):
    """Return a legal value that is not the default."""
    if setting.kind == 'bool':
        return not setting.default
    if setting.choices:
        return next(choice for choice in setting.choices if choice != setting.default)
    if setting.name == 'cameras':
        return 'front, rear'
    if setting.name == 'engine':
        return 'other'
    if setting.kind == 'string':
        return f'other {setting.name}: 7'
    return type(setting.default)(setting.low if setting.default != setting.low else setting.high)


OTHER_VALUES = {setting.name: another_value(setting) for setting in SETTINGS}


class FakeContext:
    """Launch configurations in scopes, as launch has them."""

    def __init__(self) -> None:
        self.launch_configurations: dict[str, str] = {}
        self._stack: list[dict[str, str]] = []

    def push(self) -> None:
        self._stack.append(dict(self.launch_configurations))

    def pop(self) -> None:
        self.launch_configurations = self._stack.pop()


class FakeSubstitution:
    """What stands for the value of an argument until it is known."""

    def __init__(self, name: str) -> None:
        self.name = name

    def perform(self, context: FakeContext) -> str:
        return context.launch_configurations[self.name]


class FakeLaunch:
    """As much of `launch` as the files need, to see what they declare and start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path = NARRATE) -> None:
        self.context = FakeContext()
        self.declared: dict[str, str] = {}
        self._described = ''
        record = types.SimpleNamespace
        modules = {
            'launch': record(LaunchContext=object, LaunchDescription=list),
            'launch.actions': record(
                DeclareLaunchArgument=self._declare, OpaqueFunction=self._function,
                GroupAction=lambda actions: lambda: [actions],
                IncludeLaunchDescription=lambda path, launch_arguments: (path, launch_arguments),
                PushLaunchConfigurations=lambda: lambda: self.context.push(),
                PopLaunchConfigurations=lambda: lambda: self.context.pop()),
            'launch.launch_description_sources': record(PythonLaunchDescriptionSource=Path),
            'launch.substitutions': record(LaunchConfiguration=FakeSubstitution),
            'launch_ros': record(),
            'launch_ros.actions': record(Node=self._node, SetRemap=lambda *names: names),
            'launch_ros.parameter_descriptions': record(ParameterValue=self._value),
        }
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        self._space: dict = {'__file__': str(path)}
        exec(compile(path.read_text(), str(path), 'exec'), self._space)

    def include(self, description: list | None = None, **given: str) -> list[dict]:
        """Include the file with arguments, as IncludeLaunchDescription does; return its nodes."""
        self.context.launch_configurations.update(given)
        return [node for action in description or self.description()
                for node in action() or []]

    def description(self) -> list:
        return self._space['generate_launch_description']()

    def _declare(self, name, *, default_value, description, choices=None) -> Callable:
        assert type(default_value) is str

        def action():
            assert description and (choices is None or default_value in choices), name
            self.declared[name] = default_value
            chosen = self.context.launch_configurations.setdefault(name, default_value)
            assert choices is None or chosen in choices, (name, chosen, choices)
        return action

    def _function(self, *, function, args=()) -> Callable:
        def action():
            nodes = function(self.context, *args)
            return None if nodes is None else [node()[0] for node in nodes]
        return action

    def _value(self, value, *, value_type) -> Callable:
        if type(value) is not value_type:  # Text is not converted.
            raise TypeError(f'{value=} is not an instance of {value_type}')
        return lambda: value

    def _node(self, **options) -> Callable:
        def action() -> list[dict]:
            assert {} not in options['parameters'], 'an empty file of parameters cannot be read'
            # Where no type is given, launch_ros reads text as YAML.
            options['parameters'] = [
                {name: yaml.safe_load(value) if isinstance(value, str) else
                 value() if callable(value) else value for name, value in part.items()}
                if isinstance(part, dict) else part for part in options['parameters']]
            return [options]
        return action


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> FakeLaunch:
    return FakeLaunch(monkeypatch)


def test_launch_arguments_are_the_parameters(launched: FakeLaunch):
    node, = launched.include()
    text = {setting.name: str(setting.default).lower() if setting.kind == 'bool'
            else str(setting.default) for setting in SETTINGS}
    assert text.items() <= launched.declared.items()
    assert set(launched.declared) - set(text) == OTHERS
    assert (node['package'], node['executable']) == ('sww_ros', 'narrator')
    assert node['parameters'] == [], 'defaults would override a file'
    assert node['respawn'] is False


@pytest.mark.parametrize('setting', SETTINGS, ids=lambda setting: setting.name)
def test_each_argument_becomes_a_parameter_of_its_type(launched: FakeLaunch, setting):
    value = OTHER_VALUES[setting.name]
    node, = launched.include(**{setting.name: str(value)})
    assert node['parameters'] == [{setting.name: value}]
    assert type(node['parameters'][0][setting.name]) is type(setting.default)


def test_arguments_override_the_file_only_when_given(launched: FakeLaunch, tmp_path: Path):
    file = tmp_path / 'mine.yaml'
    file.touch()
    node, = launched.include(params_file=str(file), max_answers='4', image='/camera',
                             use_sim_time='true')
    assert node['parameters'] == [str(file), {'max_answers': 4, 'use_sim_time': True}]
    assert node['remappings'] == [('image', '/camera')]


def test_a_file_that_sets_sim_time_is_not_overridden_by_a_default(
        launched: FakeLaunch, tmp_path: Path):
    file = tmp_path / 'mine.yaml'
    file.touch()
    node, = launched.include(params_file=str(file))
    assert node['parameters'] == [str(file)]


def test_a_file_that_does_not_exist_is_an_error(launched: FakeLaunch, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match='params_file: there is no file .*mine.yaml'):
        launched.include(params_file=str(tmp_path / 'mine.yaml'))


def test_a_file_may_lie_in_the_home_folder(
        launched: FakeLaunch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'mine.yaml').touch()
    node, = launched.include(params_file='~/mine.yaml')  # No shell replaces this one.
    assert node['parameters'] == [str(tmp_path / 'mine.yaml')]


@pytest.mark.parametrize('same', [False, True])
def test_defaults_of_one_inclusion_are_not_given_to_the_next(launched: FakeLaunch, same: bool):
    description = launched.description() if same else None
    before = dict(launched.context.launch_configurations)
    left, = launched.include(description, namespace='left')
    assert launched.context.launch_configurations == before | {'namespace': 'left'}
    right, = launched.include(description, namespace='right', max_answers='2')
    assert (left['namespace'], left['parameters']) == ('left', [])
    assert (right['namespace'], right['parameters']) == ('right', [{'max_answers': 2}])


def test_respawn_is_an_argument(launched: FakeLaunch):
    node, = launched.include(respawn='True', respawn_delay='0.5')
    assert (node['respawn'], node['respawn_delay']) == (True, 0.5)


def test_a_page_is_launched_where_a_port_is_given(launched: FakeLaunch):
    narrator, page = launched.include(
        page='8080', namespace='front', name='eye', use_sim_time='true')
    assert (narrator['executable'], page['executable']) == ('narrator', 'page')
    assert page['namespace'] == 'front' and 'name' not in page
    _, shown = launched.include(page='8080', name='eye', cameras='[front, rear]')
    assert shown['parameters'][0]['narrators'] == 'eye/front eye/rear', 'a tab for each camera'
    assert page['parameters'] == [dict(narrators='eye', host='127.0.0.1', port=8080,
                                       use_sim_time=True)]


@pytest.mark.parametrize('name, text, words', [
    ('page', '99999', 'page must be 0 to 65535, not 99999'),
    ('max_answers', 'two', "max_answers must be an integer, not 'two'"),
    ('max_answers', '99', 'max_answers must be 1 to 16, not 99'),
    ('camera_timeout', 'nan', 'camera_timeout must be 0.1 to 3600, not nan'),
    ('camera_timeout', '', "camera_timeout must be a double, not ''"),
    ('respawn_delay', 'soon', "respawn_delay must be a double, not 'soon'"),
    ('respawn_delay', '-1', 'respawn_delay must be 0 to 3600, not -1.0'),
])
def test_a_bad_argument_is_named(launched: FakeLaunch, name: str, text: str, words: str):
    with pytest.raises(ValueError, match=words):
        launched.include(**{name: text})


def test_launch_file_is_standard():
    tree = ast.parse(NARRATE.read_text())
    imported = {node.module.partition('.')[0] for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom)}
    assert imported == {'launch', 'launch_ros', 'pathlib', 'sww_ros'}


# The demo.

def test_demo_has_the_defaults_of_the_nodes(monkeypatch: pytest.MonkeyPatch):
    launched = FakeLaunch(monkeypatch, DEMO)
    nodes = {node['executable']: node for node in launched.include()}
    assert sorted(nodes) == ['console', 'narrator', 'shapes_camera']
    for setting in DEMO_SETTINGS:
        assert launched.declared[setting.name] == (
            str(setting.default).lower() if setting.kind == 'bool' else str(setting.default))
    given = {name: value for node in nodes.values() for part in node['parameters']
             for name, value in part.items()}
    defaults = {setting.name: setting.default for setting in DEMO_SETTINGS}
    assert given == defaults | {'model': 'builtin', 'image_transport': 'raw'}
    assert not launched.context.launch_configurations, 'defaults leak into what follows'


@pytest.mark.parametrize('setting', DEMO_SETTINGS, ids=lambda setting: setting.name)
def test_each_argument_of_the_demo_becomes_a_parameter(
        monkeypatch: pytest.MonkeyPatch, setting):
    value = another_value(setting)
    nodes = FakeLaunch(monkeypatch, DEMO).include(**{setting.name: str(value)})
    given = {name: found for node in nodes for part in node['parameters']
             for name, found in part.items()}
    assert given[setting.name] == value and type(given[setting.name]) is type(value)


# Several cameras.

def test_cameras_are_launched_as_one_is_with_a_topic_for_each(monkeypatch: pytest.MonkeyPatch):
    launched = FakeLaunch(monkeypatch, CAMERAS)
    started, = launched.include(cameras='[left, right]', images='[/a, /b/image_raw]')
    assert started == [('left/image', '/a'), ('right/image', '/b/image_raw'),
                       (NARRATE, [('cameras', '[left, right]')])]
    assert FakeLaunch(monkeypatch, CAMERAS).include() == [[(NARRATE, [('cameras',
                                                                      '[front, rear]')])]]


@pytest.mark.parametrize('given, words', [
    (dict(images='[/a]'), 'images: 1 topics are given for 2 cameras'),
    (dict(cameras='[a b]'), "cameras: 'a b' cannot be a part of a topic")])
def test_bad_cameras_end_the_launch(monkeypatch: pytest.MonkeyPatch, given: dict, words: str):
    with pytest.raises(ValueError, match=words):
        FakeLaunch(monkeypatch, CAMERAS).include(**given)


def test_a_file_that_skips_itself_skips_no_other_beside_launch_testing(tmp_path: Path):
    """Its plugin imports the files while they are collected, as this one does."""
    (tmp_path / 'imports.py').write_text(IMPORTS)
    (tmp_path / 'test_absent.py').write_text("import pytest\n\npytest.importorskip('absent')\n")
    (tmp_path / 'test_present.py').write_text('def test_here():\n    pass\n')
    ended = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-rs', '-p', 'imports', '-p', 'conftest', '.'],
        cwd=tmp_path, env=os.environ | dict(PYTHONPATH=os.pathsep.join(
            [str(tmp_path), str(ROOT / 'test'), *sys.path])),
        capture_output=True, text=True)
    assert '1 passed, 1 skipped' in ended.stdout, ended.stdout + ended.stderr
    assert "could not import 'absent'" in ended.stdout


# With launch itself, where ROS 2 from apt brings it.

class Launch:
    """A `ros2 launch` of a file; `log` is what it has written so far."""

    def __init__(self, log_file: Path, path: Path, *arguments: str) -> None:
        ros2 = shutil.which('ros2')
        if ros2 is None:
            pytest.skip('ROS 2 from apt brings launch')
        self._log_file = log_file
        with log_file.open('wb') as output:
            self.process = subprocess.Popen(
                [ros2, 'launch', '--noninteractive', str(path), *arguments],
                stdout=output, stderr=subprocess.STDOUT)

    @property
    def log(self) -> str:
        return self._log_file.read_text(errors='replace')

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(PATIENCE_S)


def values_of(node: str, names: list[str]) -> dict:
    """Return parameters of a running node."""
    with probing(node) as probe:
        return dict(zip(names, map(parameter_value_to_python, probe.get_parameters(names))))


def test_the_narrator_gets_each_argument(ros_domain: int, tmp_path: Path):
    values = OTHER_VALUES | {'use_sim_time': True}
    arguments = [f'{name}:={value}' for name, value in values.items()]
    with Launch(tmp_path / 'log.txt', NARRATE, 'namespace:=here', 'name:=speaker',
                'image:=/camera', 'log_level:=warn', 'respawn:=true', 'respawn_delay:=0.5',
                *arguments) as launch:
        assert values_of('/here/speaker', list(values)) == values, launch.log


def test_the_demo_camera_gets_each_argument(ros_domain: int, tmp_path: Path):
    values = {setting.name: another_value(setting) for setting in shapes_camera.SETTINGS
              if setting.name not in ('rate', 'width', 'height', 'at_end')}
    arguments = [f'{name}:={value}' for name, value in values.items()]
    with Launch(tmp_path / 'log.txt', DEMO, 'namespace:=here', 'model:=/none', 'style:=plain',
                'rate:=5', 'width:=84', 'height:=84', *arguments) as launch:
        assert values_of('/here/shapes_camera', list(values)) == values, launch.log
        assert values_of('/here/shapes_camera', ['rate', 'width']) == {'rate': 5.0, 'width': 84}


def test_two_inclusions_do_not_know_each_other(ros_domain: int, tmp_path: Path):
    file = tmp_path / 'mine.yaml'
    file.write_text('/**:\n  ros__parameters: {max_answers: 3, use_sim_time: true}\n')
    twice = tmp_path / 'twice.launch.py'
    twice.write_text(TWICE.format(path=str(NARRATE), file=str(file)))
    with Launch(tmp_path / 'log.txt', twice):
        names = ['max_answers', 'use_sim_time', 'max_queued']
        assert values_of('/left/narrator', names) == dict(zip(names, (4, False, 8)))
        assert values_of('/right/narrator', names) == dict(zip(names, (3, True, 5)))


def test_the_narrator_of_several_cameras_gets_their_names_and_each_argument(
        ros_domain: int, tmp_path: Path):
    with Launch(tmp_path / 'log.txt', CAMERAS, 'cameras:=[left, right]', 'images:=[/a, /b]',
                'namespace:=here', 'autostart:=false', 'max_queued:=5') as launch:
        names = ['cameras', 'autostart', 'max_queued']
        assert values_of('/here/narrator', names) == dict(
            zip(names, ('[left, right]', False, 5))), launch.log


def test_a_missing_file_ends_the_launch(ros_domain: int, tmp_path: Path):
    with Launch(tmp_path / 'log.txt', NARRATE, 'params_file:=missing.yaml') as launch:
        assert launch.process.wait(PATIENCE_S) == 1
        assert "there is no file 'missing.yaml'" in launch.log
        assert 'Traceback' not in launch.log and 'process started' not in launch.log


def test_a_narrator_that_ends_is_started_again(ros_domain: int, tmp_path: Path):
    with Launch(tmp_path / 'log.txt', NARRATE, 'model:=/none', 'respawn:=true',
                'respawn_delay:=0.1') as launch:
        wait_until(lambda: launch.log.count('process started with pid') > 1, PATIENCE_S,
                   lambda: launch.log)
