"""What was said of a recording, written: subtitles, lines, a video with the words in it."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from html import escape
from itertools import groupby
import json
import os
from pathlib import Path
import shutil
import sys
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from sww_ros.bags import Capture
from sww_ros.frames import NANOSECONDS
from sww_ros.images import draw_subtitle
from sww_ros.recordings.viewing import Account, Recorded
from sww_ros.streaming.events import NARRATION, TextDelta

LINGER_NS = 4 * NANOSECONDS
"""How long words stay to be read once they are complete, unless others come."""
_MILLISECOND = 1_000_000


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes `out` at the end; whatever happens, no half of it."""
    part = out.parent / f'.{out.name}.part'
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part / out.name
        os.replace(part / out.name, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


class Passage(NamedTuple):
    """A sentence, or the answer to a question: from its first token to its last."""

    start: Capture
    end: Capture
    first: TextDelta
    last: TextDelta
    text: str
    question: str = ''


def passages(account: Account) -> list[Passage]:
    """Return sentences and answers in the order of their ends; what is cut short is left out."""
    found = []
    parts: dict[str, list[tuple[TextDelta, Capture]]] = defaultdict(list)
    for delta, capture in account.told:
        if not isinstance(delta, TextDelta):
            continue
        part = parts[delta.stream_id]
        if part or delta.delta.strip():
            part.append((delta, capture))
        answers = delta.stream_id != NARRATION
        text = ''.join(piece.delta for piece, _ in part) if answers else delta.sentence
        if (delta.final or not answers) and text.strip():
            found.append(Passage(part[0][1], capture, part[0][0], delta, ' '.join(text.split()),
                                 account.asked.get(delta.stream_id, '')))
        if delta.final or delta.sentence and not answers:
            del parts[delta.stream_id]
    return found


class Cue(NamedTuple):
    """Words on the screen, and from when until when [ns]."""

    start_ns: int
    end_ns: int
    text: str


def cues(account: Account) -> list[Cue]:
    """Return what a subtitle shows: sentences until the next begins, answers with the question."""
    said = passages(account)
    sentences = sorted((each for each in said if not each.question),
                       key=lambda each: each.start.at_ns)
    # Those that begin in one step stand there together.
    shown = [(start_ns, [*together]) for start_ns, together in groupby(
        sentences, key=lambda each: each.start.at_ns)]
    ends = [*(start_ns for start_ns, _ in shown[1:]), sys.maxsize]
    found = [Cue(start_ns, min(until_ns, together[-1].end.at_ns + LINGER_NS),
                 ' '.join(each.text for each in together))
             for (start_ns, together), until_ns in zip(shown, ends)]
    found += [Cue(each.start.at_ns, each.end.at_ns + LINGER_NS, f'{each.question}\n{each.text}')
              for each in said if each.question]
    return sorted(found)


def write_subtitles(path: Path, account: Account) -> None:
    """Write WebVTT or, where the path says .srt, SubRip."""
    web = path.suffix.lower() == '.vtt'

    def clock(at_ns: int) -> str:
        seconds, milliseconds = divmod(at_ns // _MILLISECOND, 1000)
        return (f'{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}'
                f'{"." if web else ","}{milliseconds:03}')

    blocks = ['WEBVTT\n'] if web else []
    for number, cue in enumerate(cues(account), 1):
        # An arrow in the text would be taken for a time; < and & begin something in WebVTT.
        text = escape(cue.text, quote=False) if web else cue.text.replace('-->', '->')
        blocks.append(f'{number}\n{clock(cue.start_ns)} --> {clock(cue.end_ns)}\n{text}\n')
    path.write_text('\n'.join(blocks), encoding='utf-8')


def write_jsonl(path: Path, account: Account) -> None:
    """Write a line for each sentence and answer, with seconds from the start and with stamps."""
    with path.open('w', encoding='utf-8') as file:
        for each in passages(account):
            line = dict(start=each.start.at_ns / NANOSECONDS, end=each.end.at_ns / NANOSECONDS,
                        start_stamp_ns=each.first.stamp_ns, end_stamp_ns=each.last.stamp_ns,
                        stream_id=each.last.stream_id, text=each.text)
            if each.question:
                line.update(question=each.question, finish_reason=each.last.finish_reason)
            file.write(json.dumps(line, ensure_ascii=False) + '\n')


def write_video(path: Path, account: Account, recording: Recorded, rate: float) -> None:
    """Write all pictures with the words in them, each at its own time, as a video."""
    import av  # Here, as bags need no PyAV.

    shown = cues(account)
    starts = [cue.start_ns for cue in shown]

    def words(at_ns: int) -> str:
        after = bisect_right(starts, at_ns)
        return ' '.join(cue.text for cue in shown[max(0, after - 8):after] if at_ns < cue.end_ns)

    with av.open(str(path), 'w', options=dict(movflags='faststart')) as container:
        codec = 'libx264' if 'libx264' in av.codecs_available else 'mpeg4'
        # With its macroblock tree x264 writes other bytes in each run; its usual preset takes
        # longer than two minutes for ten.
        stream = container.add_stream(
            codec, rate=max(1, round(recording.frame_rate)),
            options={'preset': 'veryfast', 'x264-params': 'mbtree=0'} if codec == 'libx264' else {})
        stream.pix_fmt = 'yuv420p'
        stream.codec_context.time_base = Fraction(1, 1000)
        newest_ns, newest = -_MILLISECOND, None

        def put(pixels: np.ndarray, at_ns: int) -> None:
            frame = av.VideoFrame.from_ndarray(draw_subtitle(pixels, words(at_ns)), format='rgb24')
            frame.pts, frame.time_base = at_ns // _MILLISECOND, Fraction(1, 1000)
            container.mux(stream.encode(frame))

        total = round(recording.duration_s * recording.frame_rate)
        for _, capture, picture in tqdm(recording.pictures(rate), total=total or None, leave=False,
                                        unit='picture', disable=None, desc=path.name):
            try:
                newest = picture.load()
            except ValueError:
                continue
            if newest_ns < 0:  # Colors are shared between two pixels each way.
                stream.height, stream.width = (side // 2 * 2 for side in newest.shape[:2])
            if capture.at_ns - newest_ns >= _MILLISECOND:
                newest_ns = capture.at_ns
                put(newest, newest_ns)
        end_ns = max((cue.end_ns for cue in shown), default=0)
        if newest is not None and end_ns - newest_ns >= _MILLISECOND:
            put(newest, end_ns)  # The last words come with the last picture.
        container.mux(stream.encode())
