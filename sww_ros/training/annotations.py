"""
Samples from annotation files, as JSON lines or a JSON array, in the forms of `read_annotations`.

What a record lacks leaves out one sample, never a training: it is `Rejected` with a reason, and a
`Report` counts these. `ClipFilter` are the paper's filter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
import json
import math
from pathlib import Path

from sww_ros.training.conversations import cut, flat, is_conversation
from sww_ros.training.frames import Sample, VideoError, video_seconds

_SHORTEST_S = 0.1
FORMS = ('pe_video', 'funqa', 'bag', 'text_stream')
_FORM_OF_KEY = {'bag': 'bag', 'text_stream': 'text_stream', 'caption': 'pe_video',
                'instruction': 'funqa', 'question': 'funqa'}
"""The form of a file by the first of these keys that a record has."""


class Rejected(ValueError):
    """A record that is no sample; `reason` is a word or two to count by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class ClipFilter:
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


PAPER = ClipFilter()
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

    A line that is not JSON becomes a record whose value is that line. Conversations are made flat;
    a line of numbers, the index at the end of such files, is none.

    :raises ValueError: for a file that cannot be read, or an array that is not JSON
    """
    try:
        text = path.read_text(encoding='utf-8-sig')
    except OSError as error:
        raise ValueError(f'cannot read the annotations {path}: {error.strerror}') from None
    except UnicodeDecodeError as error:
        raise ValueError(f'cannot read the annotations {path}: not UTF-8 ({error})') from None
    if text.lstrip().startswith('[') and not is_conversation(_value(text.lstrip().split('\n')[0])):
        records = _elements(path, text)
    else:
        records = (Record(f'{path}:{number}', _value(line))
                   for number, line in enumerate(text.split('\n'), 1) if line.strip())
    for record in records:
        if is_conversation(record.value):
            yield replace(record, value=flat(record.value))
        elif not (isinstance(record.value, list) and record.value
                  and all(isinstance(number, int) for number in record.value)):
            yield record


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
                     'in the form of PE-Video, of FunQA, of captioned bags or of LiveCC, or '
                     '--form')


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


_EXAMPLES = 3
LOCALIZATION = ('H1', 'C1', 'M1')
"""FunQA's tasks whose answer is a stretch of time in numbers."""


class Report:
    """How many records were kept, how many left out for which reason, and examples of these."""

    def __init__(self) -> None:
        self.kept = 0
        self.left_out: Counter[str] = Counter()
        self.examples: list[str] = []

    def reject(self, error: Rejected) -> None:
        """Count a record that is no sample; the first few of a reason are told in full."""
        self.left_out[error.reason] += 1
        if self.left_out[error.reason] <= _EXAMPLES:
            self.examples.append(str(error))

    def __str__(self) -> str:
        total = self.kept + sum(self.left_out.values())
        reasons = ', '.join(f'{n} {reason}' for reason, n in self.left_out.most_common())
        lines = [f'kept {self.kept} of {total} samples' + (f'; {reasons}' if reasons else '')]
        return '\n  '.join(lines + self.examples)


class VideoRoot:
    """A folder of videos; a name that is not in it is looked for in its folders, one level down."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, record: Record, *keys: str) -> Path:
        """
        Return the path of the video that a record names under one of these keys.

        :raises Rejected: where it names none, or there is no such file
        """
        name = Path(record.text(*keys)).expanduser()
        path = self._root / name
        if not path.exists():
            path = self._below.get(name.name, path) if len(name.parts) == 1 else path
        if not path.exists():
            raise Rejected('without video', f'{record.source}: there is no video {path}; paths are '
                                            'relative to the annotations, or to --video-root')
        return path

    @cached_property
    def _below(self) -> dict[str, Path]:
        # FunQA unpacks into train_humor, train_creative and train_magic, and names bare files.
        return {path.name: path for path in sorted(self._root.glob('*/*'), reverse=True)}


def read_annotations(paths: Iterable[Path], *, form: str = '', prompt: str, tokenizer=None,
                     limits: ClipFilter | None = None, video_root: Path | None = None,
                     localization: bool = False, report: Report | None = None) -> list[Sample]:
    """
    Return the samples of some files; a record that cannot be one is reported, not fatal.

    - `pe_video`: `{"video": ..., "caption": ..., "duration": seconds}`. `video_path` and `path`
      stand for `video` too; a duration that is missing is the file's own.
    - `funqa`: `{"visual_input": ..., "instruction": ..., "output": ..., "task": ...}`. `video`,
      `question` and `answer` stand for the first three too. The root's folders are searched.
    - `bag`: `{"bag": ..., "topic": ..., "caption": ...}`, with a `prompt` of its own if it likes.
      Seconds count from the topic's first picture.
    - `text_stream`: conversations with timed words, as LiveCC and StreamingVLM are trained on (see
      `conversations.py`). Clips longer than `limits` allow (without: than the paper's) are cut.

    In each, `start` and `end` [s] may choose a part.

    :param form: that of all files, one of FORMS; '': as `guess_form` finds for each
    :param prompt: what is asked where an annotation asks nothing
    :param tokenizer: transformers' own; counts the tokens of captions, used with `limits` only
    :param limits: which videos of PE-Video to keep, and how long cut clips are; None: all
    :param video_root: what relative paths start from; None: the folder of each file
    :param localization: keep FunQA's tasks H1, C1 and M1; a viewer without a clock cannot answer
        them
    :param report: takes what was kept, what not and why
    :raises ValueError: for a file that cannot be read, is of no known form, or has no usable sample
    """
    report, samples = report or Report(), []
    for path in paths:
        root, here = VideoRoot(video_root or path.parent), Report()
        to_sample = dict(
            pe_video=partial(_captioned, prompt=prompt, limits=limits, tokenizer=tokenizer),
            funqa=partial(_asked, localization=localization),
            bag=partial(_recorded, prompt=prompt),
            text_stream=partial(_spoken, prompt=prompt, longest_s=(limits or PAPER).seconds[1]),
        )[form or guess_form(path)]
        for record in read_records(path):
            try:
                samples += to_sample(record, root)
                here.kept += 1
            except Rejected as error:
                here.reject(error)
                report.reject(error)
        report.kept += here.kept
        if not here.kept:
            raise ValueError(f'no usable sample in {path}: {here}')
    return samples


def _captioned(record: Record, root: VideoRoot, prompt: str, limits: ClipFilter | None,
               tokenizer) -> list[Sample]:
    caption = record.text('caption')
    sample = Sample(root.find(record, 'video', 'video_path', 'path'), prompt, caption,
                    source=record.source, **record.stretch())
    if limits is not None:
        if sample.length_s is None:
            try:
                sample = replace(sample, duration_s=video_seconds(sample.video))
            except VideoError as error:
                raise Rejected('of a broken video', f'{sample.source}: {error}') from None
        limits.check(sample, tokenizer)
    return [sample]


def _asked(record: Record, root: VideoRoot, localization: bool) -> list[Sample]:
    question = record.text('instruction', 'question')
    task = record.value.get('task')
    if task in LOCALIZATION and not localization:
        raise Rejected('asking for times', f'{record.source}: task {task} asks when, in numbers; '
                                           'such records are left out')
    return [Sample(root.find(record, 'visual_input', 'video'), question,
                   record.text('output', 'answer'), source=record.source, **record.stretch())]


def _recorded(record: Record, root: VideoRoot, prompt: str) -> list[Sample]:
    caption, topic = record.text('caption'), record.text('topic')
    asked = record.text('prompt') if record.has('prompt') else prompt
    return [Sample(root.find(record, 'bag'), asked, caption, source=record.source, topic=topic,
                   **record.stretch())]


def _spoken(record: Record, root: VideoRoot, prompt: str, longest_s: float) -> list[Sample]:
    stretch, asked = record.stretch(), record.text('text') if record.has('text') else prompt
    end_s = stretch['end_s']
    if end_s is None or record.has('text_stream') is None:
        raise record.malformed('there is no "video_end" or no "text_stream"', 'add them')
    try:
        parts = list(cut(record.value['text_stream'], stretch['start_s'], end_s, longest_s))
    except (TypeError, ValueError) as error:
        raise record.malformed(f'"text_stream": {error}', 'write [start, end, "word"]') from None
    if not parts:
        raise record.malformed('nothing is said', 'leave it out')
    video = root.find(record, 'video')
    return [Sample(video, asked, part.words, part.start_s, part.end_s, record.source,
                   timed=part.timed) for part in parts]
