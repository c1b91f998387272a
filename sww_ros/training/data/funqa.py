"""Reads questions about videos in the form of FunQA (arXiv 2306.14899)."""

from __future__ import annotations

from pathlib import Path

from sww_ros.training.data.errors import Rejected
from sww_ros.training.data.records import Record, read_records
from sww_ros.training.data.samples import Report, Sample, collect
from sww_ros.training.data.videos import VideoRoot

LOCALIZATION = ('H1', 'C1', 'M1')
"""FunQA's tasks whose answer is a stretch of time in numbers."""


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
