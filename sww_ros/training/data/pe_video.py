"""Reads captioned videos in the form of PE-Video: one JSON object with a caption per video."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sww_ros.streaming.checkpoint import StreamDefaults
from sww_ros.training.data.decoding import video_seconds
from sww_ros.training.data.errors import Rejected, VideoError
from sww_ros.training.data.limits import PAPER, Limits
from sww_ros.training.data.records import Record, read_records
from sww_ros.training.data.samples import Report, Sample, collect
from sww_ros.training.data.videos import VideoRoot


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
