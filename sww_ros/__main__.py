"""
Watches a video file without ROS and prints what is said of it.

`python -m sww_ros VIDEO --model PATH --ask "5: What colour is the square?"`
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
import sys

from sww_ros.lookahead import with_last
from sww_ros.nodes.readers import PictureFolder, VideoFile
from sww_ros.streaming.config import SessionConfig, check_prompt, check_question
from sww_ros.streaming.events import NARRATION, QuestionState, Restarted, TextDelta, Trouble
from sww_ros.streaming.positions import SCHEMES
from sww_ros.streaming.schedule import SCHEDULES
from sww_ros.streaming.session import Session

SETTLE_S = 600.0


class Watch:
    """One video, step by step: each step waits for the words it is owed."""

    def __init__(self, session: Session, questions: list[tuple[float, str]]) -> None:
        self._session, self._questions = session, sorted(questions)
        self._asked: dict[str, str] = {}
        self._answers: dict[str, str] = {}

    def run(self, video: VideoFile | PictureFolder) -> None:
        """
        Feed the whole video and print narration and answers.

        :raises ValueError: for a video that breaks off, or words that cannot be asked
        """
        per_step = self._session.info['frames_per_step']
        for index, (frame, last) in enumerate(with_last(video.frames())):
            self._session.feed(frame.load(), stamp_ns=frame.offset_ns, last=last)
            if last or index % per_step == per_step - 1:
                self._settle()
                self._ask(frame.offset_ns / 1e9)

    def _ask(self, now_s: float) -> None:
        while self._questions and self._questions[0][0] <= now_s:
            question = self._questions.pop(0)[1]
            self._asked[self._session.ask(question)] = question
            self._settle()

    def _settle(self) -> None:
        if not self._session.wait_idle(SETTLE_S):
            raise ValueError(f'the model did not come to rest within {SETTLE_S:.0f} s')
        for event in self._session.drain():
            if isinstance(event, TextDelta) and event.stream_id == NARRATION:
                if event.sentence:
                    print(f'{event.stamp_ns / 1e9:7.1f} s  {event.sentence}', flush=True)
            elif isinstance(event, TextDelta):
                said = self._answers.get(event.stream_id, '') + event.delta
                self._answers[event.stream_id] = said
                if event.final:
                    print(f'{event.stamp_ns / 1e9:7.1f} s  {self._asked[event.stream_id]} '
                          f'→ {said.strip()}', flush=True)
            elif isinstance(event, Trouble):
                raise ValueError(event.message)
            elif isinstance(event, QuestionState) and event.state == 'rejected':
                print(f'not answered: {event.reason}', file=sys.stderr)
            elif isinstance(event, Restarted) and event.reason == 'capacity':
                print(f'the video is longer than --max-steps {self._session.info["max_steps"]}: '
                      'what follows is watched as another video', file=sys.stderr)


def parse_question(text: str) -> tuple[float, str]:
    """Return (seconds, question) of 'SECONDS: QUESTION'."""
    at, _, question = text.partition(':')
    try:
        at_s = float(at)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{ascii(text)} does not say when to ask: write it as "SECONDS: QUESTION"') from None
    return at_s, checked(check_question)(question)


def checked(check: Callable[[str], str]) -> Callable[[str], str]:
    """Return the check of a text as one of a command line's argument."""
    def argument(text: str) -> str:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return argument


def main(arguments: list[str] | None = None) -> int:
    """Watch one video; return the exit code."""
    parser = argparse.ArgumentParser(prog='python -m sww_ros', description=__doc__)
    parser.add_argument('video', type=Path, help='a video file or a folder of pictures')
    parser.add_argument('--model', default='builtin',
                        help="'builtin', a folder, or a hub id (default: %(default)s)")
    parser.add_argument('--allow-download', action='store_true',
                        help='fetch a hub id that is not in the local cache')
    parser.add_argument('--prompt', type=checked(check_prompt), default=None,
                        help='the standing question (default: as the checkpoint says)')
    parser.add_argument('--ask', type=parse_question, action='append', default=[],
                        metavar='"SECONDS: QUESTION"', help='ask at a time; may be repeated')
    parser.add_argument('--position-encoding', choices=SCHEMES, default='',
                        help='how positions are given (default: as the checkpoint was trained)')
    parser.add_argument('--position-gap', type=int, default=0,
                        help='where text starts with gipe (default: as the checkpoint was trained)')
    parser.add_argument('--schedule', choices=SCHEDULES, default='live',
                        help='when narration may speak (default: %(default)s)')
    parser.add_argument('--schedule-seed', type=int, default=0,
                        help='what random_wait_k draws from (default: %(default)s)')
    parser.add_argument('--wait-k', type=int, default=0,
                        help='tokens a step (default: as the checkpoint was trained)')
    parser.add_argument('--max-steps', type=int, default=0,
                        help='steps that are remembered (default: as the checkpoint says)')
    parser.add_argument('--max-rest-tokens', type=int, default=SessionConfig.max_rest_tokens,
                        help='tokens that may follow the end of the video (default: %(default)s)')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', default='')
    parser.add_argument('--trace', type=Path,
                        help='write the run, to be checked by sww_ros.evaluation.replay')
    options = parser.parse_args(arguments)
    try:
        config = SessionConfig(
            prompt=options.prompt or '', device=options.device, dtype=options.dtype,
            position_encoding=options.position_encoding, position_gap=options.position_gap,
            schedule=options.schedule, schedule_seed=options.schedule_seed, wait_k=options.wait_k,
            max_steps=options.max_steps, max_rest_tokens=options.max_rest_tokens,
            allow_download=options.allow_download, record_trace=options.trace is not None)
        with Session.open(options.model, config) as session:
            if session.info['mismatch']:
                print(f'warning: {session.info["mismatch"]}', file=sys.stderr)
            rate = session.info['frame_rate']
            kind = PictureFolder if options.video.is_dir() else VideoFile
            Watch(session, options.ask).run(kind(options.video, rate))
            if options.trace:
                session.trace().save(options.trace)
                print(f'the run is in {options.trace}')
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
