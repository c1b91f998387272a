"""The node video_source: a video file, a folder of pictures or a camera device as a topic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import cv2
import numpy as np

from sww_ros.frames import NANOSECONDS, SourceFrame
from sww_ros.node import run
from sww_ros.settings import Setting
from sww_ros.sources.readers import open_reader
from sww_ros.sources.source_node import SOURCE_SETTINGS, SourceNode

NAME = 'video_source'
SETTINGS = (
    Setting('source', '', 'A video file, a folder of pictures, or a camera: /dev/videoN or N.'),
    Setting('rate', 0.0, "Frames per second [Hz]; 0: a video's or camera's own, 2 for pictures. "
            'A video keeps its speed: a lower rate leaves frames out.', low=0.0, high=240.0),
    Setting('loop', False, 'Whether to begin again at the end; if not, the node ends there.'),
    Setting('width', 0, "Width of the images [pixels]; 0: the source's own.", high=8192),
    Setting('height', 0, "Height of the images [pixels]; 0: the source's own.", high=8192),
    *SOURCE_SETTINGS,
)


class VideoSource(SourceNode):
    """Publishes what a reader reads; a reader that is too slow plays slower, in steps."""

    falls_behind_ns = NANOSECONDS

    def __init__(self) -> None:
        """
        Open the source and begin.

        :raises ValueError: for a bad parameter, or a source that cannot be read
        """
        super().__init__(NAME, SETTINGS)
        values = self.values
        if bool(values['width']) != bool(values['height']):
            raise ValueError('width and height must be given together, or both be 0')
        self._reader = open_reader(values['source'], values['rate'], values['loop'])
        self.patience_ns = round(NANOSECONDS / (values['rate'] or self._reader.frame_rate))
        self.get_logger().info(self._reader.description)
        self.start()

    def frames(self) -> Iterator[SourceFrame]:
        """Yield the frames of the source, resized if asked for."""
        size = (self.values['width'], self.values['height'])
        for frame in self._reader.frames():
            yield replace(frame, load=partial(_resized, frame, size)) if any(size) else frame


def _resized(frame: SourceFrame, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(frame.load(), size, interpolation=cv2.INTER_AREA)


def main(args: list[str] | None = None) -> int:
    """Run the node; return the exit code."""
    return run(NAME, VideoSource, args)


if __name__ == '__main__':
    raise SystemExit(main())
