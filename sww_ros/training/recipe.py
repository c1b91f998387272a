"""The recipe of a training: every setting with its one default, its checks, its command line."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sww_ros.streaming.positions import DEFAULT_SCHEME, GIPE_GAP, SCHEMES
from sww_ros.streaming.schedule import MAX_WAIT_K
from sww_ros.training.annotations import FORMS, PAPER

if TYPE_CHECKING:
    from sww_ros.streaming.checkpoint import Checkpoint, StreamDefaults
    from sww_ros.streaming.perception import PixelSettings

SCHEDULES = ('wait_k', 'random_wait_k', 'offline')
"""A `live` session runs what was trained with `wait_k`."""
MAX_LORA_RANK = 1024
"""Beyond any published recipe; a model of small layers allows less, see `load_model`."""
ATTENTIONS = ('auto', 'sdpa', 'flex')
_ELSEWHERE = ('data', 'out', 'micro_batch', 'gradient_checkpointing', 'pack',
              'max_rows', 'resume', 'save_every', 'log_every', 'attention', 'tensorboard',
              'readers', 'allow_download', 'video_root', 'form')
"""Settings that a resumed training may change: they do not say what is learnt from which data."""


@dataclass(frozen=True)
class Recipe:
    """
    What is trained on what, and how; the defaults are the paper's own.

    `form` '' guesses each file's form. Empty `prompt`, `system` and zero `max_pixels`, `max_steps`
    mean "as the checkpoint says". `batch` clips make one update, over all processes;
    `micro_batch` of them one forward pass, or with `pack` as many as fit into `max_rows` rows;
    `pack` None: with FlexAttention. `steps` 0: `epochs` of the data. `lora_rank` 0 trains the
    language model and the merger whole; the rest of the vision tower is frozen either way.
    `bf16` None: on a GPU.
    """

    model: str
    data: tuple[Path, ...]
    out: Path
    form: str = ''
    video_root: Path | None = None
    allow_download: bool = False
    position_encoding: str = DEFAULT_SCHEME
    position_gap: int = GIPE_GAP
    schedule: str = 'wait_k'
    wait_k: int = 3
    fps: float = 2.0
    system: str = ''
    prompt: str = ''
    max_steps: int = 0
    max_pixels: int = 0
    seconds: tuple[float, float] = PAPER.seconds
    caption_rate: tuple[float, float] = PAPER.tokens_per_second
    keep_all: bool = False
    lora_rank: int = 0
    lora_alpha: float = 0.0
    lora_dropout: float = 0.0
    steps: int = 0
    epochs: float = 1.0
    batch: int = 64
    micro_batch: int = 1
    pack: bool | None = None
    max_rows: int = 16384
    learning_rate: float = 2e-5
    warmup: float = 0.03
    clip: float = 1.0
    seed: int = 0
    bf16: bool | None = None
    gradient_checkpointing: bool = False
    attention: str = 'auto'
    readers: int = 2
    resume: bool = True
    save_every: int = 100
    log_every: int = 1
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name, choices in (('position_encoding', SCHEMES), ('schedule', SCHEDULES),
                              ('attention', ATTENTIONS), ('form', ('', *FORMS))):
            if getattr(self, name) not in choices:
                raise ValueError(f'{name} must be one of {", ".join(filter(None, choices))}, '
                                 f'not {getattr(self, name)!r}')
        for name in ('wait_k', 'batch', 'micro_batch', 'max_rows', 'readers', 'save_every',
                     'log_every'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, not {getattr(self, name)}')
        for name, most in (('wait_k', MAX_WAIT_K), ('lora_rank', MAX_LORA_RANK)):
            if getattr(self, name) > most:
                raise ValueError(f'{name} must be at most {most}, not {getattr(self, name)}')
        for name in ('position_gap', 'max_steps', 'max_pixels', 'steps', 'lora_rank',
                     'lora_alpha', 'seed'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} must not be negative, not {getattr(self, name)}')
        for name in ('fps', 'learning_rate', 'clip'):
            if not getattr(self, name) > 0:
                raise ValueError(f'{name} must be above 0, not {getattr(self, name)}')
        if not self.steps and not self.epochs > 0:
            raise ValueError(f'epochs must be above 0, not {self.epochs}; or give steps')
        for name in ('warmup', 'lora_dropout'):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f'{name} must be a share from 0 to below 1, '
                                 f'not {getattr(self, name)}')
        for name in ('seconds', 'caption_rate'):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f'{name} must be a range, low then high, not {low:g} {high:g}')
        if not self.lora_rank and (self.lora_alpha or self.lora_dropout):
            raise ValueError('lora_alpha and lora_dropout need a lora_rank: give one, or leave '
                             'them out')
        if not self.data:
            raise ValueError('there is no data: give one annotation file or more')

    @property
    def alpha(self) -> float:
        """LoRA's scale before the division by the rank; twice the rank where none is given."""
        return self.lora_alpha or 2.0 * self.lora_rank

    def identity(self) -> dict:
        """Settings that a resumed training must share with the one that was stopped."""
        plain = {name: value for name, value in asdict(self).items() if name not in _ELSEWHERE}
        folder = Path(self.model).expanduser()
        return plain | dict(model=str(folder.resolve()) if folder.exists() else self.model,
                            seconds=list(self.seconds), caption_rate=list(self.caption_rate))

    def lines(self, own: dict[str, str] | None = None) -> list[str]:
        """
        Return the recipe in words, for the screen.

        :param own: `streaming_words` of the checkpoint, if it was trained to stream
        """
        words = streaming_words(self.position_encoding, self.position_gap, self.schedule,
                                self.wait_k, self.fps)
        for name, was in (own or {}).items():
            if was != words[name]:
                words[name] += f' (was {was} in the checkpoint)'
        how = (f'LoRA rank {self.lora_rank}, alpha {self.alpha:g}, dropout {self.lora_dropout:g}'
               if self.lora_rank else 'merger and language model whole')
        length = f'{self.steps} updates' if self.steps else f'{self.epochs:g} epochs'
        rows = (f'packed into {self.max_rows} rows' if self.pack
                else f'{self.micro_batch} a forward pass')
        return [f'model        {self.model}',
                f'data         {", ".join(str(path) for path in self.data)}',
                f'positions    {words["positions"]}',
                f'schedule     {words["schedule"]}',
                f'trained      {how}; vision tower frozen',
                f'length       {length} of {self.batch} clips, {rows}',
                f'optimizer    AdamW, learning rate {self.learning_rate:g} cosine, warm-up '
                f'{self.warmup:g}, gradients clipped at {self.clip:g}, seed {self.seed}']


def streaming_words(position_encoding: str, position_gap: int, schedule: str, wait_k: int,
                    fps: float) -> dict[str, str]:
    """Return what a recipe's `positions` and `schedule` are called on the screen."""
    gap = f', gap {position_gap}' if SCHEMES[position_encoding].uses_gap else ''
    return dict(positions=f'{position_encoding}{gap}',
                schedule=f'{schedule}, K = {wait_k}, {fps:g} frames a second')


def own_words(about: Checkpoint) -> dict[str, str]:
    """Return `streaming_words` of a checkpoint that was trained to stream; {} for any other."""
    if not about.trained:
        return {}
    own, per_step = about.defaults, about.perception.settings.temporal_patch_size
    return streaming_words(own.position_encoding, own.position_gap, own.schedule, own.wait_k,
                           per_step / own.seconds_per_step)


@dataclass(frozen=True)
class StreamSettings:
    """The checkpoint's own settings, with what the recipe changes."""

    defaults: StreamDefaults
    pixels: PixelSettings

    @staticmethod
    def of(about: Checkpoint, recipe: Recipe) -> StreamSettings:
        """
        Put a checkpoint's settings and a recipe together.

        :raises ValueError: for pixels that the checkpoint cannot take
        """
        own, pixels = about.defaults, about.perception.settings
        defaults = replace(
            own, position_encoding=recipe.position_encoding, position_gap=recipe.position_gap,
            schedule=recipe.schedule, wait_k=recipe.wait_k,
            seconds_per_step=pixels.temporal_patch_size / recipe.fps,
            system=recipe.system or own.system, prompt=recipe.prompt or own.prompt,
            max_steps=recipe.max_steps or own.max_steps)
        if recipe.max_pixels:
            least = pixels.unit ** 2
            if recipe.max_pixels < least:
                raise ValueError(f'max_pixels must be at least {least}, one visual token, not '
                                 f'{recipe.max_pixels}')
            pixels = replace(pixels, max_pixels=recipe.max_pixels,
                             min_pixels=min(pixels.min_pixels, recipe.max_pixels))
        return StreamSettings(defaults, pixels)

    def entry(self) -> dict:
        """The `speak_while_watching` entry of the trained checkpoint's config."""
        d = self.defaults
        entry = dict(position_encoding=d.position_encoding, schedule=d.schedule, wait_k=d.wait_k,
                     seconds_per_step=d.seconds_per_step, system=d.system, prompt=d.prompt,
                     max_steps=d.max_steps)
        if SCHEMES[d.position_encoding].uses_gap:
            entry['position_gap'] = d.position_gap
        return entry


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
