"""
What a setting is: name, default, range, choices, words, and when it may change, written once.

A node's settings are a tuple of `Setting`; those of a dataclass are its fields, declared with
`setting`. ROS parameters, launch arguments, command lines, config/*.yaml and the tables in docs/
are made from them: `python -m sww_ros.settings --write` writes the files, and `--check` says which
are out of date; in the root of a clone.
"""

from __future__ import annotations

import argparse
from argparse import (
    SUPPRESS,
    ArgumentParser,
    ArgumentTypeError,
    BooleanOptionalAction,
    _ArgumentGroup,
)
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
import importlib
from numbers import Integral, Real
from pathlib import Path
import re
import sys
import textwrap
from typing import Any

Value = bool | int | float | str
BOOLEAN_TEXTS = ('true', 'false', 'True', 'False')
"""YAML takes them all, and launch files are given both spellings."""

LIBRARY, START, CONFIGURE, LIVE = 'library', 'start', 'configure', 'live'
"""When it may change on a node: it is none of its parameters; never; unconfigured; always."""

_ARTICLES = dict(bool='a bool', integer='an integer', double='a double', string='a string')
_TYPES: dict[str, Any] = dict(bool=object, integer=Integral, double=Real, string=str)
"""What will do in a program, beside the very type: NumPy's numbers too, and for bool anything."""

WHEN = {
    LIBRARY: 'No parameter of a node.',
    START: 'Read-only.',
    CONFIGURE: 'Changeable while the node is unconfigured.',
    LIVE: 'Changeable at any time.',
}


@dataclass(frozen=True)
class Setting:
    """
    One setting; `low` and `high` bound a number, `choices` a string.

    `choices` may be a function, where what can be chosen is not known yet; `recorded_only` are
    those of them that only a video that ends can have.
    """

    name: str
    default: Value
    description: str
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = ()
    changes: str = START
    recorded_only: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The type in ROS's words: bool, integer, double or string."""
        return {bool: 'bool', int: 'integer', float: 'double', str: 'string'}[type(self.default)]

    @property
    def allowed(self) -> tuple[str, ...]:
        """What a string may be; empty if anything."""
        return self.choices() if callable(self.choices) else self.choices

    @property
    def range_text(self) -> str:
        """Range or choices in words; empty if there are none."""
        if self.kind in ('integer', 'double'):
            return f'{_number(self.low)} to {_number(self.high)}'
        return ', '.join(choice or '(empty)' for choice in self.allowed)

    @property
    def default_text(self) -> str:
        """The default as an argument of a launch file."""
        return str(self.default).lower() if self.kind == 'bool' else str(self.default)

    @property
    def launch_argument(self) -> dict[str, Any]:
        """What declares the argument of a launch file that sets it."""
        choices = BOOLEAN_TEXTS if self.kind == 'bool' else self.allowed
        return dict(name=self.name, default_value=self.default_text,
                    description=self.description, choices=list(choices) or None)

    def check(self, value: Value) -> Value:
        """
        Return the value.

        :raises ValueError: for one of another type or out of the range
        """
        if type(value) is not type(self.default):
            hint = f': write {float(value)}' if self.kind == 'double' and type(value) is int else ''
            raise ValueError(f'{self.name} must be {_ARTICLES[self.kind]}, not {value!r}{hint}')
        self.check_range(value)
        return value

    def check_range(self, value: Any) -> None:
        """
        Check a value; where Python takes another type as well (an int as a float), so does this.

        :raises ValueError: for one of a type that will not do, that is no choice, or out of the
            range
        """
        if not isinstance(value, _TYPES[self.kind]):
            raise ValueError(f'{self.name} must be {_ARTICLES[self.kind]}, not {value!r}')
        allowed = self.allowed
        if allowed and value not in allowed:
            raise ValueError(f'{self.name} must be one of {", ".join(filter(None, allowed))}, '
                             f'not {value!r}')
        # Written so that what is not a number is refused too.
        if self.high and not self.low <= value <= self.high:
            raise ValueError(f'{self.name} must be {self.range_text}, not {value!r}')

    def parse(self, text: str) -> Value:
        """
        Return the value that an argument of a launch file stands for.

        :raises ValueError: for text of another type, or a value out of the range
        """
        value: Value = text
        try:
            if self.kind == 'bool' and text in BOOLEAN_TEXTS:
                value = text.lower() == 'true'
            elif self.kind in ('integer', 'double'):
                value = type(self.default)(text)
        except ValueError:
            pass  # It stays text, which is refused.
        return self.check(value)


def setting(default: Value, description: str, *, changes: str = CONFIGURE, **options: Any) -> Any:
    """Return the field of a dataclass that declares a setting; the options are `Setting`'s."""
    return field(default=default, metadata=dict(
        options, description=description, changes=changes))


def settings_of(declared: type) -> tuple[Setting, ...]:
    """Return the settings that a dataclass declares, in their order."""
    return tuple(Setting(f.name, getattr(declared, f.name), **f.metadata)
                 for f in fields(declared) if f.metadata)


def add_option(parser: ArgumentParser | _ArgumentGroup, of: Setting, **instead: Any) -> None:
    """
    Add the option of a command line that gives a setting; if it does not, there is no value.

    :param instead: what `add_argument` is given in place of what follows from the setting
    """
    shown = f' (default: {of.default})' if of.default else ''
    options: dict[str, Any] = dict(
        default=SUPPRESS, help=of.description.replace('%', '%%') + shown)
    if of.kind == 'bool':
        options['action'] = BooleanOptionalAction
    elif of.allowed:
        options['choices'] = [choice for choice in of.allowed if choice]
    else:
        options['type'] = type(of.default)
    parser.add_argument('--' + of.name.replace('_', '-'), **options | instead)


def checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a check of a text as the `type` of an option, whose words argparse passes on."""
    def argument(text: str) -> Any:
        try:
            return check(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None
    return argument


def _number(value: float) -> str:
    return str(int(value)) if value % 1 == 0 else f'{value:g}'  # Infinity is no integer.


NODES = {'narrator': 'sww_ros.nodes',
         'page': 'sww_ros.web.page',
         'shapes_camera': 'sww_ros.sources.shapes_camera',
         'speech': 'sww_ros.terminal.speech',
         'video_source': 'sww_ros.sources.video_source'}
"""The nodes that have a file of parameters, and the modules of their tables, `SETTINGS`."""

TITLES = {'narrator': 'the narrator', 'page': 'the live page',
          'shapes_camera': 'the shapes camera', 'speech': 'the voice',
          'video_source': 'the video source'}
PAGES = ('docs/node.md', 'docs/page.md', 'docs/sources.md')
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
