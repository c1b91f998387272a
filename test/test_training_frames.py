"""Frames from videos: which are picked, how they are read, and what is no video."""

from __future__ import annotations

from functools import partial
from pathlib import Path
import struct

import numpy as np
import pytest
from video_kit import needs_x264, shown, write_video

from sww_ros.training.frames import Sample, Timed, Times, VideoError, pick, read_frames

av = pytest.importorskip('av')

CLIPS = Path(__file__).resolve().parent / 'data/clips'


def test_pictures_are_picked_by_their_times():
    def timed(*at: float) -> list[Timed]:
        return [Timed(t, 0.5, partial(np.full, (2, 2, 3), i)) for i, t in enumerate(at)]

    def picked(at: list[Timed], times: Times) -> list[int]:
        return [int(p[0, 0, 0]) for p in pick(iter(at), times)[0]]

    assert picked(timed(0, 0.5, 1), Times(2)) == [0, 1, 2]
    assert picked(timed(0, 0.4, 0.9), Times(2)) == [0, 1, 2]
    assert picked(timed(0, 0.6, 3), Times(2)) == [0, 0, 1, 1, 1, 1, 2]
    assert picked(timed(1, 2), Times(2)) == [0, 0, 0, 0, 1], 'before the first, the first'
    assert picked(timed(0, 0.5005, 1), Times(2)) == [0, 1, 2], 'stamps are rounded'
    assert picked(timed(0, 1, 0.5, 1.5), Times(2)) == [0, 0, 1, 3], 'times do not run backwards'
    assert picked(timed(0, 0.5, 1, 1.5), Times(2, 0.5, 1.5)) == [1, 2]
    assert picked(timed(0, 0.5, 1, 1.5), Times(2, most=3)) == [0, 1, 2]
    assert picked([], Times(2)) == []


def test_only_what_is_picked_is_loaded_and_read():
    loaded = []

    def pictures():
        for index in range(100):
            assert index <= 21, 'reads on after the end'
            yield Timed(index / 10, 0.1, lambda i=index: loaded.append(i) or np.zeros((2, 2, 3)))

    frames, end_s = pick(pictures(), Times(2, 1.0, 2.1))
    assert (loaded, len(frames), end_s) == ([10, 15, 20], 3, None)


@pytest.mark.parametrize('arguments, words_of_it', [
    (dict(rate=0), 'frames per second'), (dict(rate=2, most=0), 'at least one'),
    (dict(rate=2, start_s=3, end_s=3), 'not after the start'),
])
def test_impossible_times_are_refused(arguments: dict, words_of_it: str):
    with pytest.raises(ValueError, match=words_of_it):
        Times(**arguments)


def test_variable_frame_rate_is_honoured(tmp_path: Path):
    at_ms = [0, 40, 80, 700, 740, 1990, 2000, 3100, 3140]
    sample = Sample(write_video(tmp_path / 'a.mp4', at_ms), '', '')
    assert shown(read_frames(sample)) == [0, 2, 4, 4, 6, 6, 6, 6]
    assert shown(read_frames(sample, 10.0))[:9] == [0, 2, 2, 2, 2, 2, 2, 3, 4]


def test_start_end_and_padding(tmp_path: Path):
    video = write_video(tmp_path / 'a.mp4', range(0, 6000, 500))
    assert shown(read_frames(Sample(video, '', '', 1.0, 3.0))) == [2, 3, 4, 5]
    assert shown(read_frames(Sample(video, '', '', 1.0, 2.5))) == [2, 3, 4, 4]
    assert shown(read_frames(Sample(video, '', '', 1.0, 2.5), frames_per_step=1)) == [2, 3, 4]
    assert shown(read_frames(Sample(video, '', '', 4.5))) == [9, 10, 11, 11]
    assert shown(read_frames(Sample(video, '', ''), max_frames=3)) == [0, 1, 2, 2]
    with pytest.raises(VideoError, match=r'ends at 5.50 s, before the sample begins at 7.00 s'):
        read_frames(Sample(video, '', '', 7.0))


@needs_x264
@pytest.mark.parametrize('name, codec', [
    ('a.mp4', 'libx264'), ('a.mkv', 'libx264'), ('a.ts', 'libx264'), ('a.avi', 'mpeg4'),
    ('a.m4v', 'mpeg4')])
def test_part_of_a_long_video_is_the_same_with_and_without_seeking(tmp_path: Path, name: str,
                                                                   codec: str):
    with av.open(str(tmp_path / name), 'w') as container:
        stream = container.add_stream(codec, rate=5, options=dict(g='25'))
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        for index in range(100):
            gray = np.full((48, 64, 3), 2 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format='rgb24')))
        container.mux(stream.encode())
    whole = read_frames(Sample(tmp_path / name, '', ''))
    part = read_frames(Sample(tmp_path / name, '', '', 14.0, 18.0))
    assert len(whole) == 40
    np.testing.assert_array_equal(part, whole[28:36])


def test_video_of_a_telephone_held_upright_is_upright(tmp_path: Path):
    video = write_video(tmp_path / 'a.mp4', range(0, 2000, 500))
    raw = bytearray(video.read_bytes())
    # The matrix of the track's header: x' = -y, y' = x, a quarter turn clockwise.
    at = raw.index(b'tkhd') + 44
    raw[at:at + 36] = struct.pack('>9i', 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    video.write_bytes(raw)
    assert read_frames(Sample(video, '', '')).shape == (4, 64, 48, 3)
    assert read_frames(Sample(video, '', ''), max_pixels=800).shape == (4, 32, 24, 3)


def test_large_pictures_are_scaled_as_they_are_read(tmp_path: Path):
    video = write_video(tmp_path / 'a.mp4', range(0, 2000, 500))
    assert read_frames(Sample(video, '', ''), max_pixels=800).shape == (4, 24, 32, 3)
    assert read_frames(Sample(video, '', ''), max_pixels=64 * 48).shape == (4, 48, 64, 3)


@pytest.mark.parametrize('content, words_of_it', [
    (None, 'cannot read the video .*a.mp4: No such file'),
    (b'', 'cannot read the video .*a.mp4'),
    (b'this is not a video', 'cannot read the video .*a.mp4: Invalid data'),
])
def test_what_is_no_video_is_a_video_error(tmp_path: Path, content: bytes | None, words_of_it: str):
    if content is not None:
        (tmp_path / 'a.mp4').write_bytes(content)
    with pytest.raises(VideoError, match=words_of_it):
        read_frames(Sample(tmp_path / 'a.mp4', '', ''))


def test_video_cut_off_is_a_video_error(tmp_path: Path):
    whole = (CLIPS / 'pe_3.mp4').read_bytes()
    (tmp_path / 'half.mp4').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(VideoError, match=r'half\.mp4'):
        read_frames(Sample(tmp_path / 'half.mp4', '', ''))
    assert len(read_frames(Sample(tmp_path / 'half.mp4', '', '', 0.0, 1.0))) == 2
