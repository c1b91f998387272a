"""Tells how a training goes: on the screen, as JSON lines, on TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass, field
import json
from pathlib import Path
import time

from tqdm import tqdm

LOG = 'training.jsonl'


@dataclass
class Sums:
    """What one update or several add up to, over all processes."""

    cost: float = 0.0
    answer_tokens: int = 0
    rows: int = 0
    seconds: float = 0.0

    def add(self, other: Sums) -> None:
        self.cost += other.cost
        self.answer_tokens += other.answer_tokens
        self.rows += other.rows
        self.seconds += other.seconds


@dataclass
class Progress:
    """One process tells, the others (`shown` False) but for their warnings keep still."""

    out: Path
    updates: int
    first: int
    every: int
    shown: bool = True
    tensorboard: bool = False
    _sums: Sums = field(default_factory=Sums)

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

    def update(self, number: int, sums: Sums, learning_rate: float, gradient: float) -> None:
        """Take note of an update, from 1; `gradient` is the norm before clipping."""
        self._bar.update()
        self._sums.add(sums)
        if not self.shown or (number % self.every and number != self.updates):
            return
        total, self._sums = self._sums, Sums()
        line = dict(update=number, loss=total.cost / max(1, total.answer_tokens),
                    learning_rate=learning_rate, gradient=gradient,
                    answer_tokens=total.answer_tokens, rows=total.rows,
                    rows_per_s=round(total.rows / total.seconds, 1),
                    tokens_per_s=round(total.answer_tokens / total.seconds, 1))
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
