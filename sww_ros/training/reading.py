"""Reads a recipe's annotation files, each in its own form, given or guessed."""

from __future__ import annotations

from sww_ros.training.data.annotations import read_annotations
from sww_ros.training.data.limits import Limits
from sww_ros.training.data.samples import Report, Sample
from sww_ros.training.recipe import Recipe


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
        samples += read_annotations(path, form=recipe.form, prompt=prompt, tokenizer=tokenizer,
                                    limits=limits, video_root=recipe.video_root, report=report)
    return samples
