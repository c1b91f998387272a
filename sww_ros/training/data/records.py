"""
Annotation files, JSON lines or a JSON array, record by record with the line of each.

A record becomes a `Sample`, or is `Rejected` with a reason; `Limits` are the paper's filter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
import json
import math
from pathlib import Path

_SHORTEST_S = 0.1
FORMS = ('pe_video', 'funqa', 'bag')
_FORM_OF_KEY = {'bag': 'bag', 'caption': 'pe_video', 'instruction': 'funqa', 'question': 'funqa'}
"""The form of a file by the first of these keys that a record has."""


class Rejected(ValueError):
    """A record that is no sample; `reason` is a word or two to count by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class VideoError(ValueError):
    """A video or bag that cannot be read; the message names it and says why."""


@dataclass(frozen=True)
class Sample:
    """
    A stretch of video, what is asked about it, and what is to be said.

    `prompt` is the standing question; `answer` the caption, or the answer to the question.
    `start_s`, `end_s` [s] are counted from the first picture; None: to the end of the video.
    `source` is where it was annotated, for messages: `file:line`.
    `duration_s` [s] is the length of the whole video, where the annotation says.
    `topic` is the image topic of a bag; '': `video` is a video file.
    """

    video: Path
    prompt: str
    answer: str
    start_s: float = 0.0
    end_s: float | None = None
    source: str = ''
    duration_s: float | None = None
    topic: str = ''

    @property
    def length_s(self) -> float | None:
        """Seconds from start to end; None where the annotation does not say."""
        end_s = self.duration_s if self.end_s is None else self.end_s
        return None if end_s is None else end_s - self.start_s


@dataclass(frozen=True)
class Limits:
    """Which samples to keep, both ranges with their ends; the paper's own by default."""

    seconds: tuple[float, float] = (5.0, 30.0)
    tokens_per_second: tuple[float, float] = (3.0, 5.0)

    def check(self, sample: Sample, tokenizer) -> None:
        """
        Check one sample against both ranges.

        :param tokenizer: transformers' own, which counts the tokens of the answer
        :raises Rejected: for a sample outside, or one whose length is not known
        """
        length_s = sample.length_s
        if length_s is None:
            raise Rejected('of unknown length', f'{sample.source}: the length of the video is not '
                                                'known; add "duration": seconds')
        tokens = len(tokenizer(sample.answer, add_special_tokens=False)['input_ids'])
        for value, (low, high), few, many, unit in (
                (length_s, self.seconds, 'too short', 'too long', 's'),
                (tokens / length_s, self.tokens_per_second, 'said too little', 'said too much',
                 'tokens a second')):
            if not low <= value <= high:
                raise Rejected(few if value < low else many,
                               f'{sample.source}: {value:.4g} {unit}, outside {low:g} to {high:g}')


PAPER = Limits()
"""5 to 30 s, 3 to 5 tokens a second, as their release filters; the paper has 3 to 6 at wait-3."""


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


def guess_form(path: Path) -> str:
    """
    Return the form of a file by its first record that has a key of one.

    :raises ValueError: for a file that cannot be read, or has other keys
    """
    for record in read_records(path):
        try:
            key = record.has(*_FORM_OF_KEY)
        except Rejected:  # Counted by whoever reads it.
            continue
        if key:
            return _FORM_OF_KEY[key]
    raise ValueError(f'no record of {path} has one of {", ".join(_FORM_OF_KEY)}: give annotations '
                     'in the form of PE-Video, of FunQA, or of captioned bags, or --form')


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
