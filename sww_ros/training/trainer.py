"""
A whole training: reads the data, loads the model, trains, writes the checkpoint.

The loop takes clips to batches, gradients over all processes, updates, states. accelerate gives
the device, bf16 and one copy of the model per process (DDP). The gradient of an update is that of
the mean over all answer tokens of its clips, however they fall into forward passes and processes:
costs are summed, and the sum's gradient is divided once, at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
import itertools
import math
import os
import signal
import threading
import time
from types import FrameType

import numpy as np
from safetensors import SafetensorError
import torch

from sww_ros.frames import with_last
from sww_ros.training.annotations import Limits, Report, check_there, read_annotations
from sww_ros.training.clips import Batch, Clip, ClipFeed, ClipMaker, gathered, pack, pad
from sww_ros.training.frames import Sample
from sww_ros.training.model import BLOCK, Loss, TrainedModel, choose, export, load_model
from sww_ros.training.progress import (
    LOG,
    Progress,
    clear_all,
    identity,
    latest,
    load_state,
    save_state,
)
from sww_ros.training.recipe import Recipe, own_words


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
    show(*recipe.lines(own_words(model.about)),
         f'attention    {attention} on {accelerator.num_processes} x {accelerator.device.type}, '
         f'{accelerator.mixed_precision.replace("no", "fp32")}')
    # The clips take the tower's type and shapes, so they are made before it goes to a GPU.
    maker, report = ClipMaker(model.about, model.stock, recipe), Report()
    samples = read_samples(recipe, model.about.tokenizer, maker.settings.defaults.prompt, report)
    show(str(report))
    if accelerator.is_main_process and not recipe.resume:
        clear_all(recipe.out)
    accelerator.wait_for_everyone()
    trainer = Trainer(recipe, model, maker, samples, accelerator, attention)
    count = sum(weight.numel() for weight in model.trained.values())
    show(f'{count / 1e6:.2f} M of {model.about.parameters / 1e6:.2f} M weights are trained, '
         f'updates {trainer.first + 1} to {trainer.updates}')
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


_STOPPING = b'\nstopping after this update, to save its state%s\n'


class Interrupt:
    """
    While it is entered, the first SIGINT only sets `wished`.

    A second one raises KeyboardInterrupt at once, unless `patient`: torchrun sends a second one
    of its own.
    """

    def __init__(self, patient: bool = False, shown: bool = True) -> None:
        self.wished = False
        self._patient, self._shown, self._before = patient, shown, None

    def __enter__(self) -> Interrupt:
        # Signals are for the main thread, and what starts us in the background may ignore them.
        if (threading.current_thread() is threading.main_thread()
                and signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None)):
            self._before = signal.signal(signal.SIGINT, self._on_sigint)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _on_sigint(self, _number: int, _frame: FrameType | None) -> None:
        if self.wished and not self._patient:
            raise KeyboardInterrupt
        if self._shown and not self.wished:
            # `print` must not be called while it may be running already.
            os.write(2, _STOPPING % (b'' if self._patient else b'; once more stops at once'))
        self.wished = True


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
        :raises ValueError: for a state that does not fit
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
        self._progress = Progress(recipe.out, self.updates, self.first, recipe.log_every,
                                  accelerator.is_main_process, recipe.tensorboard)
        self._feed = ClipFeed(samples, maker, recipe.seed, recipe.readers, self._progress.warn)

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
            with Interrupt(patient=self._world > 1,
                           shown=self._accelerator.is_main_process) as interrupt:
                for update, share in enumerate(shares, self.first):
                    self._update(update, itertools.islice(clips, len(share)))
                    self._after(update + 1, interrupt)
        finally:
            clips.close()
            self._progress.close()

    def _after(self, done: int, interrupt: Interrupt) -> None:
        """Save the state where it is time, or where any process is to stop."""
        stop, = self._add_up(torch.tensor([float(interrupt.wished)]))
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
