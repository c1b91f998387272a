"""The captioned clips that a checkpoint is evaluated on, from annotation files of any form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sww_ros.evaluation.metrics.words import words
from sww_ros.training.data.annotations import Report, read_annotations
from sww_ros.training.data.records import PAPER, Rejected, Sample


def read_clips(paths: Sequence[Path], *, prompt: str, form: str = '', tokenizer=None,
               video_root: Path | None = None, localization: bool = False,
               report: Report | None = None) -> list[Sample]:
    """
    Read annotation files of any form; clips without words are left out.

    :param prompt: the standing question of captioned clips; a question about a clip is its own
    :param form: that of all files; '': each file's is guessed by its keys
    :param tokenizer: if given, PE-Video goes through the paper's filter of lengths
    :param video_root: what relative paths start from; None: the folder of each file
    :param localization: keep FunQA's tasks whose answer is a stretch of time
    :param report: takes what was kept, what not and why
    :raises ValueError: for a file that cannot be read, is of no known form, or has no usable clip
    """
    clips: list[Sample] = []
    for path in paths:
        clips += read_annotations(path, form=form, prompt=prompt, tokenizer=tokenizer,
                                  limits=PAPER if tokenizer else None, video_root=video_root,
                                  localization=localization, report=report)
    return [clip for clip in clips if _has_words(clip, report)]


def _has_words(clip: Sample, report: Report | None) -> bool:
    """Whether there is something to compare with; a reference without words fits no metric."""
    if words(clip.answer):
        return True
    if report:
        report.kept -= 1
        report.reject(Rejected('without words', f'{clip.source}: the reference {clip.answer!r} '
                                                'has no words'))
    return False
