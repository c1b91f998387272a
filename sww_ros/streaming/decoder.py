"""
The one primitive: `Decoder.step(chunks)`, a forward pass over chunks of several lanes.

Prefill, decode, several answers at once and piggybacking are the same call with other chunks. The
linear layers run once over all rows; attention runs per lane, and once over a context that chunks
share. The arithmetic is that of transformers' Qwen2_5_VLTextModel, the oracle of the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
import torch.nn.functional as F

from sww_ros.streaming.kv import Lane, LaneView


@dataclass(frozen=True)
class Chunk:
    """
    Rows to append to a lane.

    `embeds` (n, hidden); `positions` int64 (3, n). All rows see the rows of `context`, a view of
    another lane, and, causally, their own lane. With `predict` the step returns the logits of the
    last row.
    """

    lane: Lane
    embeds: torch.Tensor
    positions: torch.Tensor
    context: LaneView | None = None
    predict: bool = False

    @property
    def rows(self) -> int:
        return self.embeds.shape[0]


@dataclass(frozen=True)
class _Layer:
    """The weights of one decoder layer, with q, k, v and gate, up fused."""

    norm_in: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor
    out: torch.Tensor
    norm_mlp: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class Decoder:
    """The language model of a Qwen2.5-VL checkpoint, over append-only lanes."""

    def __init__(self, language_model: nn.Module, lm_head: nn.Module) -> None:
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
        self.layer_count = config.num_hidden_layers
        self._eps = config.rms_norm_eps
        self._sections = list(config.rope_parameters['mrope_section'])
        self._inv_freq = language_model.rotary_emb.inv_freq.float()
        self._embedding = language_model.embed_tokens.weight.detach()
        self._norm = language_model.norm.weight.detach()
        self._head = lm_head.weight.detach()
        self._layers = []
        while len(language_model.layers):
            self._layers.append(_fuse(language_model.layers[0]))
            del language_model.layers[0]
        self.dtype, self.device = self._norm.dtype, self._norm.device
        self._score_dtype = torch.promote_types(self.dtype, torch.float32)

    def new_lane(self, rows: int) -> Lane:
        """Return an empty lane with room for `rows` tokens."""
        return Lane(self.layer_count, self.kv_heads, self.head_dim, rows, self.dtype, self.device)

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the embeddings of token ids, (n, hidden)."""
        return self._embedding[torch.as_tensor(ids, dtype=torch.long, device=self.device)]

    @torch.inference_mode()
    def step(self, chunks: Sequence[Chunk]) -> list[torch.Tensor | None]:
        """
        Run one forward pass and publish every chunk's rows.

        Returns, per chunk, the logits of its last row (vocabulary,) or None. No two chunks of
        one call may extend the same lane.
        """
        if len({id(chunk.lane) for chunk in chunks}) != len(chunks):
            raise ValueError('two chunks of one step extend the same lane')
        targets = [chunk.lane.reserve(chunk.rows) for chunk in chunks]
        plan = _Plan.of(chunks, targets, self.device)
        x = torch.cat([chunk.embeds for chunk in chunks])
        cos, sin = self._rotary(torch.cat([chunk.positions for chunk in chunks], dim=1))
        for index, layer in enumerate(self._layers):
            q, k, v = self._project(layer, x, cos, sin)
            plan.write(index, k, v)
            x = x + F.linear(self._attend(plan, index, q), layer.out)
            gate, up = F.linear(self._normed(x, layer.norm_mlp), layer.gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        for chunk, target in zip(chunks, targets):
            chunk.lane.publish(target.length)
        return self._logits(chunks, plan, x)

    def _logits(self, chunks: Sequence[Chunk], plan: _Plan,
                x: torch.Tensor) -> list[torch.Tensor | None]:
        last = [stop - 1 for chunk, (_, stop) in zip(chunks, plan.spans) if chunk.predict]
        if not last:
            return [None] * len(chunks)
        logits = iter(F.linear(self._normed(x[last], self._norm), self._head))
        return [next(logits) if chunk.predict else None for chunk in chunks]

    def _project(self, layer: _Layer, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
                 ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return rotated queries (heads, n, dim), rotated keys and values (kv heads, n, dim)."""
        fused = F.linear(self._normed(x, layer.norm_in), layer.qkv, layer.qkv_bias)
        fused = fused.view(len(x), self.heads + 2 * self.kv_heads, self.head_dim).transpose(0, 1)
        turning = fused[:self.heads + self.kv_heads]
        half = self.head_dim // 2
        swapped = torch.cat([-turning[..., half:], turning[..., :half]], dim=-1)
        turned = turning * cos + swapped * sin
        return turned[:self.heads], turned[self.heads:], fused[self.heads + self.kv_heads:]

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        # The oracle normalizes in fp32 whatever the weights' type, so this does too.
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._eps)
        return weight * wide.to(x.dtype)

    def _rotary(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin (n, dim) of 3-D positions: each section takes its own axis."""
        angles = positions.to(self.device)[..., None].float() * self._inv_freq
        cos, sin = (self._compose(part) for part in (angles.cos(), angles.sin()))
        return cos.to(self.dtype), sin.to(self.dtype)

    def _compose(self, parts: torch.Tensor) -> torch.Tensor:
        split = parts.split(self._sections, dim=-1)
        half = torch.cat([part[i % 3] for i, part in enumerate(split)], dim=-1)
        return torch.cat([half, half], dim=-1)

    def _attend(self, plan: _Plan, layer: int, q: torch.Tensor) -> torch.Tensor:
        """Return the attention output of all rows, (n, heads * dim)."""
        out = q.new_empty(q.shape)
        for group in plan.groups:
            if group.context is None:
                self._attend_alone(group, layer, q, out)
            else:
                self._attend_shared(group, layer, q, out)
        return out.transpose(0, 1).reshape(q.shape[1], -1)

    def _attend_alone(self, group: _Group, layer: int, q: torch.Tensor,
                      out: torch.Tensor) -> None:
        """Rows that see only their own lane: the visual lane's prefill."""
        (start, stop), target, mask = group.spans[0], group.targets[0], group.masks[0]
        keys, values = (buffer[layer, :, :target.length] for buffer in target[:2])
        out[:, start:stop] = F.scaled_dot_product_attention(
            q[None, :, start:stop], keys[None], values[None], attn_mask=mask,
            enable_gqa=self.heads != self.kv_heads)[0]

    def _attend_shared(self, group: _Group, layer: int, q: torch.Tensor,
                       out: torch.Tensor) -> None:
        """
        Rows that see a common context and their own lanes.

        The context's keys and values are read once for all rows of all lanes; one softmax runs
        over both parts, so the result is that of one attention, without copying the context.
        """
        context, rows = group.context, group.stop - group.start
        groups = self.heads // self.kv_heads
        mine = q[:, group.start:group.stop].view(self.kv_heads, groups, rows, self.head_dim)
        mine = mine * self.head_dim ** -0.5
        flat = mine.reshape(self.kv_heads, groups * rows, self.head_dim)
        keys, values = (buffer[layer, :, :context.length] for buffer in context[:2])
        far = (flat @ keys.transpose(1, 2)).view(self.kv_heads, groups, rows, -1)
        weights, near_out = [], []
        for (start, stop), target, mask in zip(group.spans, group.targets, group.masks):
            here = slice(start - group.start, stop - group.start)
            own_keys, own_values = (buffer[layer, :, None, :target.length]
                                    for buffer in target[:2])
            near = mine[:, :, here] @ own_keys.transpose(2, 3)
            if mask is not None:
                near = near.masked_fill(~mask, float('-inf'))
            scores = torch.cat([far[:, :, here], near], dim=-1)
            share = torch.softmax(scores, dim=-1, dtype=self._score_dtype).to(q.dtype)
            weights.append(share[..., :context.length])
            near_out.append(share[..., context.length:] @ own_values)
        share = torch.cat(weights, dim=2).reshape(self.kv_heads, groups * rows, -1)
        result = (share @ values).view(self.kv_heads, groups, rows, -1)
        result = result + torch.cat(near_out, dim=2)
        out[:, group.start:group.stop] = result.view(self.heads, rows, self.head_dim)


@dataclass(frozen=True)
class _Group:
    """Neighbouring chunks that see the same context; `masks` are causal, None for one row."""

    context: LaneView | None
    spans: list[tuple[int, int]]
    targets: list[LaneView]
    masks: list[torch.Tensor | None]

    @property
    def start(self) -> int:
        return self.spans[0][0]

    @property
    def stop(self) -> int:
        return self.spans[-1][1]


@dataclass(frozen=True)
class _Plan:
    """Which rows belong to which chunk, and which chunks attend together."""

    spans: list[tuple[int, int]]
    targets: list[LaneView]
    groups: list[_Group]

    @staticmethod
    def of(chunks: Sequence[Chunk], targets: list[LaneView], device: torch.device) -> _Plan:
        spans, groups, start = [], [], 0
        before = None
        for chunk, target in zip(chunks, targets):
            span = (start, start + chunk.rows)
            spans.append(span)
            start = span[1]
            mask = None
            if chunk.rows > 1:
                row = torch.arange(target.length - chunk.rows, target.length, device=device)
                mask = torch.arange(target.length, device=device)[None] <= row[:, None]
            context = chunk.context if chunk.context and chunk.context.length else None
            if context is not None and before is not None and context.length == before.length \
                    and context.keys is before.keys:
                group = groups[-1]
                group.spans.append(span)
                group.targets.append(target)
                group.masks.append(mask)
            else:
                groups.append(_Group(context, [span], [target], [mask]))
            before = context
        return _Plan(spans, targets, groups)

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        for (start, stop), target in zip(self.spans, self.targets):
            rows = slice(target.length - (stop - start), target.length)
            target.keys[layer, :, rows] = k[:, start:stop]
            target.values[layer, :, rows] = v[:, start:stop]


def _fuse(layer: nn.Module) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
    return _Layer(
        norm_in=layer.input_layernorm.weight.detach(),
        qkv=torch.cat([part.weight.detach() for part in qkv]),
        qkv_bias=torch.cat([part.bias.detach() for part in qkv]),
        out=attention.o_proj.weight.detach(),
        norm_mlp=layer.post_attention_layernorm.weight.detach(),
        gate_up=torch.cat([mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()]),
        down=mlp.down_proj.weight.detach())


def _check_supported(config) -> None:
    kind = config.rope_parameters.get('rope_type', 'default')
    if kind != 'default':
        raise ValueError(f'rotary scaling {kind!r} is not supported: only "default" is')
    if config.hidden_act != 'silu':
        raise ValueError(f'activation {config.hidden_act!r} is not supported: only "silu" is')
    if any(layer != 'full_attention' for layer in config.layer_types or ()):
        raise ValueError('sliding-window attention is not supported: set '
                         "use_sliding_window to false in the checkpoint's config")
