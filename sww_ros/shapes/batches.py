"""Training batches of the shapes world: frames, text lanes, positions, masks, auxiliary truths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import Qwen2Tokenizer

from sww_ros.models.qwen2_5_vl import TURNS
from sww_ros.shapes.checkpoint import FRAME_SIZE, MAX_STEPS, MEAN, SILENCE, STD, SYSTEM, WAIT_K
from sww_ros.shapes.grammar import COLORS, DIRECTIONS, KINDS, SHAPES, make_question
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import TICK_S, Difficulty, Scene, generate
from sww_ros.shapes.truth import NARRATE, facts_by_step, newest_frame_s
from sww_ros.streaming.layout import IGNORE, ClipShape, Layout, lay_out
from sww_ros.streaming.positions import DEFAULT_SCHEME, VideoClock, make_scheme
from sww_ros.streaming.schedule import make_schedule
from sww_ros.streaming.visibility import Rows

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
    position_encoding: str = DEFAULT_SCHEME
    offline: bool = False
    tokens_per_second: int = WAIT_K


def frames_to_patches(frames: np.ndarray) -> np.ndarray:
    """Cut (2*S, H, W, 3) uint8 frames into (S*h*w*4, 1176) float32, in the tower's own order."""
    steps, g = len(frames) // 2, frames.shape[1] // 28
    x = frames.reshape(steps, 2, g, 2, 14, g, 2, 14, 3).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    pixels = x.reshape(-1, 3 * 2 * 14 * 14).astype(np.float32)
    return (pixels / 255 - MEAN) / STD


def narration_ids(scene: Scene, steps: int, phase_s: float, prompt: str, silence: int,
                  encode, counts: Sequence[int] | None = None) -> list[int]:
    """
    The true narration: each sentence begun as soon as it can be, silence where there is none.

    :param counts: tokens of each step; K if not given
    """
    queue: list[int] = []
    ids = []
    for step, facts in enumerate(facts_by_step(scene, steps, phase_s, prompt)):
        count = counts[step] if counts else WAIT_K
        for fact in facts:
            queue += encode(' ' + fact.claim.sentence)
        spoken, queue = queue[:count], queue[count:]
        ids += spoken + [silence] * (count - len(spoken))
    return ids


def description_ids(scene: Scene, steps: int, phase_s: float, prompt: str, encode) -> list[int]:
    """The true description of a clip that has been seen whole: all its sentences, no silence."""
    return [token for facts in facts_by_step(scene, steps, phase_s, prompt)
            for fact in facts for token in encode(' ' + fact.claim.sentence)]


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

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        self._encode = _memoized(tokenizer)
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
        rows = Rows(layout.rows.lane, layout.rows.step, sees)
        return ShapesBatch(
            patches=torch.from_numpy(np.concatenate([clip['patches'] for clip in clips])),
            ids=torch.from_numpy(ids), labels=torch.from_numpy(labels),
            positions=torch.from_numpy(np.stack([one.positions for one in layouts], axis=1)),
            mask=torch.from_numpy(rows.mask())[:, None],
            cells=torch.from_numpy(np.stack([clip['cells'] for clip in clips])),
            visual=torch.from_numpy(layout.visual), questions=len(layout.came))

    def _layouts(self, recipe: BatchRecipe, prefix: int, clips: Sequence[dict]) -> list[Layout]:
        """Lay out each clip, all as long as the longest."""
        scheme = make_scheme(recipe.position_encoding, VideoClock(recipe.tokens_per_second, 1.0))
        schedule = make_schedule('offline' if recipe.offline else 'wait_k', WAIT_K)
        longest = max((len(ids) for clip in clips for ids, _, _ in clip['lanes']), default=0)
        shape = ClipShape(
            prefix, [(GRID, GRID)] * recipe.steps, len(self._head),
            max(len(clip['narration']) for clip in clips), tail=recipe.offline,
            question=longest - (len(self._tail) if recipe.offline else 0),
            late_start=0 if recipe.offline else recipe.late_start, max_steps=MAX_STEPS)
        return [lay_out(scheme, schedule, replace(
            shape, questions=[seen for _, _, seen in clip['lanes']])) for clip in clips]

    def _corrupt(self, narration: np.ndarray, share: float, rng: np.random.Generator) -> None:
        """Swap a share of the spoken colors and shapes, as a narrator's own slips would be."""
        slips = np.isin(narration, self._words) & (rng.random(narration.shape) < share)
        narration[slips] = rng.choice(self._words, int(slips.sum()))

    def _clip(self, recipe: BatchRecipe, rng: np.random.Generator) -> dict:
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
            asked = [*(self._tail if recipe.offline else []),
                     *self._encode(''.join(TURNS.question(text)))]
            lanes.append((asked + self._encode(question.answer) + [self._end], len(asked), seen))
        if recipe.offline:
            narration = description_ids(scene, recipe.steps, phase, recipe.prompt, self._encode)
            narration.append(self._end)
        else:
            narration = narration_ids(scene, recipe.steps, phase, recipe.prompt, self._silence,
                                      self._encode)
        return dict(
            patches=frames_to_patches(frames), lanes=lanes, narration=narration,
            cells=cell_truths(scene, recipe.steps, phase))


def _memoized(tokenizer: Qwen2Tokenizer):
    known: dict[str, list[int]] = {}

    def encode(text: str) -> list[int]:
        if text not in known:
            known[text] = tokenizer(text)['input_ids']
        return known[text]
    return encode
