"""
All measurements, one after the other, each in a process of its own.

`python -m sww_ros.benchmark all --out FOLDER` writes a JSON file and a plot of each; `--quick` only
tries whether all run, on the built-in model, in a few minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import subprocess
import sys
import time

FULL: dict[str, list[str]] = {
    'overlap': ['overlap'],
    'full_load': ['full-load', '--roofline'],
    'full_load_small': ['full-load', '--model', 'small', '--roofline'],
    'full_load_medium': ['full-load', '--model', 'medium', '--steps', '16', '--roofline'],
    'hazard': ['hazard'],
    'gap': ['gap'],
    'lanes': ['lanes'],
    'step': ['step'],
    'peers': ['peers'],
    'peers_medium': ['peers', '--model', 'medium', '--side', '112', '--repeats', '3'],
}
"""Files, without their endings, and the arguments that they are made with."""
QUICK: dict[str, list[str]] = {
    'overlap': ['overlap', '--steps', '5', '--repeats', '1', '--lengths', '1', '10'],
    'full_load': ['full-load', '--roofline', '--steps', '4', '--repeats', '1'],
    'hazard': ['hazard', '--models', 'builtin', '--lengths', '2', '20', '--repeats', '1'],
    'gap': ['gap', '--models', 'builtin', '--tokens', '40', '--repeats', '1'],
    'lanes': ['lanes', '--models', 'builtin', '--tokens', '20', '--repeats', '1'],
    'step': ['step', '--models', 'builtin', '--repeats', '1'],
    'peers': ['peers', '--lengths', '3', '6', '--repeats', '1', '--threads', '1', '--only',
              'carried', 'interleaved', 'gdpe_fused', 'gdpe_processes'],
}
WITHOUT_PICTURE = ('step',)


def main(arguments: list[str] | None = None) -> int:
    """Measure all that is asked for; return 0, or 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog='python -m sww_ros.benchmark all',
                                     description=__doc__.strip().split('\n')[0])
    parser.add_argument('--out', type=Path, required=True, help='the folder of all files')
    parser.add_argument('--quick', action='store_true',
                        help='only see whether all run, on the built-in model')
    parser.add_argument('--only', nargs='+', default=[], metavar='FILE',
                        help=f'some of {", ".join(FULL)}')
    given = parser.parse_args(arguments)
    runs = QUICK if given.quick else FULL
    if unknown := sorted(set(given.only) - set(runs)):
        parser.error(f'--only: there is no {", ".join(unknown)}; there are {", ".join(runs)}')
    given.out.mkdir(parents=True, exist_ok=True)
    failed = [name for name, options in runs.items()
              if (not given.only or name in given.only) and not _run(name, options, given.out)]
    if failed:
        print(f'failed: {", ".join(failed)}', file=sys.stderr)
    return 1 if failed else 0


def _run(name: str, options: list[str], out: Path) -> bool:
    command = [sys.executable, '-m', 'sww_ros.benchmark', *options,
               '--json', str(out / f'{name}.json')]
    if name not in WITHOUT_PICTURE:
        command += ['--picture', str(out / f'{name}.png')]
    print(f'# {name}: {" ".join(command[1:])}', flush=True)
    start = time.monotonic()
    done = subprocess.run(command, check=False).returncode == 0
    print(f'# {name}: {"done" if done else "failed"} after {time.monotonic() - start:.0f} s',
          flush=True)
    return done
