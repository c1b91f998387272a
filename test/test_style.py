"""Whether every Python file keeps the style that pyproject.toml sets, and types hold where said."""

from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[1]


def check(module: str, *arguments: str) -> None:
    pytest.importorskip(module)
    result = subprocess.run([sys.executable, '-m', module, *arguments], capture_output=True,
                            cwd=ROOT, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_finds_nothing():
    check('ruff', 'check', '--output-format=concise', str(ROOT))


def test_mypy_finds_nothing():
    check('mypy')
