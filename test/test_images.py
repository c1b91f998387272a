"""Whether images of every encoding come out as the right RGB pixels, and bad ones with a reason."""

from array import array
from pathlib import Path
import re
import resource
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from sww_ros import images
from sww_ros.images import compressed_to_rgb, image_to_rgb, rgb_to_image

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 24, 16


def picture(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return a colorful, smooth picture: smooth enough for encodings that share colors."""
    y, x = np.mgrid[:height, :width]
    return np.stack([60 + 6 * x % 190, 40 + 9 * y % 200, 220 - 4 * x], -1).astype(np.uint8)


def message(pixels: np.ndarray, encoding: str, padding: int = 0, **fields) -> SimpleNamespace:
    """Return an image message without ROS; `padding` bytes of junk end each row."""
    height, width = fields.pop('height', pixels.shape[0]), pixels.shape[1]
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1).view(np.uint8)
    step = rows.shape[1] + padding
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    made = dict(height=height, width=width, encoding=encoding, is_bigendian=0, step=step,
                data=array('B', rows.tobytes()))
    return SimpleNamespace(**made | fields)


def mosaic(rgb: np.ndarray, pattern: str) -> np.ndarray:
    """Return what a sensor behind the color filter `pattern` (rows of 2x2) would see."""
    raw = np.empty(rgb.shape[:2], np.uint8)
    for index, color in enumerate(pattern):
        y, x = divmod(index, 2)
        raw[y::2, x::2] = rgb[y::2, x::2, 'rgb'.index(color)]
    return raw


GRAY = cv2.cvtColor(picture(), cv2.COLOR_RGB2GRAY)
EXACT = {
    'rgb8': picture(),
    'bgr8': picture()[..., ::-1],
    '8UC3': picture()[..., ::-1],
    'rgba8': np.dstack([picture(), np.full((HEIGHT, WIDTH), 9, np.uint8)]),
    'bgra8': np.dstack([picture()[..., ::-1], np.full((HEIGHT, WIDTH), 9, np.uint8)]),
    '8UC4': np.dstack([picture()[..., ::-1], np.full((HEIGHT, WIDTH), 9, np.uint8)]),
    'rgb16': picture().astype('<u2') * 257,
    'bgr16': picture()[..., ::-1].astype('<u2') * 257,
}


@pytest.mark.parametrize('padding', [0, 8])
@pytest.mark.parametrize('encoding', EXACT)
def test_color_encodings_are_exact(encoding: str, padding: int):
    rgb = image_to_rgb(message(EXACT[encoding], encoding, padding))
    assert rgb.flags.c_contiguous and rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, picture())


@pytest.mark.parametrize('padding', [0, 6])
@pytest.mark.parametrize('encoding', ['mono8', '8UC1', 'mono16'])
def test_gray_becomes_three_equal_channels(encoding: str, padding: int):
    gray = GRAY.astype('<u2') * 257 if encoding == 'mono16' else GRAY
    rgb = image_to_rgb(message(gray, encoding, padding))
    np.testing.assert_array_equal(rgb, np.dstack([GRAY] * 3))


@pytest.mark.parametrize('encoding', ['mono16', 'rgb16'])
def test_big_endian_is_honoured(encoding: str):
    pixels = (GRAY if encoding == 'mono16' else picture()).astype('>u2') * 257
    rgb = image_to_rgb(message(pixels.astype('>u2'), encoding, 4, is_bigendian=1))
    np.testing.assert_array_equal(rgb[..., 1], GRAY if encoding == 'mono16' else picture()[..., 1])


@pytest.mark.parametrize('padding', [0, 10])
@pytest.mark.parametrize('encoding', ['yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv'])
def test_yuv422_agrees_with_opencv(encoding: str, padding: int):
    luma_at = 1 if encoding in ('yuv422', 'uyvy') else 0
    packed = images._encode_yuv422(picture(), luma_at)
    rgb = image_to_rgb(message(packed, encoding, padding))
    np.testing.assert_allclose(rgb.astype(int), picture(), atol=14)
    if hasattr(cv2, 'COLOR_RGB2YUV_UYVY'):
        code = cv2.COLOR_RGB2YUV_UYVY if luma_at else cv2.COLOR_RGB2YUV_YUY2
        np.testing.assert_allclose(packed.astype(int), cv2.cvtColor(picture(), code), atol=3)


@pytest.mark.parametrize('padding', [0, 10])
@pytest.mark.parametrize('encoding', ['nv12', 'nv21'])
def test_nv12_has_its_colors_below_its_luma(encoding: str, padding: int):
    i420 = cv2.cvtColor(picture(), cv2.COLOR_RGB2YUV_I420)
    u, v = i420[HEIGHT:].reshape(2, -1)
    colors = np.stack([u, v] if encoding == 'nv12' else [v, u], -1).reshape(HEIGHT // 2, WIDTH)
    planes = np.concatenate([i420[:HEIGHT], colors])
    rgb = image_to_rgb(message(planes, encoding, padding, height=HEIGHT))
    np.testing.assert_allclose(rgb.astype(int), picture(), atol=24)


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_bayer_patterns_keep_their_colors(pattern: str, bits: int):
    flat = np.full((HEIGHT, WIDTH, 3), (200, 120, 40), np.uint8)
    raw = mosaic(flat, pattern)
    if bits == 16:
        raw = raw.astype('<u2') * 257
    rgb = image_to_rgb(message(raw, f'bayer_{pattern}{bits}', 4))
    np.testing.assert_array_equal(rgb[1:-1, 1:-1], flat[1:-1, 1:-1])


@pytest.mark.parametrize('encoding', [
    'rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', 'mono16', 'yuv422', 'yuv422_yuy2', 'uyvy', 'yuyv',
    'bayer_rggb8', 'bayer_bggr8', 'bayer_gbrg8', 'bayer_grbg8'])
def test_agrees_with_rosbags_image(encoding: str):
    rosbags_image = pytest.importorskip('rosbags.image')
    channels = images._LAYOUTS[encoding].channels
    rng = np.random.default_rng(1)
    high = 65536 if encoding == 'mono16' else 256
    pixels = rng.integers(0, high, (HEIGHT, WIDTH, channels)).astype(
        '<u2' if encoding == 'mono16' else np.uint8)
    msg = message(pixels, encoding)
    # Of rosbags-image the rows must not be padded, and its 16 bit values are rounded down.
    theirs = rosbags_image.image_to_cvimage(msg, 'rgb8')
    np.testing.assert_allclose(image_to_rgb(msg).astype(int), theirs,
                               atol=1 if encoding == 'mono16' else 0)


@pytest.mark.parametrize('kind', [bytes, bytearray, memoryview, np.array, list])
def test_any_kind_of_data_will_do(kind):
    msg = message(picture(), 'rgb8')
    raw = bytes(msg.data)
    msg.data = np.frombuffer(raw, np.uint8) if kind is np.array else kind(raw)
    np.testing.assert_array_equal(image_to_rgb(msg), picture())


def test_last_row_may_lack_its_padding():
    msg = message(picture(), 'rgb8', 5)
    msg.data = msg.data[:-5]
    np.testing.assert_array_equal(image_to_rgb(msg), picture())


def test_rgb_is_not_copied():
    msg = message(picture(640, 480), 'rgb8')
    assert np.shares_memory(image_to_rgb(msg), np.frombuffer(msg.data, np.uint8))


@pytest.mark.parametrize('fields, words', [
    (dict(encoding='16UC1'), "'16UC1' holds depth, not colors: remap `image` to a color topic"),
    (dict(encoding='32FC1'), "'32FC1' holds depth"),
    (dict(encoding='32FC3'), "unknown image encoding '32FC3'; supported: rgb8"),
    (dict(encoding=''), "unknown image encoding ''"),
    (dict(width=0), 'empty image: 0x16'),
    (dict(height=0), 'empty image: 24x0'),
    (dict(step=71), 'takes 72 bytes, but step is 71'),
    (dict(step=0), 'takes 72 bytes, but step is 0'),
    (dict(data=array('B')), r'make 1152 bytes, but the image \(24x16 rgb8\) has 0'),
    (dict(data=array('B', bytes(1151))), 'has 1151'),
    (dict(data=array('B', bytes(1153))), 'has 1153'),
    (dict(encoding='yuv422', width=23), 'sides must be even'),
    (dict(encoding='nv12', height=15), 'sides must be even'),
])
def test_bad_images_are_refused_in_words(fields: dict, words: str):
    msg = SimpleNamespace(**vars(message(picture(), 'rgb8')) | fields)
    with pytest.raises(ValueError, match=words):
        image_to_rgb(msg)


def test_the_documentation_lists_the_encodings():
    text = ' '.join((ROOT / 'docs/node.md').read_text().split())
    listed = re.search(r'- Encodings: (.+?);', text)[1]
    assert tuple(listed.split(', ')) == images.ENCODINGS


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
def test_compressed_images(extension: str):
    data = cv2.imencode(extension, picture()[..., ::-1])[1]
    msg = SimpleNamespace(format='rgb8; jpeg compressed bgr8', data=array('B', data.tobytes()))
    np.testing.assert_allclose(compressed_to_rgb(msg).astype(int), picture(),
                               atol=40 if extension == '.jpg' else 0)


def test_gray_jpeg_becomes_color():
    data = cv2.imencode('.jpg', GRAY)[1]
    assert compressed_to_rgb(SimpleNamespace(format='jpeg', data=data.tobytes())).shape == (
        HEIGHT, WIDTH, 3)


@pytest.mark.parametrize('extension, at', [('.png', 16), ('.jpg', None)])
def test_a_small_picture_that_says_it_is_huge_is_refused_before_it_has_the_memory(
        extension: str, at: int | None):
    data = bytearray(cv2.imencode(extension, picture())[1].tobytes())
    frame = data.index(b'\xff\xc0') + 5 if at is None else at
    half = 2 if at is None else 4
    data[frame:frame + 2 * half] = 2 * (30000).to_bytes(half, 'big')
    with pytest.raises(ValueError, match='of 30000x30000 pixels is too large'):
        compressed_to_rgb(SimpleNamespace(format='x', data=bytes(data)))


def test_a_png_with_a_piece_that_says_it_is_huge_is_refused_before_it_has_the_memory():
    """Found by test/fuzz.py: OpenCV takes 2 GiB for it."""
    data = bytearray(cv2.imencode('.png', picture())[1].tobytes())
    piece = data.index(b'IDAT') - 4
    data[piece:piece + 4] = b'\x7f\xff\xff\xff'
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match='cannot decode'):
        compressed_to_rgb(SimpleNamespace(format='png', data=bytes(data)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18  # KiB


@pytest.mark.parametrize('image_format, data, words', [
    ('jpeg', b'', "empty compressed image .format 'jpeg'."),
    ('jpeg', b'no picture', "cannot decode .* 'jpeg', 10 bytes; supported: jpeg, png"),
    ('16UC1; compressedDepth png', b'1', 'holds depth'),
])
def test_bad_compressed_images_are_refused_in_words(image_format: str, data: bytes, words: str):
    with pytest.raises(ValueError, match=words):
        compressed_to_rgb(SimpleNamespace(format=image_format, data=data))


@pytest.mark.parametrize('encoding', images.WRITABLE_ENCODINGS)
def test_there_and_back(encoding: str):
    header = pytest.importorskip('std_msgs.msg').Header(frame_id='camera')
    header.stamp.sec = 5
    row_bytes = WIDTH * images._LAYOUTS[encoding].channels * images._LAYOUTS[encoding].bits // 8
    msg = rgb_to_image(picture(), header, encoding)
    assert (msg.header, msg.encoding, msg.step) == (header, encoding, row_bytes)
    gray = images._LAYOUTS[encoding].channels == 1
    np.testing.assert_allclose(image_to_rgb(msg).astype(int),
                               np.dstack([GRAY] * 3) if gray else picture(),
                               atol=14 if images._LAYOUTS[encoding].even_width else 0)


@pytest.mark.parametrize('pixels, encoding, words', [
    (picture(), 'nv12', "cannot write images of encoding 'nv12'; supported: rgb8"),
    (picture()[..., 0], 'rgb8', r'must be \(height, width, 3\) uint8, not \(16, 24\) uint8'),
    (picture().astype(float), 'rgb8', 'float64'),
    (picture()[:, :23], 'yuyv', 'sides must be even'),
])
def test_what_cannot_be_written_is_refused(pixels, encoding: str, words: str):
    pytest.importorskip('sensor_msgs.msg')
    with pytest.raises(ValueError, match=words):
        rgb_to_image(pixels, None, encoding)
