"""One sample as the model trains on it: the engine's own pixels, and rows of text and video."""

from __future__ import annotations

from dataclasses import dataclass
import functools

import numpy as np
import torch

from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.perception import Perception, fit_size, shrunk
from sww_ros.streaming.positions import Scheme, VideoClock, make_scheme
from sww_ros.streaming.prompt import ASSISTANT_HEAD, TURN_END, VIDEO_TAIL, prefix_parts
from sww_ros.streaming.schedule import make_schedule
from sww_ros.training.data.errors import VideoError
from sww_ros.training.data.frames import READ_FACTOR, read_frames
from sww_ros.training.data.samples import Sample
from sww_ros.training.layout import ClipRows, Words, lay_clip
from sww_ros.training.recipe import Recipe
from sww_ros.training.settings import Settings


@dataclass(frozen=True)
class Clip:
    """`patches` (steps * 4 * tokens, pixels); `grid` (steps, rows, columns) of merged tokens."""

    patches: torch.Tensor
    grid: tuple[int, int, int]
    rows: ClipRows


class ClipMaker:
    """Makes clips for one checkpoint and recipe; may be used by several threads."""

    def __init__(self, about: Checkpoint, tower: torch.nn.Module, recipe: Recipe,
                 settings: Settings) -> None:
        """
        Take what the clips depend on.

        :param about: the checkpoint, for its tokenizer
        :param tower: the vision tower on a CPU, of which only the type and shapes are used
        """
        self._about, self._recipe, self.settings = about, recipe, settings
        self._perception = Perception(tower, settings.pixels)
        self.scheme: Scheme = make_scheme(
            recipe.position_encoding,
            VideoClock(settings.defaults.tokens_per_second, settings.defaults.seconds_per_step),
            recipe.position_gap)
        self._tail, self._head = about.encode(VIDEO_TAIL), about.encode(ASSISTANT_HEAD)
        self._end = about.encode(TURN_END)

    def read(self, sample: Sample) -> np.ndarray:
        """
        Return a sample's frames, (n, H, W, 3) uint8 RGB.

        :raises VideoError: for what cannot be read, perceived, or is too long
        """
        per_step = self.settings.pixels.temporal_patch_size
        most = self.settings.defaults.max_steps
        frames = read_frames(sample, self._recipe.fps, frames_per_step=per_step,
                             max_pixels=READ_FACTOR * self.settings.pixels.max_pixels,
                             shrink=functools.partial(shrunk, settings=self.settings.pixels),
                             max_frames=(most + 1) * per_step)
        steps = len(frames) // per_step
        if steps > most:
            raise VideoError(f'{sample.video} has more than {most} steps of {per_step} frames, '
                             'the most that the engine keeps: raise --max-steps, or cut it')
        try:
            size = fit_size(*frames.shape[1:3], self.settings.pixels)
        except ValueError as error:
            raise VideoError(f'{sample.video}: {error}') from None
        rows = steps * int(np.prod(self._perception.grid(*size))) + sum(
            len(part) for part in vars(self.words(sample)).values())
        most = self._recipe.max_rows
        if self._recipe.pack and rows > most:
            raise VideoError(f'{sample.video} makes {rows} rows, more than {most}: raise '
                             '--max-rows, or lower --max-pixels')
        return frames

    def words(self, sample: Sample) -> Words:
        """Return the tokens of a sample's text; what users wrote is only text."""
        encode = self._about.encode
        return Words(encode(*prefix_parts(self.settings.defaults.system, sample.prompt)),
                     self._tail, self._head, encode('', sample.answer) + self._end)

    def make(self, sample: Sample, frames: np.ndarray, schedule_seed: int = 0) -> Clip:
        """
        Return the clip of a sample's frames, (n, H, W, 3) uint8 RGB.

        :param schedule_seed: what `random_wait_k` draws from
        """
        recipe, per_step = self._recipe, self.settings.pixels.temporal_patch_size
        size = fit_size(*frames.shape[1:3], self.settings.pixels)
        cut = functools.partial(self._perception.patches, height=size[0], width=size[1])
        patches = [cut(frames[at:at + per_step]) for at in range(0, len(frames), per_step)]
        grid = self._perception.grid(*size)
        schedule = make_schedule(recipe.schedule, recipe.wait_k, schedule_seed)
        rows = lay_clip(self.scheme, schedule, self.words(sample), len(patches), grid,
                        self.settings.defaults.max_steps)
        return Clip(torch.cat(patches), (len(patches), *grid), rows)
