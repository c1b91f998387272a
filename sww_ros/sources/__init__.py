"""
Where frames come from: readers of video files, folders of pictures and cameras, without ROS.

The nodes that publish them are beside: shapes_camera and video_source.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
import re
import time

import cv2
import numpy as np

from sww_ros.frames import NANOSECONDS, SourceFrame

PICTURES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
PICTURE_RATE = 2.0
"""Pictures per second, where nothing else is asked for."""
_SLACK_NS = 1_000_000
"""Time stamps of videos are rounded to milliseconds."""


class VideoFile:
    """
    A video file, at its own speed; a rate below its own leaves frames out.

    `duration_s` is its length [s], 0 if the file does not say.
    """

    def __init__(self, path: Path, rate: float = 0.0, loop: bool = False) -> None:
        """
        Open the file.

        :raises ValueError: for a file that is no video
        """
        self.path, self._rate, self._loop = path, rate, loop
        try:
            import av
        except ImportError as error:
            raise ValueError(f'reading video files needs PyAV (pip install av): {error}') from None
        self._av = av
        with self._open() as container:
            stream = container.streams.video[0]
            self.frame_rate = float(stream.average_rate or stream.guessed_rate or 25)
            self.duration_s = (container.duration or 0) / 1e6
            size = f'{stream.width}x{stream.height}'
        self.description = f'{path.name}: {size}, {self.frame_rate:.4g} Hz'

    def frames(self) -> Iterator[SourceFrame]:
        """
        Yield the frames, again and again if the video loops.

        :raises ValueError: for a file that breaks off in the middle
        """
        base_ns = 0
        while True:
            end_ns = base_ns
            for frame in self._once():
                end_ns = base_ns + frame.offset_ns + round(NANOSECONDS / self.frame_rate)
                yield SourceFrame(base_ns + frame.offset_ns, frame.load)
            if end_ns == base_ns:
                raise ValueError(f'the video {self.path} has no frames')
            if not self._loop:
                return
            base_ns = end_ns

    def _open(self):
        try:
            container = self._av.open(str(self.path))
        except (self._av.FFmpegError, OSError) as error:
            reason = getattr(error, 'strerror', None) or error
            raise ValueError(f'cannot read the video {self.path}: {reason}') from None
        if not container.streams.video:
            container.close()
            raise ValueError(f'cannot read the video {self.path}: it has no picture')
        return container

    def _once(self) -> Iterator[SourceFrame]:
        """Yield the frames from the first, at 0 ns, to the last."""
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = 'AUTO'
            first_ns, due_ns, index = None, 0, 0
            try:
                for picture in container.decode(stream):
                    at_ns = (round(index * NANOSECONDS / self.frame_rate) if picture.pts is None
                             else round(picture.pts * picture.time_base * NANOSECONDS))
                    index += 1
                    first_ns = at_ns if first_ns is None else first_ns
                    at_ns -= first_ns
                    if self._rate and at_ns < due_ns - _SLACK_NS:
                        continue
                    if self._rate:
                        due_ns = max(due_ns + round(NANOSECONDS / self._rate), at_ns)
                    yield SourceFrame(at_ns, partial(_pixels, picture))
            except self._av.FFmpegError as error:
                raise ValueError(f'the video {self.path} breaks off after {index} frames: '
                                 f'{error.strerror}') from None


def _pixels(picture) -> np.ndarray:
    """Return a decoded picture upright: telephones film sideways and say so."""
    pixels = picture.to_ndarray(format='rgb24')
    return np.ascontiguousarray(np.rot90(pixels, round(getattr(picture, 'rotation', 0) / 90)))


class PictureFolder:
    """The pictures of a folder in the order of their names, numbers by their value."""

    def __init__(self, path: Path, rate: float = 0.0, loop: bool = False) -> None:
        """
        List the folder.

        :raises ValueError: for a folder without pictures
        """
        self._loop = loop
        self.frame_rate = rate or PICTURE_RATE
        self._pictures = sorted((p for p in path.iterdir() if p.suffix.lower() in PICTURES),
                                key=_natural)
        if not self._pictures:
            raise ValueError(f'no pictures in {path}; looked for {", ".join(PICTURES)}')
        self.duration_s = len(self._pictures) / self.frame_rate
        self.description = f'{len(self._pictures)} pictures, {self.frame_rate:.4g} Hz'

    def frames(self) -> Iterator[SourceFrame]:
        """Yield the pictures, again and again if they loop; `load` may raise a ValueError."""
        index = 0
        while self._loop or index < len(self._pictures):
            yield SourceFrame(round(index * NANOSECONDS / self.frame_rate),
                        partial(_read_picture, self._pictures[index % len(self._pictures)]))
            index += 1


def _natural(path: Path) -> list:
    return [int(part) if part.isdigit() else part.lower()
            for part in re.split(r'(\d+)', path.name)]


def _read_picture(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError(f'cannot read the picture {path}')
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


class CameraDevice:
    """A camera that OpenCV can open; each frame is stamped when it arrives."""

    def __init__(self, device: int | str, rate: float = 0.0) -> None:
        """
        Open the device.

        :raises ValueError: for a device that cannot be opened
        """
        self._name, self._rate = device, rate
        self._capture = cv2.VideoCapture(device)
        if not self._capture.isOpened():
            raise ValueError(f'cannot open the camera {device}: is it there, is it in use, may '
                             'this user read it?')
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        if rate:
            self._capture.set(cv2.CAP_PROP_FPS, rate)
        self.frame_rate = self._capture.get(cv2.CAP_PROP_FPS) or 30.0
        self.description = f'camera {device}, {self.frame_rate:.4g} Hz'

    def frames(self) -> Iterator[SourceFrame]:
        """
        Yield frames as they come.

        :raises ValueError: when the camera gives none any more
        """
        due_s = time.monotonic()
        try:
            while True:
                there, pixels = self._capture.read()
                if not there:
                    raise ValueError(f'the camera {self._name} gives no more frames')
                now_s = time.monotonic()
                if self._rate and now_s < due_s - 0.25 / self._rate:
                    continue
                due_s = max(due_s + 1 / self._rate, now_s) if self._rate else now_s
                yield SourceFrame(None, partial(cv2.cvtColor, pixels, cv2.COLOR_BGR2RGB))
        finally:
            self._capture.release()


Reader = VideoFile | PictureFolder | CameraDevice


def open_video(path: Path, rate: float = 0.0, loop: bool = False) -> VideoFile | PictureFolder:
    """
    Open a video file or a folder of pictures.

    :param rate: frames per second; 0: its own
    :raises ValueError: for what is not there or cannot be read
    """
    if path.is_dir():
        return PictureFolder(path, rate, loop)
    if path.exists() and not path.is_file():  # A pipe would be waited for.
        raise ValueError(f'the video {path} is neither a file nor a folder of pictures')
    return VideoFile(path, rate, loop)


def open_reader(source: str, rate: float = 0.0, loop: bool = False) -> Reader:
    """
    Open a video file, a folder of pictures, or a camera: `/dev/videoN` or its number N.

    :param rate: frames per second; 0: the source's own
    :raises ValueError: for a source that is not there or cannot be read
    """
    if not source:
        raise ValueError('no source: name a video file, a folder of pictures, or a camera '
                         '(/dev/video0)')
    path = Path(source).expanduser()
    if source.isdigit():
        return CameraDevice(int(source), rate)
    if path.is_char_device():
        return CameraDevice(str(path), rate)
    if not path.exists():
        raise ValueError(f'there is no file, folder or camera {source}')
    return open_video(path, rate, loop)
