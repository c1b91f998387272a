"""
The model under training: loaded, frozen where the recipe says so, written as a checkpoint.

What is written is an ordinary checkpoint folder, which the engine opens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
import json
from pathlib import Path

import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.utils import cached_file

from sww_ros.models.loading import BUILTIN, CONFIG_KEY, CheckpointError, builtin_path, load
from sww_ros.streaming.checkpoint import Checkpoint, StreamDefaults
from sww_ros.streaming.perception import PixelSettings
from sww_ros.streaming.positions import SCHEMES
from sww_ros.training.recipe import Recipe, streaming_words

ADAPTED = (r'model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)'
           r'|model\.visual\.merger\.mlp\.[02]')
"""Where LoRA's adapters sit: every linear layer of the language model and of the merger."""
_PIXELS = ('video_preprocessor_config.json', 'preprocessor_config.json')
_COPIED = ('processor_config.json', 'chat_template.json', 'chat_template.jinja')
ADAPTER = 'adapter'
"""The folder, inside the checkpoint's, of LoRA's adapters as peft writes them."""


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


def own_words(about: Checkpoint) -> dict[str, str]:
    """Return `streaming_words` of a checkpoint that was trained to stream; {} for any other."""
    if not about.trained:
        return {}
    own, per_step = about.defaults, about.perception.settings.temporal_patch_size
    return streaming_words(own.position_encoding, own.position_gap, own.schedule, own.wait_k,
                           per_step / own.seconds_per_step)


@dataclass
class TrainedModel:
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


def load_model(recipe: Recipe, saving: bool = False) -> TrainedModel:
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
            source: str, dtype: torch.dtype) -> TrainedModel:
    """Freeze the vision tower but its merger, or everything but new adapters."""
    net.requires_grad_(True)
    net.model.visual.requires_grad_(False)
    net.model.visual.merger.requires_grad_(True)
    if recipe.lora_rank:
        net = _adapted(net, recipe)
    model = TrainedModel(net, about, source, dtype)
    if recipe.gradient_checkpointing:
        # Not the tower's: its blocks are frozen and keep nothing.
        language, options = model.stock.model.language_model, {'use_reentrant': False}
        if hasattr(language, 'activation_checkpointing_enable'):
            language.activation_checkpointing_enable(options)
        else:
            language.gradient_checkpointing_enable(options)
    net.train()
    return model


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


def export(model: TrainedModel, settings: StreamSettings, out: Path) -> None:
    """
    Write weights, config, tokenizer and processor; adapters are saved, then merged.

    The model is used up by it: adapters become part of its weights, and these get the type that
    they were loaded from.
    """
    net = model.net.eval()
    if net is not model.stock:
        net.save_pretrained(out / ADAPTER)
        net = net.merge_and_unload()
    net.requires_grad_(False)
    entry = dict(getattr(net.config, CONFIG_KEY, None) or {})
    entry.pop('position_gap', None)
    setattr(net.config, CONFIG_KEY, entry | settings.entry())
    net.to(model.dtype).save_pretrained(out)
    model.about.tokenizer.save_pretrained(out)
    _write_processor(model.source, settings.pixels, out)
    # safetensors makes files that their owner alone may read.
    mode = (out / 'config.json').stat().st_mode
    for folder in (out, out / ADAPTER):
        for file in folder.glob('*.safetensors'):
            file.chmod(mode)


def _write_processor(source: str, pixels: PixelSettings, out: Path) -> None:
    """Copy the processor's files; frames are as large as they were in training."""
    for name in _COPIED:
        found = _find(source, name)
        if found and not (out / name).exists():
            (out / name).write_bytes(found.read_bytes())
    size = dict(shortest_edge=pixels.min_pixels, longest_edge=pixels.max_pixels)
    found = {name: file for name in _PIXELS if (file := _find(source, name))}
    for name in found or {_PIXELS[1]: None}:
        content = json.loads(found[name].read_text()) if found else dict(
            image_mean=pixels.mean, image_std=pixels.std, patch_size=pixels.patch_size,
            temporal_patch_size=pixels.temporal_patch_size, merge_size=pixels.merge_size)
        content['size'] = size
        for key, value in (('min_pixels', pixels.min_pixels), ('max_pixels', pixels.max_pixels)):
            if key in content:
                content[key] = value
        (out / name).write_text(json.dumps(content, indent=2) + '\n')


def _find(source: str, name: str) -> Path | None:
    """Return a file of a checkpoint's, in its folder or the local cache of the hub."""
    file = source and cached_file(source, name, local_files_only=True,
                                  _raise_exceptions_for_missing_entries=False,
                                  _raise_exceptions_for_connection_errors=False)
    return Path(file) if file else None
