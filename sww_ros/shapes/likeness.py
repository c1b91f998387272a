"""
Whether a picture could be one of the shapes world, by three figures of its pixels.

Measured on 2,250 rendered pictures, half of them through a jpeg of quality 50: the ground's level
is 48 to 207, its tint at most 27, and at most 3.3 % of a picture is neither ground nor shape. The
limits leave room beside that. Of 34 other pictures (photographs, textures, pages, plots) all but
two are outside, which are plain and gray themselves.
"""

from __future__ import annotations

import cv2
import numpy as np

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
