"""
The arithmetic of Qwen2.5-VL, which is that of transformers' modules, the oracle of the tests.

Its language model for `streaming.decoder`: layers with fused weights, rotary angles. Its vision
tower for one step of video at a time: what depends on the size of the frames alone (windows, rotary
angles) is computed once per size, and windows of one size attend in one call, as per-window Python
costs more than the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
import functools
from typing import Any

import torch
from torch import nn
import torch.nn.functional as F

from sww_ros.streaming.decoder import Matrix
from sww_ros.streaming.family import Seen


@dataclass(frozen=True)
class _Plan:
    """What a frame size fixes: the order of merged tokens, rotary angles, windows' lengths."""

    order: torch.Tensor
    back: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    windows: tuple[int, ...]


class QwenTower:
    """Runs the weights of transformers' vision tower on the patches of one step."""

    def __init__(self, tower: nn.Module) -> None:
        """Take the weights of the stock tower; they are shared, not copied."""
        config = tower.config
        self._tower, self._heads = tower, config.num_heads
        self._merge = config.spatial_merge_size
        self._window = config.window_size // (config.patch_size * self._merge)
        self._whole = frozenset(config.fullatt_block_indexes)
        convolution = tower.patch_embed.proj.weight.detach()
        self._patch = convolution.reshape(len(convolution), -1)
        self.dtype, self.device = self._patch.dtype, self._patch.device
        self._plan = functools.lru_cache(maxsize=8)(self._make_plan)

    @torch.inference_mode()
    def __call__(self, patches: torch.Tensor, rows: int, columns: int) -> Seen:
        """
        Return the merged tokens of one step, rows * columns of them.

        :param patches: (4 * rows * columns, channels * pixels), in the tower's order
        :param rows: rows of merged tokens
        """
        plan = self._plan(rows, columns)
        unit = self._merge ** 2
        x = F.linear(patches, self._patch)
        x = x.view(-1, unit, x.shape[-1])[plan.order].reshape(len(x), -1)
        for index, block in enumerate(self._tower.blocks):
            windows = (len(x),) if index in self._whole else plan.windows
            x = x + self._attend(block.attn, block.norm1(x), plan, windows)
            x = x + block.mlp(block.norm2(x))
        return Seen(self._tower.merger(x)[plan.back])

    def _attend(self, attention: nn.Module, x: torch.Tensor, plan: _Plan,
                windows: tuple[int, ...]) -> torch.Tensor:
        qkv = attention.qkv(x).view(len(x), 3, self._heads, -1).transpose(0, 2)
        # The oracle turns queries and keys in fp32 whatever the weights' type.
        turning = qkv[:, :2].float()
        half = turning.shape[-1] // 2
        swapped = torch.cat([-turning[..., half:], turning[..., :half]], dim=-1)
        q, k = (turning * plan.cos + swapped * plan.sin).to(x.dtype).unbind(1)
        parts = zip(*(_split(part, windows) for part in (q, k, qkv[:, 2])))
        out = [F.scaled_dot_product_attention(*part).transpose(1, 2).flatten(0, 1)
               for part in parts]
        return attention.proj((out[0] if len(out) == 1 else torch.cat(out)).flatten(1))

    def _make_plan(self, rows: int, columns: int) -> _Plan:
        unit, size = self._merge ** 2, self._window
        index = torch.arange(rows * columns).view(rows, columns)
        blocks = [index[r:r + size, c:c + size].flatten()
                  for r in range(0, rows, size) for c in range(0, columns, size)]
        order = torch.cat(blocks)
        angles = self._angles(rows, columns).view(rows * columns, unit, -1)[order].flatten(0, 1)
        to = functools.partial(torch.Tensor.to, device=self.device)
        return _Plan(to(order), to(torch.argsort(order)), to(angles.cos()), to(angles.sin()),
                     tuple(len(block) * unit for block in blocks))

    def _angles(self, rows: int, columns: int) -> torch.Tensor:
        """Rotary angles of all patches in the tower's order, (patches, head dim) fp32."""
        m = self._merge
        row, column = torch.meshgrid(torch.arange(rows * m), torch.arange(columns * m),
                                     indexing='ij')
        places = torch.stack([row, column], dim=-1).view(rows, m, columns, m, 2)
        places = places.transpose(1, 2).reshape(-1, 2, 1)
        angles = (places.float() * self._tower.rotary_pos_emb.inv_freq.float().cpu()).flatten(1)
        return torch.cat([angles, angles], dim=-1)


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
    qkv: Matrix
    out: Matrix
    norm_mlp: torch.Tensor | None
    gate_up: Matrix
    down: Matrix


class QwenLanguage:
    """The text model's weights, as `streaming.decoder.LanguageModel` has them."""

    def __init__(self, language_model: Any, lm_head: nn.Module) -> None:
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
        self._inv_freq = language_model.rotary_emb.inv_freq.float()
        self._embedding = language_model.embed_tokens.weight.detach()
        self._norm = language_model.norm.weight.detach()
        self._head = lm_head.weight.detach()
        self.dtype, self.device = self._norm.dtype, self._norm.device
        self._wide = torch.promote_types(self.dtype, torch.float32)
        self._is_wide = self.dtype == self._wide
        # A tensor: a Python number would be converted in every call.
        self._floor = torch.tensor(self._eps * self.hidden, dtype=self.dtype, device=self.device)
        sections = config.rope_parameters['mrope_section']
        self._axis = torch.tensor([i % 3 for i, count in enumerate(sections)
                                   for _ in range(count)], device=self.device)
        self._layers = []
        while len(language_model.layers):
            self._layers.append(self._fuse(language_model.layers[0]))
            del language_model.layers[0]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of token ids, (n, hidden)."""
        return self._embedding[ids]

    def project(self, layer: int, x: torch.Tensor,
                turn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries (n, kv heads, group, dim) and keys with values (n, 2, kv heads, dim)."""
        weights = self._layers[layer]
        fused = weights.qkv(self._normed(x, weights.norm_in))
        # Turned in place, so that keys stay beside values and one call writes both to the lane.
        if self._is_wide:
            self._pairs(fused).mul_(turn)
        else:
            fused = torch.view_as_real(self._pairs(fused.to(self._wide)) * turn)
            fused = fused.view(len(x), -1).to(self.dtype)
        q, kv = fused.split(self._split, 1)
        return (q.view(len(x), self.kv_heads, -1, self.head_dim),
                kv.view(len(x), 2, self.kv_heads, self.head_dim))

    def finish(self, layer: int, x: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """Add what was read, projected, and then the MLP of it; (n, hidden)."""
        weights = self._layers[layer]
        x = weights.out.added_to(x, read)
        gate, up = weights.gate_up(self._normed(x, weights.norm_mlp)).split(self._width, 1)
        return weights.down.added_to(x, F.silu(gate).mul_(up))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, vocabulary)."""
        return F.linear(self._weighted_norm(x, self._norm), self._head)

    def _pairs(self, fused: torch.Tensor) -> torch.Tensor:
        """View pairs of neighbours as complex numbers, (n, heads of q, k and v, dim / 2)."""
        return torch.view_as_complex(fused.view(len(fused), -1, self.head_dim // 2, 2))

    def _normed(self, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        if weight is not None:
            return self._weighted_norm(x, weight)
        # The weight and the root of the width are in the matrix that follows (`_fuse`).
        return x * (x * x).sum(-1, keepdim=True).add_(self._floor).rsqrt_()

    def _weighted_norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        # The oracle normalizes in fp32 whatever the weights' type, so this does too.
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

    def _fuse(self, layer: nn.Module) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        pairs = self._paired_rows()
        weight = torch.cat([part.weight.detach() for part in qkv])[pairs]
        bias = torch.cat([part.bias.detach() for part in qkv])[pairs]
        gate_up = torch.cat([mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()])
        norms = [layer.input_layernorm.weight.detach(),
                 layer.post_attention_layernorm.weight.detach()]
        if self.dtype == torch.float32:
            # A norm's weight goes into the matrix after it: one product less. Not in other types:
            # bf16 would round the matrix anew, and in fp64 the oracle's norm is one of fp32.
            root = self.hidden ** 0.5
            weight, gate_up = weight * (norms[0] * root), gate_up * (norms[1] * root)
            norms = [None, None]
        return _Layer(
            norm_in=norms[0], qkv=Matrix(weight, bias),
            out=Matrix(attention.o_proj.weight.detach()), norm_mlp=norms[1],
            gate_up=Matrix(gate_up), down=Matrix(mlp.down_proj.weight.detach()))

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
    if any(layer != 'full_attention' for layer in config.layer_types or ()):
        raise ValueError('sliding-window attention is not supported: set '
                         "use_sliding_window to false in the checkpoint's config")
