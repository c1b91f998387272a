"""The frames of a sample, at the rate of a checkpoint, in whole steps."""

from __future__ import annotations

import numpy as np

from sww_ros.training.data.bag_images import read_bag
from sww_ros.training.data.decoding import read_video
from sww_ros.training.data.picking import Shrink, Times
from sww_ros.training.data.samples import Sample

READ_FACTOR = 16
"""Pictures larger than this many times what is perceived are scaled down by their decoder."""


def read_frames(sample: Sample, frames_per_second: float = 2.0, *, frames_per_step: int = 2,
                max_pixels: int | None = None, shrink: Shrink | None = None,
                max_frames: int | None = None) -> np.ndarray:
    """
    Return the frames of a sample, (n, H, W, 3) uint8 RGB.

    Frame k is the picture on screen `k / frames_per_second` s after the sample's start, for the
    times before its end. The last one is repeated until n is a multiple of `frames_per_step`.

    :param max_pixels: larger pictures are scaled down to about this many as they are read
    :param shrink: what is kept of each picture as it is read
    :param max_frames: frames after these are left out, which bounds the memory
    :raises VideoError: for a video or bag that cannot be read, with its path and the reason
    """
    times = Times(frames_per_second, sample.start_s, sample.end_s, max_frames)
    if sample.topic:
        frames = read_bag(sample.video, sample.topic, times, max_pixels, shrink)
    else:
        frames = read_video(sample.video, times, max_pixels, shrink)
    frames += [frames[-1]] * (-len(frames) % frames_per_step)
    return np.stack(frames)
