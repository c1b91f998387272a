"""What a training leaves as it goes: its log, and the state from which it can go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
import hashlib
import json
from pathlib import Path
import shutil
import time

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from tqdm import tqdm

from sww_ros.training.frames import Sample
from sww_ros.training.recipe import Recipe

LOG = 'training.jsonl'
_PATTERN = 'state-*[0-9]'


@dataclass
class Progress:
    """One process tells, the others (`shown` False) but for their warnings keep still."""

    out: Path
    updates: int
    first: int
    every: int
    shown: bool = True
    tensorboard: bool = False
    _sums: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._bar = tqdm(total=self.updates, initial=self.first, unit='update',
                         disable=None if self.shown else True)
        self._writer = None
        if not self.shown:
            return
        self._forget_later()
        if self.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError('--tensorboard needs tensorboard: pip install -r '
                                 f'requirements/training.txt ({error})') from None
            self._writer = SummaryWriter(str(self.out / 'tensorboard'), purge_step=self.first + 1)

    def _forget_later(self) -> None:
        """Leave out of the log what came after the state from which the training goes on."""
        log = self.out / LOG
        lines = log.read_text().splitlines(keepends=True) if self.first and log.exists() else []
        log.write_text(''.join(line for line in lines
                               if line.endswith('\n')
                               and json.loads(line).get('update', 0) <= self.first))

    def update(self, number: int, learning_rate: float, gradient: float, **sums: float) -> None:
        """
        Take note of an update, from 1.

        :param gradient: the norm before clipping
        :param sums: `cost`, `answer_tokens`, `rows`, `seconds`, over all processes
        """
        self._bar.update()
        self._sums.update(sums)
        if not self.shown or (number % self.every and number != self.updates):
            return
        total, self._sums = self._sums, Counter()
        tokens, rows, seconds = (total[name] for name in ('answer_tokens', 'rows', 'seconds'))
        line = dict(update=number, loss=total['cost'] / max(1, tokens),
                    learning_rate=learning_rate, gradient=gradient, answer_tokens=tokens, rows=rows,
                    rows_per_s=round(rows / seconds, 1), tokens_per_s=round(tokens / seconds, 1))
        self._write(line)
        short = {name: f'{line[name]:.4g}' for name in ('loss', 'rows_per_s', 'tokens_per_s')}
        self._bar.set_postfix(short)
        if self._bar.disable:
            print(f'update {number} of {self.updates}: '
                  + ', '.join(f'{name} {value}' for name, value in short.items()), flush=True)
        if self._writer:
            for name in ('loss', 'learning_rate', 'gradient', 'rows_per_s', 'tokens_per_s'):
                self._writer.add_scalar(name, line[name], number)

    def warn(self, message: str) -> None:
        """Tell of something that does not stop the training."""
        if self.shown:
            self._write(dict(warning=message))
        tqdm.write(f'warning: {message}')

    def _write(self, line: dict) -> None:
        with open(self.out / LOG, 'a') as log:
            log.write(json.dumps(dict(line, at=round(time.time(), 1))) + '\n')

    def close(self) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()


def latest(out: Path) -> Path | None:
    """Return the newest whole state in a folder, if there is one."""
    return max(out.glob(_PATTERN), default=None, key=lambda path: path.name)


def identity(recipe: Recipe, samples: Sequence[Sample]) -> dict:
    """
    Return what a resumed training must share with the one that was stopped, as plain data.

    Samples count by what they say and in their order, files of annotations by nothing: they may
    have moved, and so may the folder of the videos.
    """
    content = [[sample.video.name, sample.topic, sample.prompt, sample.answer, sample.start_s,
                sample.end_s] for sample in samples]
    return dict(recipe.identity(), samples=hashlib.sha256(json.dumps(content).encode()).hexdigest())


def save_state(out: Path, about: dict, update: int, weights: dict[str, torch.Tensor],
               optimizer: torch.optim.Optimizer) -> None:
    """
    Write the state after `update` updates, then remove older ones.

    What is drawn at random depends on the seed and the update alone, and so does the learning
    rate: neither has a state.

    :param about: the training's `identity`
    :raises OSError: where it cannot be written; older states are kept
    """
    folder = out / f'state-{update:08d}'
    partial = folder.with_suffix('.partial')
    clear(partial)
    try:
        partial.mkdir(parents=True)
        save_file({name: weight.detach().contiguous() for name, weight in weights.items()},
                  partial / 'weights.safetensors')
        save_file(_moments(optimizer), partial / 'optimizer.safetensors')
        (partial / 'about.json').write_text(
            json.dumps(dict(update=update, recipe=about), indent=2) + '\n')
    except (OSError, SafetensorError, RuntimeError) as error:
        # On a full disk, what there is of it would be in the way of everything else.
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f'cannot write the state {folder}: {error}') from error
    clear(folder)
    # A state is whole once it has its name.
    partial.rename(folder)
    for path in out.glob(_PATTERN):
        if path != folder:
            clear(path)


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer's state by weight and name; its rates are the recipe's."""
    return {f'{index}.{name}': value for index, moments in optimizer.state_dict()['state'].items()
            for name, value in moments.items()}


def load_state(folder: Path, wanted: dict, weights: dict[str, torch.Tensor],
               optimizer: torch.optim.Optimizer) -> int:
    """
    Put a state into weights and optimizer, and return how many updates it has had.

    :param wanted: the `identity` of the training that goes on
    :raises ValueError: for a state of another recipe, or one that cannot be read
    """
    try:
        about = json.loads((folder / 'about.json').read_text())
        saved = load_file(folder / 'weights.safetensors')
        moments = load_file(folder / 'optimizer.safetensors')
    except Exception as error:  # noqa: BLE001 - each file has errors of its own kind
        raise ValueError(f'cannot read the state {folder}: {error}; remove it, or start anew '
                         'with --no-resume') from error
    for name, value in wanted.items():
        was = about['recipe'].get(name)
        if was != value:
            other = (f'with {name} {was!r}, not {value!r}' if name != 'samples' else
                     'on other samples (the annotations have changed, or their order)')
            raise ValueError(f'{folder.parent} holds a training {other}: give another --out, '
                             'or start anew with --no-resume')
    if saved.keys() != weights.keys():
        raise ValueError(f'the state {folder} is of another model: give another --out, or start '
                         'anew with --no-resume')
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(saved[name])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in moments.items():
        index, _, name = key.partition('.')
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(dict(optimizer.state_dict(), state=state))
    return int(about['update'])


def clear(path: Path) -> None:
    """Remove a state, or what is left of one."""
    if path.exists():
        shutil.rmtree(path)


def clear_all(out: Path) -> None:
    """Remove all states of a folder."""
    for path in out.glob('state-*'):
        clear(path)
