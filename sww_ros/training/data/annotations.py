"""Reads an annotation file of any form."""

from __future__ import annotations

from pathlib import Path

from sww_ros.training.data.bag_captions import read_bag_captions
from sww_ros.training.data.forms import guess_form
from sww_ros.training.data.funqa import read_funqa
from sww_ros.training.data.limits import Limits
from sww_ros.training.data.pe_video import read_pe_video
from sww_ros.training.data.samples import Report, Sample


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
