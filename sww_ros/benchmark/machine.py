"""The machine and the versions that a measurement was made with."""

from __future__ import annotations

import os
from pathlib import Path
import platform

import numpy as np
import torch
import transformers

import sww_ros


def machine() -> dict:
    """Return processor, cores, operating system and versions, ready for JSON."""
    return dict(
        processor=_processor(), cores=len(os.sched_getaffinity(0)), system=platform.platform(),
        python=platform.python_version(), sww_ros=sww_ros.__version__, torch=torch.__version__,
        transformers=transformers.__version__, numpy=np.__version__)


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()
