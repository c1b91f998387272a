"""
Narrates recordings without a running ROS: what is said of IN is written to OUT.

IN is a bag (rosbag2, SQLite or MCAP), a video file, a folder of pictures, or a folder of videos and
bags, each of which is written to a file of its own in the folder OUT. What is written follows from
the ending of OUT: .vtt or .srt (subtitles), .jsonl (a line for each sentence and answer), .mp4 (the
pictures with the words in them, without sound), or none (a bag with the narrator's topics).

Each step of video waits for the words that are due (schedule wait_k), so nothing depends on the
speed of the machine and no frame is dropped. OUT appears when it is whole: interrupted, the same
command begins it again and writes the same; in a folder, what is there already is left as it is.
"""

from __future__ import annotations

import argparse
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from html import escape
from itertools import groupby
import json
import math
import os
from pathlib import Path
import shutil
import sys
import time
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from sww_ros.__main__ import OPTIONS, check_questions, parse_question
from sww_ros.bags import STORAGES, Bag, Capture, is_bag, write_bag
from sww_ros.frames import NANOSECONDS, CameraFrame, FrameChoice, FrameSampler
from sww_ros.images import draw_subtitle
from sww_ros.library import Asker, ClipError, play_steps
from sww_ros.models.loading import load
from sww_ros.settings import add_option, checked
from sww_ros.sources import PICTURES, PictureFolder, open_video
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import BY_NAME, MAX_QUESTION_TOKENS, SessionConfig, check_prompt
from sww_ros.streaming.events import (
    NARRATION,
    Event,
    FirstSight,
    QuestionState,
    Restarted,
    StepPerceived,
    TextDelta,
)
from sww_ros.streaming.pace import advice, mismatch
from sww_ros.streaming.session import Session

if __name__ == 'sww_ros.narrate':
    raise ImportError('this is a command, python -m sww_ros.narrate; imported, it would take the '
                      'place of the function sww_ros.narrate')

VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ts', '.webm')
LINGER_NS = 4 * NANOSECONDS
"""How long words stay to be read once they are complete, unless others come."""
ENDINGS = ('vtt', 'srt', 'jsonl', 'mp4')
"""What is written, by the ending of OUT; without one it is a bag."""
SETTINGS = (*OPTIONS, 'frame_rate', 'recall_steps', 'max_answer_tokens', 'threads')
"""The settings of a session that the command line gives."""
SETTINGS_FILE = 'narrate.json'
"""In a folder of what was written: with which settings."""
_MILLISECOND = 1_000_000


class Recorded:
    """What is narrated: pictures, with their times on one clock."""

    def __init__(self, path: Path, topic: str = '') -> None:
        """
        Open it.

        :param topic: the image topic of a bag; '': its only one
        :raises ValueError: for what is neither bag, video nor folder of pictures
        """
        if topic and not is_bag(path):
            raise ValueError(f'--topic {topic}: {path} is no bag')
        self._source = source = Bag(path, topic) if is_bag(path) else open_video(path)
        self.path, self.bag = path, source if isinstance(source, Bag) else None
        self.duration_s, self.frame_rate = source.duration_s, source.frame_rate

    def pictures(self, rate: float) -> Iterator[tuple[bool, Capture, CameraFrame]]:
        """
        Yield the pictures in order, and whether a model that takes `rate` of them a second does.

        It is decided as in the node. Stragglers are left out; where stamps jump back another video
        begins, and the clock of the captures goes on.
        """
        sampler, shift_ns, at_ns, video = FrameSampler(rate), 0, -1, 0
        for received, (frame, frame_id) in enumerate(self._read(rate), 1):
            choice = sampler.choose(frame.stamp_ns)
            if choice is FrameChoice.OLD:
                continue
            if at_ns < 0:
                shift_ns = frame.stamp_ns
            elif choice is FrameChoice.RESTART:
                video += 1
                shift_ns = frame.stamp_ns - at_ns - round(NANOSECONDS / rate)
            at_ns = frame.stamp_ns - shift_ns
            yield (choice is not FrameChoice.SKIP,
                   Capture(at_ns, frame.received_ns, frame_id, received, video), frame)

    def _read(self, rate: float) -> Iterator[tuple[CameraFrame, str]]:
        if self.bag:
            yield from self.bag.pictures()
            return
        source = self._source
        if isinstance(source, PictureFolder):  # Each of them is one that is wanted.
            source = open_video(self.path, rate)
        for frame in source.frames():
            at_ns = frame.offset_ns or 0
            yield CameraFrame(frame.load, at_ns, at_ns), ''


class Account(NamedTuple):
    """All that was told of a recording, each with the picture it is about; questions by id."""

    told: list[tuple[Event, Capture]]
    asked: dict[str, str]


class Viewing:
    """One recording, played to a session step by step, with questions on the way."""

    def __init__(self, session: Session, recording: Recorded,
                 questions: Iterable[tuple[float, str]]) -> None:
        """Prepare it; `questions` are seconds from the start, and what to ask."""
        self._session, self._recording = session, recording
        self._rate, self._asker = session.info['frame_rate'], Asker(session, questions)
        self._captures: dict[int, Capture] = {}
        self._unread: list[str] = []
        self._told: list[tuple[Event, Capture]] = []

    def run(self, progress: Callable[[], object] = lambda: None) -> Account:
        """
        Play all of it; `progress` is called after each step.

        :raises ValueError: for a recording that breaks off, or of which nothing can be seen
        :raises ClipError: for trouble in the engine
        """
        path, seen_s = self._recording.path, -1.0
        taken = ((capture, frame) for wanted, capture, frame
                 in self._recording.pictures(self._rate) if wanted)
        # Before another video begins, the one before is spoken of to its end.
        for _, video in groupby(taken, key=lambda each: each[0].video):
            for events in play_steps(self._session, self._load(video), patience_s=math.inf):
                now_s = self._keep(events)
                seen_s = max(seen_s, now_s)
                self._keep(self._asker.due(now_s))
                progress()
        if self._unread:
            _note(f'{path}: {len(self._unread)} pictures were left out: {self._unread[0]}')
        if seen_s < 0:
            raise ValueError(f'nothing of {path} could be seen: '
                             f'{self._unread[0] if self._unread else "it has no pictures"}')
        self._keep(self._asker.due(max(self._recording.duration_s, seen_s + 1 / self._rate)))
        for at_s, question in self._asker.left:
            _note(f'{path} ends at {seen_s:g} s: not asked at {at_s:g} s: {question}')
        return Account(self._told, self._asker.asked)

    def _load(self, video: Iterable[tuple[Capture, CameraFrame]]
              ) -> Iterator[tuple[np.ndarray, int]]:
        for capture, frame in video:
            try:
                pixels = frame.load()
            except ValueError as error:  # As in the node, others may be better.
                self._unread.append(f'{error} (at {capture.at_ns / NANOSECONDS:.3f} s)')
                continue
            self._captures[frame.stamp_ns] = capture
            yield pixels, frame.stamp_ns

    def _keep(self, events: Iterable[Event]) -> float:
        """Return until when there is something to ask about [s]; -1: there is nothing."""
        seen_s = -1.0
        for event in events:
            if isinstance(event, TextDelta | StepPerceived | FirstSight):
                newest = next(reversed(self._captures.values()))
                self._told.append((event, self._captures.get(event.stamp_ns, newest)))
            if isinstance(event, StepPerceived):
                seen_s = self._captures[event.stamp_ns].at_ns / NANOSECONDS
            elif isinstance(event, Restarted) and event.reason != 'relay':
                seen_s = -1.0
            elif isinstance(event, QuestionState) and event.state == 'rejected':
                _note(f'not answered: {self._asker.asked[event.question_id]!r}: {event.reason}')
        return seen_s


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
        # With its macroblock tree x264 writes other bytes in each run.
        stream = container.add_stream(codec, rate=max(1, round(recording.frame_rate)), options=(
            {'x264-params': 'mbtree=0'} if codec == 'libx264' else {}))
        stream.pix_fmt = 'yuv420p'
        stream.codec_context.time_base = Fraction(1, 1000)
        newest_ns, pixels = -_MILLISECOND, None

        def put(at_ns: int) -> None:
            frame = av.VideoFrame.from_ndarray(draw_subtitle(pixels, words(at_ns)), format='rgb24')
            frame.pts, frame.time_base = at_ns // _MILLISECOND, Fraction(1, 1000)
            container.mux(stream.encode(frame))

        total = round(recording.duration_s * recording.frame_rate)
        for _, capture, picture in tqdm(recording.pictures(rate), total=total or None, leave=False,
                                        unit='picture', disable=None, desc=path.name):
            try:
                pixels = picture.load()
            except ValueError:
                continue
            if newest_ns < 0:  # Colors are shared between two pixels each way.
                stream.height, stream.width = (side // 2 * 2 for side in pixels.shape[:2])
            if capture.at_ns - newest_ns >= _MILLISECOND:
                newest_ns = capture.at_ns
                put(newest_ns)
        end_ns = max((cue.end_ns for cue in shown), default=0)
        if end_ns - newest_ns >= _MILLISECOND:  # The last words come with the last picture.
            put(end_ns)
        container.mux(stream.encode())


def read_questions(path: Path) -> list[tuple[float, str]]:
    """
    Return seconds and text of the questions of a file: "SECONDS: QUESTION", one a line.

    Empty lines and those that begin with # are passed over.

    :raises ValueError: for any other line, with its number
    """
    found = []
    text = path.read_text(encoding='utf-8', errors='surrogateescape')
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith('#'):
            try:
                found.append(parse_question(line))
            except argparse.ArgumentTypeError as error:
                raise ValueError(f'{path}, line {number}: {error}') from None
    return found


def _jobs(source: Path, out: Path, kind: str | None) -> tuple[list[tuple[Path, Path]], str]:
    """Return what is to be written of what, and of which kind that is."""
    if not source.exists():
        raise ValueError(f'there is no {source}: name a bag, a video, or a folder')
    ending = out.suffix.lower().removeprefix('.')
    inside = [] if not source.is_dir() or is_bag(source) else sorted(source.iterdir())
    recordings = [each for each in inside if each.suffix.lower() in VIDEOS or is_bag(each)]
    if not recordings:
        if kind:
            raise ValueError(f'--as {kind} is for a folder of recordings, and {source} is one: the '
                             f'ending of {out} says what is written')
        if ending and ending not in ENDINGS:
            raise ValueError(f'{out} ends in .{ending}: write .vtt, .srt, .jsonl or .mp4, or no '
                             'ending for a bag')
        if out.exists():
            raise ValueError(f'{out} is there already: remove it, or name another')
        if not os.access(out.parent, os.W_OK):
            raise ValueError(f'cannot write {out}: the folder {out.parent} is not there, or may '
                             'not be written to')
        return [(source, out)], ending or 'bag'
    if any(each.suffix.lower() in PICTURES for each in inside):
        raise ValueError(f'{source} holds pictures and recordings ({recordings[0].name}, …): put '
                         'them into folders of their own')
    kind = kind or 'vtt'
    if ending in ENDINGS or out.is_file():
        raise ValueError(f'{source} is a folder of {len(recordings)} recordings, and {out} is no '
                         'folder: name one, and what to write with --as')
    if kind in ('mp4', 'bag') and out.resolve() == source.resolve():
        raise ValueError(f'{out} holds the recordings themselves: name another folder')
    names = Counter(each.stem for each in recordings)
    return [(each, out / ((each.stem if names[each.stem] == 1 else each.name)
                          + ('' if kind == 'bag' else f'.{kind}'))) for each in recordings], kind


def _keep_settings(folder: Path, settings: dict) -> None:
    """Go on in a folder only with the settings that it was begun with, lest files differ."""
    file, now = folder / SETTINGS_FILE, json.loads(json.dumps(settings))
    if file.exists():
        before = json.loads(file.read_text(encoding='utf-8'))
        for name in before | now:
            if before.get(name) != now.get(name):
                raise ValueError(f'{folder} was begun with other settings: {name} was '
                                 f'{before.get(name, "not set")}, and is {now.get(name, "not set")}'
                                 ' now; name another folder')
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(now, indent=1), encoding='utf-8')


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes `out` at the end; whatever happens, no half of it."""
    part = out.parent / f'.{out.name}.part'
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part / out.name
        os.replace(part / out.name, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _narrate(checkpoint: Checkpoint, config: SessionConfig, recording: Recorded, out: Path,
             kind: str, options: argparse.Namespace) -> None:
    """Narrate one recording, in a session of its own, and write what was said."""
    began_s, bag = time.monotonic(), recording.bag
    with _whole(out) as path:
        with Session(checkpoint, config) as session:
            info = session.info
            steps = math.ceil(recording.duration_s / info['seconds_per_step'])
            with tqdm(total=steps or None, unit='step', disable=None, leave=False,
                      desc=recording.path.name) as bar:
                account = Viewing(session, recording, options.questions).run(bar.update)
        if kind == 'bag':
            write_bag(path, account.told, storage=bag.storage if bag else STORAGES[0],
                      carried=bag if options.carry else None, latency=options.latency)
        elif kind == 'mp4':
            write_video(path, account, recording, info['frame_rate'])
        elif kind == 'jsonl':
            write_jsonl(path, account)
        else:
            write_subtitles(path, account)
    said = passages(account)
    answers = sum(bool(each.question) for each in said)
    print(f'{out}: {len(said) - answers} sentences, {answers} answers; '
          f'{recording.duration_s:.0f} s in {time.monotonic() - began_s:.0f} s', flush=True)


def _note(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m sww_ros.narrate', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recording', type=Path, metavar='IN', help='what is narrated')
    parser.add_argument('out', type=Path, metavar='OUT', help='where what is said is written')
    parser.add_argument('--topic', default='',
                        help='the image topic of a bag, raw or compressed (default: its only one)')
    parser.add_argument('--as', dest='kind', choices=[*ENDINGS, 'bag'],
                        help='what is written of each recording in a folder (default: vtt)')
    parser.add_argument('--carry', action='store_true',
                        help="write the bag's other topics too, the images among them")
    parser.add_argument('--no-latency', dest='latency', action='store_false',
                        help='leave out of a bag how long each step took, which alone differs from '
                        'run to run')
    parser.add_argument('--questions', type=Path, metavar='FILE',
                        help='what to ask, and when: lines of "SECONDS: QUESTION"')
    parser.add_argument('--model', default='builtin',
                        help="'builtin', a folder, or a hub id (default: %(default)s)")
    for name in SETTINGS:
        instead = dict(prompt=dict(type=checked(check_prompt)),
                       threads=dict(help='Threads of one computation on the CPU; 0: one.'),
                       schedule=dict(default='wait_k', help='How much may be said of a step, and '
                                     'when (default: %(default)s)')).get(name, {})
        add_option(parser, BY_NAME[name], **instead)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Narrate; return the exit code: 1 where something could not be narrated."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except (ValueError, OSError, ClipError) as error:
        _note(f'error: {error}')
        return 1
    except KeyboardInterrupt:
        _note(f'interrupted: give the same command again for what {options.out} lacks')
        return 130


def _run(options: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(options).items() if name in SETTINGS}
    # One thread does everything in one order: the same sums, so the same words in each run.
    config = SessionConfig(**given, overlap='fused')
    options.questions = read_questions(options.questions) if options.questions else []
    jobs, kind = _jobs(options.recording, options.out, options.kind)
    many = jobs[0][1] != options.out
    # Whatever is wrong with one recording is said before minutes go into a model.
    recording = None if many else Recorded(options.recording, options.topic)
    if recording:
        check_questions(options.questions, recording.duration_s)
    if options.carry and (kind != 'bag' or recording and not recording.bag):
        raise ValueError(f'--carry takes the topics of a bag along into a bag: {options.recording} '
                         f'and {options.out} are not both bags')
    _note(f'loading the model {options.model}')
    checkpoint = load(options.model, device=config.device, dtype=config.dtype,
                      allow_download=config.allow_download)
    settings = config.resolved(checkpoint)
    for words in (mismatch(checkpoint, settings), advice(checkpoint, settings.wait_k, None)):
        if words:
            _note(f'warning: {words}')
    for _, question in options.questions:
        checkpoint.check_tokens('question', question, MAX_QUESTION_TOKENS)
    if many:
        _keep_settings(options.out, dict(
            given, model=options.model, kind=kind, topic=options.topic, carry=options.carry,
            latency=options.latency, questions=options.questions))
    failed = 0
    for path, out in jobs:
        if out.exists():
            print(f'{out}: is there already')
            continue
        try:
            _narrate(checkpoint, config, recording or Recorded(path, options.topic), out, kind,
                     options)
        except (ValueError, OSError, ClipError) as error:
            if not many:
                raise
            _note(f'error: {error}')
            failed += 1
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
