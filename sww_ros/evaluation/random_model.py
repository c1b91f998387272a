"""Random checkpoints of any shape and of every family, for proofs and timing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
import torch
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from sww_ros.models.loading import take_apart
from sww_ros.streaming.checkpoint import Checkpoint

SPECIAL = ('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|vision_start|>', '<|vision_end|>',
           '<|image_pad|>', '<|video_pad|>', '<|silence|>')


def shape(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, theta: float = 1e6,
          **vision: object) -> dict:
    """
    Return the sizes of a Qwen2.5-VL for `random_model`.

    :param vision: those of its vision tower, by the names of transformers' config
    """
    half = hidden // heads // 2
    other = (half - half // 4) // 2
    text = dict(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads,
        rope_parameters=dict(rope_type='default', rope_theta=theta,
                             mrope_section=[half - 2 * other, other, other]))
    return dict(text=text, vision=dict(num_heads=heads // 2, tokens_per_second=2) | vision)


QWEN2_5_VL_3B = shape(2048, 11008, 36, 16, 2, depth=32, hidden_size=1280, intermediate_size=3420,
                      num_heads=16, window_size=112, fullatt_block_indexes=[7, 15, 23, 31])
"""The layer shapes of Qwen2.5-VL-3B, from its published config."""

SMALL = shape(48, 64, 2, 4, 2, theta=1e4, depth=2, hidden_size=32, intermediate_size=48,
              window_size=56, fullatt_block_indexes=[1])
"""Small enough for thousands of cases, with grouped queries and window attention."""


def shape_qwen3(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, head_dim: int,
                theta: float = 5e6, **vision: object) -> dict:
    """
    Return the sizes of a Qwen3-VL for `random_model`.

    :param vision: those of its vision tower, by the names of transformers' config
    """
    half = head_dim // 2
    other = half * 5 // 16
    text = dict(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
        rope_parameters=dict(rope_type='default', rope_theta=theta, mrope_interleaved=True,
                             mrope_section=[half - 2 * other, other, other]))
    return dict(text=text, vision=vision, model=Qwen3VLForConditionalGeneration)


SMALL_QWEN3 = shape_qwen3(48, 64, 3, 4, 2, 16, theta=1e4, depth=3, hidden_size=32,
                          intermediate_size=48, num_heads=2, num_position_embeddings=25,
                          deepstack_visual_indexes=[0, 1])
"""As small: heads wider than the rows, and a layer without deeper features."""


def shape_qwen2(hidden: int, inner: int, layers: int, heads: int, kv_heads: int,
                theta: float = 1e6, **vision: object) -> dict:
    """
    Return the sizes of a Qwen2-VL for `random_model`.

    :param vision: those of its vision tower, by the names of transformers' config
    """
    text = shape(hidden, inner, layers, heads, kv_heads, theta)['text']
    return dict(text=text, vision=dict(hidden_size=hidden) | vision,
                model=Qwen2VLForConditionalGeneration)


SMALL_QWEN2 = shape_qwen2(48, 64, 2, 4, 2, theta=1e4, depth=2, embed_dim=32, num_heads=2,
                          mlp_ratio=2)
"""As small as the others."""


def byte_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's tokenizer class with no merges: each byte is a token, special tokens are whole."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return Qwen2Tokenizer(vocab={c: i for i, c in enumerate(alphabet)}, merges=[],
                          eos_token='<|im_end|>', pad_token='<|endoftext|>',
                          extra_special_tokens=list(SPECIAL))


def random_model(shape: dict, seed: int, dtype: torch.dtype = torch.float32,
                 vocabulary: int | None = None, **streaming: object,
                 ) -> tuple[Any, Qwen2Tokenizer]:
    """
    Return transformers' model with random weights, and its tokenizer.

    :param shape: sizes of `text` and `vision`; `model`, its class, where it is no Qwen2.5-VL
    :param vocabulary: rows of the embedding; the tokenizer's own size if not given
    :param streaming: entries for the config's `speak_while_watching`
    """
    tokenizer = byte_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    text = dict(shape['text'], vocab_size=vocabulary or len(tokenizer),
                max_position_embeddings=32768, bos_token_id=token('<|endoftext|>'),
                eos_token_id=token('<|im_end|>'), pad_token_id=token('<|endoftext|>'))
    vision = dict(dict(out_hidden_size=text['hidden_size']), **shape['vision'])
    kind = shape.get('model', Qwen2_5_VLForConditionalGeneration)
    config = kind.config_class(
        text_config=text, vision_config=vision, image_token_id=token('<|image_pad|>'),
        video_token_id=token('<|video_pad|>'), vision_start_token_id=token('<|vision_start|>'),
        vision_end_token_id=token('<|vision_end|>'), tie_word_embeddings=True)
    if streaming:
        config.speak_while_watching = dict(streaming)
    config._attn_implementation = 'sdpa'
    torch.manual_seed(seed)
    model = kind(config).to(dtype).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Away from the neutral starting values, so that no bias or norm goes untested.
            if name.endswith('bias') or 'norm' in name:
                weight.add_(torch.randn_like(weight) * 0.1)
            elif 'embed_tokens' in name:
                weight.mul_(10)
    return model, tokenizer


def random_checkpoint(shape: dict, seed: int, dtype: torch.dtype = torch.float32,
                      device: str = 'cpu', vocabulary: int | None = None,
                      **streaming: object) -> tuple[Any, Checkpoint]:
    """
    Return the stock model (the oracle) and a checkpoint of the same weights to stream.

    :param device: where both are; their numbers are those of the generator there
    """
    with torch.device(device):  # There are up to thousands of millions of them.
        model, tokenizer = random_model(shape, seed, dtype, vocabulary, **streaming)
    return model, take_apart(copy.deepcopy(model), tokenizer, name=f'random {seed}')


def save_random(folder: Path, shape: dict, seed: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a random checkpoint in the ordinary directory format."""
    model, tokenizer = random_model(shape, seed, dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
