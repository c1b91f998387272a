"""Whether every Python file keeps the style that pyproject.toml sets."""

from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_ruff_finds_nothing():
    pytest.importorskip('ruff')
    command = [sys.executable, '-m', 'ruff', 'check', '--output-format=concise', str(ROOT)]
    result = subprocess.run(command, capture_output=True, cwd=ROOT, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
