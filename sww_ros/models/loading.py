"""Loads a checkpoint for streaming: the built-in one, a folder, or a hub id; tries it once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
import sys
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from sww_ros.models.files import JSON_FILES, CheckpointError, Files, check_penalty, told
from sww_ros.streaming.checkpoint import Checkpoint, StreamDefaults
from sww_ros.streaming.decoder import Chunk
from sww_ros.streaming.family import Family, family_of
from sww_ros.streaming.generation import Vocabulary
from sww_ros.streaming.perception import Perception
from sww_ros.streaming.positions import text_positions

BUILTIN = 'builtin'
CONFIG_KEY = 'speak_while_watching'
MEMINFO = Path('/proc/meminfo')
CGROUP = Path('/sys/fs/cgroup')
_PREPROCESSORS = ('video_preprocessor_config.json', 'preprocessor_config.json')


def builtin_path() -> Path:
    """The folder of the checkpoint that ships with the package."""
    return Path(__file__).parent / BUILTIN


def load(model: str = BUILTIN, *, device: str = 'cpu', dtype: str = '',
         allow_download: bool = False,
         lane_bytes: Callable[[Checkpoint], int] = lambda _: 0) -> Checkpoint:
    """
    Load a checkpoint from safetensors.

    :param model: 'builtin', a folder in the ordinary format, or a hub id
    :param dtype: float32, bfloat16, float16, float64; empty for fp32 on a CPU, else as saved
    :param allow_download: whether a hub id may be fetched from the network
    :param lane_bytes: what its streams will take beside the weights [bytes], asked before those are
        read, of a checkpoint without them
    :raises CheckpointError: in words, for anything that cannot be streamed, or does not fit
    """
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise CheckpointError(f'device {device!r} is not there: this PyTorch '
                              f'({torch.__version__}) sees no GPU')
    source = resolve(model)
    try:
        return _load(model, source, device, dtype, allow_download, lane_bytes)
    except CheckpointError as error:
        raise CheckpointError(f'cannot load checkpoint {model!r}: {error}') from error


def _load(model: str, source: str, device: str, dtype: str, allow_download: bool,
          lane_bytes: Callable[[Checkpoint], int]) -> Checkpoint:
    options = dict(local_files_only=not allow_download, trust_remote_code=False)
    files = Files(source, local=not allow_download)
    family, config = _config(source, files, options)
    kind = _dtype(dtype, device, config)
    about: Any = dict(
        tokenizer=_tokenizer(source, files, options), name=model, preprocessor=_preprocessor(files),
        repetition_penalty=check_penalty(files.json('generation_config.json')))
    if not sys.stderr.isatty():
        # In a log, bars are lines without end.
        disable_progress_bar()
    try:
        outline = family.outline(config).to(kind)
    except Exception as error:  # noqa: BLE001 - whatever its sizes come to
        raise CheckpointError(f'config.json cannot be used: {told(error)}') from error
    if str(device).startswith('cpu'):
        outline = take_apart(outline, **about)
        check_memory(outline, lane_bytes(outline), available_bytes())
    try:
        net, found = family.stock(source, config=config, dtype=kind, output_loading_info=True,
                                  ignore_mismatched_sizes=True, **options)
        net = net.to(device).eval()
    except Exception as error:  # noqa: BLE001 - each file has errors of its own kind
        raise CheckpointError(f'its weights cannot be loaded: {told(error)}') from error
    for name, saved, wanted in sorted(found['mismatched_keys']):
        raise CheckpointError(f'the weight {name!r} is of shape {tuple(saved)}, and config.json '
                              f'makes it {tuple(wanted)}')
    if missing := sorted(found['missing_keys']):
        # transformers only warns, and goes on with random weights in their place.
        raise CheckpointError(f'it lacks {len(missing)} weights, {missing[0]!r} among them: save '
                              'or download it again, whole')
    checkpoint = take_apart(net, **about)
    if device != 'meta':
        try_out(checkpoint)
    return checkpoint


def available_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Return the memory that a new process can have [bytes]; None where Linux does not say."""
    try:
        fields = dict(line.split(':', 1) for line in meminfo.read_text().splitlines())
        available = int(fields['MemAvailable'].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:  # A container may be allowed less than the machine has.
        limit = int((cgroup / 'memory.max').read_text())
        used = int((cgroup / 'memory.current').read_text())
        stat = dict(line.split() for line in (cgroup / 'memory.stat').read_text().splitlines())
        available = min(available, limit - used + int(stat['inactive_file']))
    except (OSError, KeyError, ValueError):
        pass  # No limit ('max'), or no such control group.
    return max(available, 0)


def check_memory(outline: Checkpoint, lane_bytes: int, available: int | None) -> None:
    """
    Refuse a checkpoint that cannot fit, before it makes the machine hang.

    :param outline: the checkpoint, its weights on the device 'meta'
    :param lane_bytes: what its streams take beside the weights [bytes]
    :param available: free memory [bytes], None if unknown
    :raises CheckpointError: when weights and lanes are larger than that
    """
    dtype = outline.decoder.dtype
    weight_bytes = outline.parameters * dtype.itemsize
    if available is None or weight_bytes + lane_bytes <= available:
        return
    narrower = 'set dtype to bfloat16, ' if dtype.itemsize > 2 else ''
    raise CheckpointError(
        f'it needs {_megabytes(weight_bytes + lane_bytes)} of memory (weights in '
        f'{str(dtype).removeprefix("torch.")} {_megabytes(weight_bytes)}, lanes of its streams '
        f'{_megabytes(lane_bytes)}), and {_megabytes(available)} are available: {narrower}close '
        'other programs, or take a smaller checkpoint, a smaller max_steps with its capacity, or '
        'smaller frames (frame_width, frame_height)')


def _megabytes(count: int) -> str:
    return f'{count / 1e6:,.0f} MB'


def load_stock(model: str, dtype: torch.dtype) -> Any:
    """
    Return transformers' own model of a checkpoint on this machine, as the oracle of a run.

    :raises ValueError: in words, for one of no family that can be streamed
    """
    source = resolve(model)
    family = family_of(Files(source).json('config.json').get('model_type'))
    return family.stock(source, dtype=dtype, local_files_only=True)


def _config(source: str, files: Files, options: dict) -> tuple[Family, Any]:
    """Return the family of a checkpoint and its config, once all in it is checked."""
    try:
        content = {name: files.json(name) for name in JSON_FILES}['config.json']
    except OSError as error:
        raise CheckpointError(told(error)) from error
    if not content:
        hint = '' if not options['local_files_only'] else (
            'it is neither a folder nor in the local cache: give a path, or allow downloads')
        raise CheckpointError(hint or 'it has no config.json')
    try:
        family = family_of(content.get('model_type'))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    return family, family.config(source, files, **options)


def _tokenizer(source: str, files: Files, options: dict):
    parts = ('vocab.json', 'merges.txt')
    if not files.find('tokenizer.json') and not all(files.find(name) for name in parts):
        raise CheckpointError(f'it has no tokenizer: tokenizer.json, or {" and ".join(parts)}, '
                              'are missing; copy them from the checkpoint that it was made from')
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        tokenizer('x', add_special_tokens=False)  # Some of its settings are looked at only now.
        return tokenizer
    except Exception as error:  # noqa: BLE001 - each of its files has errors of its own kind
        raise CheckpointError(f'its tokenizer cannot be loaded: {told(error)}') from error


def _preprocessor(files: Files) -> tuple[str, dict]:
    """Return the name and the content of the processor's file, {} where there is none."""
    for name in _PREPROCESSORS:
        if content := files.json(name):
            return name, content
    return _PREPROCESSORS[1], {}


def take_apart(net: Any, tokenizer: Any, *, name: str = 'model',
               preprocessor: tuple[str, dict] = ('', {}),
               repetition_penalty: float = 1.0) -> Checkpoint:
    """
    Turn transformers' model into a checkpoint for streaming; the model is used up by it.

    :param preprocessor: name and content of the processor's file
    :raises CheckpointError: for what cannot be streamed
    """
    config, family = net.config, family_of(net.config.model_type)
    parameters = sum(weight.numel() for weight in net.parameters())
    entry, silence = _entry(config, tokenizer)
    _check_tokenizer(tokenizer, net, family)
    # Everything else in the entry may be there for a checkpoint that was never trained to stream.
    trained = 'position_encoding' in entry
    entry.setdefault('tokens_per_second', family.tokens_per_second(config))
    try:
        defaults = StreamDefaults(**entry)
    except ValueError as error:
        raise CheckpointError(f'config.json: {CONFIG_KEY}: {error}') from error
    pixels = family.pixels(*preprocessor, config, trained)
    vision = family.vision(net)
    try:
        decoder = family.decoder(net)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    return Checkpoint(
        name=name, family=family, parameters=parameters, decoder=decoder,
        perception=Perception(vision, pixels), tokenizer=tokenizer,
        vocabulary=Vocabulary(_stop_tokens(net, tokenizer, family), silence), defaults=defaults,
        trained=trained, repetition_penalty=repetition_penalty)


def _entry(config, tokenizer) -> tuple[dict, int]:
    """Return what the config says of streaming, and the silence token, -1 where there is none."""
    entry = getattr(config, CONFIG_KEY, None) or {}
    if not isinstance(entry, dict):
        raise CheckpointError(f'config.json: {CONFIG_KEY} is {entry!r}, not an object')
    entry = dict(entry)
    silence = _token(tokenizer, entry.pop('silence_token', None))
    known = {f.name for f in fields(StreamDefaults)}
    if unknown := set(entry) - known:
        raise CheckpointError(f'it has unknown {CONFIG_KEY} settings {sorted(unknown)}; known: '
                              f'{sorted(known)}')
    return entry, silence


def _check_tokenizer(tokenizer: Any, net: Any, family: Family) -> None:
    """What is written around a stream must be single tokens, and the model must know them all."""
    for token in family.turns.special:
        if len(tokenizer(token, add_special_tokens=False)['input_ids']) != 1:
            raise CheckpointError(f'its tokenizer does not know {token!r}: give it the tokenizer '
                                  'of the checkpoint that it was made from')
    rows = net.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise CheckpointError(f'its tokenizer has {len(tokenizer)} tokens, and the model {rows}: '
                              'they do not belong together')


def resolve(model: str) -> str:
    """
    Return the folder of a checkpoint, or its hub id.

    :raises CheckpointError: for a folder that is none
    """
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


def _token(tokenizer, token: object) -> int:
    if not token:
        return -1
    if not isinstance(token, str):
        raise CheckpointError(f'config.json: silence_token must be a text, not {token!r}')
    index = tokenizer.convert_tokens_to_ids(token)
    if index is None or index == tokenizer.unk_token_id:
        raise CheckpointError(f'the silence token {token!r} is not in the tokenizer')
    return int(index)


def _stop_tokens(net: Any, tokenizer: Any, family: Family) -> frozenset[int]:
    stop = net.generation_config.eos_token_id if net.generation_config else None
    stop = [*stop] if isinstance(stop, (list, tuple)) else [stop]
    if not all(token is None or type(token) is int for token in stop):
        raise CheckpointError(f'eos_token_id must be a token or a list of them, not {stop!r}')
    named = [tokenizer.convert_tokens_to_ids(family.turns.end), tokenizer.eos_token_id]
    return frozenset(int(t) for t in (*stop, *named) if t is not None)


def try_out(checkpoint: Checkpoint) -> None:
    """
    Let the checkpoint see a small gray picture and predict one token.

    A NaN or an infinity in any layer, a table of zeros, or a type too narrow for the weights
    shows in it: the model would say the same token for ever.

    :raises CheckpointError: in words
    """
    decoder, perception = checkpoint.decoder, checkpoint.perception
    side = 2 * perception.settings.unit
    gray = np.full((side, side, 3), 100, np.uint8)
    prefix = checkpoint.encode(*checkpoint.turns.prefix(checkpoint.defaults.system, ''))
    try:
        seen = perception.embed(perception.patches([gray], side, side), side, side).rows
        rows = torch.cat([decoder.embed(prefix), seen])
        positions = torch.from_numpy(text_positions(0, len(rows)))
        logits, = decoder.step([Chunk(decoder.new_lane(len(rows)), rows, positions, predict=True)])
    except (RuntimeError, IndexError) as error:
        raise CheckpointError(f'the model cannot run: {error}') from error
    if not seen.isfinite().all() or not logits.isfinite().all():
        where = 'its output' if seen.isfinite().all() else 'its vision tower'
        narrow = (', or float16 is too narrow for it (try bfloat16 or float32)'
                  if decoder.dtype == torch.float16 else '')
        raise CheckpointError(f'the model computes no finite numbers ({where}): its weights are '
                              f'broken{narrow}; save or download it again')
    if logits.max() == logits.min():
        raise CheckpointError('the model likes all tokens alike: its weights are zero; save or '
                              'download it again')
