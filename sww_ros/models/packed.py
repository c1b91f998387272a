"""
Weights that others have packed into 4 bits: AWQ's and GPTQ's files, unpacked as they are read.

Both keep a matrix (out, in) as whole numbers q from 0 to 15, eight in an int32, and a scale and a
zero for each output and group of inputs: a weight is (q - zero) * scale. AWQ packs neighbouring
outputs, in an order of its own (AutoAWQ, awq/utils/packing_utils.py); GPTQ packs neighbouring
inputs, may say of each to which group it belongs (g_idx), and stores zeros less one, but for its
second version (AutoGPTQ, auto_gptq/nn_modules/qlinear/qlinear_cuda.py).
"""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
import torch

from sww_ros.models.files import PACKED, CheckpointError

_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
"""Which of eight numbers in an int32 of AWQ is that of the first, second, ... output."""


def matrix_of(parts: dict[str, torch.Tensor], packing: str) -> torch.Tensor:
    """
    Return a matrix (out, in) in fp32.

    :param parts: by the names of PACKED: int32 `qweight` (in, out / 8) in AWQ, (in / 8, out) in
        GPTQ, `qzeros` (groups, out / 8), float `scales` (groups, out), and maybe `g_idx` (in,)
    """
    q, zeros, scales = _numbers(parts['qweight']), _numbers(parts['qzeros']), parts['scales']
    if packing == 'awq':
        q, zeros = q[..., _ORDER].flatten(1), zeros[..., _ORDER].flatten(1)
    else:
        q, zeros = q.transpose(1, 2).flatten(0, 1), zeros.flatten(1) + (packing == 'gptq')
    inputs, groups = len(q), len(scales)
    group = parts.get('g_idx', torch.arange(inputs) // (inputs // groups)).long()
    return ((q - zeros[group]) * scales.float()[group]).t().contiguous()


def _numbers(packed: torch.Tensor) -> torch.Tensor:
    """Return the eight numbers of each int32, in a dimension more."""
    return (packed[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15


def read_packed(files: list[Path], packing: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """
    Return all weights of some safetensors by their names, as if none had been packed.

    :raises CheckpointError: where one part of a matrix is missing or does not fit the others
    """
    found: dict[str, torch.Tensor] = {}
    packed: dict[str, dict[str, torch.Tensor]] = {}
    for file in files:
        with safe_open(file, 'pt') as content:
            for name in content.keys():
                matrix, _, part = name.rpartition('.')
                tensor = content.get_tensor(name)
                if part in PACKED:
                    packed.setdefault(matrix, {})[part] = tensor
                else:
                    found[name] = tensor.to(dtype)
    for matrix, parts in packed.items():
        try:
            found[f'{matrix}.weight'] = matrix_of(parts, packing).to(dtype)
        except (KeyError, RuntimeError, IndexError, ZeroDivisionError) as error:
            raise CheckpointError(f'the packed matrix {matrix!r} cannot be read '
                                  f'({type(error).__name__}: {error}): save or download it '
                                  'again, whole') from None
    return found
