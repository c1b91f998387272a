"""The model under training: loaded, frozen where the recipe says so, with adapters if asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from sww_ros.models.loading import BUILTIN, CheckpointError, builtin_path, load
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.training.recipe import Recipe

ADAPTED = (r'model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)'
           r'|model\.visual\.merger\.mlp\.[02]')
"""Where LoRA's adapters sit: every linear layer of the language model and of the merger."""


@dataclass
class Trainee:
    """
    `net` is transformers' model, or peft's around it; `about` the same checkpoint as the engine
    sees it, without weights; `source` where its files are; `dtype` that of its files.
    """

    net: torch.nn.Module
    about: Checkpoint
    source: str
    dtype: torch.dtype

    @property
    def stock(self) -> Qwen2_5_VLForConditionalGeneration:
        """Transformers' own model, adapters in its layers where there are some."""
        return self.net.get_base_model() if hasattr(self.net, 'get_base_model') else self.net

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The weights that are trained, by name."""
        return {name: weight for name, weight in self.net.named_parameters()
                if weight.requires_grad}


def load_trainee(recipe: Recipe, saving: bool = False) -> Trainee:
    """
    Load a checkpoint in fp32 and prepare it for the recipe.

    :param saving: under LoRA, a checkpoint of bf16 stays so; its adapters are fp32 all the same
    :raises CheckpointError: in words, for anything that cannot be streamed, hence not trained
    """
    # The engine's own loader checks the checkpoint; its weights are let go at once.
    about = load(recipe.model, device='meta', allow_download=recipe.allow_download)
    _check_rank(recipe, about)
    source = str(builtin_path() if recipe.model == BUILTIN else Path(recipe.model).expanduser())
    if not Path(source).exists():
        source = recipe.model
    saved = about.decoder.dtype
    # Not so fp16: activations take the type of what is frozen, and may be too large for that one.
    frozen = saving and recipe.lora_rank and saved == torch.bfloat16
    try:
        net = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            source, dtype=saved if frozen else torch.float32, use_safetensors=True,
            attn_implementation='sdpa', local_files_only=not recipe.allow_download,
            trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f'cannot load checkpoint {recipe.model!r}: {error}') from error
    for name, weight in net.named_parameters():
        if not weight.isfinite().all():
            raise CheckpointError(f'checkpoint {recipe.model!r} has no finite numbers in '
                                  f'{name!r}: save or download it again')
    return prepare(net, about, recipe, source, saved)


def _check_rank(recipe: Recipe, about: Checkpoint) -> None:
    """Two factors of half a layer's width are as large as the layer: more is no adapter."""
    most = about.decoder.hidden // 2
    if recipe.lora_rank > most:
        raise ValueError(f'lora_rank must be at most {most}, half the width of this model, not '
                         f'{recipe.lora_rank}: lower it, or train the whole model')


def prepare(net: Qwen2_5_VLForConditionalGeneration, about: Checkpoint, recipe: Recipe,
            source: str, dtype: torch.dtype) -> Trainee:
    """Freeze the vision tower but its merger, or everything but new adapters."""
    net.requires_grad_(True)
    net.model.visual.requires_grad_(False)
    net.model.visual.merger.requires_grad_(True)
    if recipe.lora_rank:
        net = _adapted(net, recipe)
    trainee = Trainee(net, about, source, dtype)
    if recipe.gradient_checkpointing:
        # Not the tower's: its blocks are frozen and keep nothing.
        language, options = trainee.stock.model.language_model, {'use_reentrant': False}
        if hasattr(language, 'activation_checkpointing_enable'):
            language.activation_checkpointing_enable(options)
        else:
            language.gradient_checkpointing_enable(options)
    net.train()
    return trainee


def _adapted(net: Qwen2_5_VLForConditionalGeneration, recipe: Recipe) -> torch.nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ValueError('LoRA needs peft: pip install -r requirements/training.txt '
                         f'({error})') from None
    # What the adapters start from is drawn from the recipe's seed, whatever was drawn before.
    torch.manual_seed(recipe.seed)
    return get_peft_model(net, LoraConfig(
        r=recipe.lora_rank, lora_alpha=recipe.alpha, lora_dropout=recipe.lora_dropout,
        target_modules=ADAPTED, bias='none'))
