"""The command that serves engines to robots, with the built-in model and without Ray."""

from __future__ import annotations

from pathlib import Path
import signal
import subprocess
import sys

import numpy as np
import pytest

from sww_ros.engine.link import Link
from sww_ros.fleet.__main__ import main
from sww_ros.library import Engine
from sww_ros.streaming.events import StepPerceived, TextDelta

TOKEN = '0123456789abcdef'


@pytest.fixture
def robots(tmp_path: Path) -> Path:
    file = tmp_path / 'robots'
    file.write_text(f'front {TOKEN}\n')
    return file


@pytest.mark.parametrize('given, words', [
    (['--host', '0.0.0.0'], 'give --certificate and --key'),
    (['--certificate', 'x'], 'must be given together'),
    (['--robots', 'nowhere'], 'cannot be read'),
    (['--certificate', 'x', '--key', 'y'], 'no certificate and key'),
    (['--threads', '999'], 'threads must be')])
def test_what_cannot_be_served_is_said_in_words(
        robots: Path, given: list[str], words: str, capsys: pytest.CaptureFixture):
    assert main(['up', '--replicas', '0', '--robots', str(robots), *given]) == 1
    assert words in capsys.readouterr().err


def test_commands_are_listed(capsys: pytest.CaptureFixture):
    assert main(['--help']) == 0 and '  up ' in capsys.readouterr().out
    assert main(['down']) == 2 and "no command 'down'" in capsys.readouterr().err


def test_the_builtin_model_speaks_to_a_robot(robots: Path):
    command = [sys.executable, '-m', 'sww_ros.fleet', 'up', '--replicas', '0', '--port', '0',
               '--robots', str(robots)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = next(line for line in server.stdout if 'for robots at' in line)
            picture = np.zeros((168, 168, 3), np.uint8)
            picture[40:100, 40:100] = 255, 0, 0
            with Engine.open(engine=line.split()[-1], token=TOKEN) as engine:
                session = engine.session()
                assert session.info['pixels'][0] == 28, 'as small as that are frames sent'
                seen = said = False
                while not (seen and said):
                    if (event := session.poll(0.2)) is None:
                        session.feed(picture)
                    seen = seen or isinstance(event, StepPerceived)
                    said = said or isinstance(event, TextDelta)
            with pytest.raises(OSError, match='not known here'):
                Link(line.split()[-1], 'another').session(print)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
        assert server.returncode == 0
