"""The captioned clips that a checkpoint is evaluated on, from annotation files of any form."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sww_ros.evaluation.metrics.words import words
from sww_ros.training.data.bag_captions import read_bag_captions
from sww_ros.training.data.errors import Rejected
from sww_ros.training.data.funqa import read_funqa
from sww_ros.training.data.limits import PAPER
from sww_ros.training.data.pe_video import read_pe_video
from sww_ros.training.data.records import read_records
from sww_ros.training.data.samples import Report, Sample


def read_clips(paths: Sequence[Path], *, prompt: str, tokenizer=None,
               video_root: Path | None = None, localization: bool = False,
               report: Report | None = None) -> list[Sample]:
    """
    Read annotation files, each in the form that its first usable record has.

    A record with a `bag` is of the form of `read_bag_captions`, one with a `caption` of PE-Video,
    one with an `instruction` or a `question` of FunQA.

    :param prompt: the standing question of captioned clips; a question about a clip is its own
    :param tokenizer: if given, PE-Video goes through the paper's filter of lengths
    :param video_root: what relative paths start from; None: the folder of each file
    :param localization: keep FunQA's tasks whose answer is a stretch of time
    :param report: takes what was kept, what not and why
    :raises ValueError: for a file that cannot be read, is of no known form, or has no usable clip
    """
    readers = {
        'bag': partial(read_bag_captions, bag_root=video_root, prompt=prompt),
        'caption': partial(read_pe_video, tokenizer=tokenizer, video_root=video_root,
                           prompt=prompt, limits=PAPER if tokenizer else None),
        'instruction': (funqa := partial(read_funqa, video_root=video_root,
                                         localization=localization)),
        'question': funqa}
    clips = []
    for path in paths:
        clips += readers[_form(path, tuple(readers))](path, report=report)
    return [clip for clip in clips if _has_words(clip, report)]


def _form(path: Path, keys: tuple[str, ...]) -> str:
    for record in read_records(path):
        try:
            if key := record.has(*keys):
                return key
        except Rejected:  # Counted by the reader.
            continue
    raise ValueError(f'no record of {path} has one of {", ".join(keys)}: give annotations in the '
                     'form of PE-Video, of FunQA, or of captioned bags')


def _has_words(clip: Sample, report: Report | None) -> bool:
    """Whether there is something to compare with; a reference without words fits no metric."""
    if words(clip.answer):
        return True
    if report:
        report.kept -= 1
        report.reject(Rejected('without words', f'{clip.source}: the reference {clip.answer!r} '
                                                'has no words'))
    return False
