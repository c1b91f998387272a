"""Measures the overlap when both sides always have work, in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
import subprocess
import sys
import tempfile

LIMIT_S = 60.0


def measure_full_load(model: str) -> dict | None:
    """Return the figures of sww_ros.benchmark.full_load, None if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'full_load.json')
        try:
            subprocess.run(
                [sys.executable, '-m', 'sww_ros.benchmark.full_load', '--model', model,
                 '--wait-k', '3', '--steps', '24', '--repeats', '5', '--chosen-only',
                 '--json', str(file)],
                check=True, timeout=LIMIT_S, capture_output=True)
        except (subprocess.SubprocessError, OSError):
            return None
        return json.loads(file.read_text())
