"""Loads a Qwen2.5-VL checkpoint for streaming: the built-in one, a folder, or a hub id."""

from __future__ import annotations

from dataclasses import fields
import json
from pathlib import Path

from safetensors import SafetensorError
import torch
from transformers import AutoConfig, AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.utils import cached_file

from sww_ros.streaming.checkpoint import Checkpoint, StreamDefaults
from sww_ros.streaming.decoder import Decoder
from sww_ros.streaming.generation import Vocabulary
from sww_ros.streaming.perception import Perception, PixelSettings

BUILTIN = 'builtin'
CONFIG_KEY = 'speak_while_watching'
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_LIVE_PIXELS = 308 * 28 * 28
"""What a general checkpoint perceives per frame unless told otherwise: 308 visual tokens."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the reason and what to do."""


def builtin_path() -> Path:
    """The folder of the checkpoint that ships with the package."""
    return Path(__file__).parent / BUILTIN


def load(model: str = BUILTIN, *, device: str = 'cpu', dtype: str = '',
         allow_download: bool = False) -> Checkpoint:
    """
    Load a checkpoint from safetensors.

    :param model: 'builtin', a folder in the ordinary format, or a hub id
    :param dtype: float32, bfloat16, float16, float64; empty for fp32 on a CPU, else as saved
    :param allow_download: whether a hub id may be fetched from the network
    :raises CheckpointError: in words, for anything that cannot be streamed
    """
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise CheckpointError(f'device {device!r} is not there: this PyTorch '
                              f'({torch.__version__}) sees no GPU')
    source = _resolve(model)
    options = dict(local_files_only=not allow_download, trust_remote_code=False)
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        hint = '' if Path(source).exists() or allow_download else (
            '; it is neither a folder nor in the local cache: give a path, or allow downloads')
        raise CheckpointError(f'cannot read checkpoint {model!r}{hint}: {error}') from error
    if config.model_type != 'qwen2_5_vl':
        raise CheckpointError(f'checkpoint {model!r} is a {config.model_type!r} model; only '
                              'Qwen2.5-VL (qwen2_5_vl) can be streamed')
    try:
        net, found = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            source, config=config, dtype=_dtype(dtype, device, config), use_safetensors=True,
            attn_implementation='sdpa', output_loading_info=True, **options)
        net = net.to(device).eval()
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f'cannot load checkpoint {model!r}: {error}') from error
    if missing := sorted(found['missing_keys']):
        # transformers only warns, and goes on with random weights in their place.
        raise CheckpointError(f'checkpoint {model!r} lacks {len(missing)} weights, '
                              f'{missing[0]!r} among them: save or download it again, whole')
    return take_apart(net, tokenizer, name=model, preprocessor=_preprocessor(source, options))


def take_apart(net: Qwen2_5_VLForConditionalGeneration, tokenizer, *, name: str = 'model',
               preprocessor: dict | None = None) -> Checkpoint:
    """Turn transformers' model into a checkpoint for streaming; the model is used up by it."""
    config = net.config
    parameters = sum(weight.numel() for weight in net.parameters())
    entry = dict(getattr(config, CONFIG_KEY, None) or {})
    silence = _token(tokenizer, entry.pop('silence_token', None))
    known = {f.name for f in fields(StreamDefaults)}
    unknown = set(entry) - known
    if unknown:
        raise CheckpointError(f'checkpoint {name!r} has unknown {CONFIG_KEY} settings '
                              f'{sorted(unknown)}; known: {sorted(known)}')
    # Everything else in the entry may be there for a checkpoint that was never trained to stream.
    trained = 'position_encoding' in entry
    entry.setdefault('tokens_per_second', float(config.vision_config.tokens_per_second))
    vision = config.vision_config
    try:
        decoder = Decoder(net.model.language_model, net.lm_head)
    except ValueError as error:
        raise CheckpointError(f'checkpoint {name!r}: {error}') from error
    return Checkpoint(
        name=name, parameters=parameters, decoder=decoder,
        perception=Perception(net.model.visual, _pixels(preprocessor or {}, vision, trained)),
        tokenizer=tokenizer,
        vocabulary=Vocabulary(_stop_tokens(net, tokenizer), silence),
        defaults=StreamDefaults(**entry), trained=trained)


def _resolve(model: str) -> str:
    if model == BUILTIN:
        if not (builtin_path() / 'config.json').exists():
            raise CheckpointError('the built-in checkpoint is missing from this installation: '
                                  'train it with `python -m sww_ros.shapes.train`, or give a path')
        return str(builtin_path())
    path = Path(model).expanduser()
    if path.exists() and not (path / 'config.json').exists():
        raise CheckpointError(f'{model!r} has no config.json: give the folder of a checkpoint')
    if not path.exists() and model.startswith(('/', './', '../', '~')):
        raise CheckpointError(f'no checkpoint at {model!r}: the folder does not exist')
    return str(path) if path.exists() else model


def _dtype(dtype: str, device: str, config) -> torch.dtype:
    known = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16,
             'float64': torch.float64}
    if dtype:
        if dtype not in known:
            raise CheckpointError(f'unknown dtype {dtype!r}; one of {", ".join(known)}')
        return known[dtype]
    if str(device).startswith('cpu'):
        return torch.float32
    return config.dtype or torch.bfloat16


def _token(tokenizer, token: str | None) -> int:
    if not token:
        return -1
    index = tokenizer.convert_tokens_to_ids(token)
    if index is None or index == tokenizer.unk_token_id:
        raise CheckpointError(f'the silence token {token!r} is not in the tokenizer')
    return int(index)


def _stop_tokens(net, tokenizer) -> frozenset[int]:
    stop = net.generation_config.eos_token_id if net.generation_config else None
    stop = stop if isinstance(stop, (list, tuple)) else [stop]
    named = [tokenizer.convert_tokens_to_ids('<|im_end|>'), tokenizer.eos_token_id]
    return frozenset(int(t) for t in (*stop, *named) if t is not None)


def _preprocessor(source: str, options: dict) -> dict:
    for name in ('video_preprocessor_config.json', 'preprocessor_config.json'):
        file = cached_file(source, name, local_files_only=options['local_files_only'],
                           _raise_exceptions_for_missing_entries=False,
                           _raise_exceptions_for_connection_errors=False)
        if file:
            return json.loads(Path(file).read_text())
    return {}


def _pixels(data: dict, vision, trained: bool) -> PixelSettings:
    """Pixel settings from the processor's file; only a streaming checkpoint sets its own size."""
    size = data.get('size') or {}
    low = int(data.get('min_pixels') or size.get('shortest_edge') or 56 * 56)
    high = int(data.get('max_pixels') or size.get('longest_edge') or _LIVE_PIXELS)
    if not trained:
        low, high = min(low, _LIVE_PIXELS // 4), min(high, _LIVE_PIXELS)
    return PixelSettings(
        mean=tuple(data.get('image_mean') or _CLIP_MEAN),
        std=tuple(data.get('image_std') or _CLIP_STD), min_pixels=low, max_pixels=high,
        patch_size=vision.patch_size, temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size)
