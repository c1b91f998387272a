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
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
import json
import os
from pathlib import Path
import sys

from tqdm import tqdm

from sww_ros.__main__ import OPTIONS, check_questions, parse_question
from sww_ros.bags import is_bag
from sww_ros.fleet.collection import Lost, work_off
from sww_ros.library import ClipError
from sww_ros.recordings import ENDINGS, Captioner, Captions, Narrated
from sww_ros.recordings.viewing import Recorded
from sww_ros.settings import add_option, checked
from sww_ros.sources import PICTURES
from sww_ros.streaming.config import BY_NAME, SessionConfig, check_prompt

if __name__ == 'sww_ros.narrate':
    raise ImportError('this is a command, python -m sww_ros.narrate; imported, it would take the '
                      'place of the function sww_ros.narrate')

VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ts', '.webm')
SETTINGS = (*OPTIONS, 'frame_rate', 'recall_steps', 'max_answer_tokens', 'threads')
"""The settings of a session that the command line gives."""
SETTINGS_FILE = 'narrate.json'
"""In a folder of what was written: with which settings."""


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
    parser.add_argument('--ray', action='store_true',
                        help='have the recordings of a folder narrated side by side, on the Ray '
                        'cluster that is running, or on the cores of this machine')
    parser.add_argument('--model', default='builtin',
                        help="'builtin', a folder, or a hub id (default: %(default)s)")
    instead: dict[str, dict] = dict(
        prompt=dict(type=checked(check_prompt)),
        threads=dict(help='Threads of one computation on the CPU; 0: one.'),
        schedule=dict(default='wait_k', help='How much may be said of a step, and when '
                                             '(default: %(default)s)'))
    for name in SETTINGS:
        add_option(parser, BY_NAME[name], **instead.get(name, {}))
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
    if options.ray and not many:
        raise ValueError(f'--ray is for a folder of recordings, and {options.recording} is one')
    wanted = Captions(kind, options.topic, options.carry, options.latency,
                      tuple(options.questions))
    begun = dict(given, model=options.model, kind=kind, topic=options.topic, carry=options.carry,
                 latency=options.latency, questions=options.questions)
    _note(f'loading the model {options.model}')
    keep = partial(_keep_settings, options.out, begun)
    if options.ray:
        return _narrate_all(jobs, partial(
            work_off, partial(Captioner, options.model, config, wanted), ready=keep,
            cpus=max(1, config.threads), gpu=config.device != 'cpu'))
    captioner = Captioner(options.model, config, wanted)
    if recording:
        for words in captioner.notes:
            _note(words)
        print(captioner.narrate(recording, options.out, _note), flush=True)
        return 0
    keep()
    return _narrate_all(jobs, lambda todo: ((job, captioner(job)) for job in todo))


def _narrate_all(jobs: list[tuple[Path, Path]], narrated: Callable[
        [list[tuple[Path, Path]]], Iterable[tuple[tuple[Path, Path], Narrated | Lost]]]) -> int:
    """Have those recordings narrated that are not yet; say in the end which could not be."""
    todo = [(path, out) for path, out in jobs if not out.exists()]
    for out in sorted({out for _, out in jobs} - {out for _, out in todo}):
        print(f'{out}: is there already')
    told, failed = set[str](), dict[Path, str]()
    with tqdm(total=len(todo), unit='recording', disable=None) as bar:
        for (path, _), found in narrated(todo):
            if isinstance(found, Lost):
                found = Narrated(failed=found.reason)
            for words in found.notes:
                if words not in told:
                    _note(words)
                    told.add(words)
            if found.failed:
                failed[path] = found.failed
                bar.set_postfix(failed=len(failed))
            else:
                tqdm.write(found.written, file=sys.stdout)
                sys.stdout.flush()
            bar.update()
    if failed:
        _note(f'error: {len(failed)} of {len(todo)} recordings could not be narrated:')
    for path, reason in sorted(failed.items()):
        _note(f'  {path}: {reason}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
