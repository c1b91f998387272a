"""The recipe of a training: every setting with its one default, its checks, its command line."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction
from dataclasses import asdict, dataclass, replace
import math
from pathlib import Path
from typing import TYPE_CHECKING

from sww_ros.settings import add_option, setting, settings_of
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
_MANY = 10 ** 9
"""Far beyond what any training has: what is refused is a slip of the pen."""
_LEAST = 1e-9
_ELSEWHERE = ('data', 'out', 'micro_batch', 'gradient_checkpointing', 'pack',
              'max_rows', 'resume', 'save_every', 'log_every', 'attention', 'tensorboard',
              'readers', 'allow_download', 'video_root', 'form')
"""Settings that a resumed training may change: they do not say what is learnt from which data."""


@dataclass(frozen=True)
class Recipe:
    """
    What is trained on what, and how; the defaults are the paper's own.

    With `lora_rank` or without, the vision tower is frozen but for its merger.

    :raises ValueError: for values that no recipe can have
    """

    model: str
    data: tuple[Path, ...]
    out: Path
    video_root: Path | None = None
    seconds: tuple[float, float] = PAPER.seconds
    caption_rate: tuple[float, float] = PAPER.tokens_per_second
    pack: bool | None = None
    bf16: bool | None = None
    form: str = setting('', 'form of the annotations; guessed if not given', choices=('', *FORMS))
    allow_download: bool = setting(False, 'whether a hub id may be fetched')
    keep_all: bool = setting(False, 'keep captioned videos of any length and rate')
    lora_rank: int = setting(
        0, 'rank of LoRA adapters; the whole model is trained if not given', high=MAX_LORA_RANK)
    lora_alpha: float = setting(0.0, 'their scale; twice the rank if not given', high=_MANY)
    lora_dropout: float = setting(0.0, 'share of their input that is dropped', high=0.999)
    position_encoding: str = setting(
        DEFAULT_SCHEME, 'position scheme', choices=lambda: tuple(SCHEMES))
    position_gap: int = setting(GIPE_GAP, 'where text starts with gipe', high=_MANY)
    schedule: str = setting(
        'wait_k', 'when it speaks; sessions that run live want wait_k', choices=SCHEDULES)
    wait_k: int = setting(3, 'tokens of text a step', low=1, high=MAX_WAIT_K)
    silence: str = setting(
        '', 'token that is said between timed words, each said once it was heard; without, they '
            'are said one after the other')
    fps: float = setting(2.0, 'frames a second', low=_LEAST, high=_MANY)
    max_pixels: int = setting(
        0, "pixels of a frame at most; the checkpoint's own if not given", high=_MANY)
    max_steps: int = setting(
        0, "steps of a video at most; the checkpoint's own if not given", high=_MANY)
    system: str = setting('', "system turn; the checkpoint's own if not given")
    prompt: str = setting(
        '', "standing question where the data asks nothing; the checkpoint's own if not given")
    steps: int = setting(0, 'updates; counted by epochs if not given', high=_MANY)
    epochs: float = setting(1.0, 'times through the data', low=_LEAST, high=_MANY)
    batch: int = setting(64, 'clips of an update, over all processes', low=1, high=_MANY)
    micro_batch: int = setting(1, 'clips of a forward pass without packing', low=1, high=_MANY)
    max_rows: int = setting(16384, 'rows of a packed forward pass', low=1, high=_MANY)
    learning_rate: float = setting(2e-5, 'the highest', low=_LEAST, high=_MANY)
    warmup: float = setting(0.03, 'share of the updates in which it rises', high=0.999)
    clip: float = setting(1.0, 'largest norm of a gradient', low=_LEAST, high=math.inf)
    seed: int = setting(0, 'of order, random schedules and adapters (default: 0)', high=2 ** 63)
    gradient_checkpointing: bool = setting(False, 'less memory, a third slower')
    attention: str = setting(
        'auto', 'flex needs a GPU; auto takes it there', choices=('auto', 'sdpa', 'flex'))
    readers: int = setting(2, 'threads that decode videos', low=1, high=1000)
    resume: bool = setting(True, 'go on with what --out holds')
    save_every: int = setting(100, 'updates between states', low=1, high=_MANY)
    log_every: int = setting(1, 'updates between lines of the log', low=1, high=_MANY)
    tensorboard: bool = setting(False, 'write a TensorBoard log into --out')

    def __post_init__(self) -> None:
        for declared in settings_of(Recipe):
            declared.check_range(getattr(self, declared.name))
        for name in ('seconds', 'caption_rate'):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f'{name} must be a range, low then high, not {low:g} {high:g}')
        if not self.lora_rank and (self.lora_alpha or self.lora_dropout):
            raise ValueError('lora_alpha and lora_dropout need a lora_rank: give one, or leave '
                             'them out')
        if self.silence and self.schedule == 'offline':
            raise ValueError('silence is between the words of one who watches: with the schedule '
                             'offline there is none, leave it out')
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

    def lines(self, about: Checkpoint) -> list[str]:
        """Return the recipe in words, for the screen, and how a trained checkpoint differs."""
        words = _streaming_words(self, self.fps)
        if about.trained:
            own, per_step = about.defaults, about.perception.settings.temporal_patch_size
            for name, was in _streaming_words(own, per_step / own.seconds_per_step).items():
                if was != words[name]:
                    words[name] += f' (was {was} in the checkpoint)'
        if self.silence:
            words['schedule'] += f', silence {self.silence}'
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


def _streaming_words(of: Recipe | StreamDefaults, fps: float) -> dict[str, str]:
    """Return what `positions` and `schedule` are called on the screen."""
    gap = f', gap {of.position_gap}' if SCHEMES[of.position_encoding].uses_gap else ''
    return dict(positions=f'{of.position_encoding}{gap}',
                schedule=f'{of.schedule}, K = {of.wait_k}, {fps:g} frames a second')


@dataclass(frozen=True)
class StreamSettings:
    """The checkpoint's own settings, with what the recipe changes."""

    defaults: StreamDefaults
    pixels: PixelSettings
    silence: str = ''

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
        return StreamSettings(defaults, pixels, recipe.silence)

    def entry(self) -> dict:
        """The `speak_while_watching` entry of the trained checkpoint's config."""
        names = ['position_encoding', 'schedule', 'wait_k', 'seconds_per_step', 'system', 'prompt',
                 'max_steps']
        if SCHEMES[self.defaults.position_encoding].uses_gap:
            names.append('position_gap')
        return {name: getattr(self.defaults, name) for name in names} | (
            dict(silence_token=self.silence) if self.silence else {})


_GROUPS = dict(form='what is trained on what', position_encoding='how it will stream',
               steps='how it is trained', resume='the run')
"""The groups of options, each by its first setting."""


def parse(arguments: list[str] | None = None) -> Recipe:
    """
    Return the recipe that a command line asks for.

    :raises ValueError: for values that no recipe can have
    """
    given = vars(_parser().parse_args(arguments))
    return Recipe(**{name: tuple(value) if isinstance(value, list) else value
                     for name, value in given.items()})


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog='python -m sww_ros.training', allow_abbrev=False, argument_default=SUPPRESS,
        description='Trains a checkpoint to speak while watching. The defaults are '
                    'the recipe of arXiv 2601.06843. Several GPUs: torchrun --nproc-per-node N '
                    '-m sww_ros.training ...')
    groups = {name: parser.add_argument_group(title) for name, title in _GROUPS.items()}
    add = groups['form'].add_argument
    add('--model', required=True, help='a folder, "builtin", or a hub id')
    add('--data', type=Path, nargs='+', required=True, metavar='FILE', help='annotation files')
    add('--out', type=Path, required=True, help='folder of the trained checkpoint')
    add('--video-root', type=Path,
        help='what relative paths of videos start from; the folder of each file if not given')
    for name, (low, high), text in (
            ('--seconds', PAPER.seconds, 'how long captioned videos may be [s]'),
            ('--caption-rate', PAPER.tokens_per_second,
             'tokens of a caption for each second of its video')):
        add(name, type=float, nargs=2, metavar=('LOW', 'HIGH'),
            help=f'{text} (default: {low:g} {high:g})')
    group = parser
    for declared in settings_of(Recipe):
        group = groups.get(declared.name, group)
        if declared.name == 'lora_rank':
            add_option(group, replace(declared, name='lora'), dest='lora_rank', metavar='RANK')
        else:
            add_option(group, declared)
    switch = groups['steps'].add_argument
    switch('--pack', action=BooleanOptionalAction,
           help='several clips in one row (default: with flex)')
    switch('--bf16', action=BooleanOptionalAction,
           help='compute in bf16; weights stay fp32 (default: on a GPU)')
    return parser
