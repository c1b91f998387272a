"""
A recorded run as a file for Rerun's viewer: frames, words, and lanes over time.

Perceiving, the narration and each answer have a lane. The package is an optional one,
requirements/rerun.txt, and imported where a file is written.
"""

from __future__ import annotations

from collections.abc import Iterable
import math
from pathlib import Path
from typing import Any

import numpy as np

from sww_ros.demo.record import Recording, told_s
from sww_ros.sources import open_video

FRAMES_PER_S = 10.0


def frames_of(run: Recording, video: str = '') -> Iterable[tuple[float, np.ndarray]]:
    """
    Yield the seconds since the beginning, and the frame, (H, W, 3) uint8 RGB, ten times a second.

    :param video: the file, or the folder of pictures, that was watched; '': a scene, of a camera
        nothing is left
    """
    path = Path(video).expanduser()
    if not video:
        for number in range(math.ceil(run.seconds * FRAMES_PER_S)):
            if (pixels := run.frame(number / FRAMES_PER_S)) is not None:
                yield number / FRAMES_PER_S, pixels
    elif path.is_file() or path.is_dir():
        for frame in open_video(path, FRAMES_PER_S).frames():
            if (at_s := (frame.offset_ns or 0) / 1e9) > run.seconds:
                return
            yield at_s, frame.load()


def write(path: Path, run: Recording, frames: Iterable[tuple[float, np.ndarray]]) -> None:
    """
    Write a run; what is at `path` gives way.

    :param frames: as `frames_of` yields them
    :raises ImportError: where Rerun's package is not installed
    """
    import rerun
    from rerun import blueprint

    file = rerun.RecordingStream('sww_ros')
    file.save(path, blueprint.Blueprint(blueprint.Vertical(
        blueprint.Horizontal(blueprint.Spatial2DView(origin='camera'),
                             blueprint.TextLogView(origin='words')),
        blueprint.StateTimelineView(origin='lanes'),
        blueprint.TimeSeriesView(origin='latency'))))

    def log(at_s: float, entity: str, what: Any) -> None:
        file.set_time('run', duration=at_s)
        file.log(entity, what)

    for at_s, pixels in frames:
        log(at_s, 'camera', rerun.Image(pixels).compress(80))
    running: dict[str, str] = {}
    for message in run.between(-1.0, math.inf):
        if message['kind'] == 'question':
            log(message['at'], f'words/{message["stream"]}', rerun.TextLog(message['text']))
        elif message['kind'] == 'step':
            log(message['started'], 'lanes/perceiving',
                rerun.StateChange(state=f'step {message["step"]}'))
            log(message['perceived'], 'lanes/perceiving', rerun.StateChange(state=''))
            if message['first'] is not None:
                log(message['first'], 'latency/first_word_ms',
                    rerun.Scalars(1e3 * (message['first'] - message['captured'])))
        else:
            stream, at_s = message['stream'], told_s(message)
            text = running.pop(stream, '') + message['delta']
            is_over = bool(message['sentence'] or message['end'])
            if is_over and text.strip():
                log(at_s, f'words/{stream}', rerun.TextLog(text.strip()))
            log(at_s, f'lanes/{stream}', rerun.StateChange(state='' if is_over else text.strip()))
            running |= {} if is_over else {stream: text}
    file.flush()
    file.disconnect()
