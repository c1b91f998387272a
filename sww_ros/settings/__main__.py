"""
Writes what is made from the tables of settings: config/*.yaml, and the tables in docs/.

`python -m sww_ros.settings --write`, or `--check`, which says what is out of date; in the root of
a clone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
import importlib
from pathlib import Path
import re
import sys
import textwrap

from sww_ros.settings import LIBRARY, START, WHEN, Setting

NODES = {'narrator': 'sww_ros.nodes',
         'shapes_camera': 'sww_ros.sources.shapes_camera',
         'video_source': 'sww_ros.sources.video_source'}
"""The nodes that have a file of parameters, and the modules of their tables, `SETTINGS`."""

TITLES = {'narrator': 'the narrator', 'shapes_camera': 'the shapes camera',
          'video_source': 'the video source'}
PAGES = ('docs/node.md', 'docs/sources.md')
WIDTH = 100
BEGIN, END = '<!-- settings: {} (python -m sww_ros.settings --write) -->', '<!-- end -->'
CHANGES = {LIBRARY: 'library only', START: 'never', 'configure': 'unconfigured', 'live': 'always'}


def settings_of_node(name: str) -> Sequence[Setting]:
    """Return a node's table; 'library': the settings of a session that no node offers."""
    if name == 'library':
        from sww_ros.streaming.config import SETTINGS
        return [setting for setting in SETTINGS if setting.changes == LIBRARY]
    return importlib.import_module(NODES[name]).SETTINGS


def yaml_of(name: str) -> str:
    """Return config/NAME.yaml."""
    settings = settings_of_node(name)
    fixed = all(setting.changes == START for setting in settings)
    use = '' if fixed else ', params_file of launch'
    lines = [f'# Parameters of {TITLES[name]}, with their defaults: `--params-file` of ros2 '
             f'run{use}.',
             f'# {"All are read-only; each" if fixed else "Each"} one is described by '
             '`ros2 param describe` too.',
             '/**:', '  ros__parameters:']
    for setting in settings:
        words = [setting.description, *([] if fixed else [WHEN[setting.changes]])]
        if setting.range_text:
            words.append(f'{"One of: " if setting.allowed else "From "}{setting.range_text}.')
        lines += textwrap.wrap(' '.join(words), WIDTH, initial_indent='    # ',
                               subsequent_indent='    # ')
        value = f"'{setting.default}'" if setting.kind == 'string' else setting.default_text
        lines += [f'    {setting.name}: {value}', '']
    return '\n'.join(lines)


def table_of(settings: Iterable[Setting]) -> str:
    """Return the rows of a table in Markdown."""
    rows = ['| parameter | default | may be | changes | |', '|---|---|---|---|---|']
    for setting in settings:
        rows.append(f'| `{setting.name}` | {setting.default_text or "(empty)"} | '
                    f'{setting.range_text or setting.kind} | {CHANGES[setting.changes]} | '
                    f'{setting.description} |')
    return '\n'.join(rows)


def page_of(text: str) -> str:
    """Return a page of docs/ with its tables made anew, which stand between two comments."""
    def made(found: re.Match[str]) -> str:
        return f'{found[1]}\n{table_of(settings_of_node(found[2]))}\n{END}'

    begin = re.escape(BEGIN).replace(re.escape('{}'), r'(\w+)')
    return re.sub(f'({begin})\n.*?{re.escape(END)}', made, text, flags=re.DOTALL)


def written(root: Path) -> dict[Path, str]:
    """Return all files that are made from the tables, as they have to be."""
    files = {root / f'config/{name}.yaml': yaml_of(name) for name in NODES}
    return files | {root / page: page_of((root / page).read_text()) for page in PAGES}


def main(arguments: list[str] | None = None, root: Path = Path()) -> int:
    """Write the files, or say which are out of date; return the exit code."""
    parser = argparse.ArgumentParser(prog='python -m sww_ros.settings', description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--write', action='store_true', help='write what has changed')
    what.add_argument('--check', action='store_true', help='exit with 1 where a file differs')
    options = parser.parse_args(arguments)
    stale = {path: text for path, text in written(root).items() if path.read_text() != text}
    for path, text in stale.items():
        if options.write:
            path.write_text(text)
        print(f'{path} {"is written" if options.write else "is out of date: use --write"}')
    return int(options.check and bool(stale))


if __name__ == '__main__':
    sys.exit(main())
