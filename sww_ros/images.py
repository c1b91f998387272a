"""
Converts ROS images to RGB arrays and back, without cv_bridge (which NumPy 2 breaks).

And draws words into them.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
import re
import textwrap
from typing import Any

import cv2
import numpy as np


@dataclass(frozen=True)
class _Layout:
    """How an encoding's pixels lie in a row, and OpenCV's code for turning them into RGB."""

    channels: int
    to_rgb: int | None = None
    from_rgb: int | None = None
    bits: int = 8
    even_width: bool = False
    even_height: bool = False

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(f'u{self.bits // 8}')


# A bare 8UC3 or 8UC4 says nothing of its colors: blue first, as OpenCV writes them and rviz reads
# them. Bayer: OpenCV names the pattern after its second row, second column; ROS after the first.
_RGB, _MONO = _Layout(3), _Layout(1, cv2.COLOR_GRAY2RGB, cv2.COLOR_RGB2GRAY)
_BGR = _Layout(3, cv2.COLOR_BGR2RGB, cv2.COLOR_RGB2BGR)
_BGRA = _Layout(4, cv2.COLOR_BGRA2RGB, cv2.COLOR_RGB2BGRA)
_UYVY = _Layout(2, cv2.COLOR_YUV2RGB_UYVY, even_width=True)
_YUYV = _Layout(2, cv2.COLOR_YUV2RGB_YUY2, even_width=True)
_LAYOUTS = {
    'rgb8': _RGB,
    'bgr8': _BGR,
    'rgba8': _Layout(4, cv2.COLOR_RGBA2RGB, cv2.COLOR_RGB2RGBA),
    'bgra8': _BGRA,
    'mono8': _MONO,
    'mono16': _Layout(1, cv2.COLOR_GRAY2RGB, cv2.COLOR_RGB2GRAY, bits=16),
    'rgb16': _Layout(3, bits=16),
    'bgr16': _Layout(3, cv2.COLOR_BGR2RGB, cv2.COLOR_RGB2BGR, bits=16),
    '8UC1': _MONO,
    '8UC3': _BGR,
    '8UC4': _BGRA,
    'yuv422': _UYVY,
    'uyvy': _UYVY,
    'yuv422_yuy2': _YUYV,
    'yuyv': _YUYV,
    'nv12': _Layout(1, cv2.COLOR_YUV2RGB_NV12, even_width=True, even_height=True),
    'nv21': _Layout(1, cv2.COLOR_YUV2RGB_NV21, even_width=True, even_height=True),
} | {
    f'bayer_{pattern}{bits}': _Layout(1, code, bits=bits)
    for pattern, code in (('rggb', cv2.COLOR_BayerBG2RGB), ('bggr', cv2.COLOR_BayerRG2RGB),
                          ('gbrg', cv2.COLOR_BayerGR2RGB), ('grbg', cv2.COLOR_BayerGB2RGB))
    for bits in (8, 16)
}
_SEGMENT = re.compile(rb'\xff([\x02-\xcf\xda-\xfe])(..)', re.DOTALL)
_FRAMES = {*range(0xc0, 0xd0)} - {0xc4, 0xc8, 0xcc}
"""A jpeg's segments that have a length, and those of them that hold the size of the picture."""
_DEPTH = ('16UC1', '32FC1')
MAX_PIXELS = 1 << 26
"""In a compressed image; 8192 x 8192, which is 200 MB of pixels."""
ENCODINGS = tuple(_LAYOUTS)
"""What `image_to_rgb` reads."""
WRITABLE_ENCODINGS = ('rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', 'mono16', '8UC1', '8UC3', '8UC4',
                      'yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv')
"""What `rgb_to_image` writes."""

FONT = cv2.FONT_HERSHEY_SIMPLEX
MAX_LINES = 3
WHITE, BLACK = (255, 255, 255), (0, 0, 0)

# ITU-R BT.601, 16..235 and 16..240, as OpenCV and cameras have it.
_RGB_TO_YUV = np.array([[65.738, 129.057, 25.064, 16 * 256],
                        [-37.945, -74.494, 112.439, 128 * 256],
                        [112.439, -94.154, -18.285, 128 * 256]]) / 256


def image_to_rgb(msg: Any) -> np.ndarray:
    """
    Return the pixels of a sensor_msgs/Image, (height, width, 3) uint8 RGB, contiguous.

    Padded rows (`step`) and `is_bigendian` are honoured. The array may share the memory of the
    message, and may be read-only.

    :param msg: the message, or anything with its fields; `data` is any buffer of bytes
    :raises ValueError: for depth, an unknown encoding, an empty image, or data of the wrong length
    """
    if msg.encoding in _DEPTH:
        raise ValueError(f'an image of encoding {msg.encoding!r} holds depth, not colors: remap '
                         '`image` to a color topic (gray values of 16 bits are called mono16)')
    layout = _LAYOUTS.get(msg.encoding)
    if layout is None:
        raise ValueError(f'unknown image encoding {msg.encoding!r}; supported: '
                         f'{", ".join(ENCODINGS)}')
    _check_size(layout, msg.encoding, msg.width, msg.height)
    pixels = _rows(msg, layout)
    if layout.bits == 16:
        # OpenCV wants native byte order, and rows that begin at even addresses.
        pixels = cv2.convertScaleAbs(np.ascontiguousarray(pixels, layout.dtype), alpha=255 / 65535)
    if layout.to_rgb is not None:
        pixels = cv2.cvtColor(pixels, layout.to_rgb)
    return np.ascontiguousarray(pixels.reshape(msg.height, msg.width, 3))


def compressed_to_rgb(msg: Any) -> np.ndarray:
    """
    Return the pixels of a sensor_msgs/CompressedImage (jpeg, png), (height, width, 3) uint8 RGB.

    :param msg: the message, or anything with its fields `format` and `data`
    :raises ValueError: for an empty or undecodable image, one that is too large, or compressed
        depth
    """
    if 'compressedDepth' in msg.format:
        raise ValueError(f'compressed image of format {msg.format!r} holds depth, not colors; '
                         'supported: jpeg, png')
    data = _bytes(msg.data)
    if not data.size:
        raise ValueError(f'empty compressed image (format {msg.format!r}): it has no data')
    is_picture = check_compressed(data.tobytes(), MAX_PIXELS)
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if is_picture else None
    except cv2.error:
        bgr = None  # OpenCV returns None or raises, depending on what is broken.
    if bgr is None:
        raise ValueError(f'cannot decode the compressed image of format {msg.format!r}, '
                         f'{data.size} bytes; supported: jpeg, png')
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def check_compressed(data: bytes, most: int) -> bool:
    """
    Return whether a jpeg or png says that it has pixels.

    To be asked before it is decoded: a hundred broken bytes can say that they are a gigapixel, and
    are given the memory.

    :raises ValueError: where they are more than `most`
    """
    width, height = _said_size(data)
    if width * height > most:
        raise ValueError(f'a compressed image of {width}x{height} pixels is too large: at most '
                         f'{most} are taken')
    return width * height > 0


IMAGE_TYPES = {'sensor_msgs/msg/Image': image_to_rgb,
               'sensor_msgs/msg/CompressedImage': compressed_to_rgb}
"""The types of image topics, and what makes pixels of their messages."""


def rgb_to_image(pixels: np.ndarray, header: Any, encoding: str = 'rgb8') -> Any:
    """
    Return a sensor_msgs/Image of `pixels`, (height, width, 3) uint8 RGB.

    :param header: std_msgs/Header of the message
    :raises ValueError: for an encoding that cannot be written, or pixels that do not fit it
    """
    from sensor_msgs.msg import Image

    rows = _encode(pixels, encoding)
    # An array('B') is taken over as it is; an ndarray would be copied value by value (50 ms).
    data = array('B')
    data.frombytes(rows.data)
    return Image(header=header, height=len(rows), width=pixels.shape[1], encoding=encoding,
                 is_bigendian=0, step=rows.shape[1], data=data)


def draw_subtitle(pixels: np.ndarray, text: str) -> np.ndarray:
    """Return a copy of the picture, (H, W, 3) uint8, with the text at its foot; ASCII only."""
    drawn = pixels.copy()
    height, width = drawn.shape[:2]
    scale = max(width / 640, 0.3)
    advance, line = cv2.getTextSize('n' * 10, FONT, scale, 1)[0]
    columns = max(int(width * 10 / advance) - 2, 8)
    lines = textwrap.wrap(text.strip(), columns)[-MAX_LINES:]
    for i, words in enumerate(reversed(lines)):
        at = (int(line / 2), height - int(line * (0.7 + 1.7 * i)))
        cv2.putText(drawn, words, at, FONT, scale, BLACK, max(3, round(4 * scale)), cv2.LINE_AA)
        cv2.putText(drawn, words, at, FONT, scale, WHITE, max(1, round(scale)), cv2.LINE_AA)
    return drawn


def jpeg_of(pixels: np.ndarray, quality: int) -> bytes:
    """
    Return a picture, (height, width, 3) uint8 RGB, as a JPEG.

    :param quality: 1 to 100
    :raises ValueError: for a size that no JPEG can have
    """
    done, jpeg = cv2.imencode('.jpg', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR),
                              [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f'cannot write a picture of {pixels.shape} as jpeg')
    return jpeg.tobytes()


def _said_size(data: bytes) -> tuple[int, int]:
    """Return width and height as the head of a jpeg or png has them; 0, 0 for a broken one."""
    if data.startswith(b'\x89PNG\r\n\x1a\n'):
        at = 8
        while at < len(data):
            size = int.from_bytes(data[at:at + 4], 'big')
            if size > len(data):  # OpenCV makes room for a chunk before it reads it.
                return 0, 0
            at += 12 + size
        return int.from_bytes(data[16:20], 'big'), int.from_bytes(data[20:24], 'big')
    at = 2 if data.startswith(b'\xff\xd8') else len(data)
    while segment := _SEGMENT.search(data, at):
        marker, size = segment[1][0], int.from_bytes(segment[2], 'big')
        if marker in _FRAMES:
            frame = data[segment.end() + 1:segment.end() + 5]
            return int.from_bytes(frame[2:], 'big'), int.from_bytes(frame[:2], 'big')
        at = segment.end() + max(0, size - 2)
    return 0, 0


def _check_size(layout: _Layout, encoding: str, width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f'empty image: {width}x{height} pixels')
    if layout.even_width and width % 2 or layout.even_height and height % 2:
        raise ValueError(f'{encoding} shares colors between pixels: an image of {width}x{height} '
                         'cannot be, the sides must be even')


def _rows(msg: Any, layout: _Layout) -> np.ndarray:
    """Return a view of the pixels (rows, width[, channels]), still in the encoding's own form."""
    item = layout.bits // 8
    row_bytes = msg.width * layout.channels * item
    rows = msg.height * 3 // 2 if layout.even_height else msg.height
    data = _bytes(msg.data)
    if msg.step < row_bytes:
        raise ValueError(f'a row of {msg.width} {msg.encoding} pixels takes {row_bytes} bytes, '
                         f'but step is {msg.step}')
    # Some drivers leave out the padding of the last row.
    if not (rows - 1) * msg.step + row_bytes <= data.size <= rows * msg.step:
        raise ValueError(f'{rows} rows of {msg.step} bytes make {rows * msg.step} bytes, but the '
                         f'image ({msg.width}x{msg.height} {msg.encoding}) has {data.size}')
    dtype = layout.dtype.newbyteorder('>' if msg.is_bigendian else '<')
    if layout.channels == 1:
        return np.ndarray((rows, msg.width), dtype, data, 0, (msg.step, item))
    return np.ndarray((rows, msg.width, layout.channels), dtype, data, 0,
                      (msg.step, layout.channels * item, item))


def _bytes(data: Any) -> np.ndarray:
    """Return any buffer, or a list of numbers, as (n,) uint8, without a copy where possible."""
    if isinstance(data, list | tuple):
        return np.array(data, np.uint8)
    return np.frombuffer(data, np.uint8)


def _encode(pixels: np.ndarray, encoding: str) -> np.ndarray:
    """Return the rows of an encoding, (height, bytes) uint8, contiguous."""
    if encoding not in WRITABLE_ENCODINGS:
        raise ValueError(f'cannot write images of encoding {encoding!r}; supported: '
                         f'{", ".join(WRITABLE_ENCODINGS)}')
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f'pixels must be (height, width, 3) uint8, not {pixels.shape} '
                         f'{pixels.dtype}')
    height, width = pixels.shape[:2]
    layout = _LAYOUTS[encoding]
    _check_size(layout, encoding, width, height)
    if layout in (_UYVY, _YUYV):
        pixels = _encode_yuv422(pixels, 1 if layout is _UYVY else 0)
    elif layout.from_rgb is not None:
        pixels = cv2.cvtColor(pixels, layout.from_rgb)
    if layout.bits == 16:
        pixels = pixels.astype('<u2') * 257
    return np.ascontiguousarray(pixels).reshape(height, -1).view(np.uint8)


def _encode_yuv422(pixels: np.ndarray, luma_at: int) -> np.ndarray:
    """Pack two pixels into four bytes: a luma each and one pair of colors, their mean."""
    yuv = cv2.transform(pixels, _RGB_TO_YUV)
    packed = np.empty((*pixels.shape[:2], 2), np.uint8)
    packed[..., luma_at] = yuv[..., 0]
    color = packed[..., 1 - luma_at]
    pairs = yuv[..., 1:].astype(np.uint16)
    pairs = (pairs[:, 0::2] + pairs[:, 1::2] + 1) // 2
    color[:, 0::2], color[:, 1::2] = pairs[..., 0], pairs[..., 1]
    return packed
