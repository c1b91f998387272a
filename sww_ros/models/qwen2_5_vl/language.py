"""
The arithmetic of Qwen2.5-VL, which is that of transformers' modules, the oracle of the tests.

Its language model for `streaming.decoder`: layers with fused weights, rotary angles. Its vision
tower for steps of video of one size: what depends on that and on their number alone (windows,
rotary angles) is computed once, and windows of one size attend in one call, as per-window Python
costs more than the arithmetic.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
import functools
from typing import Any

import torch
from torch import nn
import torch.nn.functional as F

from sww_ros.streaming.decoder import Weights
from sww_ros.streaming.family import Seen, Wanted
from sww_ros.streaming.quantize import weights_of

PLANS = 32
"""For so many sizes and numbers of steps a tower keeps what depends on these alone."""

Turn = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of rotary angles."""


class TowerBlocks(ABC):
    """
    What Qwen's vision towers share: patches, blocks of attention, rotary angles.

    A family's own tower says what is fixed by size and number of steps, and what it does with it.
    """

    deep_layers = 0

    def __init__(self, tower: Any, wanted: Wanted | None = None) -> None:
        """Take the weights of the stock tower, made as they are wanted; they are shared."""
        _make(tower, wanted)
        self.tower, self.config = tower, tower.config
        self.parameters = sum(weight.numel() for weight in tower.parameters())
        self.merge = self.config.spatial_merge_size
        convolution = tower.patch_embed.proj
        self._patch = convolution.weight.detach().flatten(1)
        self._bias = None if convolution.bias is None else convolution.bias.detach()
        self.dtype, self.device = self._patch.dtype, self._patch.device
        self._plan = functools.lru_cache(maxsize=PLANS)(self.make_plan)

    @torch.inference_mode()
    def __call__(self, patches: torch.Tensor, rows: int, columns: int) -> Seen:
        """
        Return the merged tokens of each step, rows * columns of them.

        :param patches: (steps * 4 * rows * columns, channels * pixels), in the tower's order
        :param rows: rows of merged tokens
        """
        steps = len(patches) // (rows * columns * self.merge ** 2)
        return self.see(F.linear(patches, self._patch, self._bias),
                        self._plan(rows, columns, steps))

    @abstractmethod
    def make_plan(self, rows: int, columns: int, steps: int) -> Any:
        """Return what size and number of steps fix; asked once for each."""

    @abstractmethod
    def see(self, x: torch.Tensor, plan: Any) -> Seen:
        """Return what the tower makes of the rows of its first block, (n, hidden)."""

    def run(self, block: nn.Module, x: torch.Tensor, turn: Turn,
            windows: tuple[int, ...]) -> torch.Tensor:
        """Return a block's output; rows see those of their window, whose lengths are given."""
        x = x + self._attend(block.attn, block.norm1(x), turn, windows)
        return x + block.mlp(block.norm2(x))

    def _attend(self, attention: nn.Module, x: torch.Tensor, turn: Turn,
                windows: tuple[int, ...]) -> torch.Tensor:
        qkv = attention.qkv(x).view(len(x), 3, self.config.num_heads, -1).transpose(0, 2)
        # The oracle turns queries and keys in fp32 whatever the weights' type.
        turning, (cos, sin) = qkv[:, :2].float(), turn
        half = turning.shape[-1] // 2
        swapped = torch.cat([-turning[..., half:], turning[..., :half]], dim=-1)
        q, k = (turning * cos + swapped * sin).to(x.dtype).unbind(1)
        parts = zip(*(_split(part, windows) for part in (q, k, qkv[:, 2])))
        out = [F.scaled_dot_product_attention(*part).transpose(1, 2).flatten(0, 1)
               for part in parts]
        return attention.proj((out[0] if len(out) == 1 else torch.cat(out)).flatten(1))

    def angles(self, rows: int, columns: int) -> torch.Tensor:
        """Return rotary angles of all patches in the tower's order, (patches, head dim) fp32."""
        row, column = torch.meshgrid(torch.arange(rows * self.merge),
                                     torch.arange(columns * self.merge), indexing='ij')
        places = self.in_order(torch.stack([row, column], dim=-1))[..., None]
        angles = (places.float() * self.tower.rotary_pos_emb.inv_freq.float().cpu()).flatten(1)
        return torch.cat([angles, angles], dim=-1)

    def turn(self, rows: int, columns: int, steps: int) -> Turn:
        """Return cosines and sines of the angles of so many steps, on the tower's device."""
        angles = self.angles(rows, columns).repeat(steps, 1).to(self.device)
        return angles.cos(), angles.sin()

    def in_order(self, grid: torch.Tensor) -> torch.Tensor:
        """Put what lies as patches do (rows, columns, ...) in the tower's order (patches, ...)."""
        rows, columns = (side // self.merge for side in grid.shape[:2])
        grid = grid.view(rows, self.merge, columns, self.merge, *grid.shape[2:])
        return grid.transpose(1, 2).flatten(0, 3)


@dataclass(frozen=True)
class _Plan:
    """What size and number of steps fix: the order of tokens, rotary angles, blocks' windows."""

    order: torch.Tensor
    back: torch.Tensor
    turn: Turn
    windows: list[tuple[int, ...]]


class QwenTower(TowerBlocks):
    """Runs the weights of transformers' vision tower on the patches of steps."""

    def see(self, x: torch.Tensor, plan: _Plan) -> Seen:
        """As of `TowerBlocks`."""
        x = x.view(-1, self.merge ** 2, x.shape[-1])[plan.order].reshape(len(x), -1)
        for block, windows in zip(self.tower.blocks, plan.windows):
            x = self.run(block, x, plan.turn, windows)
        return Seen(self.tower.merger(x)[plan.back])

    def make_plan(self, rows: int, columns: int, steps: int) -> _Plan:
        """As of `TowerBlocks`."""
        config, unit = self.config, self.merge ** 2
        size = config.window_size // (config.patch_size * self.merge)
        blocks = [index[r:r + size, c:c + size].flatten()
                  for index in torch.arange(steps * rows * columns).view(steps, rows, columns)
                  for r in range(0, rows, size) for c in range(0, columns, size)]
        order = torch.cat(blocks)
        angles = self.angles(rows, columns).view(rows * columns, unit, -1).repeat(steps, 1, 1)
        angles = angles[order].flatten(0, 1)
        whole = (rows * columns * unit,) * steps
        windows = tuple(len(block) * unit for block in blocks)
        to = functools.partial(torch.Tensor.to, device=self.device)
        return _Plan(to(order), to(torch.argsort(order)), (to(angles.cos()), to(angles.sin())),
                     [whole if index in config.fullatt_block_indexes else windows
                      for index in range(config.depth)])


def _make(module: nn.Module, wanted: Wanted | None) -> None:
    """
    Make the weights of a module as they are wanted, and no pages of a file, as safetensors maps it.

    The kernel drops such pages when memory is short, and reads them again in the midst of a stream;
    and all the file stays mapped for one of them. Buffers keep their type: angles would be rounded.
    """
    if not wanted:
        return
    module.to(wanted.device)
    for weight in module.parameters():
        weight.data = weight.data.to(wanted.dtype, copy=wanted.device.type == 'cpu')


def _split(x: torch.Tensor, windows: tuple[int, ...]) -> list[torch.Tensor]:
    """Cut (heads, n, dim) into (windows, heads, length, dim), neighbours of a length together."""
    found, start = [], 0
    while start < x.shape[1]:
        length, count = windows[0], 1
        while count < len(windows) and windows[count] == length:
            count += 1
        part = x[:, start:start + count * length]
        found.append(part.unflatten(1, (count, length)).transpose(0, 1))
        start, windows = start + count * length, windows[count:]
    return found


@dataclass(frozen=True)
class _Layer:
    """The weights of one decoder layer, with q, k, v and gate, up fused."""

    norm_in: torch.Tensor | None
    qkv: Weights
    out: Weights
    norm_mlp: torch.Tensor | None
    gate_up: Weights
    down: Weights


class QwenLanguage:
    """The text model's weights, as `streaming.decoder.LanguageModel` has them."""

    def __init__(self, language_model: Any, lm_head: nn.Module,
                 wanted: Wanted | None = None) -> None:
        """
        Take over the weights of transformers' text model; its layers are emptied.

        :raises ValueError: for what the live pass does not compute (sliding windows, other
            activations, other kinds of rotary scaling)
        """
        config = language_model.config
        _check_supported(config)
        self.hidden = config.hidden_size
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = getattr(config, 'head_dim', None) or self.hidden // self.heads
        self._split = [self.heads * self.head_dim, 2 * self.kv_heads * self.head_dim]
        self.layer_count = config.num_hidden_layers
        self._width, self._eps = config.intermediate_size, config.rms_norm_eps
        for kept in (language_model.embed_tokens, language_model.norm, lm_head):
            _make(kept, wanted)
        self._embedding = language_model.embed_tokens.weight.detach()
        self._norm = language_model.norm.weight.detach()
        self._head = lm_head.weight.detach()
        self.dtype, self.device = self._norm.dtype, self._norm.device
        self._inv_freq = language_model.rotary_emb.inv_freq.float().to(self.device)
        self._wide = torch.promote_types(self.dtype, torch.float32)
        self._is_wide = self.dtype == self._wide
        # One kernel instead of seven, which rounds once less than the oracle.
        self._is_fused_norm = self.device.type == 'cuda' and not self._is_wide
        # A tensor: a Python number would be converted in every call.
        self._floor = torch.tensor(self._eps * self.hidden, dtype=self.dtype, device=self.device)
        self._axis = torch.tensor(self.axes(config.rope_parameters['mrope_section']),
                                  device=self.device)
        self.quantize = wanted.quantize if wanted else 'none'
        self._layers = []
        while len(language_model.layers):
            _make(language_model.layers[0], wanted)
            self._layers.append(self.fuse(language_model.layers[0]))
            del language_model.layers[0]

    def axes(self, sections: list[int]) -> list[int]:
        """Return the axis (t, h, w) by whose position each pair of dimensions turns."""
        return [i % 3 for i, count in enumerate(sections) for _ in range(count)]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of token ids, (n, hidden)."""
        return self._embedding[ids]

    def project(self, layer: int, x: torch.Tensor,
                turn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries (n, kv heads, group, dim) and keys with values (n, 2, kv heads, dim)."""
        fused = self.projected(layer, x)
        # Turned in place, so that keys stay beside values and one call writes both to the lane.
        if self._is_wide:
            self._pairs(fused).mul_(turn)
        else:
            fused = torch.view_as_real(self._pairs(fused.to(self._wide)) * turn)
            fused = fused.view(len(x), -1).to(self.dtype)
        return self.parted(fused)

    def projected(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Return queries, keys and values before they turn, (n, heads of q, k and v * dim)."""
        weights = self._layers[layer]
        return weights.qkv(self._normed(x, weights.norm_in))

    def parted(self, fused: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return as `project` does what lies side by side, (n, heads of q, k and v * dim)."""
        q, kv = fused.split(self._split, 1)
        return (q.view(len(fused), self.kv_heads, -1, self.head_dim),
                kv.view(len(fused), 2, self.kv_heads, self.head_dim))

    def finish(self, layer: int, x: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """Add what was read, projected, and then the MLP of it; (n, hidden)."""
        weights = self._layers[layer]
        x = weights.out.added_to(x, read)
        gate, up = weights.gate_up(self._normed(x, weights.norm_mlp)).split(self._width, 1)
        return weights.down.added_to(x, F.silu(gate).mul_(up))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, vocabulary)."""
        return F.linear(self.weighted_norm(x, self._norm), self._head)

    def matrices(self) -> list[Weights]:
        """Return all matrices of all layers."""
        return [matrix for layer in self._layers
                for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down)]

    def _pairs(self, fused: torch.Tensor) -> torch.Tensor:
        """View pairs of neighbours as complex numbers, (n, heads of q, k and v, dim / 2)."""
        return torch.view_as_complex(fused.view(len(fused), -1, self.head_dim // 2, 2))

    def _normed(self, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        if weight is not None:
            return self.weighted_norm(x, weight)
        # The weight and the root of the width are in the matrix that follows (`fuse`).
        return x * (x * x).sum(-1, keepdim=True).add_(self._floor).rsqrt_()

    def weighted_norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return x (..., width) normed, times the weight."""
        # The oracle normalizes in fp32 whatever the weights' type, so this does too.
        if self._is_fused_norm:
            return F.rms_norm(x, weight.shape, weight, self._eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._eps)
        return weight * wide.to(x.dtype)

    def rotary(self, positions: torch.Tensor) -> torch.Tensor:
        """
        Return rotations (n, heads of q, k and v, dim / 2): each section takes its own axis.

        A pair of dimensions is turned as one complex number, by one product; values by 1.
        """
        angles = positions.to(self.device)[self._axis].t().float() * self._inv_freq
        cos, sin = (part.to(self.dtype).to(self._wide) for part in (angles.cos(), angles.sin()))
        turn = torch.complex(cos, sin)[:, None].repeat(1, self.heads + 2 * self.kv_heads, 1)
        turn[:, self.heads + self.kv_heads:] = 1
        return turn

    def qkv(self, attention: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the weight and the bias, if any, of q, k and v in one, as `project` turns them."""
        parts, pairs = (attention.q_proj, attention.k_proj, attention.v_proj), self._paired_rows()
        return (torch.cat([part.weight.detach() for part in parts])[pairs],
                torch.cat([part.bias.detach() for part in parts])[pairs])

    def fuse(self, layer: nn.Module) -> _Layer:
        """Return the weights of a stock layer in the form that they are used in."""
        attention, mlp = layer.self_attn, layer.mlp
        weight, bias = self.qkv(attention)
        gate_up = torch.cat([mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()])
        self.fused = weight.numel() + gate_up.numel()
        norms = [layer.input_layernorm.weight.detach(),
                 layer.post_attention_layernorm.weight.detach()]
        if self.dtype == torch.float32 and self.quantize == 'none':
            # A norm's weight goes into the matrix after it: one product less. Not in other types:
            # bf16 would round the matrix anew, and in fp64 the oracle's norm is one of fp32; nor
            # where the matrix is rounded to whole numbers, which are to be the oracle's too.
            root = self.hidden ** 0.5
            weight, gate_up = weight * (norms[0] * root), gate_up * (norms[1] * root)
            norms = [None, None]
        made = functools.partial(weights_of, kind=self.quantize)
        return _Layer(
            norm_in=norms[0], qkv=made(weight, bias), out=made(attention.o_proj.weight.detach()),
            norm_mlp=norms[1], gate_up=made(gate_up), down=made(mlp.down_proj.weight.detach()))

    def _paired_rows(self) -> torch.Tensor:
        """
        Return the order of the rows of q, k, v in which those that turn together are neighbours.

        Scores do not change when queries and keys are reordered alike.
        """
        rows = torch.arange((self.heads + 2 * self.kv_heads) * self.head_dim, device=self.device)
        rows = rows.view(-1, self.head_dim)
        turned = rows[:self.heads + self.kv_heads]
        half = self.head_dim // 2
        turned[:] = torch.stack([turned[:, :half], turned[:, half:]], dim=2).flatten(1)
        return rows.flatten()


def _check_supported(config) -> None:
    kind = config.rope_parameters.get('rope_type', 'default')
    if kind != 'default':
        raise ValueError(f'rotary scaling {kind!r} is not supported: only "default" is')
    if config.hidden_act != 'silu':
        raise ValueError(f'activation {config.hidden_act!r} is not supported: only "silu" is')
    if any(layer != 'full_attention' for layer in getattr(config, 'layer_types', None) or ()):
        raise ValueError('sliding-window attention is not supported: set '
                         "use_sliding_window to false in the checkpoint's config")
