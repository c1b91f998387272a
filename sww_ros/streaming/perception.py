"""Perception: frames to pixels to the vision tower to the rows of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from sww_ros.frames import fitted_size
from sww_ros.streaming.family import Seen, VisionTower
from sww_ros.streaming.graphs import Runs, Tensors, graphs_for


@dataclass(frozen=True)
class PixelSettings:
    """How a checkpoint wants its frames; pixels are counts, mean and std per channel of 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    min_pixels: int
    max_pixels: int
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2

    @property
    def unit(self) -> int:
        """Pixels on a side of one merged visual token."""
        return self.patch_size * self.merge_size


def fit_size(height: int, width: int, settings: PixelSettings) -> tuple[int, int]:
    """
    Return the (height, width) a frame is scaled to, by `fitted_size`.

    :raises ValueError: for a frame that is too narrow
    """
    return fitted_size(height, width, settings.unit, settings.min_pixels, settings.max_pixels)


def shrunk(frame: np.ndarray, settings: PixelSettings) -> np.ndarray:
    """
    Return a frame scaled as it would be perceived, which saves memory and changes nothing.

    One that would be enlarged, or whose scaled size would be fitted to yet another, is returned
    as it is; so is one that cannot be perceived.
    """
    try:
        size = fit_size(frame.shape[0], frame.shape[1], settings)
    except ValueError:
        return frame
    if size[0] * size[1] >= frame.shape[0] * frame.shape[1] or fit_size(*size, settings) != size:
        return frame
    return np.ascontiguousarray(_scaled(frame, *size).permute(1, 2, 0).numpy())


def _scaled(frame: np.ndarray, height: int, width: int) -> torch.Tensor:
    """Return (3, height, width) uint8."""
    image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
    if frame.shape[:2] == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode='bicubic', antialias=True)[0]


def check_frame(frame: np.ndarray) -> None:
    """
    Check that a frame is (H, W, 3) uint8 and not empty.

    :raises ValueError: saying what it is instead
    """
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
        kind = getattr(frame, 'dtype', type(frame).__name__)
        raise ValueError(f'a frame must be a uint8 array, not {kind}')
    if frame.ndim != 3 or frame.shape[2] != 3 or min(frame.shape[:2]) < 2:
        raise ValueError(f'a frame must be (height, width, 3) with at least 2x2 pixels, '
                         f'not {frame.shape}')


def without_still(seen: Seen, before: torch.Tensor | None, still: float,
                  ) -> tuple[Seen, torch.Tensor]:
    """
    Leave out of a step the tokens that have barely changed; one is left at least.

    They are held against what the model was last given at their place, so that what changes
    slowly is not missed for ever. (TimeChat-Online, arXiv 2504.17343, takes the step before.)

    :param before: (tokens, hidden), what the model was last given; None: nothing
    :param still: the cosine from which on a token is left out
    :return: the step, and what the model is then given last, (tokens, hidden)
    """
    if before is None:
        return seen, seen.rows
    alike = F.cosine_similarity(seen.rows.float(), before.float(), dim=-1)
    changed = alike < still
    changed[alike.argmin()] = True
    return (replace(seen, places=changed.nonzero()[:, 0]),
            torch.where(changed[:, None], seen.rows, before))


CHANGED = 0.9
"""A visual token whose cosine to that of the step before is below this has changed."""


def share_changed(seen: Seen, before: Seen | None) -> float:
    """Return the share of tokens that are unlike those of the step before; of a first one 1.0."""
    if before is None:
        return 1.0
    alike = F.cosine_similarity(seen.rows.float(), before.rows.float(), dim=-1)
    return float((alike < CHANGED).float().mean())


class Perception:
    """The vision side of a checkpoint."""

    def __init__(self, tower: VisionTower, settings: PixelSettings) -> None:
        self._tower, self.settings = tower, settings
        self.dtype, self.device, self.parameters = tower.dtype, tower.device, tower.parameters
        self.deep_layers = tower.deep_layers
        self.graphs: Runs | None = graphs_for(tower.device)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of merged tokens for frames scaled to this size."""
        return height // self.settings.unit, width // self.settings.unit

    @torch.inference_mode()
    def patches(self, frames: Sequence[np.ndarray], height: int, width: int) -> torch.Tensor:
        """
        Scale, normalize and cut the frames of one step, (4 * tokens, channels * pixels).

        Frames are (H, W, 3) uint8 RGB; the last one is repeated where one is missing.
        """
        s = self.settings
        frames = list(frames) + [frames[-1]] * (s.temporal_patch_size - len(frames))
        pixels = torch.stack([_scaled(frame, height, width) for frame in frames])
        mean, std = (torch.tensor(v)[None, :, None, None] for v in (s.mean, s.std))
        pixels = (pixels.float() / 255 - mean) / std
        rows, columns = height // s.patch_size, width // s.patch_size
        m, p = s.merge_size, s.patch_size
        pixels = pixels.view(len(frames), 3, rows // m, m, p, columns // m, m, p)
        # The tower's own order: merged tokens by row, their four patches, color, time, pixels.
        pixels = pixels.permute(2, 5, 3, 6, 1, 0, 4, 7)
        return pixels.reshape(rows * columns, -1).to(self.device, self.dtype)

    def embed(self, patches: torch.Tensor, height: int, width: int) -> Seen:
        """Run the vision tower on one step's patches, or on those of several in a row."""
        grid = self.grid(height, width)
        if not self.graphs:
            return self._tower(patches, *grid)

        def work(patches: torch.Tensor) -> Tensors:
            seen = self._tower(patches, *grid)
            return [seen.rows] if seen.deep is None else [seen.rows, seen.deep]
        rows, *deep = self.graphs.run(grid, work, [patches])
        return Seen(rows, deep=deep[0] if deep else None)

    def embed_each(self, steps: Sequence[torch.Tensor], height: int, width: int) -> list[Seen]:
        """Run the vision tower once on the patches of steps of one size; return each as seen."""
        seen = self.embed(steps[0] if len(steps) == 1 else torch.cat([*steps]), height, width)
        if len(steps) == 1:
            return [seen]
        # Copied: what is kept of one step would keep all of them.
        parts = seen.rows.view(len(steps), -1, seen.rows.shape[-1])
        deep = (None,) * len(steps) if seen.deep is None else seen.deep.chunk(len(steps), 1)
        return [Seen(rows.clone(), deep=None if added is None else added.clone())
                for rows, added in zip(parts, deep)]
