"""
Watches a video file without ROS and prints what is said of it.

`python -m sww_ros VIDEO --model PATH --ask "5: What colour is the square?"`
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
import math
import os
from pathlib import Path
import sys

import numpy as np
from tqdm import tqdm

from sww_ros.library import Asker, ClipError, play_steps
from sww_ros.settings import add_option, checked
from sww_ros.sources import PictureFolder, VideoFile, open_video
from sww_ros.streaming.config import BY_NAME, SessionConfig, check_prompt, check_question
from sww_ros.streaming.events import NARRATION, Event, QuestionState, Restarted, TextDelta
from sww_ros.streaming.session import Session

OPTIONS = ('allow_download', 'prompt', 'position_encoding', 'position_gap', 'schedule',
           'schedule_seed', 'wait_k', 'repetition_penalty', 'temperature', 'top_k', 'top_p',
           'sampling_seed', 'max_steps', 'capacity', 'memory', 'reserved_steps',
           'max_rest_tokens', 'device', 'dtype', 'quantize')
"""The settings of a session that the command line gives."""


class VideoWatch:
    """One video, step by step: each step waits for the words it is owed."""

    def __init__(self, session: Session, questions: list[tuple[float, str]]) -> None:
        self._session, self._asker = session, Asker(session, questions)
        self._answers: dict[str, str] = {}

    def run(self, video: VideoFile | PictureFolder) -> None:
        """
        Feed the whole video and print narration and answers.

        :raises ValueError: for a video that breaks off, or words that cannot be asked
        :raises ClipError: for trouble in the engine
        """
        info = self._session.info
        per_step, rate = info['frames_per_step'], info['frame_rate']
        steps = math.ceil(video.duration_s * rate / per_step)
        stamps_ns: list[int] = []
        now_s = 0.0

        def frames() -> Iterator[tuple[np.ndarray, int]]:
            for frame in video.frames():
                stamps_ns.append(frame.offset_ns)
                yield frame.load(), frame.offset_ns

        with tqdm(total=steps or None, unit='step', disable=None, leave=False) as bar:
            for step, events in enumerate(play_steps(self._session, frames(), lossless=False), 1):
                self._show(events)
                # Frames are read one ahead, but for the last.
                now_s = stamps_ns[min(step * per_step, len(stamps_ns)) - 1] / 1e9
                self._show(self._asker.due(now_s))
                bar.update()
            # What is left at the end was asked for between the last frame and the end.
            self._show(self._asker.due(max(video.duration_s, now_s + 1 / rate)))
        if self._asker.left:
            raise ValueError(f'{_late(self._asker.left[0])}: the video ends at {now_s:g} s')

    def _show(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, TextDelta) and event.stream_id == NARRATION:
                if event.sentence:
                    _say(f'{event.stamp_ns / 1e9:7.1f} s  {event.sentence}')
            elif isinstance(event, TextDelta):
                text = self._answers.get(event.stream_id, '') + event.delta
                self._answers[event.stream_id] = text
                if event.final:
                    _say(f'{event.stamp_ns / 1e9:7.1f} s  {self._asker.asked[event.stream_id]} '
                         f'→ {text.strip()}')
            elif isinstance(event, QuestionState) and event.state == 'rejected':
                _note(f'not answered: {event.reason}')
            elif isinstance(event, Restarted) and event.reason == 'capacity':
                _note(f'the video is longer than --max-steps {self._session.info["max_steps"]}: '
                      'what follows is watched as another video')


def _say(text: str) -> None:
    """Print above the progress bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def _note(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def parse_question(text: str) -> tuple[float, str]:
    """Return (seconds, question) of 'SECONDS: QUESTION'."""
    at, _, question = text.partition(':')
    try:
        at_s = float(at)
    except ValueError:
        at_s = math.nan
    if not 0 <= at_s < math.inf:
        raise argparse.ArgumentTypeError(
            f'{ascii(text[:80])} does not say when to ask: write it as "SECONDS: QUESTION"')
    return at_s, checked(check_question)(question)


def _late(question: tuple[float, str]) -> str:
    return f'cannot ask {question[1]!r} at {question[0]:g} s'


def check_questions(questions: list[tuple[float, str]], duration_s: float) -> None:
    for question in questions:
        # A length of 0 is one that the file does not tell.
        if duration_s and question[0] > duration_s:
            raise ValueError(f'{_late(question)}: the video ends at {duration_s:g} s')


def _check_trace(path: Path) -> None:
    """Check that a file can be written there, without writing it."""
    folder = path.parent
    if not folder.is_dir():
        missing = 'not a folder' if folder.exists() else 'not there: make it first'
        raise ValueError(f'cannot write the trace {path}: {folder} is {missing}')
    if path.is_dir():
        raise ValueError(f'cannot write the trace {path}: it is a folder, give a file')
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError(f'cannot write the trace {path}: permission denied')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m sww_ros', description=__doc__)
    parser.add_argument('video', type=Path, help='a video file or a folder of pictures')
    parser.add_argument('--model', default='builtin',
                        help="'builtin', a folder, or a hub id (default: %(default)s)")
    parser.add_argument('--ask', type=parse_question, action='append', default=[],
                        metavar='"SECONDS: QUESTION"', help='ask at a time; may be repeated')
    for name in OPTIONS:
        checks = {'type': checked(check_prompt)} if name == 'prompt' else {}
        add_option(parser, BY_NAME[name], **checks)
    parser.add_argument('--trace', type=Path,
                        help='write the run, to be checked by sww_ros.evaluation.replay')
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Watch one video; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _watch(options)
    except (ValueError, OSError, ClipError) as error:
        _note(f'error: {error}')
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _watch(options: argparse.Namespace) -> None:
    given = {name: value for name, value in vars(options).items() if name in OPTIONS}
    config = SessionConfig(**given, record_trace=options.trace is not None)
    # Whatever is wrong with the rest is said before minutes go into a model.
    if options.trace:
        _check_trace(options.trace)
    video = open_video(options.video)
    if isinstance(video, VideoFile):
        check_questions(options.ask, video.duration_s)
    _note(f'loading the model {options.model}')
    with Session.open(options.model, config) as session:
        info = session.info
        _note(f'a step of {info["seconds_per_step"]:g} s takes about {info["step_seconds"]:.2g} s '
              f'here, a token {info["token_seconds"]:.2g} s')
        for kind in ('mismatch', 'warning'):
            if info[kind]:
                _note(f'warning: {info[kind]}')
        video = open_video(options.video, info['frame_rate'])
        check_questions(options.ask, video.duration_s)
        VideoWatch(session, options.ask).run(video)
        if options.trace:
            session.trace().save(options.trace)
            print(f'the run is in {options.trace}')


if __name__ == '__main__':
    sys.exit(main())
