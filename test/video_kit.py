"""Videos for tests, whose pictures tell their own number by how gray they are."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip('av')

GRAYS = 20
"""Between one picture of a test video and the next."""
needs_x264 = pytest.mark.skipif('libx264' not in av.codecs_available, reason='PyAV without x264')


def write_video(path: Path, at_ms: Sequence[int], codec: str = 'mpeg4', **options: str) -> Path:
    """Write a video whose picture k is a gray of 20 * k, modulo 240, at these times."""
    with av.open(str(path), 'w', options=dict(movflags='faststart')) as container:
        stream = container.add_stream(codec, rate=1000, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, at in enumerate(at_ms):
            gray = np.full((48, 64, 3), GRAYS * index % 240, np.uint8)
            frame = av.VideoFrame.from_ndarray(gray, format='rgb24')
            frame.pts, frame.time_base = at, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shown(frames: np.ndarray) -> list[int]:
    """Return the indices of the pictures that frames show."""
    return np.rint(frames.mean(axis=(1, 2, 3)) / GRAYS).astype(int).tolist()
