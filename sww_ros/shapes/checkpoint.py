"""
The built-in checkpoint before training, and the batches that it is trained on.

It is made of Qwen2.5-VL's own classes, a thousand times smaller. A batch holds frames, text lanes,
positions, masks and auxiliary truths of scenes that nobody has seen before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
import functools
from itertools import permutations, product
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
import torch
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)

from sww_ros.models.qwen2_5_vl import TURNS
from sww_ros.shapes.grammar import COLORS, DIRECTIONS, KINDS, NUMBERS, SHAPES, Claim, make_question
from sww_ros.shapes.render import FRAME_SIZE, Film
from sww_ros.shapes.scene import TICK_S, Difficulty, Scene, generate, newest_frame_s
from sww_ros.shapes.truth import (
    NARRATE,
    description_ids,
    facts_by_step,
    narration_ids,
    standing_questions,
)
from sww_ros.streaming.layout import IGNORE, ClipShape, Layout, lay_out
from sww_ros.streaming.positions import DEFAULT_SCHEME, VideoClock, make_scheme
from sww_ros.streaming.schedule import make_schedule
from sww_ros.streaming.visibility import Visibility

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
    for name, own in (
            ('preprocessor_config.json', dict(image_processor_type='Qwen2VLImageProcessor')),
            ('video_preprocessor_config.json', dict(
                video_processor_type='Qwen2VLVideoProcessor', do_sample_frames=False))):
        content = dict(common, **own, processor_class='Qwen2_5_VLProcessor')
        (folder / name).write_text(json.dumps(content, indent=2) + '\n')


GRID = FRAME_SIZE // 28
STEP_TOKENS = GRID * GRID
AUXILIARY = dict(color=len(COLORS) + 1, shape=len(SHAPES) + 1, motion=len(DIRECTIONS) + 1,
                 event=len(KINDS) + 1)


@dataclass
class ShapesBatch:
    """
    `patches` (B*S*36, 1176) float32; `ids`, `labels` (B, L); `positions` (3, B, L);
    `mask` (B, 1, L, L) bool; `cells` (B, S, 9, 4) truths for AUXILIARY; `visual` (S*9,) the
    columns of visual rows, `questions` the first column of the question lanes.
    """  # noqa: D205, D400

    patches: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    cells: torch.Tensor
    visual: torch.Tensor
    questions: int


@dataclass(frozen=True)
class BatchRecipe:
    """What one batch is made of."""

    clips: int
    steps: int
    max_objects: int
    questions: int = 4
    prompt: str = NARRATE
    late_start: int = 0
    corrupt: float = 0.0


def frames_to_patches(frames: np.ndarray) -> np.ndarray:
    """Cut (2*S, H, W, 3) uint8 frames into (S*h*w*4, 1176) float32, in the tower's own order."""
    steps, g = len(frames) // 2, frames.shape[1] // 28
    x = frames.reshape(steps, 2, g, 2, 14, g, 2, 14, 3).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    pixels = x.reshape(-1, 3 * 2 * 14 * 14).astype(np.float32)
    return (pixels / 255 - MEAN) / STD


def cell_truths(scene: Scene, steps: int, phase_s: float) -> np.ndarray:
    """For each step and cell: color, shape, motion and event of the shape there, (S, 9, 4)."""
    cells = np.zeros((steps, STEP_TOKENS, 4), np.int64)
    shown = facts_by_step(scene, steps, phase_s)
    ways = list(DIRECTIONS.values())
    for step in range(steps):
        at = newest_frame_s(step, phase_s)
        events = {fact.object_id: KINDS.index(fact.claim.kind) + 1 for fact in shown[step]}
        for track in scene.tracks:
            here, before = (_place(track.xy, at - back) for back in (0.0, TICK_S))
            if np.isnan(here[0]):
                continue
            inside = bool(((here >= 0) & (here < 1)).all())
            event = events.get(track.object_id, 0)
            if not inside and not event:
                continue
            x, y = np.clip(here, 0, 0.999)
            cell = cells[step, int(y * GRID) * GRID + int(x * GRID)]
            moved = np.nan_to_num(here - before)
            way = 0
            if np.abs(moved).max() > 0.016:
                unit = tuple(np.round(moved / np.abs(moved).max()).astype(int))
                way = ways.index(unit) + 1 if unit in ways else 0
            color = track.color[track.tick(at)]
            if event or not cell[3]:
                cell[:] = color + 1, track.shape + 1, way, event
    return cells


def _place(xy: np.ndarray, time_s: float) -> np.ndarray:
    at = max(time_s, 0.0) / TICK_S
    tick = min(int(at + 1e-9), len(xy) - 2)
    here, ahead = xy[tick], xy[tick + 1]
    return here if np.isnan(ahead[0]) else here + (at - tick) * (ahead - here)


class Batcher:
    """Makes batches of fresh clips; the same generator state gives the same batch."""

    def __init__(self, tokenizer: Qwen2Tokenizer, position_encoding: str = DEFAULT_SCHEME,
                 offline: bool = False, tokens_per_second: int = WAIT_K) -> None:
        self._offline = offline
        self._scheme = make_scheme(position_encoding, VideoClock(tokens_per_second, 1.0))
        self._schedule = make_schedule('offline' if offline else 'wait_k', WAIT_K)
        self._encode = functools.cache(lambda text: tokenizer(text)['input_ids'])
        self._silence = tokenizer.convert_tokens_to_ids(SILENCE)
        self._end = tokenizer.convert_tokens_to_ids('<|im_end|>')
        self._video = tokenizer.convert_tokens_to_ids('<|video_pad|>')
        self._head = self._encode(TURNS.assistant)
        self._tail = self._encode(TURNS.tail)
        self._words = np.array([self._encode(' ' + word)[0] for word in (*COLORS, *SHAPES)])

    def make(self, recipe: BatchRecipe, rng: np.random.Generator) -> ShapesBatch:
        prefix = self._encode(''.join(TURNS.prefix(SYSTEM, recipe.prompt)))
        clips = [self._clip(recipe, rng) for _ in range(recipe.clips)]
        layouts = self._layouts(recipe, len(prefix), clips)
        layout = layouts[0]
        ids = np.zeros((recipe.clips, len(layout)), np.int64)
        labels = np.full_like(ids, IGNORE)
        ids[:, layout.prefix], ids[:, layout.head] = prefix, self._head
        ids[:, layout.visual], ids[:, layout.tail] = self._video, self._tail[:len(layout.tail)]
        for row, clip in enumerate(clips):
            spoken = clip['narration']
            ids[row, layout.narration[:len(spoken)]] = spoken
            labels[row, layout.predicting[:len(spoken)]] = spoken
            for lane, (tokens, asked, _) in zip(layout.questions, clip['lanes']):
                ids[row, lane[:len(tokens)]] = tokens
                labels[row, lane[asked - 1:len(tokens) - 1]] = tokens[asked:]
        if recipe.corrupt:
            narration = ids[:, layout.narration]
            self._corrupt(narration, recipe.corrupt, rng)
            ids[:, layout.narration] = narration
        # Clips differ in what their questions see, and in nothing else of the layout.
        sees = np.stack([one.rows.sees for one in layouts])
        rows = Visibility(layout.rows.lane, layout.rows.step, sees)
        return ShapesBatch(
            patches=torch.from_numpy(np.concatenate([clip['patches'] for clip in clips])),
            ids=torch.from_numpy(ids), labels=torch.from_numpy(labels),
            positions=torch.from_numpy(np.stack([one.positions for one in layouts], axis=1)),
            mask=torch.from_numpy(rows.mask())[:, None],
            cells=torch.from_numpy(np.stack([clip['cells'] for clip in clips])),
            visual=torch.from_numpy(layout.visual), questions=len(layout.came))

    def _layouts(self, recipe: BatchRecipe, prefix: int, clips: Sequence[dict]) -> list[Layout]:
        """Lay out each clip, all as long as the longest."""
        longest = max((len(ids) for clip in clips for ids, _, _ in clip['lanes']), default=0)
        shape = ClipShape(
            prefix, [(GRID, GRID)] * recipe.steps, len(self._head),
            max(len(clip['narration']) for clip in clips), tail=self._offline,
            question=longest - (len(self._tail) if self._offline else 0),
            late_start=0 if self._offline else recipe.late_start, max_steps=MAX_STEPS)
        return [lay_out(self._scheme, self._schedule, replace(
            shape, questions=[seen for _, _, seen in clip['lanes']])) for clip in clips]

    def _corrupt(self, narration: np.ndarray, share: float, rng: np.random.Generator) -> None:
        """Swap a share of the spoken colors and shapes, as a narrator's own slips would be."""
        slips = np.isin(narration, self._words) & (rng.random(narration.shape) < share)
        narration[slips] = rng.choice(self._words, int(slips.sum()))

    def _clip(self, recipe: BatchRecipe, rng: np.random.Generator) -> dict:
        difficulty = Difficulty(max_objects=recipe.max_objects, noise=rng.uniform(0.1, 1.2),
                                texture=rng.uniform(0.3, 1.3))
        scene = generate(int(rng.integers(1 << 40)) + 1_000_000, recipe.steps + 1.0, difficulty)
        film = Film.of(scene, rng)
        frames = np.stack([frame for frame, _ in film.steps(0, recipe.steps)])
        lanes = []
        for _ in range(recipe.questions):
            seen = int(rng.integers(recipe.steps)) + 1
            question = make_question(scene, film.seen_s(seen), rng)
            text = question.text
            if rng.random() < 0.2:
                text = text.replace('colour', 'color')
            if rng.random() < 0.2:
                text = text.lower()
            asked = [*(self._tail if self._offline else []),
                     *self._encode(''.join(TURNS.question(text)))]
            lanes.append((asked + self._encode(question.answer) + [self._end], len(asked), seen))
        if self._offline:
            narration = [*description_ids(scene, recipe.steps, film.phase_s, recipe.prompt,
                                          self._encode), self._end]
        else:
            narration = narration_ids(scene, recipe.steps, film.phase_s, recipe.prompt,
                                      self._silence, self._encode, [WAIT_K] * recipe.steps)
        return dict(
            patches=frames_to_patches(frames), lanes=lanes, narration=narration,
            cells=cell_truths(scene, recipe.steps, film.phase_s))
