"""Whether videos, folders and cameras are read in order and in time, or refused in words."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from sww_ros.sources import PictureFolder, VideoFile, open_reader

NANOSECONDS = 1_000_000_000


def write_video(path: Path, count: int = 8, rate: int = 20, size: int = 64,
                frames: list[np.ndarray] | None = None) -> Path:
    """Write a video of `frames`; if not given, frame k is a gray of 20 * k, modulo 256."""
    av = pytest.importorskip('av')
    frames = frames or [np.full((size, size, 3), 20 * index % 256, np.uint8)
                        for index in range(count)]
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mpeg4', rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.time_base = Fraction(1, rate)
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_pictures(folder: Path, count: int = 11) -> Path:
    """Write pictures 0.png ... whose grays are 20 * k, and a file that is none."""
    for index in range(count):
        cv2.imwrite(str(folder / f'{index}.png'), np.full((32, 48, 3), 20 * index, np.uint8))
    (folder / 'notes.txt').write_text('no picture')
    return folder


def test_video_frames_come_at_their_own_times(tmp_path: Path):
    reader = VideoFile(write_video(tmp_path / 'a.mp4'))
    frames = [(frame.offset_ns, int(frame.load().mean())) for frame in reader.frames()]
    assert [offset for offset, _ in frames] == [k * NANOSECONDS // 20 for k in range(8)]
    np.testing.assert_allclose([gray for _, gray in frames], np.arange(8) * 20, atol=4)
    assert reader.frame_rate == 20


def test_lower_rate_leaves_frames_out_and_keeps_the_speed(tmp_path: Path):
    reader = VideoFile(write_video(tmp_path / 'a.mp4'), rate=10.0)
    assert [frame.offset_ns for frame in reader.frames()] == [k * 100_000_000 for k in range(4)]


def test_looping_video_goes_on_at_the_same_beat(tmp_path: Path):
    frames = VideoFile(write_video(tmp_path / 'a.mp4'), loop=True).frames()
    offsets = [next(frames).offset_ns for _ in range(20)]
    assert offsets == [k * NANOSECONDS // 20 for k in range(20)]


def test_pictures_come_in_the_order_of_their_numbers(tmp_path: Path):
    reader = open_reader(str(write_pictures(tmp_path)), rate=4.0)
    assert isinstance(reader, PictureFolder)
    frames = list(reader.frames())
    assert [frame.offset_ns for frame in frames] == [k * NANOSECONDS // 4 for k in range(11)]
    assert [int(frame.load()[0, 0, 0]) for frame in frames] == [20 * k for k in range(11)]


def test_broken_picture_is_named(tmp_path: Path):
    (tmp_path / 'bad.png').write_bytes(b'no picture')
    frame = next(open_reader(str(tmp_path)).frames())
    with pytest.raises(ValueError, match=r'cannot read the picture .*bad\.png'):
        frame.load()


@pytest.mark.parametrize('name, content, words', [
    ('', None, 'no source: name a video file'),
    ('nowhere.mp4', None, 'there is no file, folder or camera .*nowhere.mp4'),
    ('text.mp4', b'this is not a video', 'cannot read the video .*text.mp4: Invalid data'),
    ('empty.mp4', b'', 'cannot read the video .*empty.mp4'),
    ('999', None, 'cannot open the camera 999'),
])
def test_bad_sources_are_refused_in_words(tmp_path: Path, name: str, content: bytes | None,
                                          words: str):
    pytest.importorskip('av')
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        open_reader(str(path) if '.' in name else name)


def test_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match='no pictures in .*jpg'):
        open_reader(str(tmp_path))


def test_half_a_video_is_refused(tmp_path: Path):
    whole = write_video(tmp_path / 'a.mp4').read_bytes()
    (tmp_path / 'half.mp4').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=r'half\.mp4'):
        list(open_reader(str(tmp_path / 'half.mp4')).frames())
