"""A whole training: read the data, load the model, train, write the checkpoint."""

from __future__ import annotations

from dataclasses import replace

from safetensors import SafetensorError
import torch

from sww_ros.training.clips import ClipMaker
from sww_ros.training.data.annotations import Report, read_annotations
from sww_ros.training.data.records import Limits, Sample, check_there
from sww_ros.training.loss import choose
from sww_ros.training.model import StreamSettings, export, load_model, own_words
from sww_ros.training.progress import LOG, clear_all, latest
from sww_ros.training.recipe import Recipe
from sww_ros.training.trainer import Trainer


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
    settings = StreamSettings.of(model.about, recipe)
    report = Report()
    samples = read_samples(recipe, model.about.tokenizer, settings.defaults.prompt, report)
    show(str(report))
    if accelerator.is_main_process and not recipe.resume:
        clear_all(recipe.out)
    accelerator.wait_for_everyone()
    # The clips take the tower's type and shapes, so they are made before it goes to a GPU.
    maker = ClipMaker(model.about, model.stock, recipe, settings)
    trainer = Trainer(recipe, model, maker, samples, accelerator, attention)
    count = sum(weight.numel() for weight in model.trained.values())
    show(f'{count / 1e6:.2f} M of {model.about.parameters / 1e6:.2f} M weights are trained, '
         f'updates {trainer.first + 1} to {trainer.updates}')
    trainer.run()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        try:
            export(model, settings, recipe.out)
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
