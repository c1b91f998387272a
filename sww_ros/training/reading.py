"""Reads a recipe's annotation files, each in its own form, given or guessed."""

from __future__ import annotations

from pathlib import Path

from sww_ros.training.data.bag_captions import read_bag_captions
from sww_ros.training.data.funqa import read_funqa
from sww_ros.training.data.limits import Limits
from sww_ros.training.data.pe_video import read_pe_video
from sww_ros.training.data.records import read_records
from sww_ros.training.data.samples import Report, Sample
from sww_ros.training.recipe import Recipe

_TOLD_BY = {'bag': 'bag', 'caption': 'pe_video', 'instruction': 'funqa', 'question': 'funqa'}
"""The form of a file by the first of these keys that its first object has."""


def guess_form(path: Path) -> str:
    """
    Return 'pe_video', 'funqa' or 'bag' by the keys of a file's first object.

    :raises ValueError: for a file that cannot be read, or has other keys
    """
    for record in read_records(path):
        if isinstance(record.value, dict):
            for key, form in _TOLD_BY.items():
                if key in record.value:
                    return form
            break
    raise ValueError(f'cannot guess the form of {path}: its first object has none of '
                     f'{", ".join(_TOLD_BY)}; give --form')


def read_samples(recipe: Recipe, tokenizer, prompt: str, report: Report) -> list[Sample]:
    """
    Return the samples of all files of a recipe.

    :param tokenizer: transformers' own; counts the tokens of captions
    :param prompt: what is asked where an annotation asks nothing
    :param report: takes what was kept, what not and why
    :raises ValueError: for a file that cannot be read, or without a usable sample
    """
    limits = None if recipe.keep_all else Limits(recipe.seconds, recipe.caption_rate)
    samples: list[Sample] = []
    for path in recipe.data:
        form = recipe.form or guess_form(path)
        if form == 'bag':
            samples += read_bag_captions(path, bag_root=recipe.video_root, prompt=prompt,
                                         report=report)
        elif form == 'funqa':
            samples += read_funqa(path, video_root=recipe.video_root, report=report)
        else:
            samples += read_pe_video(path, tokenizer, video_root=recipe.video_root, prompt=prompt,
                                     limits=limits, report=report)
    return samples
