"""Large videos: their pictures are scaled as they are read, to what would be perceived of them."""

from pathlib import Path
import tracemalloc

import av
import numpy as np
import pytest
import torch

from sww_ros.evaluation import run
from sww_ros.evaluation.clips import ClipError, Player
from sww_ros.evaluation.random_model import SMALL, random_model
from sww_ros.models.loading import load
from sww_ros.streaming.perception import PixelSettings, fit_size, shrunk
from sww_ros.training.clips import ClipMaker
from sww_ros.training.frames import Sample, VideoError, read_frames
from sww_ros.training.recipe import Recipe

STEPS = 20
MEGABYTE = 1 << 20


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    """A video of 40 pictures of 1920x1080: 6 MB each, once they are decoded."""
    file = tmp_path_factory.mktemp('large') / 'large.mp4'
    with av.open(str(file), 'w') as container:
        stream = container.add_stream('mpeg4', rate=2)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, 'yuv420p'
        for index in range(2 * STEPS):
            picture = np.full((1080, 1920, 3), 6 * index, np.uint8)
            picture[:540, :960] //= 2
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        container.mux(stream.encode())
    return file


@pytest.fixture(scope='module')
def checkpoint(folder):
    return load(str(folder))


def maker(checkpoint, **changes):
    recipe = Recipe(model='', data=(Path('a'),), out=Path('b'), **changes)
    net = random_model(SMALL, 1)[0]
    return ClipMaker(checkpoint, net, recipe)


def peak_mb(work):
    tracemalloc.start()
    try:
        result = work()
        return result, tracemalloc.get_traced_memory()[1] / MEGABYTE
    finally:
        tracemalloc.stop()


def test_training_reads_pictures_as_large_as_they_are_perceived(checkpoint, large):
    sample = Sample(large, '', 'x')
    frames, peak = peak_mb(lambda: maker(checkpoint).read(sample))
    size = fit_size(1080, 1920, checkpoint.perception.settings)
    assert frames.shape == (2 * STEPS, *size, 3)
    assert peak < 100, 'whole pictures would be 250 MB, and as much again to put them together'


def test_the_pixels_are_those_of_whole_pictures(checkpoint, large):
    whole = read_frames(Sample(large, '', ''), max_frames=2)
    small = maker(checkpoint).read(Sample(large, '', 'x', end_s=1.0))
    perception, size = checkpoint.perception, small.shape[1:3]
    assert torch.equal(perception.patches(list(whole), *size), perception.patches(list(small),
                                                                                  *size))


def test_evaluation_plays_pictures_as_large_as_they_are_perceived(checkpoint, large, monkeypatch):
    played = []

    def play(self, frames, *_):
        played.append(frames.shape)
        raise ClipError('seen enough')

    monkeypatch.setattr(Player, 'play', play)
    clips = [Sample(large, 'What?', 'x')]
    _, peak = peak_mb(lambda: run.evaluate(checkpoint, clips, run.Options(), warn=lambda _: None))
    assert played == [(2 * STEPS, *fit_size(1080, 1920, checkpoint.perception.settings), 3)]
    assert peak < 100


def test_a_large_video_that_breaks_off_takes_no_more(checkpoint, large, tmp_path):
    cut = tmp_path / 'cut.mkv'
    with av.open(str(large)) as source, av.open(str(cut), 'w') as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            packet.stream = stream
            if packet.pts is not None:
                target.mux(packet)
    content = cut.read_bytes()
    cut.write_bytes(content[:len(content) * 3 // 4])

    def read():
        try:
            return maker(checkpoint).read(Sample(cut, '', 'x'))
        except VideoError:
            return None

    assert peak_mb(read)[1] < 100


def test_pictures_are_left_alone_where_scaling_them_would_change_what_is_perceived():
    def frame(height, width):
        return np.zeros((height, width, 3), np.uint8)

    settings = PixelSettings((.5,) * 3, (.5,) * 3, 56 * 56, 112 * 112)
    assert shrunk(frame(56, 84), settings).shape == (56, 84, 3), 'no larger than it is'
    assert shrunk(frame(28, 28), settings).shape == (28, 28, 3), 'what is small stays so'
    assert shrunk(frame(480, 640), settings).shape == (*fit_size(480, 640, settings), 3)
    assert shrunk(frame(2, 900), settings).shape == (2, 900, 3), 'no one perceives this'
    tight = PixelSettings((.5,) * 3, (.5,) * 3, 84 * 84, 84 * 84)
    size = fit_size(480, 640, tight)
    assert fit_size(*size, tight) != size, 'fitted twice is another size'
    assert shrunk(frame(480, 640), tight).shape == (480, 640, 3)
