"""Runs the demo: `python -m sww_ros.demo`, or scripts/demo."""

# ruff: noqa: E402, I001 - Ctrl-C must be quiet from the very first import on.
import os
import signal

INTERRUPTED = 130
if __name__ == '__main__':
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))

import argparse
from dataclasses import dataclass, replace
from importlib.util import find_spec
import json
from pathlib import Path
import shlex
import sys
import time

from sww_ros.settings import Setting, add_option, checked, setting, settings_of
from sww_ros.shapes.grammar import EXAMPLE_QUESTIONS, is_known_question
from sww_ros.streaming.config import check_question

PORT = Setting('page', 8080, 'The port of the live page.', low=1, high=65535)


@dataclass(frozen=True)
class DemoOptions:
    """
    What the demo is asked for.

    `video` empty: a scene of the shapes world. `questions` None: the demo picks its own. `page`:
    the port of a live page, 0 for none.
    """

    video: str = setting('', 'a video file, a folder of pictures, or a camera (/dev/video0)')
    seconds: float = setting(30.0, 'how much is watched at most [s]', low=1.0, high=3600.0)
    # Two shapes from the start on, and every kind of event within 30 s.
    seed: int = setting(299, 'which scene', high=2 ** 31 - 1)
    model: str = setting('builtin', 'a checkpoint: a folder, or the id of a hub')
    questions: tuple[str, ...] | None = None
    json: Path | None = None
    rerun: Path | None = None
    page: int = 0
    narrator: tuple[str, ...] = ()

    @property
    def is_builtin(self) -> bool:
        """Whether the model is the built-in one, which knows the shapes world alone."""
        return self.model == 'builtin'

    @property
    def is_show(self) -> bool:
        """Whether nothing but the built-in model's own world is shown, with its own questions."""
        return self.is_builtin and not self.video and self.questions is None

    @property
    def video_questions(self) -> tuple[str, ...]:
        """What is asked of a video: the user's questions, or some that the model can read."""
        if self.questions is not None:
            return self.questions
        return BUILTIN_QUESTIONS if self.is_builtin else GENERIC_QUESTIONS

    def can_read(self, question: str) -> bool:
        """Whether the model was taught to read a question, as far as that is known."""
        return not self.is_builtin or is_known_question(question)


def parse(arguments: list[str] | None = None) -> DemoOptions:
    """Return the options; a mistake ends the process with words and exit code 2."""
    parser = argparse.ArgumentParser(
        prog='scripts/demo', argument_default=argparse.SUPPRESS,
        description='Narrates a moving scene, or a video, in the terminal, and answers questions '
                    'while it narrates.')
    for declared in settings_of(DemoOptions):
        add_option(parser, declared, type=checked(declared.parse))
    parser.add_argument('--questions', type=checked(check_question), nargs='+', metavar='TEXT',
                        help='your questions, spread over the run')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the summary to FILE')
    parser.add_argument('--rerun', type=Path, metavar='FILE',
                        help="write frames, words and lanes over time to FILE, for Rerun's viewer")
    parser.add_argument('--page', type=checked(PORT.parse), nargs='?', const=PORT.default,
                        metavar='PORT', help='show it as a live page too, at '
                        f'http://localhost:PORT ({PORT.default})')
    parser.add_argument('--narrator-command', dest='narrator', type=shlex.split,
                        help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    for name in {'json', 'rerun'} & vars(given).keys():
        if not (folder := getattr(given, name).absolute().parent).is_dir():
            parser.error(f'argument --{name}: there is no folder {folder}')
    if 'rerun' in given and find_spec('rerun') is None:
        parser.error('argument --rerun: rerun-sdk is not installed: pip install -r '
                     'requirements/rerun.txt (Python 3.11 or newer)')
    return DemoOptions(**{name: tuple(value) if isinstance(value, list) else value
                          for name, value in vars(given).items()})


def bounded(options: DemoOptions) -> DemoOptions:
    """
    Return the options with `seconds` no longer than the video.

    A video that cannot be read ends the process with words and exit code 1.
    """
    path = Path(options.video).expanduser()
    if not options.video or path.is_char_device() or options.video.isdigit():
        return options
    from sww_ros.sources import open_reader
    try:
        duration_s = open_reader(options.video).duration_s
    except ValueError as error:
        print(f'demo: {error}', file=sys.stderr)
        raise SystemExit(1) from None
    return replace(options, seconds=min(options.seconds, duration_s or options.seconds))


def in_words(seconds: float) -> str:
    """Return a time to a tenth of a second, without a decimal that is 0."""
    return f'{seconds:.1f}'.removesuffix('.0') + ' s'


GENERIC_QUESTIONS = ('What do you see?', 'How many things are there?', 'What moved last?')
BUILTIN_QUESTIONS = ('How many shapes are there?', 'Which shape moved last?',
                     'Is there a red circle?')

KNOWS = ('the built-in model knows coloured shapes on plain ground and nothing else: of any other '
         'video it tells of shapes that are not there; give a model of your own with --model PATH')


def advice(options: DemoOptions) -> list[str]:
    """Return what the user should know before the run, line by line."""
    if not options.is_builtin:
        return []
    unread = [text for text in options.questions or () if not options.can_read(text)]
    quoted = ', '.join(f'"{text}"' for text in unread)
    return [KNOWS] * bool(options.video) + [
        f'the built-in model was not taught to read {quoted}: expect nonsense or nothing. It '
        f'reads: {" ".join(EXAMPLE_QUESTIONS)}'] * bool(unread)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return the exit code: 0, 1 for a failure, 130 for Ctrl-C."""
    begun_s = time.monotonic() - _age_s()
    options = bounded(parse(arguments))
    sys.stdout.reconfigure(errors='replace')
    from sww_ros.demo.processes import ChildDied, claim_domain
    from sww_ros.terminal import make_display
    claim_domain()
    from sww_ros.demo.director import DemoError, Director
    from sww_ros.demo.record import report, summarize

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    display = None
    try:
        for number in signals:
            signal.signal(number, _interrupt)
        display = make_display('auto', sys.stdout, ordered=True)
        director = Director(options, display, begun_s)
        display.note(f'{director.record.source}, {in_words(options.seconds)}, model '
                     f'{options.model}: starting camera and narrator')
        for words in advice(options):
            display.note(words)
        try:
            record = director.play()
        finally:
            display.close()
        summary = summarize(record)
        report(summary, sys.stdout)
        _write(options, summary | dict(full_load=None))
        if options.rerun is not None:
            from sww_ros.demo.record import Recording
            from sww_ros.demo.rerun import frames_of, write
            run = Recording(summary)
            write(options.rerun, run, frames_of(run, options.video))
            print(f'\n# the run is in {options.rerun}: rerun {shlex.quote(str(options.rerun))}')
        _write(options, summary | dict(full_load=_measured(options)))
    except KeyboardInterrupt as interrupt:
        return interrupt.args[0] if interrupt.args else INTERRUPTED
    except (ChildDied, DemoError) as error:
        print(f'demo: {error}', file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _write(options: DemoOptions, summary: dict) -> None:
    if options.json is not None:
        options.json.write_text(json.dumps(summary, indent=2) + '\n')


def _measured(options: DemoOptions) -> dict | None:
    """A camera leaves the built-in model idle most of the time: show what it can do."""
    if not options.is_show:
        return None
    from sww_ros.demo.record import measure_full_load, report_full_load
    print('\n# measuring both sides at full load, with frames as fast as they can be perceived: '
          'a few seconds (Ctrl-C ends it)', flush=True)
    load = measure_full_load(options.model)
    report_full_load(load, sys.stdout)
    return load


def _interrupt(number: int, _: object) -> None:
    """End the run once; a second signal must not disturb the cleaning up."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt(128 + number)


def _age_s() -> float:
    """Return for how long this process has been there, its set-up by scripts/run included."""
    try:
        with open('/proc/self/stat') as file:
            started = int(file.read().rpartition(')')[2].split()[19])
        with open('/proc/uptime') as file:
            return float(file.read().split()[0]) - started / os.sysconf('SC_CLK_TCK')
    except OSError:
        return 0.0


if __name__ == '__main__':
    sys.exit(main())
