"""Runs what the fleet has by its name: `python -m sww_ros.fleet up …`; each has `--help`."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    'plan': ('sww_ros.fleet.plan', 'say how many engines, and what network, cameras need'),
    'up': ('sww_ros.fleet.up', 'serve engines to robots, on Ray or from this process alone'),
}
"""By its name, in which module a command's `main(arguments)` is, and what it does."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command named first with the rest of the arguments; return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in COMMANDS:
        # Only then: what one of them needs, the others may do without.
        return importlib.import_module(COMMANDS[given[0]][0]).main(given[1:])
    lines = ['usage: python -m sww_ros.fleet COMMAND [--help] ...', '',
             *(f'  {name:<5} {words}' for name, (_, words) in COMMANDS.items())]
    wants_help = given[:1] in (['-h'], ['--help'])
    if given and not wants_help:
        lines.insert(0, f'there is no command {given[0]!r}')
    print('\n'.join(lines), file=sys.stdout if wants_help else sys.stderr)
    return 0 if wants_help else 2


if __name__ == '__main__':
    sys.exit(main())
