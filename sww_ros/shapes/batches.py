"""Training batches of the shapes world: frames, text lanes, positions, masks, auxiliary truths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import Qwen2Tokenizer

from sww_ros.shapes.architecture import FRAME_SIZE, MEAN, STD, WAIT_K
from sww_ros.shapes.grammar import COLORS, DIRECTIONS, KINDS, SHAPES
from sww_ros.shapes.narration import NARRATE, facts_by_step, newest_frame_s
from sww_ros.shapes.questions import make as make_question
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import TICK_S, Difficulty, Scene, generate
from sww_ros.shapes.tokens import SILENCE, SYSTEM
from sww_ros.streaming.positions import GroupScheme, VideoClock, make_scheme
from sww_ros.streaming.prompt import ASSISTANT_HEAD, prefix_parts, question_parts
from sww_ros.streaming.visibility import PREFIX_STEP, VISUAL_LANE, Rows

GRID = FRAME_SIZE // 28
STEP_TOKENS = GRID * GRID
IGNORE = -100
AUXILIARY = dict(color=len(COLORS) + 1, shape=len(SHAPES) + 1, motion=len(DIRECTIONS) + 1,
                 event=len(KINDS) + 1)


@dataclass
class Batch:
    """
    `patches` (B*S*36, 1176) float32; `ids`, `labels` (B, L); `positions` (3, B, L);
    `mask` (B, 1, L, L) bool; `cells` (B, S, 9, 4) truths for AUXILIARY; `visual` the column
    range of visual rows, `questions` the first column of the question lanes.
    """  # noqa: D205, D400

    patches: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    cells: torch.Tensor
    visual: tuple[int, int]
    questions: int


@dataclass(frozen=True)
class Recipe:
    """What one batch is made of."""

    clips: int
    steps: int
    max_objects: int
    questions: int = 4
    prompt: str = NARRATE
    late_start: int = 0
    corrupt: float = 0.0


def scheme() -> GroupScheme:
    """The position scheme which the built-in checkpoint is trained in."""
    return make_scheme('gdpe', VideoClock(tokens_per_second=3.0, seconds_per_step=1.0))


def frames_to_patches(frames: np.ndarray) -> np.ndarray:
    """Cut (2*S, H, W, 3) uint8 frames into (S*h*w*4, 1176) float32, in the tower's own order."""
    steps, g = len(frames) // 2, frames.shape[1] // 28
    x = frames.reshape(steps, 2, g, 2, 14, g, 2, 14, 3).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    pixels = x.reshape(-1, 3 * 2 * 14 * 14).astype(np.float32)
    return (pixels / 255 - MEAN) / STD


def narration_ids(scene: Scene, steps: int, phase_s: float, prompt: str, silence: int,
                  encode) -> list[int]:
    """The true narration at wait-K: K tokens a step, each sentence begun as soon as it can be."""
    queue: list[int] = []
    ids = []
    for facts in facts_by_step(scene, steps, phase_s, prompt):
        for fact in facts:
            queue += encode(' ' + fact.claim.sentence)
        spoken, queue = queue[:WAIT_K], queue[WAIT_K:]
        ids += spoken + [silence] * (WAIT_K - len(spoken))
    return ids


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
            color = track.color[min(int(at / TICK_S + 1e-9), len(track.color) - 1)]
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

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        self._encode = _memoized(tokenizer)
        self._silence = tokenizer.convert_tokens_to_ids(SILENCE)
        self._end = tokenizer.convert_tokens_to_ids('<|im_end|>')
        self._video = tokenizer.convert_tokens_to_ids('<|video_pad|>')
        self._head = self._encode(ASSISTANT_HEAD)
        self._words = np.array([self._encode(' ' + word)[0] for word in (*COLORS, *SHAPES)])

    def make(self, recipe: Recipe, rng: np.random.Generator) -> Batch:
        prefix = self._encode(''.join(prefix_parts(SYSTEM, recipe.prompt)))
        clips = [self._clip(recipe, rng) for _ in range(recipe.clips)]
        width = max(len(ids) for clip in clips for ids, _, _ in clip['lanes'])
        first_text = len(prefix) + recipe.steps * STEP_TOKENS
        narration = len(self._head) + recipe.steps * WAIT_K
        questions = first_text + narration
        length = questions + recipe.questions * width
        ids = np.zeros((recipe.clips, length), np.int64)
        labels = np.full((recipe.clips, length), IGNORE, np.int64)
        sees = np.zeros((recipe.clips, length), np.int64)
        ids[:, :len(prefix)] = prefix
        ids[:, len(prefix):first_text] = self._video
        predicts = np.arange(narration) - (len(self._head) - 1)
        sees[:, first_text:questions] = np.minimum(
            np.maximum(predicts, 0) // WAIT_K, recipe.steps - 1) + 1
        for row, clip in enumerate(clips):
            ids[row, first_text:questions] = self._head + clip['narration']
            labels[row, first_text + len(self._head) - 1:questions - 1] = clip['narration']
            for lane, (tokens, asked, seen) in enumerate(clip['lanes']):
                start = questions + lane * width
                ids[row, start:start + len(tokens)] = tokens
                labels[row, start + asked - 1:start + len(tokens) - 1] = tokens[asked:]
                sees[row, start:start + width] = seen
        if recipe.corrupt:
            self._corrupt(ids[:, first_text:questions], recipe.corrupt, rng)
        positions, mask = self._layout(recipe, len(prefix), narration, width, sees)
        return Batch(
            patches=torch.from_numpy(np.concatenate([clip['patches'] for clip in clips])),
            ids=torch.from_numpy(ids), labels=torch.from_numpy(labels),
            positions=torch.from_numpy(positions)[:, None].expand(3, recipe.clips, -1),
            mask=torch.from_numpy(mask)[:, None],
            cells=torch.from_numpy(np.stack([clip['cells'] for clip in clips])),
            visual=(len(prefix), first_text), questions=questions)

    def _corrupt(self, narration: np.ndarray, share: float, rng: np.random.Generator) -> None:
        """Swap a share of the spoken colors and shapes, as a narrator's own slips would be."""
        slips = np.isin(narration, self._words) & (rng.random(narration.shape) < share)
        narration[slips] = rng.choice(self._words, int(slips.sum()))

    def _clip(self, recipe: Recipe, rng: np.random.Generator) -> dict:
        difficulty = Difficulty(max_objects=recipe.max_objects, noise=rng.uniform(0.1, 1.2),
                                texture=rng.uniform(0.3, 1.3))
        scene = generate(int(rng.integers(1 << 40)) + 1_000_000, recipe.steps + 1.0, difficulty)
        phase = float(rng.random() * TICK_S)
        renderer = Renderer(scene, FRAME_SIZE, FRAME_SIZE)
        frames = np.stack([renderer.frame(phase + i * TICK_S) for i in range(2 * recipe.steps)])
        lanes = []
        for _ in range(recipe.questions):
            seen = int(rng.integers(recipe.steps)) + 1
            question = make_question(scene, newest_frame_s(seen - 1, phase), rng)
            text = question.text
            if rng.random() < 0.2:
                text = text.replace('colour', 'color')
            if rng.random() < 0.2:
                text = text.lower()
            asked = self._encode(''.join(question_parts(text)))
            lanes.append((asked + self._encode(question.answer) + [self._end], len(asked), seen))
        return dict(
            patches=frames_to_patches(frames), lanes=lanes,
            narration=narration_ids(scene, recipe.steps, phase, recipe.prompt, self._silence,
                                    self._encode),
            cells=cell_truths(scene, recipe.steps, phase))

    def _layout(self, recipe: Recipe, prefix: int, narration: int, width: int,
                sees: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        late, head = recipe.late_start, len(self._head)
        rule = scheme()
        positions = [rule.prefix(prefix)]
        positions += [rule.visual(prefix, late + step, GRID, GRID) for step in range(recipe.steps)]
        positions += [rule.text(0, head), rule.text(head + late * WAIT_K, narration - head)]
        positions += [rule.text(0, width)] * recipe.questions
        visual = prefix + recipe.steps * STEP_TOKENS
        lane = np.concatenate([np.full(visual, VISUAL_LANE), np.zeros(narration, int),
                               np.repeat(np.arange(recipe.questions) + 1, width)])
        step = np.concatenate([np.full(prefix, PREFIX_STEP),
                               np.repeat(np.arange(recipe.steps), STEP_TOKENS),
                               np.zeros(len(lane) - visual, int)])
        return np.concatenate(positions, axis=1), Rows(lane, step, sees).mask()


def _memoized(tokenizer: Qwen2Tokenizer):
    known: dict[str, list[int]] = {}

    def encode(text: str) -> list[int]:
        if text not in known:
            known[text] = tokenizer(text)['input_ids']
        return known[text]
    return encode
