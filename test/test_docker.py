"""What of the Dockerfiles can be tried without Docker and its images; docs/jetson.md says what."""

import json
import os
from pathlib import Path
import re
import shlex
import shutil
import subprocess
from typing import NamedTuple

import pytest

from sww_ros.nodes import BY_NAME

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / 'docker/Dockerfile', ROOT / 'docker/Dockerfile.jetson']
KNOWN = {'FROM', 'ENV', 'RUN', 'WORKDIR', 'COPY', 'ENTRYPOINT', 'CMD'}


class Instruction(NamedTuple):
    """A line of a Dockerfile, its continuations joined."""

    name: str
    text: str


def instructions(file: Path) -> list[Instruction]:
    lines = [line for line in file.read_text().splitlines() if not line.startswith('#')]
    joined = '\n'.join(lines).replace('\\\n', ' ')
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def of(file: Path, name: str) -> list[str]:
    return [each.text for each in instructions(file) if each.name == name]


def packages(file: Path) -> list[str]:
    """Return the packages that apt is to install."""
    found = re.findall(r'apt-get install -y --no-install-recommends (.+?) &&', ''.join(
        f'{text} &&' for text in of(file, 'RUN')))
    return [word for words in found for word in words.split()]


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.name)
def test_a_file_begins_with_an_image_and_its_commands_can_be_read(file: Path):
    found = instructions(file)
    assert found[0].name == 'FROM' and ':' in found[0].text, 'an image without a version changes'
    assert {each.name for each in found} <= KNOWN
    for command in of(file, 'RUN'):
        assert subprocess.run(['bash', '-n', '-c', command]).returncode == 0, command
    for text in of(file, 'ENV'):
        assert all(re.fullmatch(r'\w+=\S*', word) for word in shlex.split(text)), text


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.name)
def test_what_is_run_in_the_end_is_there(file: Path):
    [entry], [command] = of(file, 'ENTRYPOINT'), of(file, 'CMD')
    [script], [executable, ros, *options] = json.loads(entry), json.loads(command)
    assert os.access(ROOT / script, os.X_OK)
    assert f'{executable} = ' in (ROOT / 'setup.py').read_text() and ros == '--ros-args'
    for option, value in zip(options[::2], options[1::2]):
        name, _, text = value.partition(':=')
        assert option == '-p' and BY_NAME[name].check(text)
    run = subprocess.run([ROOT / script, 'python', '-c', 'import sww_ros.nodes.narrator'],
                         cwd=ROOT, timeout=300)
    assert run.returncode == 0


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.name)
def test_the_set_up_runs_and_finds_all_done(file: Path):
    assert 'scripts/setup' in of(file, 'RUN')
    run = subprocess.run(['scripts/setup'], cwd=ROOT, text=True, capture_output=True, timeout=600)
    assert run.returncode == 0 and 'setup: ready' in run.stdout, run.stdout + run.stderr


def test_nothing_that_the_set_up_needs_is_left_out_of_the_copy():
    assert of(FILES[0], 'COPY') == of(FILES[1], 'COPY') == ['. .']
    left_out = {line.removeprefix('**/') for line in
                (ROOT / '.dockerignore').read_text().split()}
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, text=True, capture_output=True,
                             check=True).stdout.splitlines()
    assert not [name for name in tracked if left_out & set(Path(name).parts)]
    assert '.venv' in left_out


@pytest.mark.skipif(not shutil.which('apt-cache'), reason='apt is not here')
def test_apt_knows_the_packages_of_the_first():
    """Those of Ubuntu that Debian has under the same name; ROS and NVIDIA's are not tried."""
    names = packages(FILES[0])
    assert {'python3-venv', 'g++', 'git'} <= set(names)
    shown = subprocess.run(['apt-cache', 'policy', *names], text=True, capture_output=True).stdout
    unknown = [name for name in names if f'{name}:\n' not in shown]
    assert not unknown
    assert {*packages(FILES[0])} <= {*packages(FILES[1])}
