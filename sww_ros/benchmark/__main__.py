"""Runs a measurement by its name: `python -m sww_ros.benchmark NAME --json FILE`."""

from __future__ import annotations

import importlib
import sys

NAMES = {
    'overlap': 'how much faster both at once is, on calibrated devices, and hazards seen in time',
    'full-load': 'the same with real arithmetic, frames coming as fast as they can be perceived',
    'hazard': 'how soon a token sees a step that comes in mid-sentence, with real weights',
    'gap': 'the time between two tokens while frames arrive',
    'lanes': 'what answers beside the narration cost',
    'step': 'the decode step by itself',
    'peers': 'against the ways to do it with stock modules, over the length of the stream',
    'all': 'all of these, into one folder: --out FOLDER, --quick to try',
}


def main(arguments: list[str] | None = None) -> int:
    """Run the measurement named first with the rest of the arguments; return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in NAMES:
        file = 'everything' if given[0] == 'all' else given[0].replace('-', '_')
        return importlib.import_module(f'sww_ros.benchmark.{file}').main(given[1:]) or 0
    lines = ['usage: python -m sww_ros.benchmark NAME [--json FILE] [--help] ...', '',
             *(f'  {name:<10} {what}' for name, what in NAMES.items())]
    wants_help = given[:1] in (['-h'], ['--help'])
    if given and not wants_help:
        lines.insert(0, f'there is no measurement {given[0]!r}')
    print('\n'.join(lines), file=sys.stdout if wants_help else sys.stderr)
    return 0 if wants_help else 2


if __name__ == '__main__':
    sys.exit(main())
