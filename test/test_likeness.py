"""Whether pictures of the shapes world are told from others."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from sww_ros.shapes.render import Renderer, difference
from sww_ros.shapes.scene import generate

ROWS, COLUMNS = np.mgrid[:240, :320]


def landscape() -> np.ndarray:
    """A sky that fades over rough ground."""
    rough = np.random.default_rng(0).normal(0, 25, (240, 320, 1))
    sky = np.stack([120 + ROWS / 4, 160 + ROWS / 4, 230 - ROWS / 8], axis=-1)
    ground = np.array([90, 80, 40]) + rough
    return np.clip(np.where(ROWS[..., None] < 110, sky, ground), 0, 255).astype(np.uint8)


def page() -> np.ndarray:
    """Lines of text on white."""
    image = np.full((240, 320, 3), 250, np.uint8)
    for row in range(20, 240, 20):
        cv2.putText(image, 'the quick brown fox', (5, row), cv2.FONT_HERSHEY_SIMPLEX, .5, 0)
    return image


def room() -> np.ndarray:
    """Gray walls with dark and light furniture."""
    image = np.full((240, 320, 3), 150, np.uint8)
    cv2.rectangle(image, (30, 120), (150, 230), (40, 35, 30), -1)
    cv2.rectangle(image, (200, 20), (290, 110), (240, 240, 235), -1)
    return image


OTHERS = dict(
    black=np.zeros((240, 320, 3), np.uint8), white=np.full((240, 320, 3), 255, np.uint8),
    noise=np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8),
    fade=np.tile((COLUMNS * 0.79).astype(np.uint8)[..., None], 3),
    lawn=np.full((240, 320, 3), (60, 140, 50), np.uint8),
    board=np.tile((255 * ((ROWS // 30 + COLUMNS // 30) % 2)).astype(np.uint8)[..., None], 3),
    landscape=landscape(), page=page(), room=room())


@pytest.mark.parametrize('difficulty', ['easy', 'normal', 'hard'])
@pytest.mark.parametrize('size', [(84, 84), (320, 240), (640, 360)])
def test_the_worlds_own_pictures_are_like_it(difficulty: str, size: tuple[int, int]):
    for seed in range(30):
        renderer = Renderer(generate(5000 + seed, 30.0, difficulty), *size)
        for time_s in (0.0, 7.3, 29.0):
            assert difference(renderer.frame(time_s)) == '', (seed, time_s)


def test_so_are_those_that_went_through_a_camera_or_a_file():
    for seed in range(30):
        picture = Renderer(generate(6000 + seed, 30.0), 320, 240).frame(15.0)
        jpeg = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
        assert difference(cv2.imdecode(jpeg, cv2.IMREAD_COLOR)) == '', seed


@pytest.mark.parametrize('name', OTHERS)
def test_other_pictures_are_not(name: str):
    assert difference(OTHERS[name]) != ''


def test_photographs_are_not():
    matplotlib = pytest.importorskip('matplotlib')
    for name in ('grace_hopper.jpg',):
        path = Path(matplotlib.get_data_path(), 'sample_data', name)
        assert difference(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)) != ''


def test_what_differs_is_said():
    assert difference(OTHERS['black']) == 'its ground is dark, not of a middle gray'
    assert difference(OTHERS['lawn']) == 'its ground is coloured, not gray'
    assert 'neither plain ground nor a vivid shape' in difference(OTHERS['room'])
