"""What the demo can be told on its command line, and what it asks and says beforehand."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
import math
from pathlib import Path
import shlex
import sys

from sww_ros.shapes import questions

DEFAULT_SECONDS = 30.0
DEFAULT_SEED = 299
"""Two shapes from the start on, and every kind of event within 30 s."""

SECONDS = (1.0, 3600.0)
SEEDS = (0, 2 ** 31 - 1)


@dataclass(frozen=True)
class DemoOptions:
    """`video` empty: a scene of the shapes world. `questions` None: the demo picks its own."""

    video: str = ''
    questions: tuple[str, ...] | None = None
    seconds: float = DEFAULT_SECONDS
    seed: int = DEFAULT_SEED
    model: str = 'builtin'
    json: Path | None = None
    narrator: tuple[str, ...] = ()

    @property
    def is_builtin(self) -> bool:
        """Whether the model is the built-in one, which knows the shapes world alone."""
        return self.model == 'builtin'

    @property
    def is_show(self) -> bool:
        """Whether nothing but the built-in model's own world is shown, with its own questions."""
        return self.is_builtin and not self.video and self.questions is None


def parse(arguments: list[str] | None = None) -> DemoOptions:
    """Return the options; a mistake ends the process with words and exit code 2."""
    parser = argparse.ArgumentParser(
        prog='scripts/demo', description='Narrates a moving scene, or a video, in the terminal, '
        'and answers questions while it narrates.')
    parser.add_argument('--video', default='', metavar='FILE',
                        help='a video file, a folder of pictures, or a camera (/dev/video0)')
    parser.add_argument('--questions', type=_question, nargs='+', metavar='TEXT',
                        help='your questions, spread over the run')
    parser.add_argument('--seconds', type=_seconds, default=DEFAULT_SECONDS, metavar='N',
                        help='how much is watched at most [s] (default %(default)g)')
    parser.add_argument('--seed', type=_seed, default=DEFAULT_SEED,
                        help='which scene (default %(default)s)')
    parser.add_argument('--model', default='builtin', metavar='PATH',
                        help='a checkpoint: a folder, or the id of a hub (default: the built-in)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the summary to FILE')
    parser.add_argument('--narrator-command', type=shlex.split, default=[],
                        help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.json is not None and not given.json.absolute().parent.is_dir():
        parser.error(f'argument --json: there is no folder {given.json.absolute().parent}')
    return DemoOptions(
        video=given.video, seconds=given.seconds, seed=given.seed, model=given.model,
        questions=None if given.questions is None else tuple(given.questions), json=given.json,
        narrator=tuple(given.narrator_command))


def bounded(options: DemoOptions) -> DemoOptions:
    """
    Return the options with `seconds` no longer than the video.

    A video that cannot be read ends the process with words and exit code 1.
    """
    path = Path(options.video).expanduser()
    if not options.video or path.is_char_device() or options.video.isdigit():
        return options
    from sww_ros.sources.readers import open_reader
    try:
        duration_s = open_reader(options.video).duration_s
    except ValueError as error:
        print(f'demo: {error}', file=sys.stderr)
        raise SystemExit(1) from None
    return replace(options, seconds=min(options.seconds, duration_s or options.seconds))


def _question(text: str) -> str:
    from sww_ros.streaming.config import check_question
    try:
        return check_question(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def in_words(seconds: float) -> str:
    """Return a time to a tenth of a second, without a decimal that is 0."""
    return f'{seconds:.1f}'.removesuffix('.0') + ' s'


def _seconds(text: str) -> float:
    return _number(text, float, SECONDS, '{:g} to {:g} seconds')


def _seed(text: str) -> int:
    return _number(text, int, SEEDS, 'a whole number from {} to {}')


def _number(text: str, kind: type, limits: tuple, words: str) -> float | int:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    # Written so that what is not a number is refused too.
    if not limits[0] <= value <= limits[1]:
        raise argparse.ArgumentTypeError(f'must be {words.format(*limits)}, not {text!r}')
    return value


GENERIC_QUESTIONS = ('What do you see?', 'How many things are there?', 'What moved last?')
BUILTIN_QUESTIONS = ('How many shapes are there?', 'Which shape moved last?',
                     'Is there a red circle?')

KNOWS = ('the built-in model knows coloured shapes on plain ground and nothing else: of any other '
         'video it tells of shapes that are not there; give a model of your own with --model PATH')


def own_questions(options: DemoOptions) -> tuple[str, ...]:
    """Return what is asked of a video: the user's questions, or some that the model can read."""
    if options.questions is not None:
        return options.questions
    return BUILTIN_QUESTIONS if options.is_builtin else GENERIC_QUESTIONS


def advice(options: DemoOptions) -> list[str]:
    """Return what the user should know before the run, line by line."""
    if not options.is_builtin:
        return []
    unread = [text for text in options.questions or () if not questions.is_known(text)]
    return [KNOWS] * bool(options.video) + [_of_unread(unread)] * bool(unread)


def strange_picture(difference: str) -> str:
    """Return the warning for a picture that is unlike the built-in model's world, and in what."""
    return f'this picture is unlike its world: {difference}. What is said of it is made up'


def unread_note(options: DemoOptions, question: str) -> str:
    """Return the remark after the answer to a question that the model cannot read, or nothing."""
    return 'not taught to read this' if options.is_builtin and not questions.is_known(
        question) else ''


def _of_unread(texts: list[str]) -> str:
    quoted = ', '.join(f'"{text}"' for text in texts)
    return (f'the built-in model was not taught to read {quoted}: expect nonsense or nothing. It '
            f'reads: {" ".join(questions.EXAMPLES)}')
