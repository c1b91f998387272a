"""The results of an evaluation as tables: modes by metrics, modes by lateness."""

from __future__ import annotations

import io
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table

_LATENESS = {'first_step': 'first token, step', 'first_s': 'first token, s',
             'before_end': 'before the end', 'tail_s': 'goes on for, s',
             'live_tail_s': 'measured, s', 'tokens': 'tokens', 'silent': 'silent clips'}
_WIDTH = 120
"""In a pipe; in a terminal a table is as wide as that is."""


def print_tables(results: dict, stream: TextIO) -> None:
    """Print what `run.evaluate` returned."""
    if stream.isatty():
        _print(results, Console(file=stream, highlight=False))
        return
    # A pipe needs neither colors nor the blanks that fill a line.
    text = io.StringIO()
    _print(results, Console(file=text, highlight=False, width=_WIDTH))
    print('\n'.join(line.rstrip() for line in text.getvalue().splitlines()), file=stream)


def _print(results: dict, console: Console) -> None:
    modes = results['modes']
    settings = results['settings']
    title = (f'{settings["model"]}: {settings["position_encoding"]} positions, '
             f'K = {settings["wait_k"]}, repetition penalty {settings["repetition_penalty"]:g}')
    names = list(dict.fromkeys(name for mode in modes.values() for name in mode['metrics']))
    table = _table(title, ['mode', 'clips', 'skipped', *names])
    for mode, found in modes.items():
        table.add_row(mode, str(found['scored']), str(len(found['skipped'])), *(
            _figure(found['metrics'].get(name), found['intervals'].get(name)) for name in names))
    console.print(table)
    known = {name for mode in modes.values() for name in mode['lateness']}
    names = [name for name in _LATENESS if name in known]
    if names:
        table = _table('When it was spoken (means over clips)',
                       ['mode', *(_LATENESS[name] for name in names)])
        for mode, found in modes.items():
            table.add_row(mode, *(_late(name, found['lateness'].get(name)) for name in names))
        console.print(table)


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify='left', box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify='left' if column == 'mode' else 'right')
    return table


def _figure(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return '-'
    return f'{value:.2f}' + (f'\n{interval[0]:.1f} to {interval[1]:.1f}' if interval else '')


def _late(name: str, value: float | None) -> str:
    if value is None:
        return '-'
    if name == 'before_end':
        return f'{100 * value:.0f} %'
    return str(value) if name == 'silent' else f'{value:.1f}'
