"""
A whole training: reads the data, loads the model, trains, writes the checkpoint.

The loop takes clips to batches, gradients over all processes, updates, states. accelerate gives
the device, bf16 and one copy of the model per process (DDP). The gradient of an update is that of
the mean over all answer tokens of its clips, however they fall into forward passes and processes:
costs are summed, and the sum's gradient is divided once, at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
import hashlib
import itertools
import json
import math
import os
import signal
import threading
import time
from types import FrameType

import numpy as np
from safetensors import SafetensorError
import torch
from tqdm import tqdm

from sww_ros.frames import with_last
from sww_ros.training.annotations import ClipFilter, Report, check_there, read_annotations
from sww_ros.training.clips import Batch, Clip, ClipFeed, ClipMaker, gathered, pack, pad
from sww_ros.training.frames import Sample
from sww_ros.training.memory import memory_of
from sww_ros.training.model import (
    BLOCK,
    Loss,
    TrainedModel,
    choose,
    clear_all,
    export,
    identity,
    latest,
    load_model,
    load_state,
    save_state,
)
from sww_ros.training.recipe import Recipe

LOG = 'training.jsonl'


def train(recipe: Recipe) -> None:
    """
    Train as a recipe says, and write a checkpoint that `Session.open` loads to `recipe.out`.

    :raises ValueError: in words, for a setting, checkpoint or data that cannot be used
    :raises OSError: for what cannot be written
    """
    accelerator = _accelerator(recipe)
    attention = choose(recipe.attention, accelerator.device)
    recipe = replace(recipe, pack=attention == 'flex' if recipe.pack is None else recipe.pack)
    _check_out(recipe)
    check_there(recipe.data)
    if accelerator.is_main_process:
        # Before minutes go into a model.
        recipe.out.mkdir(parents=True, exist_ok=True)

    def show(*lines: str) -> None:
        if accelerator.is_main_process:
            print(*lines, sep='\n', flush=True)

    # On a GPU its memory counts: what no update changes needs no more bits than its files have.
    saving = accelerator.device.type == 'cuda' and accelerator.mixed_precision == 'bf16'
    model = load_model(recipe, saving)
    show(*recipe.lines(model.about),
         f'attention    {attention} on {accelerator.num_processes} x {accelerator.device.type}, '
         f'{accelerator.mixed_precision.replace("no", "fp32")}')
    # The clips take the tower's type and shapes, so they are made before it goes to a GPU.
    maker, report = ClipMaker(model.about, model.stock, recipe), Report()
    samples = read_annotations(
        recipe.data, form=recipe.form, prompt=maker.settings.defaults.prompt,
        tokenizer=model.about.tokenizer, video_root=recipe.video_root, report=report,
        limits=None if recipe.keep_all else ClipFilter(recipe.seconds, recipe.caption_rate))
    show(str(report))
    if accelerator.is_main_process and not recipe.resume:
        clear_all(recipe.out)
    accelerator.wait_for_everyone()
    trainer = Trainer(recipe, model, maker, samples, accelerator, attention)
    count = sum(weight.numel() for weight in model.trained.values())
    show(f'{count / 1e6:.2f} M of {model.about.parameters / 1e6:.2f} M weights are trained, '
         f'updates {trainer.first + 1} to {trainer.updates}; '
         f'{memory_of(model, recipe, 2 if accelerator.mixed_precision == "bf16" else 4)}')
    trainer.run()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        try:
            export(model, maker.settings, recipe.out)
        except SafetensorError as error:
            # Which is what a full disk is called there.
            raise OSError(f'cannot write the checkpoint {recipe.out}: {error}') from error
        clear_all(recipe.out)
        show(f'saved to {recipe.out}, log in {recipe.out / LOG}')
    accelerator.end_training()


def _accelerator(recipe: Recipe):
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
    except ImportError as error:
        raise ValueError('training needs accelerate: pip install -r requirements/training.txt '
                         f'({error})') from None
    gpu = torch.cuda.is_available()
    bf16 = gpu if recipe.bf16 is None else recipe.bf16
    # The buffers are constants: there is nothing to send around.
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(mixed_precision='bf16' if bf16 else 'no', cpu=not gpu,
                              kwargs_handlers=[parallel])
    kinds = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if accelerator.distributed_type not in kinds:
        raise ValueError(f'{accelerator.distributed_type.value} is not supported: launch with '
                         'torchrun or accelerate, one copy of the model per process')
    if recipe.batch < accelerator.num_processes:
        raise ValueError(f'batch {recipe.batch} gives some of {accelerator.num_processes} '
                         'processes nothing to do: raise it, or use fewer')
    return accelerator


def _check_out(recipe: Recipe) -> None:
    if recipe.out.exists() and not recipe.out.is_dir():
        raise ValueError(f'{recipe.out} is a file: give a folder as --out')
    if recipe.resume and latest(recipe.out) is None and (recipe.out / 'config.json').exists():
        raise ValueError(f'{recipe.out} holds a checkpoint and no training to go on with: give '
                         'another --out, or --no-resume to write over it')




@dataclass
class Progress:
    """One process tells, the others (`shown` False) but for their warnings keep still."""

    recipe: Recipe
    updates: int
    first: int
    shown: bool = True
    _sums: Counter[str] = field(default_factory=Counter)
    _warm: tuple[int, float] | None = None

    def __post_init__(self) -> None:
        self._bar = tqdm(total=self.updates, initial=self.first, unit='update',
                         disable=None if self.shown else True)
        self._writer = None
        if not self.shown:
            return
        self._forget_later()
        if self.recipe.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError('--tensorboard needs tensorboard: pip install -r '
                                 f'requirements/training.txt ({error})') from None
            self._writer = SummaryWriter(str(self.recipe.out / 'tensorboard'),
                                         purge_step=self.first + 1)

    def _forget_later(self) -> None:
        """Leave out of the log what came after the state from which the training goes on."""
        log = self.recipe.out / LOG
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
        if not self.shown or (number % self.recipe.log_every and number != self.updates):
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
                  + ', '.join(f'{name} {value}' for name, value in short.items())
                  + self._left(number), flush=True)
        if self._writer:
            for name in ('loss', 'learning_rate', 'gradient', 'rows_per_s', 'tokens_per_s'):
                self._writer.add_scalar(name, line[name], number)

    def _left(self, number: int) -> str:
        """In words, the time that is left by the updates since the first, which warms up."""
        now_s = time.monotonic()
        if self._warm is None:
            self._warm = number, now_s
            return ''
        each_s = (now_s - self._warm[1]) / (number - self._warm[0])
        return f', {tqdm.format_interval((self.updates - number) * each_s)} left'

    def warn(self, message: str) -> None:
        """Tell of something that does not stop the training."""
        if self.shown:
            self._write(dict(warning=message))
        tqdm.write(f'warning: {message}')

    def _write(self, line: dict) -> None:
        with open(self.recipe.out / LOG, 'a') as log:
            log.write(json.dumps(dict(line, at=round(time.time(), 1))) + '\n')

    def close(self) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()


_STOPPING = b'\nstopping after this update, to save its state%s\n'


@contextmanager
def interruptible(patient: bool, shown: bool) -> Iterator[Callable[[], bool]]:
    """
    Let the first SIGINT only be noted; yields what returns whether there was one.

    A second one raises KeyboardInterrupt at once, unless `patient`: torchrun sends a second one
    of its own.
    """
    wishes: list[int] = []

    def on_sigint(number: int, _frame: FrameType | None) -> None:
        if wishes and not patient:
            raise KeyboardInterrupt
        if shown and not wishes:
            # `print` must not be called while it may be running already.
            os.write(2, _STOPPING % (b'' if patient else b'; once more stops at once'))
        wishes.append(number)

    before = signal.getsignal(signal.SIGINT)
    # Signals are for the main thread, and what starts us in the background may ignore them.
    heeded = (threading.current_thread() is threading.main_thread()
              and before not in (signal.SIG_IGN, None))
    if heeded:
        signal.signal(signal.SIGINT, on_sigint)
    try:
        yield lambda: bool(wishes)
    finally:
        if heeded:
            signal.signal(signal.SIGINT, before)


def learning_rate_scale(update: int, updates: int, warmup: float) -> float:
    """Linear over the share `warmup` of all updates, then a cosine to 0; `update` from 0."""
    warm = math.ceil(warmup * updates)
    if update < warm:
        return (update + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (update - warm) / max(1, updates - warm)))


class Trainer:
    """One process's part in a training."""

    def __init__(self, recipe: Recipe, model: TrainedModel, maker: ClipMaker,
                 samples: list[Sample], accelerator, attention: str) -> None:
        """
        Take what is trained; a state in the recipe's folder is gone on from.

        :param accelerator: accelerate's `Accelerator`
        :param attention: 'sdpa' or 'flex'
        :raises ValueError: for a state that does not fit, or processes that do not fit each other
        """
        self.recipe, self._accelerator = recipe, accelerator
        self._rank, self._world = accelerator.process_index, accelerator.num_processes
        self._clips_in_all = (recipe.steps * recipe.batch if recipe.steps
                              else math.ceil(recipe.epochs * len(samples)))
        self.updates = math.ceil(self._clips_in_all / recipe.batch)
        self._weights = model.trained
        self._whole = BLOCK if attention == 'flex' else 1
        self._loss = accelerator.prepare(Loss(model, attention))
        self._optimizer = torch.optim.AdamW(self._weights.values(), lr=recipe.learning_rate,
                                            weight_decay=0.0, fused=True)
        self._identity = identity(recipe, samples)
        state = latest(recipe.out) if recipe.resume else None
        self.first = (load_state(state, self._identity, self._weights, self._optimizer)
                      if state else 0)
        if self._world > 1:
            self._check_alike()
        self._progress = Progress(recipe, self.updates, self.first, accelerator.is_main_process)
        self._feed = ClipFeed(samples, maker, recipe.seed, recipe.readers, self._progress.warn)

    def _check_alike(self) -> None:
        """Processes on other nodes have options and files of their own, which may differ."""
        # A node may have the checkpoint elsewhere: the weights are those of the main process.
        told = json.dumps(self._identity | dict(model=''), sort_keys=True).encode()
        mine = torch.tensor([[self.first, self.updates,
                              int.from_bytes(hashlib.sha256(told).digest()[:4], 'big')]])
        firsts, *others = self._accelerator.gather(
            mine.to(self._accelerator.device)).T.tolist()
        if len(set(firsts)) > 1:
            raise ValueError(f'the processes go on from different updates, {min(firsts)} to '
                             f'{max(firsts)}: --out must be in a folder that all of them share')
        if any(len(set(each)) > 1 for each in others):
            raise ValueError('the processes do not train the same: give all of them the same '
                             'options and the same annotations')

    def run(self) -> None:
        """
        Train to the end.

        :raises ValueError: where not a single video can be read, or the loss is no number
        :raises OSError: where the log or a state cannot be written
        :raises KeyboardInterrupt: after Ctrl-C, once the state of the running update is saved
        """
        shares = [self._share(update) for update in range(self.first, self.updates)]
        clips = self._feed.clips(itertools.chain.from_iterable(shares))
        try:
            with interruptible(self._world > 1, self._accelerator.is_main_process) as stopping:
                for update, share in enumerate(shares, self.first):
                    self._update(update, itertools.islice(clips, len(share)))
                    self._after(update + 1, stopping())
        finally:
            clips.close()
            self._progress.close()

    def _after(self, done: int, stopping: bool) -> None:
        """Save the state where it is time, or where any process is to stop."""
        stop, = self._add_up(torch.tensor([float(stopping)]))
        if done == self.updates or not (stop or done % self.recipe.save_every == 0):
            return
        if self._accelerator.is_main_process:
            save_state(self.recipe.out, self._identity, done, self._weights, self._optimizer)
        self._accelerator.wait_for_everyone()
        if stop:
            raise KeyboardInterrupt

    def _places(self, update: int) -> range:
        """All clips of an update, by their places in the training."""
        first = update * self.recipe.batch
        return range(first, min(first + self.recipe.batch, self._clips_in_all))

    def _share(self, update: int) -> range:
        """This process's clips of an update; without any, one that then counts for nothing."""
        places = self._places(update)
        return places[self._rank::self._world] or places[:1]

    def _update(self, update: int, clips: Iterator[Clip]) -> None:
        recipe, started = self.recipe, time.monotonic()
        # Dropout draws the same whether or not the training was stopped before.
        torch.manual_seed(int(np.random.SeedSequence(
            [recipe.seed, update, self._rank]).generate_state(1)[0]))
        counts = self._rank < len(self._places(update))
        sums = torch.zeros(3, dtype=torch.float64)
        for batch, last in with_last(self._batches(clips)):
            # Processes may have different numbers of batches: each shares its last one's.
            with nullcontext() if last else self._accelerator.no_sync(self._loss):
                cost = self._loss(batch.to(self._accelerator.device))
                self._accelerator.backward(cost if counts else cost * 0.0)
            sums += torch.tensor([cost.item(), batch.answer_tokens, batch.rows]) * counts
        cost, tokens, rows = self._add_up(sums)
        if not math.isfinite(cost):
            raise ValueError(f'the loss is {cost} in update {update + 1}: lower --learning-rate')
        for weight in self._weights.values():
            if weight.grad is not None:
                # DDP has taken the mean over processes of what is a sum.
                weight.grad.mul_(self._world / tokens)
        norm = float(torch.nn.utils.clip_grad_norm_(self._weights.values(), recipe.clip))
        rate = recipe.learning_rate * learning_rate_scale(update, self.updates, recipe.warmup)
        for group in self._optimizer.param_groups:
            group['lr'] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._progress.update(update + 1, rate, norm, cost=cost, answer_tokens=int(tokens),
                              rows=int(rows), seconds=time.monotonic() - started)

    def _batches(self, clips: Iterator[Clip]) -> Iterator[Batch]:
        recipe = self.recipe
        put, most = (pack, recipe.max_rows) if recipe.pack else (pad, recipe.micro_batch)
        for some in gathered(clips, most, lambda clip: len(clip.rows) if recipe.pack else 1):
            yield put(some, self._whole)

    def _add_up(self, sums: torch.Tensor) -> list[float]:
        """Add up over all processes."""
        if self._world == 1:
            return sums.tolist()
        # Not every kind of accelerator computes in fp64.
        return self._accelerator.reduce(sums.float().to(self._accelerator.device), 'sum').tolist()
