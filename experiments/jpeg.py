"""
What the quality of JPEGs costs: kbit/s of a robot's link against what is said of the shapes world.

`python -m experiments.jpeg --json docs/benchmarks/jpeg.json` plays the same unseen scenes once as
they are, once for each quality with each frame as a pool of engines gets it (engine/link.py), and
once for each rate factor of H.264, which nothing here sends: that says what it would save.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from fractions import Fraction
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
from tqdm import tqdm

from sww_ros.engine.link import sent_as
from sww_ros.images import compressed_to_rgb
from sww_ros.shapes.render import FRAME_SIZE
from sww_ros.shapes.score import Score, play
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.session import Session

FIRST_SEED = 70_000
OBJECTS = 2
KEY_FRAMES = 40
"""A picture of H.264 that needs none before it comes after so many frames: a scene, or 20 s."""
Coded = tuple[int, np.ndarray]
"""How many bytes a frame was, and what is seen of it, (height, width, 3) uint8 RGB."""


def as_jpeg(quality: int, wanted: list[int]) -> Callable[[np.ndarray], Coded]:
    """Return what codes frames as a link does, for a model that sees as much as is `wanted`."""
    def code(frame: np.ndarray) -> Coded:
        jpeg = sent_as(frame, wanted, quality)
        return len(jpeg), compressed_to_rgb(SimpleNamespace(format='jpeg', data=jpeg))
    return code


def as_h264(factor: int, frame_rate: float) -> Callable[[np.ndarray], Coded]:
    """Return what codes frames as H.264 that waits for none to come; `factor` is x264's CRF."""
    coder = av.CodecContext.create('libx264', 'w')
    coder.width = coder.height = FRAME_SIZE
    coder.pix_fmt, coder.time_base = 'yuv420p', 1 / Fraction(frame_rate)
    coder.options = dict(tune='zerolatency', crf=str(factor), g=str(KEY_FRAMES))
    decoder = av.CodecContext.create('h264', 'r')
    decoder.thread_type, decoder.flags = 'SLICE', av.codec.context.Flags.low_delay

    def code(frame: np.ndarray) -> Coded:
        packet, = coder.encode(av.VideoFrame.from_ndarray(frame, format='rgb24'))
        seen, = decoder.decode(av.Packet(bytes(packet)))
        return packet.size, seen.to_ndarray(format='rgb24')
    return code


class Sending:
    """A session whose frames have gone over a link; `sent` counts their bytes."""

    def __init__(self, session: Session, code: Callable[[np.ndarray], Coded]) -> None:
        self._session, self._code = session, code
        self.sent = self.frames = 0

    def feed(self, frame: np.ndarray, **options: Any) -> None:
        """Feed what comes out at the other end."""
        size, seen = self._code(frame)
        self.sent, self.frames = self.sent + size, self.frames + 1
        self._session.feed(seen, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def measure(model: str, seeds: range, codec: str = '', value: int = 0) -> dict:
    """
    Play the scenes, and return what was sent and said.

    :param codec: 'jpeg' or 'h264', whose quality or rate factor is `value`; empty: frames as they
        are
    """
    score = Score()
    with Session.open(model, SessionConfig(overlap='serial')) as session:
        rate = session.info['frame_rate']
        sending = Sending(session, (
            as_h264(value, rate) if codec == 'h264' else as_jpeg(value, session.info['pixels'])
            if codec else lambda frame: (frame.nbytes, frame)))
        for seed in tqdm(seeds, desc=f'{codec} {value}', unit='scene', disable=None):
            play(sending, seed, OBJECTS, score)
        found = score.table()['summary']
        size = sending.sent / sending.frames
        return dict(kbit_per_s=round(8 * size * rate / 1000, 1), bytes_a_frame=round(size), **found)


def rows(found: dict) -> list[str]:
    """Return the table of docs/scale.md as Markdown."""
    named = [('as they are', found['as_it_is']), *(
        (f'{name} {value}', each) for codec, name in (
            ('jpeg', 'JPEG of quality'), ('h264', 'H.264, CRF')) for value, each in
        found[codec].items())]
    return [f'| {name} | {each["kbit_per_s"]:g} | {each["facts_true"]:.1%} | '
            f'{each["facts_narrated"]:.1%} | {each["answers_right"]:.1%} |'
            for name, each in named]


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--model', default='builtin')
    parser.add_argument('--count', type=int, default=40, help='scenes (default: %(default)s)')
    parser.add_argument('--jpeg', type=int, nargs='*', default=[95, 90, 80, 60, 40, 20, 10],
                        help='qualities', metavar='QUALITY')
    parser.add_argument('--h264', type=int, nargs='*', default=[18, 23, 28, 33, 38],
                        help='rate factors', metavar='CRF')
    parser.add_argument('--json', type=Path)
    given = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + given.count)

    def show(codec: str = '', value: int = 0) -> dict:
        found = measure(given.model, seeds, codec, value)
        print(codec, value or '', json.dumps(found), flush=True)
        return found

    result = dict(model=given.model, first_seed=FIRST_SEED, scenes=given.count, objects=OBJECTS,
                  as_it_is=show(), jpeg={value: show('jpeg', value) for value in given.jpeg},
                  h264={value: show('h264', value) for value in given.h264})
    print('\n'.join(rows(result)))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
