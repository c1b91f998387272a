"""Whether the package says the same everywhere, and whether what is built is what is written."""

import importlib
import os
from pathlib import Path
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

import sww_ros

ROOT = Path(__file__).resolve().parents[1]
SETUP = (ROOT / 'setup.py').read_text()
EXECUTABLES = dict(re.findall(r"'(\w+) = ([\w.]+):main'", SETUP))
SCRIPTS = ['.ci/run', *(f'scripts/{path.name}' for path in sorted((ROOT / 'scripts').iterdir())
                        if path.is_file())]

FIELDS = {
    'msg.TextChunk': {
        'header': 'std_msgs/Header',
        'stream_id': 'string',
        'seq': 'uint64',
        'delta': 'string',
        'sentence': 'string',
        'is_final': 'boolean',
        'finish_reason': 'string',
        'video': 'uint32',
        'steps_seen': 'uint32',
        'frames_seen': 'uint64',
        'emitted': 'builtin_interfaces/Time',
        'latency': 'builtin_interfaces/Duration',
    },
    'msg.StepLatency': {
        'header': 'std_msgs/Header',
        'video': 'uint32',
        'step': 'uint32',
        'frames': 'uint32',
        'capture_to_callback': 'builtin_interfaces/Duration',
        'callback_to_engine': 'builtin_interfaces/Duration',
        'preprocess': 'builtin_interfaces/Duration',
        'vision': 'builtin_interfaces/Duration',
        'prefill': 'builtin_interfaces/Duration',
        'perceived': 'builtin_interfaces/Duration',
        'has_first_token': 'boolean',
        'first_token': 'builtin_interfaces/Duration',
        'publish': 'builtin_interfaces/Duration',
        'overlap_ratio': 'float',
        'frames_received': 'uint64',
        'frames_perceived': 'uint64',
        'frames_dropped': 'uint64',
    },
    'srv.Ask.Request': {
        'question': 'string',
        'wait': 'boolean',
        'timeout': 'builtin_interfaces/Duration',
    },
    'srv.Ask.Response': {
        'accepted': 'boolean',
        'question_id': 'string',
        'reason': 'string',
        'answer': 'string',
        'complete': 'boolean',
    },
    'srv.SetPrompt.Request': {'prompt': 'string'},
    'srv.SetPrompt.Response': {'success': 'boolean', 'message': 'string'},
    'action.AnswerQuestion.Goal': {'question': 'string'},
    'action.AnswerQuestion.Result': {
        'question_id': 'string',
        'answer': 'string',
        'finish_reason': 'string',
        'tokens': 'uint32',
        'latency': 'builtin_interfaces/Duration',
    },
    'action.AnswerQuestion.Feedback': {'chunk': 'sww_interfaces/TextChunk'},
}


def installed_prefix() -> Path:
    """Return where sww_ros is installed, or skip the test where it is not."""
    index = pytest.importorskip('ament_index_python')
    try:
        return Path(index.get_package_prefix('sww_ros'))
    except index.PackageNotFoundError:
        pytest.skip('sww_ros is not built here')


def tracked_files() -> list[Path]:
    """Return the files that git tracks, or skip the test outside of a clone."""
    try:
        listing = subprocess.run(
            ['git', '-C', str(ROOT), 'ls-files', '-z'], capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('not a git clone')
    paths = [ROOT / name for name in listing.stdout.split('\0') if name]
    return [path for path in paths if path.is_file()]


def test_versions_agree():
    versions = {
        path: ElementTree.parse(ROOT / path).findtext('version')
        for path in ('package.xml', 'sww_interfaces/package.xml')
    }
    versions['setup.py'] = re.search(r"version='(.+)'", SETUP)[1]
    changelog = (ROOT / 'CHANGELOG.rst').read_text()
    versions['CHANGELOG.rst'] = re.search(r'^(\d+\.\d+\.\d+) \(', changelog, re.MULTILINE)[1]
    assert set(versions.values()) == {sww_ros.__version__}, versions


def test_licence_is_the_declared_one():
    for path in ('package.xml', 'sww_interfaces/package.xml'):
        assert ElementTree.parse(ROOT / path).findtext('license') == 'Apache-2.0'
    assert 'Apache License' in (ROOT / 'LICENSE').read_text()


def test_executables_are_the_nodes_of_the_package():
    names = {path: re.search(r"^NAME = '(\w+)'", path.read_text(), re.MULTILINE)
             for path in (ROOT / 'sww_ros').rglob('*.py')}
    nodes = {name[1]: '.'.join(path.relative_to(ROOT).with_suffix('').parts)
             for path, name in names.items() if name}
    assert nodes == EXECUTABLES != {}


@pytest.mark.parametrize('executable', EXECUTABLES)
def test_executables_run_on_the_python_that_has_torch(executable: str):
    first_line = (installed_prefix() / 'lib/sww_ros' / executable).read_text().splitlines()[0]
    if first_line == '#!/usr/bin/env python3':
        return
    assert Path(first_line.removeprefix('#!')).parent == Path(sys.executable).parent


@pytest.mark.parametrize('folder', ['config', 'launch', 'layouts'])
def test_shared_files_are_installed(folder: str):
    installed = installed_prefix() / 'share/sww_ros' / folder
    written = sorted(path for path in (ROOT / folder).glob('*') if path.is_file())
    for path in written:
        assert (installed / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize('name', FIELDS)
def test_interfaces_have_the_documented_fields(name: str):
    interfaces = pytest.importorskip('sww_interfaces')
    kind, *path = name.split('.')
    found = importlib.import_module(f'{interfaces.__name__}.{kind}')
    for part in path:
        found = getattr(found, part)
    assert found.get_fields_and_field_types() == FIELDS[name]


def test_finish_reasons_are_plain_words():
    text_chunk = pytest.importorskip('sww_interfaces.msg').TextChunk
    reasons = ['stop', 'length', 'cancelled', 'interrupted', 'reset', 'no_video', 'prompt',
               'capacity', 'ended', 'error']
    assert [getattr(text_chunk, f'FINISH_{reason.upper()}') for reason in reasons] == reasons
    assert text_chunk.NARRATION == 'narration'


def test_no_tracked_file_names_a_path_of_this_machine():
    own = re.escape(str(ROOT).encode())
    pattern = re.compile(rb'(?<![\w~$}.])(?:' + own + rb'|/(?:home|Users)/\w+|/ro{2}t)/')
    guilty = [path for path in tracked_files() if pattern.search(path.read_bytes())]
    assert not guilty


def test_transport_profile_holds_several_frames():
    sizes = ElementTree.parse(ROOT / 'config/fastdds_shm.xml').iterfind('.//{*}segment_size')
    assert [int(size.text) >= 16 * 640 * 480 * 3 for size in sizes] == [True]


@pytest.mark.parametrize('script', SCRIPTS)
def test_scripts_are_executable_and_parse(script: str):
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(['bash', '-n', str(ROOT / script)], check=True)


def test_run_keeps_the_settings_of_the_user():
    if not (ROOT / '.venv/.sww_key').exists():
        pytest.skip('scripts/setup has not run here')
    names = ['FASTRTPS_DEFAULT_PROFILES_FILE', 'ROS_AUTOMATIC_DISCOVERY_RANGE', 'ROS_LOG_DIR']
    code = f'import os; print([os.environ.get(name) for name in {names}])'
    outer = {'HOME': '/', 'PATH': os.environ['PATH']}

    def run(**settings: str) -> str:
        command = [str(ROOT / 'scripts/run'), 'python', '-c', code]
        result = subprocess.run(
            command, capture_output=True, check=True, env=outer | settings, text=True)
        return result.stdout.strip()

    assert run() == str([str(ROOT / 'config/fastdds_shm.xml'), 'LOCALHOST', None])
    chosen = dict(zip(names, ['mine.xml', 'SUBNET', 'logs']))
    assert run(**chosen) == str(list(chosen.values()))


def test_run_finds_the_executables():
    if not (ROOT / '.venv/.sww_key').exists():
        pytest.skip('scripts/setup has not run here')
    found = subprocess.run(
        [str(ROOT / 'scripts/run'), 'which', 'narrator', 'console'], capture_output=True,
        text=True, check=True, env=os.environ | {'PATH': os.defpath})
    assert [Path(line).parent.name for line in found.stdout.split()] == ['sww_ros'] * 2
