"""The tokenizer of the built-in checkpoint: Qwen2's own class over a small byte-level BPE."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from sww_ros.shapes.grammar import COLORS, DIRECTIONS, NUMBERS, SHAPES, Claim
from sww_ros.shapes.narration import standing_questions

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
