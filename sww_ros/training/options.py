"""The command line of the training, as a recipe."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from sww_ros.streaming.positions import SCHEMES
from sww_ros.training.data.forms import FORMS
from sww_ros.training.recipe import ATTENTIONS, SCHEDULES, Recipe

_DEFAULTS = {field.name: field.default for field in fields(Recipe)}


def parse(arguments: list[str] | None = None) -> Recipe:
    """
    Return the recipe that a command line asks for.

    :raises ValueError: for values that no recipe can have
    """
    given = vars(_parser().parse_args(arguments))
    for name in ('seconds', 'caption_rate', 'data'):
        if name in given:
            given[name] = tuple(given[name])
    return Recipe(**given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m sww_ros.training', allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        description='Trains a Qwen2.5-VL checkpoint to speak while watching. The defaults are '
                    'the recipe of arXiv 2601.06843. Several GPUs: torchrun --nproc-per-node N '
                    '-m sww_ros.training ...')
    group = None

    def add(name: str, text: str, **options) -> None:
        key = name.removeprefix('--').replace('-', '_')
        default = _DEFAULTS.get(options.get('dest', key))
        if isinstance(default, tuple):
            text += f' (default: {default[0]:g} {default[1]:g})'
        elif isinstance(default, int | float | str) and not isinstance(default, bool) and default:
            text += f' (default: {default:g})' if not isinstance(default, str) else (
                f' (default: {default})')
        group.add_argument(name, help=text, **options)

    def switch(name: str, text: str) -> None:
        group.add_argument(name, help=text, action=argparse.BooleanOptionalAction)

    group = parser.add_argument_group('what is trained on what')
    add('--model', 'a folder, "builtin", or a hub id', required=True)
    add('--data', 'annotation files', type=Path, nargs='+', required=True, metavar='FILE')
    add('--out', 'folder of the trained checkpoint', type=Path, required=True)
    add('--form', 'form of the annotations; guessed if not given',
        choices=FORMS)
    add('--video-root', 'what relative paths of videos start from; the folder of each file if '
        'not given', type=Path)
    add('--allow-download', 'whether a hub id may be fetched', action='store_true')
    add('--seconds', 'how long captioned videos may be [s]', type=float, nargs=2,
        metavar=('LOW', 'HIGH'))
    add('--caption-rate', 'tokens of a caption for each second of its video', type=float,
        nargs=2, metavar=('LOW', 'HIGH'))
    add('--keep-all', 'keep captioned videos of any length and rate', action='store_true')
    add('--lora', 'rank of LoRA adapters; the whole model is trained if not given', type=int,
        dest='lora_rank', metavar='RANK')
    add('--lora-alpha', 'their scale; twice the rank if not given', type=float)
    add('--lora-dropout', 'share of their input that is dropped', type=float)

    group = parser.add_argument_group('how it will stream')
    add('--position-encoding', 'position scheme', choices=SCHEMES)
    add('--position-gap', 'where text starts with gipe', type=int)
    add('--schedule', 'when it speaks; sessions that run live want wait_k', choices=SCHEDULES)
    add('--wait-k', 'tokens of text a step', type=int)
    add('--fps', 'frames a second', type=float)
    add('--max-pixels', "pixels of a frame at most; the checkpoint's own if not given", type=int)
    add('--max-steps', "steps of a video at most; the checkpoint's own if not given", type=int)
    add('--system', "system turn; the checkpoint's own if not given")
    add('--prompt', 'standing question where the data asks nothing')

    group = parser.add_argument_group('how it is trained')
    add('--steps', 'updates; counted by epochs if not given', type=int)
    add('--epochs', 'times through the data', type=float)
    add('--batch', 'clips of an update, over all processes', type=int)
    add('--micro-batch', 'clips of a forward pass without packing', type=int)
    switch('--pack', 'several clips in one row (default: with flex)')
    add('--max-rows', 'rows of a packed forward pass', type=int)
    add('--learning-rate', 'the highest', type=float)
    add('--warmup', 'share of the updates in which it rises', type=float)
    add('--clip', 'largest norm of a gradient', type=float)
    add('--seed', 'of order, random schedules and adapters (default: 0)', type=int)
    switch('--bf16', 'compute in bf16; weights stay fp32 (default: on a GPU)')
    switch('--gradient-checkpointing', 'less memory, a third slower')
    add('--attention', 'flex needs a GPU; auto takes it there', choices=ATTENTIONS)
    add('--readers', 'threads that decode videos', type=int)

    group = parser.add_argument_group('the run')
    switch('--resume', 'go on with what --out holds (default)')
    add('--save-every', 'updates between states', type=int)
    add('--log-every', 'updates between lines of the log', type=int)
    switch('--tensorboard', 'write a TensorBoard log into --out')
    return parser
