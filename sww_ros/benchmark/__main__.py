"""
Runs a measurement by its name: `python -m sww_ros.benchmark NAME --json FILE`.

`python -m sww_ros.benchmark all --out FOLDER` runs all, each in a process of its own, and writes a
JSON file and a plot of each; `--quick` only tries whether all run, on the built-in model, in a few
minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import subprocess
import sys
import time

from sww_ros.benchmark.cameras import CAMERAS
from sww_ros.benchmark.full_load import FULL_LOAD
from sww_ros.benchmark.latency import GAP, HAND_OVER, HAZARD
from sww_ros.benchmark.overlap import OVERLAP
from sww_ros.benchmark.peers import PEERS
from sww_ros.benchmark.pool import POOL
from sww_ros.benchmark.quantize import QUANTIZE
from sww_ros.benchmark.step import LANES, STEP

MEASUREMENTS = {each.name: each for each in (
    OVERLAP, FULL_LOAD, HAZARD, GAP, HAND_OVER, CAMERAS, LANES, STEP, PEERS, QUANTIZE,
    POOL)}
FULL: dict[str, list[str]] = {
    'overlap': ['overlap'],
    'full_load': ['full-load', '--roofline'],
    'full_load_small': ['full-load', '--model', 'small', '--roofline'],
    'full_load_medium': ['full-load', '--model', 'medium', '--steps', '16', '--roofline'],
    'hazard': ['hazard'],
    'gap': ['gap'],
    'hand_over': ['hand-over'],
    'cameras': ['cameras'],
    'lanes': ['lanes'],
    'step': ['step'],
    'peers': ['peers'],
    'quantize': ['quantize'],
    'pool': ['pool'],
    'peers_medium': ['peers', '--model', 'medium', '--side', '112', '--repeats', '3'],
}
"""Files, without their endings, and the arguments that they are made with."""
QUICK: dict[str, list[str]] = {
    'overlap': ['overlap', '--steps', '5', '--repeats', '1', '--lengths', '1', '10'],
    'full_load': ['full-load', '--roofline', '--steps', '4', '--repeats', '1'],
    'hazard': ['hazard', '--models', 'builtin', '--lengths', '2', '20', '--repeats', '1'],
    'gap': ['gap', '--models', 'builtin', '--tokens', '40', '--repeats', '1'],
    'hand_over': ['hand-over', '--steps', '100', '--step-s', '0.03'],
    'cameras': ['cameras', '--cameras', '1', '2', '--steps', '8'],
    'lanes': ['lanes', '--models', 'builtin', '--tokens', '20', '--repeats', '1'],
    'step': ['step', '--models', 'builtin', '--repeats', '1'],
    'quantize': ['quantize', '--models', 'builtin', '--repeats', '1'],
    'pool': ['pool', '--cameras', '2', '--full-s', '2', '--paced-s', '2', '--warm-s', '1',
             '--repeats', '1'],
    'peers': ['peers', '--lengths', '3', '6', '--repeats', '1', '--threads', '1', '--only',
              'carried', 'interleaved', 'gdpe_fused', 'gdpe_processes'],
}


def main(arguments: list[str] | None = None) -> int:
    """Run the measurement named first with the rest of the arguments; return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ['all']:
        return measure_all(given[1:])
    if given and given[0] in MEASUREMENTS:
        MEASUREMENTS[given[0]].main(given[1:])
        return 0
    lines = ['usage: python -m sww_ros.benchmark NAME [--json FILE] [--help] ...', '',
             *(f'  {each.name:<10} {each.words}' for each in MEASUREMENTS.values()),
             '  all        all of these, into one folder: --out FOLDER, --quick to try']
    wants_help = given[:1] in (['-h'], ['--help'])
    if given and not wants_help:
        lines.insert(0, f'there is no measurement {given[0]!r}')
    print('\n'.join(lines), file=sys.stdout if wants_help else sys.stderr)
    return 0 if wants_help else 2


def measure_all(arguments: list[str] | None = None) -> int:
    """Measure all that is asked for; return 0, or 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog='python -m sww_ros.benchmark all',
                                     description='All measurements, one after the other.')
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
    if MEASUREMENTS[options[0]].draw:
        command += ['--picture', str(out / f'{name}.png')]
    print(f'# {name}: {" ".join(command[1:])}', flush=True)
    start = time.monotonic()
    done = subprocess.run(command, check=False).returncode == 0
    print(f'# {name}: {"done" if done else "failed"} after {time.monotonic() - start:.0f} s',
          flush=True)
    return done

if __name__ == '__main__':
    sys.exit(main())
