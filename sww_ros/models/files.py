"""
The files of a checkpoint, in its folder or the local cache of the hub, read with suspicion.

What they say is checked before a model is built of it. Bounds come first, on the file as it is:
libraries build what they are told, 10**9 layers too.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
import re

from safetensors import SafetensorError, safe_open
import torch
from transformers.utils import cached_file

JSON_FILES = ('config.json', 'generation_config.json', 'tokenizer_config.json', 'tokenizer.json',
              'video_preprocessor_config.json', 'preprocessor_config.json')
_WEIGHTS, _INDEX = 'model.safetensors', 'model.safetensors.index.json'


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the reason and what to do."""


class Files:
    """
    The files of one checkpoint; JSON must be an object.

    :param source: a folder, or a hub id
    :param local: whether only what is on this machine may be used
    """

    def __init__(self, source: str, local: bool = True) -> None:
        self._source, self._local = source, local

    def find(self, name: str) -> Path | None:
        """Return the path of a file, None where there is none."""
        found = cached_file(self._source, name, local_files_only=self._local,
                            _raise_exceptions_for_missing_entries=False,
                            _raise_exceptions_for_connection_errors=False)
        return Path(found) if found else None

    def json(self, name: str) -> dict:
        """
        Return the content of a JSON file, {} where there is none.

        :raises CheckpointError: for one that holds no object
        """
        file = self.find(name)
        if file is None:
            return {}
        try:
            content = json.loads(file.read_text(encoding='utf-8'))
        except (ValueError, OSError, RecursionError) as error:
            raise CheckpointError(f'cannot read {name}: {error}') from None
        if not isinstance(content, dict):
            raise CheckpointError(f'{name} holds a {type(content).__name__}, not an object with '
                                  'names and values')
        return content

    def weights(self) -> dict[str, str]:
        """
        Return the type, 'F32' or the like, of every tensor in the safetensors, by name.

        Only the headers are read; {} where there are no such files.

        :raises CheckpointError: for a file that is broken or missing
        """
        return {name: kind for file in self.weight_files() for name, kind in _header(file)}

    @property
    def weight_bytes(self) -> int:
        """The size of all files of weights [bytes], 0 where there are none; errors as above."""
        return sum(file.stat().st_size for file in self.weight_files())

    @property
    def packing(self) -> str:
        """How its weights are packed, as `packing_of` returns it."""
        return packing_of(self.json('config.json'))

    def weight_files(self) -> list[Path]:
        """Return the safetensors, as the index names them; errors as above."""
        if (whole := self.find(_WEIGHTS)) is not None:
            return [whole]
        named = self.json(_INDEX).get('weight_map', {})
        if not isinstance(named, dict) or not all(isinstance(n, str) for n in named.values()):
            raise CheckpointError(f'{_INDEX} has a weight_map that names no files')
        found = {name: self.find(name) for name in sorted(set(named.values()))}
        if missing := [name for name, file in found.items() if file is None]:
            raise CheckpointError(f'{missing[0]} is missing, which {_INDEX} names: save or '
                                  'download it again, whole')
        return [file for file in found.values() if file is not None]


def told(error: Exception) -> str:
    """Return an error in words: its own where it has some, else with its kind."""
    return str(error) if isinstance(error, (OSError, ValueError)) and str(error) else (
        f'{type(error).__name__}: {error}')


def _header(file: Path) -> list[tuple[str, str]]:
    try:
        with safe_open(file, 'pt') as content:
            return [(name, content.get_slice(name).get_dtype()) for name in content.keys()]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f'{file.name} is broken: {error}; save or download it again, '
                              'whole') from None


_LARGEST = {
    'hidden_size': 1 << 16, 'intermediate_size': 1 << 20, 'num_hidden_layers': 1024,
    'num_attention_heads': 1024, 'num_key_value_heads': 1024, 'head_dim': 4096,
    'vocab_size': 1 << 24, 'depth': 1024, 'num_heads': 1024, 'out_hidden_size': 1 << 16,
    'patch_size': 256, 'temporal_patch_size': 64, 'spatial_merge_size': 64,
    'window_size': 1 << 16, 'num_position_embeddings': 1 << 20}
"""Whole numbers from 1 to far beyond any model."""
PACKED = ('qweight', 'qzeros', 'scales', 'g_idx')
"""What stands in the files in place of a `weight` that is packed into 4 bits (packed.py)."""
TYPES = {torch.float64: 'F64', torch.float32: 'F32', torch.float16: 'F16',
         torch.bfloat16: 'BF16'}
"""What safetensors calls the types that weights may have."""


def check_sizes(config: dict) -> None:
    """
    Check the numbers of a config.json as it is.

    :raises CheckpointError: for parts that are no objects, and numbers out of all proportion
    """
    parts = {'': config}
    for name in ('text_config', 'vision_config', 'rope_parameters', 'rope_scaling'):
        value = config.get(name)
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f'config.json: {name} is {value!r}, not an object with names '
                                  'and values')
        parts[f'{name}.'] = value or {}
    for prefix, part in parts.items():
        for name, largest in _LARGEST.items():
            if name in part and part[name] is not None:
                check_whole(f'config.json: {prefix}{name}', part[name], 1, largest)
    for part in parts.values():
        packing_of(part)


def packing_of(config: dict) -> str:
    """
    Return how a config.json says that weights are packed: 'awq', 'gptq', 'gptq_v2'; '': not.

    :raises CheckpointError: for any other way
    """
    said = config.get('quantization_config')
    if not said:
        return ''
    said = said if isinstance(said, dict) else {}
    how, kind = said.get('quant_method'), said.get('checkpoint_format', 'gptq')
    if said.get('bits') == 4 and how == 'awq' and said.get('version', 'gemm') == 'gemm':
        return 'awq'
    if said.get('bits') == 4 and how == 'gptq' and kind in ('gptq', 'gptq_v2'):
        return kind
    raise CheckpointError(f'its weights are quantized ({how or "somehow"}), which cannot be '
                          'streamed but for the 4 bits of AWQ (gemm) and GPTQ: give the '
                          'checkpoint that it was made from')


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Check that a value is a whole number from `low` to `high`; else a CheckpointError."""
    if type(value) is not int or not low <= value <= high:
        raise CheckpointError(f'{name} must be a whole number from {low} to {high}, '
                              f'not {value!r}')


def check_divides(name: str, value: int, of: str, whole: int, times: str = '') -> None:
    """Check that `value` divides `whole`; `times` is what messages say of four times a value."""
    if whole % value:
        raise CheckpointError(f'{of} {whole} is no multiple of {times}{name} '
                              f'({value // (4 if times else 1)})')


def check_positive(name: str, value: object) -> None:
    """Check that a value is a finite number above 0; else a CheckpointError."""
    if (not isinstance(value, int | float) or isinstance(value, bool)
            or not 0 < value < math.inf):
        raise CheckpointError(f'{name} must be a number above 0, not {value!r}')


def check_types(weights: dict[str, str]) -> None:
    """
    Check the types of a checkpoint's tensors, as `Files.weights` returns them.

    :raises CheckpointError: for whole numbers
    """
    for name, kind in weights.items():
        if name.rpartition('.')[2] not in PACKED and kind not in TYPES.values():
            raise CheckpointError(f'the weight {name!r} is of type {kind}, and only '
                                  f'{", ".join(TYPES.values())} can be streamed: give the '
                                  'checkpoint that it was made from')


def check_layers(weights: dict[str, str], name: str, wanted: int, pattern: str) -> None:
    """
    Check that there are weights of all layers; where nothing is known of the weights, nothing is.

    :param name: what the config calls their number
    :param pattern: a regular expression whose group is the index of a weight's layer
    :raises CheckpointError: for layers that are not there
    """
    matches = (re.search(pattern, weight) for weight in weights)
    found = max((int(match[1]) + 1 for match in matches if match), default=0)
    if found < wanted and weights:
        raise CheckpointError(f'config.json says {name} {wanted}, and there are weights of '
                              f'{found}: save or download it again, whole')


def check_penalty(config: dict) -> float:
    """
    Return the repetition penalty of a generation_config.json; 1.0, none, where it names none.

    :raises CheckpointError: for one that makes no sense
    """
    penalty = config.get('repetition_penalty')
    if penalty is None:
        return 1.0
    number = isinstance(penalty, int | float) and not isinstance(penalty, bool)
    if not number or not 1.0 <= penalty < math.inf:
        raise CheckpointError('generation_config.json: repetition_penalty must be a number from '
                              f'1.0, not {penalty!r}')
    return float(penalty)
