"""Prints the summary of a run: a table in a terminal, aligned lines in a pipe."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

STAGES = {
    'capture_to_callback': 'capture → callback',
    'callback_to_perceived': 'callback → perceived',
    'perceived_to_first_token': 'perceived → first token',
    'capture_to_first_token': 'capture → first token that saw it',
    'hazard': 'event visible → first token that saw it',
    'event_to_first_word': 'event visible → first word of it',
    'question_to_first_word': 'question → first word of its answer',
    'token_gap': 'token → token, within a step',
}
LEVEL = 1.02
"""From which speed-up on more is more, and not noise."""


def report(summary: dict, stream: TextIO) -> None:
    """Print the summary."""
    terminal = stream.isatty()
    tables = (_answers, _latencies, _facts) if summary['answers'] else (_latencies, _facts)
    _print([table(summary, terminal) for table in tables], terminal, stream)


def report_full_load(load: dict | None, stream: TextIO) -> None:
    """Print what sww_ros.benchmark.full_load has measured, None if that failed."""
    terminal = stream.isatty()
    table = _grid(terminal)
    table.add_row('at full load', 'could not be measured' if load is None
                  else full_load_in_words(load['summary'][0]))
    _print([table], terminal, stream)


def full_load_in_words(said: dict) -> str:
    """Return what a summary of sww_ros.benchmark.full_load means to a user, in one sentence."""
    speedup, at_most = said['speedup'], max(said['limit'], said['speedup'])
    pace = f'this machine watches and narrates {said["steps_per_s"]:.0f} steps of video a second'
    if speedup >= LEVEL:
        return (f'{pace}, {speedup:.2f} times as many as an engine that stops watching while it '
                f'speaks (at most {at_most:.2f} times can be had), with overlap: {said["chosen"]}')
    return (f'{pace} with overlap: {said["chosen"]}, {speedup:.2f} times as many as an engine that '
            'stops watching while it speaks, which sees nothing new before its sentence is over')


def _print(tables: list[Table], terminal: bool, stream: TextIO) -> None:
    # Text first: a pipe needs neither colors nor the blanks that fill a line.
    text = io.StringIO()
    console = Console(file=text, highlight=False, force_terminal=terminal, no_color=not terminal,
                      width=Console(file=stream).width if terminal else 100)
    for table in tables:
        console.print(table)
        console.print()
    print(file=stream)
    # No two empty lines in a row.
    for line, _ in itertools.groupby(map(str.rstrip, text.getvalue().rstrip().splitlines())):
        print(line, file=stream)


def _table(title: str, terminal: bool) -> Table:
    return Table(title=title, title_justify='left', title_style='bold' if terminal else '',
                 box=box.SIMPLE_HEAD if terminal else None, header_style='dim', pad_edge=False,
                 padding=(0, 2, 0, 0))


def _answers(summary: dict, terminal: bool) -> Table:
    table = _table('Questions', terminal)
    known = summary['truth'] is not None
    for name in ('asked', 'question', 'answer', *(['truth', ''] if known else [])):
        table.add_column(name, justify='right' if name == 'asked' else 'left')
    for exchange in summary['answers']:
        answer = exchange['answer']
        if answer is None:
            answer = f'(refused: {exchange["refused"]})' if exchange['refused'] else '(none came)'
        # What was written by others is no markup.
        row = [f'{exchange["asked"]:.1f} s', escape(exchange['question']),
               escape(answer or '(empty)')]
        if known:
            row += [exchange['truth'] or '-', {True: '[green]right[/]', False: '[red]wrong[/]',
                                               None: ''}[exchange['right']]]
        table.add_row(*row)
    return table


def _latencies(summary: dict, terminal: bool) -> Table:
    table = _table('Latency', terminal)
    table.add_column('')
    for name in ('p50', 'p95', 'count'):
        table.add_column(name, justify='right')
    for stage, words in STAGES.items():
        if figures := summary['latency'].get(stage):
            table.add_row(words, *(f'{figures[p]:.1f} ms' for p in ('p50_ms', 'p95_ms')),
                          str(figures['count']))
    return table


def _grid(terminal: bool) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style='dim' if terminal else '')
    table.add_column()
    return table


def _facts(summary: dict, terminal: bool) -> Table:
    table = _grid(terminal)
    tokens, truth = summary['tokens'], summary['truth']
    if summary['frames']:
        frames = summary['frames']
        table.add_row('frames', f'{frames["received"]} received, {frames["perceived"]} perceived '
                      f'in {summary["steps"]} steps, {frames["dropped"]} left out')
        table.add_row('overlap', f'{summary["overlap_ratio"]:.0%} of the time of perception, '
                      'decoding ran too')
    if tokens['per_s'] is not None:
        table.add_row('tokens', f'{tokens["narration"]} narrated, {tokens["answers"]} answered, '
                      f'in {tokens["watched_s"]:.1f} s: {tokens["per_s"]:.1f} a second')
    if not summary['narration']:
        table.add_row('narration', 'not a sentence was completed')
    elif truth is not None:
        table.add_row('narration', f'{truth["sentences_true"]} of {truth["sentences"]} sentences '
                      f'true; {truth["facts_told"]} of {truth["facts_shown"]} facts told')
    if truth is not None and truth['answers']:
        table.add_row('answers', f'{truth["answers_right"]} of {truth["answers"]} right')
    if summary['first_word_s'] is not None:
        table.add_row('first word', f'{summary["first_word_s"]:.1f} s after the start, of which '
                      f'{summary["ready_s"]:.1f} s until the narrator watched')
    return table


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
