"""Writes what was trained as an ordinary checkpoint folder, which the engine opens."""

from __future__ import annotations

import json
from pathlib import Path

from transformers.utils import cached_file

from sww_ros.models.loading import CONFIG_KEY
from sww_ros.streaming.perception import PixelSettings
from sww_ros.training.settings import Settings
from sww_ros.training.trainee import Trainee

_PIXELS = ('video_preprocessor_config.json', 'preprocessor_config.json')
_COPIED = ('processor_config.json', 'chat_template.json', 'chat_template.jinja')
ADAPTER = 'adapter'
"""The folder, inside the checkpoint's, of LoRA's adapters as peft writes them."""


def export(trainee: Trainee, settings: Settings, out: Path) -> None:
    """
    Write weights, config, tokenizer and processor; adapters are saved, then merged.

    The model is used up by it: adapters become part of its weights, and these get the type that
    they were loaded from.
    """
    net = trainee.net.eval()
    if net is not trainee.stock:
        net.save_pretrained(out / ADAPTER)
        net = net.merge_and_unload()
    net.requires_grad_(False)
    entry = dict(getattr(net.config, CONFIG_KEY, None) or {})
    entry.pop('position_gap', None)
    setattr(net.config, CONFIG_KEY, entry | settings.entry())
    net.to(trainee.dtype).save_pretrained(out)
    trainee.about.tokenizer.save_pretrained(out)
    _write_processor(trainee.source, settings.pixels, out)
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
