"""What the commands that measure have in common: their options, and what becomes of the result."""

from __future__ import annotations

import argparse
from collections.abc import Callable
import json
import os
from pathlib import Path
import platform

import numpy as np
import torch
import transformers

import sww_ros

Draw = Callable[[dict, Path], None]


def make_parser(name: str, doc: str, picture: bool = True) -> argparse.ArgumentParser:
    """Return the parser of `python -m sww_ros.benchmark NAME`; help is a module's docstring."""
    parser = argparse.ArgumentParser(prog=f'python -m sww_ros.benchmark {name}',
                                     description=doc.strip().split('\n')[0])
    parser.add_argument('--json', type=Path, help='where all figures go')
    if picture:
        parser.add_argument('--picture', type=Path, help='where a plot of them goes')
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse, and refuse files that could not be written once all is measured."""
    given = parser.parse_args(arguments)
    for file in filter(None, (given.json, getattr(given, 'picture', None))):
        if not file.absolute().parent.is_dir():
            parser.error(f'there is no folder {file.absolute().parent}')
    return given


def finish(given: argparse.Namespace, result: dict, draw: Draw | None = None) -> None:
    """Print the summary; write all, with the machine, and the plot if they are wanted."""
    print(json.dumps(result['summary'], indent=1), flush=True)
    if given.json:
        given.json.write_text(json.dumps(dict(machine=machine(), **result), indent=1) + '\n')
    if draw and given.picture:
        draw(result, given.picture)


def milliseconds(seconds: float) -> float:
    """Return seconds in milliseconds, to be read."""
    return round(seconds * 1e3, 4)


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
