"""Reads captions of recorded image topics: one JSON object per stretch of a bag."""

from __future__ import annotations

from pathlib import Path

from sww_ros.streaming.checkpoint import StreamDefaults
from sww_ros.training.data.records import Record, read_records
from sww_ros.training.data.samples import Report, Sample, collect
from sww_ros.training.data.videos import VideoRoot


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
