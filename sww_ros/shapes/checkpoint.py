"""The built-in checkpoint before training: Qwen2.5-VL's own classes, a thousand times smaller."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
import torch
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)

from sww_ros.shapes.grammar import COLORS, DIRECTIONS, NUMBERS, SHAPES, Claim
from sww_ros.shapes.truth import NARRATE, standing_questions
from sww_ros.streaming.positions import DEFAULT_SCHEME

SPECIAL = ('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|vision_start|>', '<|vision_end|>',
           '<|image_pad|>', '<|video_pad|>', '<|silence|>')
SILENCE = '<|silence|>'
SYSTEM = 'Speak while watching.'


def sentences() -> Iterator[str]:
    """Every sentence of the world's grammar."""
    for color, shape in product(COLORS, SHAPES):
        for kind in ('appears', 'stops', 'leaves'):
            yield Claim(kind, color, shape).sentence
        for kind, way in product(('moves', 'turns'), DIRECTIONS):
            yield Claim(kind, color, shape, way).sentence
        for other in COLORS:
            yield Claim('becomes', color, shape, other).sentence
    for (one, other), (a, b) in product(permutations(COLORS, 2), product(SHAPES, SHAPES)):
        yield Claim('hits', one, a, f'{other} {b}').sentence


def conversation() -> Iterator[str]:
    """Every question and answer of the world, with the spellings that users try."""
    for shape in SHAPES:
        yield from (f'What colour is the {shape}?', f'What color is the {shape}?',
                    f'Did the {shape} stop?', f'What does the {shape} do?',
                    f'Where is the {shape}?')
        for color in COLORS:
            yield from (f'Is there a {color} {shape}?', f'The {color} {shape}.')
    yield from (f'{word.capitalize()}.' for word in (*COLORS, *NUMBERS, 'yes', 'no', 'left',
                                                    'middle', 'right'))
    yield from (f'It moves {way}.' for way in DIRECTIONS)
    yield from ('How many shapes are there?', 'Which shape moved last?', 'It stays still.',
                SYSTEM, *standing_questions(), 'system\n', 'user\n', 'assistant\n')


def corpus() -> Iterator[str]:
    """What the merges are learned from: each word often enough to become one token."""
    for text in (*sentences(), *conversation()):
        yield from (text, ' ' + text, text.lower(), ' ' + text.lower())


def build_tokenizer() -> Qwen2Tokenizer:
    """
    Learn the merges, so that each word of the world is one token and any other text is bytes.

    The result is deterministic: 256 bytes, the merges, then the special tokens.
    """
    empty = Qwen2Tokenizer()
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=512, min_frequency=2, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    learner.train_from_iterator(corpus(), trainer)
    learned = json.loads(learner.to_str())['model']
    return Qwen2Tokenizer(
        vocab=learned['vocab'], merges=[tuple(pair) for pair in learned['merges']],
        eos_token='<|im_end|>', pad_token='<|endoftext|>',
        extra_special_tokens=list(SPECIAL))


FRAME_SIZE = 84
"""Width and height of a frame in pixels: 3 x 3 merged visual tokens a step."""
WAIT_K = 3
MAX_STEPS = 48
"""After so many steps a stream begins anew."""
MEAN, STD = 0.5, 0.25


def build_config(tokenizer: Qwen2Tokenizer, hidden: int = 128, layers: int = 6,
                 position_encoding: str = DEFAULT_SCHEME, offline: bool = False,
                 tokens_per_second: int = WAIT_K) -> Qwen2_5_VLConfig:
    """
    Return the configuration; its `speak_while_watching` entry says how it was trained.

    M-RoPE sections are interleaved, as otherwise the width axis has no usable frequency at this
    head size. As many positions a second as tokens keep narration and video at a constant distance.
    """
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=3 * hidden,
            num_hidden_layers=layers, num_attention_heads=hidden // 32, num_key_value_heads=2,
            max_position_embeddings=4096, bos_token_id=token('<|endoftext|>'),
            eos_token_id=token('<|im_end|>'), pad_token_id=token('<|endoftext|>'),
            rope_parameters=dict(rope_type='default', rope_theta=1000.0,
                                 mrope_section=[2, 1, 1] * 4)),
        vision_config=dict(
            depth=2, hidden_size=96, intermediate_size=256, num_heads=4, out_hidden_size=hidden,
            window_size=112, fullatt_block_indexes=[0, 1],
            tokens_per_second=tokens_per_second),
        image_token_id=token('<|image_pad|>'), video_token_id=token('<|video_pad|>'),
        vision_start_token_id=token('<|vision_start|>'),
        vision_end_token_id=token('<|vision_end|>'), tie_word_embeddings=True)
    config.speak_while_watching = dict(
        position_encoding=position_encoding, schedule='offline' if offline else 'wait_k',
        wait_k=WAIT_K, seconds_per_step=1.0, silence_token=SILENCE, system=SYSTEM,
        prompt=NARRATE, max_steps=MAX_STEPS)
    return config


def build_model(config: Qwen2_5_VLConfig, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Return the untrained model, its patch embedding started from low frequencies."""
    torch.manual_seed(seed)
    config._attn_implementation = 'sdpa'
    model = Qwen2_5_VLForConditionalGeneration(config)
    _start_patch_embedding(model.model.visual.patch_embed.proj.weight, seed)
    return model


@torch.no_grad()
def _start_patch_embedding(weight: torch.Tensor, seed: int) -> None:
    """Fill (out, color, time, y, x) with cosines; every second one differs in its two frames."""
    draw = torch.Generator().manual_seed(seed + 1)
    size = weight.shape[-1]
    y, x = torch.meshgrid(torch.arange(size) + .5, torch.arange(size) + .5, indexing='ij')
    for index in range(len(weight)):
        color = torch.randn(3, generator=draw)
        if index % 3:
            color -= color.mean()
        u, v = (torch.randint(-3, 4, (2,), generator=draw) * .5).tolist()
        phase = float(torch.rand(1, generator=draw)) * 2 * torch.pi if u or v else 0.0
        wave = torch.cos(2 * torch.pi * (u * x + v * y) / size + phase)
        time = torch.tensor([1.0, -1.0 if index % 2 else 1.0])
        bank = color[:, None, None, None] * time[None, :, None, None] * wave
        weight[index] = bank / bank.norm() * (.2 if index % 2 else .08)


def save_checkpoint(model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2Tokenizer,
                    folder: Path) -> None:
    """Write the ordinary directory format, which `from_pretrained` and AutoProcessor load."""
    model.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=model.config.text_config.bos_token_id,
        eos_token_id=model.config.text_config.eos_token_id,
        pad_token_id=model.config.text_config.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_processor(folder)


def _write_processor(folder: Path) -> None:
    """The processor's files, written as data: its classes need torchvision, the engine does not."""
    pixels = FRAME_SIZE * FRAME_SIZE
    common = dict(patch_size=14, temporal_patch_size=2, merge_size=2, do_resize=True,
                  do_rescale=True, rescale_factor=1 / 255, do_normalize=True, do_convert_rgb=True,
                  image_mean=[MEAN] * 3, image_std=[STD] * 3, resample=3,
                  size=dict(shortest_edge=pixels, longest_edge=pixels))
    image = dict(common, image_processor_type='Qwen2VLImageProcessor',
                 processor_class='Qwen2_5_VLProcessor')
    video = dict(common, video_processor_type='Qwen2VLVideoProcessor', do_sample_frames=False,
                 processor_class='Qwen2_5_VLProcessor')
    for name, content in (('preprocessor_config.json', image),
                          ('video_preprocessor_config.json', video)):
        (folder / name).write_text(json.dumps(content, indent=2) + '\n')
