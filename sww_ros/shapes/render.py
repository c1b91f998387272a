"""
Pictures of the shapes world: a scene at any time and size, as frames, and what could be none of it.

Textured background, light that varies, sensor noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
import functools

import cv2
import numpy as np

from sww_ros.shapes.grammar import COLORS, SHAPES
from sww_ros.shapes.scene import TICK_S, Scene, newest_frame_s

_RGB = {'red': (215, 40, 40), 'green': (40, 180, 60), 'blue': (50, 70, 220),
        'yellow': (225, 210, 40), 'purple': (160, 50, 190)}
_SUBPIXEL_BITS = 4
FRAME_SIZE = 84
"""Width and height of a frame in pixels: 3 x 3 merged visual tokens a step."""


@functools.cache
def _noise_bank() -> np.ndarray:
    return np.random.default_rng(7).integers(-8, 9, 4_000_037).astype(np.int16)


class Renderer:
    """Renders one scene; the unit square of the scene is centered in the picture."""

    def __init__(self, scene: Scene, width: int = FRAME_SIZE, height: int = FRAME_SIZE) -> None:
        """
        Prepare the background and the look of this scene.

        :raises ValueError: for a picture smaller than 16 pixels on a side
        """
        if min(width, height) < 16:
            raise ValueError(f'a picture needs at least 16x16 pixels, not {width}x{height}')
        self.scene, self.width, self.height = scene, width, height
        self._scale = min(width, height)
        self._left = (width - self._scale) / 2
        self._top = (height - self._scale) / 2
        look = np.random.default_rng([scene.seed, 1])
        level = look.integers(60, 190) + look.integers(-12, 13, 3)
        texture = look.integers(-14, 15, (12, 12)).astype(np.float32) * scene.difficulty.texture
        texture = cv2.resize(texture, (width, height), interpolation=cv2.INTER_LINEAR)
        self._background = np.clip(level + texture[..., None], 0, 255).astype(np.uint8)
        self._tints = look.integers(-14, 15, (64, 3))
        self._light = (0.12 * scene.difficulty.light * look.random(),
                       look.uniform(5, 15), look.uniform(0, 2 * np.pi))
        self._noise_seed = int(look.integers(1 << 30))

    def frame(self, time_s: float) -> np.ndarray:
        """
        Return the picture at `time_s` seconds, (height, width, 3) uint8 RGB.

        Past the end of the script the scene stands still.
        """
        image = self._background.copy()
        for track in self.scene.tracks:
            place = self._place(track.xy, time_s)
            if place is not None:
                color = track.color[track.tick(time_s)]
                rgb = np.clip(np.array(_RGB[COLORS[color]])
                              + self._tints[track.object_id % 64], 0, 255)
                self._draw(image, SHAPES[track.shape], *place, track.radius,
                           tuple(int(c) for c in rgb))
        depth, period, phase = self._light
        gain = 1 + depth * np.sin(2 * np.pi * time_s / period + phase)
        image = cv2.convertScaleAbs(image, alpha=gain)
        return self._add_noise(image, time_s)

    def _place(self, xy: np.ndarray, time_s: float) -> tuple[float, float] | None:
        at = min(max(time_s / TICK_S, 0.0), len(xy) - 1.0)
        tick = int(at + 1e-9)
        here = xy[tick]
        if np.isnan(here[0]):
            return None
        ahead = xy[min(tick + 1, len(xy) - 1)]
        if np.isnan(ahead[0]):
            # The last tick of a life: carry on as before, out of the picture.
            ahead = 2 * here - xy[max(tick - 1, 0)]
            if np.isnan(ahead[0]):
                ahead = here
        x, y = here + (at - tick) * (ahead - here)
        return float(x), float(y)

    def _draw(self, image: np.ndarray, shape: str, x: float, y: float, radius: float,
              rgb: tuple[int, int, int]) -> None:
        one = 1 << _SUBPIXEL_BITS
        cx, cy = self._left + x * self._scale - 0.5, self._top + y * self._scale - 0.5
        r = radius * self._scale
        if shape == 'circle':
            cv2.circle(image, (round(cx * one), round(cy * one)), round(r * one), rgb, -1,
                       cv2.LINE_AA, _SUBPIXEL_BITS)
            return
        corners = {'square': [(-.85, -.85), (.85, -.85), (.85, .85), (-.85, .85)],
                   'triangle': [(0, -1), (1, .8), (-1, .8)]}[shape]
        points = np.array([(cx + r * u, cy + r * v) for u, v in corners])
        cv2.fillConvexPoly(image, np.round(points * one).astype(np.int32), rgb,
                           cv2.LINE_AA, _SUBPIXEL_BITS)

    def _add_noise(self, image: np.ndarray, time_s: float) -> np.ndarray:
        strength = self.scene.difficulty.noise
        if strength == 0:
            return image
        bank = _noise_bank()
        if image.size > bank.size // 2:
            bank = np.tile(bank, 2 * image.size // bank.size + 1)
        start = (self._noise_seed + round(time_s * 1000) * 7919) % (bank.size - image.size)
        noise = bank[start:start + image.size].reshape(image.shape)
        if strength != 1:
            noise = np.round(noise * strength).astype(np.int16)
        return cv2.add(image, noise, dtype=cv2.CV_8U)


@dataclass(frozen=True)
class Film:
    """A scene as frames, from any step on; two to a step."""

    scene: Scene
    renderer: Renderer
    phase_s: float
    period_s: float = TICK_S

    @staticmethod
    def of(scene: Scene, rng: np.random.Generator, period_s: float = TICK_S) -> Film:
        """Return one that begins within half a second, with a frame every `period_s` [s]."""
        phase_s = float(rng.random() * TICK_S)
        return Film(scene, Renderer(scene), phase_s, period_s)

    @property
    def steps_in_a_second(self) -> int:
        """How many, at least one."""
        return max(1, round(1 / (2 * self.period_s)))

    def steps(self, first: int, end: int) -> Iterator[tuple[np.ndarray, int]]:
        """Yield the frames from one step to before another, each with its number."""
        for frame in range(2 * first, 2 * end):
            yield self.renderer.frame(self.phase_s + frame * self.period_s), frame

    def seen_s(self, steps: int) -> float:
        """Return until when one has seen the scene who has seen so many steps [s]."""
        return newest_frame_s(steps - 1, self.phase_s, self.period_s)


SIDE = 84
"""Pixels on a side that a picture is reduced to: what the built-in checkpoint sees."""

LEVELS = (40, 215)
MOST_TINT = 40
MOST_OTHER = 0.045
LEAST_GROUND = 0.8
NEAR = 45
"""How far a pixel of the ground may be from its median, in any channel of 0..255."""

VIVID = 80
"""How far the channels of a shape's pixels are apart at least."""


def difference(picture: np.ndarray) -> str:
    """
    Return in words what keeps a picture from being one of the shapes world; empty if nothing does.

    :param picture: (height, width, 3) uint8 RGB
    """
    small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
    ground = np.median(small.reshape(-1, 3), axis=0)
    level, tint = ground.mean(), np.ptp(ground)
    if not LEVELS[0] <= level <= LEVELS[1]:
        return f'its ground is {"dark" if level < LEVELS[0] else "white"}, not of a middle gray'
    if tint > MOST_TINT:
        return 'its ground is coloured, not gray'
    is_ground = np.abs(small - ground).max(axis=-1) < NEAR
    is_shape = ~is_ground & (np.ptp(small, axis=-1) > VIVID)
    other = 1 - (is_ground | is_shape).mean()
    if other > MOST_OTHER:
        return f'{other:.0%} of it is neither plain ground nor a vivid shape'
    if is_ground.mean() < LEAST_GROUND:
        return f'{1 - is_ground.mean():.0%} of it is no plain ground'
    return ''
