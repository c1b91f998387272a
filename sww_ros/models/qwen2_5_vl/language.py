"""
Qwen2.5-VL's language model for `streaming.decoder`: layers with fused weights, rotary angles.

The arithmetic is that of transformers' Qwen2_5_VLTextModel, the oracle of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
import torch.nn.functional as F

from sww_ros.streaming.linear import Matrix


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
