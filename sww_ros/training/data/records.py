"""Reads annotation files, JSON lines or a JSON array, record by record with the line of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
import json
import math
from pathlib import Path

from sww_ros.training.data.errors import Rejected

_SHORTEST_S = 0.1


@dataclass(frozen=True)
class Record:
    """One object of an annotation file; `source` is `file:line`, in one line with its number."""

    source: str
    value: object

    def has(self, *keys: str) -> str | None:
        """
        Return the first of these keys that the record has.

        :raises Rejected: for a record that is no object
        """
        if not isinstance(self.value, dict):
            raise self.malformed(f'{_brief(self.value)} is not an object', 'write {"key": value}')
        return next((key for key in keys if self.value.get(key) is not None), None)

    def text(self, *keys: str) -> str:
        """
        Return the text under the first of these keys, without blanks around it.

        :raises Rejected: where there is none
        """
        key = self.has(*keys)
        if key is None:
            raise self.malformed(f'there is no {_either(keys)}', f'add "{keys[0]}": "..."')
        value = self.value[key]
        if not isinstance(value, str) or not value.strip():
            raise self.malformed(f'"{key}" is {_brief(value)}', 'it must be a text of some length')
        return value.strip()

    def seconds(self, key: str) -> float | None:
        """
        Return the number of seconds under a key, None where it is absent.

        :raises Rejected: for anything but a number from 0
        """
        if self.has(key) is None:
            return None
        value = self.value[key]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise self.malformed(f'"{key}" is {_brief(value)}', 'it must be seconds, 0 or more')
        return float(value)

    def stretch(self) -> dict[str, float | None]:
        """
        Return `start_s`, `end_s` and `duration_s`, from `start`, `end` and `duration`.

        :raises Rejected: for an end that is not after the start
        """
        start_s, end_s, duration_s = (self.seconds(k) for k in ('start', 'end', 'duration'))
        start_s = start_s or 0.0
        for key, value in (('end', end_s), ('duration', duration_s)):
            if value is not None and value < start_s + _SHORTEST_S:
                raise self.malformed(f'"{key}" is {value:g} s, the start {start_s:g} s',
                                     f'"{key}" must be {_SHORTEST_S} s later at least')
        return dict(start_s=start_s, end_s=end_s, duration_s=duration_s)

    def malformed(self, what: str, advice: str) -> Rejected:
        """Return the error for a record that is not as it must be."""
        return Rejected('malformed', f'{self.source}: {what}; {advice}')


def check_there(paths: Iterable[Path]) -> None:
    """
    Check that annotation files are there, before what takes long.

    :raises ValueError: for one that is not, or is a folder
    """
    for path in paths:
        if not path.exists() or path.is_dir():
            reason = 'Is a directory' if path.is_dir() else 'No such file or directory'
            raise ValueError(f'cannot read the annotations {path}: {reason}')


def read_records(path: Path) -> Iterator[Record]:
    """
    Yield the records of a file: one a line, or the elements of an array.

    A line that is not JSON becomes a record whose value is that line.

    :raises ValueError: for a file that cannot be read, or an array that is not JSON
    """
    try:
        text = path.read_text(encoding='utf-8-sig')
    except OSError as error:
        raise ValueError(f'cannot read the annotations {path}: {error.strerror}') from None
    except UnicodeDecodeError as error:
        raise ValueError(f'cannot read the annotations {path}: not UTF-8 ({error})') from None
    if text.lstrip().startswith('['):
        yield from _elements(path, text)
        return
    for number, line in enumerate(text.split('\n'), 1):
        if line.strip():
            yield Record(f'{path}:{number}', _value(line))


def _value(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return line


def _elements(path: Path, text: str) -> Iterator[Record]:
    """Yield the elements of an array one by one, as json.loads would not tell their lines."""
    decoder, blank = json.JSONDecoder(), json.decoder.WHITESPACE
    at, counted, line, number = text.index('[') + 1, 0, 1, 0
    lines = text.strip().count('\n')

    def place() -> str:
        # FunQA's files are one line each, which tells nothing.
        return f'{path}:{line}' + ('' if lines else f' (record {number})')

    while True:
        at = blank.match(text, at).end()
        if text.startswith(']', at):
            return
        line, counted = line + text.count('\n', counted, at), at
        number += 1
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError as error:
            line = getattr(error, 'lineno', line)
            raise ValueError(f'{place()}: not JSON: {error}; '
                             'the rest of the array cannot be read') from None
        yield Record(place(), value)
        at = blank.match(text, at).end()
        if text.startswith(',', at):
            at += 1
        elif not text.startswith(']', at):
            line += text.count('\n', counted, at)
            raise ValueError(f'{place()}: a comma or ] is missing after this element')


def _brief(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + '...'


def _either(keys: tuple[str, ...]) -> str:
    return ' or '.join(f'"{key}"' for key in keys)
