"""
Samples, and the annotation files that they are read from: PE-Video, FunQA, captioned bags.

What a record lacks leaves out one sample, never a training; a `Report` counts these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
import functools
from pathlib import Path

from sww_ros.streaming.checkpoint import StreamDefaults
from sww_ros.training.data.frames import video_seconds
from sww_ros.training.data.records import (
    PAPER,
    Limits,
    Record,
    Rejected,
    Sample,
    VideoError,
    guess_form,
    read_records,
)

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


def collect(records: Iterable[Record], to_sample: Callable[[Record], Sample],
            report: Report | None, name: Path) -> list[Sample]:
    """
    Turn records into samples; a record that cannot be one is reported, not fatal.

    :param report: takes the counts, those of several files if it is passed on
    :param name: the file of annotations, for the message
    :raises ValueError: where no record is usable; the message ends in the reasons
    """
    here, samples = Report(), []
    for record in records:
        try:
            samples.append(to_sample(record))
        except Rejected as error:
            here.reject(error)
            if report:
                report.reject(error)
    here.kept = len(samples)
    if report:
        report.kept += here.kept
    if not samples:
        raise ValueError(f'no usable sample in {name}: {here}')
    return samples


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

    @functools.cached_property
    def _below(self) -> dict[str, Path]:
        # FunQA unpacks into train_humor, train_creative and train_magic, and names bare files.
        return {path.name: path for path in sorted(self._root.glob('*/*'), reverse=True)}


def read_annotations(path: Path, *, form: str = '', prompt: str, tokenizer=None,
                     limits: Limits | None = None, video_root: Path | None = None,
                     localization: bool = False, report: Report | None = None) -> list[Sample]:
    """
    Return the samples of one file.

    :param form: one of FORMS; '': as `guess_form` finds
    :param prompt: what is asked where an annotation asks nothing
    :param tokenizer: transformers' own; counts the tokens of captions, used with `limits` only
    :param limits: which videos of PE-Video to keep; None: all
    :param video_root: what relative paths start from; None: the folder of the file
    :param localization: keep FunQA's tasks whose answer is a stretch of time
    :param report: takes what was kept, what not and why
    :raises ValueError: for a file that cannot be read, is of no known form, or has no usable sample
    """
    form = form or guess_form(path)
    if form == 'bag':
        return read_bag_captions(path, bag_root=video_root, prompt=prompt, report=report)
    if form == 'funqa':
        return read_funqa(path, video_root=video_root, localization=localization, report=report)
    return read_pe_video(path, tokenizer, video_root=video_root, prompt=prompt, limits=limits,
                         report=report)


def read_pe_video(path: Path, tokenizer, *, video_root: Path | None = None,
                  prompt: str = StreamDefaults.prompt, limits: Limits | None = PAPER,
                  report: Report | None = None) -> list[Sample]:
    """
    Read `{"video": ..., "caption": ..., "duration": seconds}`, one a line or in an array.

    `video_path` and `path` stand for `video` too; a duration that is missing is the file's own.

    :param tokenizer: transformers' own; counts the tokens of captions, used with `limits` only
    :param video_root: what relative paths start from; None: the folder of `path`
    :param limits: which videos to keep; None: all
    :param report: takes what was kept, what not and why
    :raises ValueError: for a file that cannot be read, or without a usable sample
    """
    root = VideoRoot(video_root or path.parent)

    def to_sample(record: Record) -> Sample:
        caption = record.text('caption')
        sample = Sample(root.find(record, 'video', 'video_path', 'path'), prompt, caption,
                        source=record.source, **record.stretch())
        if limits is not None:
            if sample.length_s is None:
                sample = replace(sample, duration_s=_file_seconds(sample))
            limits.check(sample, tokenizer)
        return sample

    return collect(read_records(path), to_sample, report, path)


def _file_seconds(sample: Sample) -> float | None:
    try:
        return video_seconds(sample.video)
    except VideoError as error:
        raise Rejected('of a broken video', f'{sample.source}: {error}') from None


def read_funqa(path: Path, *, video_root: Path | None = None, localization: bool = False,
               report: Report | None = None) -> list[Sample]:
    """
    Read `{"visual_input": ..., "instruction": ..., "output": ..., "task": ...}` in an array.

    `video`, `question` and `answer` stand for the first three too; `start`, `end` [s] may choose
    a part of the video. One record a line will do as well as an array.

    :param video_root: what relative paths start from, its folders are searched too; None: the
        folder of `path`
    :param localization: keep the tasks H1, C1 and M1; a viewer without a clock cannot answer them
    :param report: takes what was kept, what not and why
    :raises ValueError: for a file that cannot be read, or without a usable sample
    """
    root = VideoRoot(video_root or path.parent)

    def to_sample(record: Record) -> Sample:
        question = record.text('instruction', 'question')
        task = record.value.get('task')
        if task in LOCALIZATION and not localization:
            raise Rejected('asking for times', f'{record.source}: task {task} asks when, in '
                                               'numbers; such records are left out')
        return Sample(root.find(record, 'visual_input', 'video'), question,
                      record.text('output', 'answer'), source=record.source, **record.stretch())

    return collect(read_records(path), to_sample, report, path)


def read_bag_captions(path: Path, *, bag_root: Path | None = None,
                      prompt: str = StreamDefaults.prompt,
                      report: Report | None = None) -> list[Sample]:
    """
    Read `{"bag": ..., "topic": ..., "caption": ..., "start": s, "end": s}`, one a line.

    Seconds count from the topic's first picture; without `start` and `end` it is the whole bag.
    A record may have a `prompt` of its own.

    :param bag_root: what relative paths start from; None: the folder of `path`
    :param report: takes what was kept, what not and why
    :raises ValueError: for a file that cannot be read, or without a usable sample
    """
    root = VideoRoot(bag_root or path.parent)

    def to_sample(record: Record) -> Sample:
        caption, topic = record.text('caption'), record.text('topic')
        asked = record.text('prompt') if record.has('prompt') else prompt
        return Sample(root.find(record, 'bag'), asked, caption, source=record.source,
                      topic=topic, **record.stretch())

    return collect(read_records(path), to_sample, report, path)
