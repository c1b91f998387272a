"""
Evaluates a checkpoint on captioned clips, through the live engine.

`python -m sww_ros.evaluation --model PATH --data FILE... --mode offline wait_k --json OUT.json`

Texts are kept beside the JSON, clip by clip: the same command goes on with a run that was killed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
import hashlib
import io
import json
from pathlib import Path
import sys
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from sww_ros.evaluation.clips import ClipLog, read_clips
from sww_ros.evaluation.fluency import JudgeError, add_judge_options, judge_from
from sww_ros.evaluation.metrics import Bleurt
from sww_ros.evaluation.run import CHOSEN, MODES, Options, Performer, evaluate, run_settings
from sww_ros.fleet.collection import work_off
from sww_ros.models.loading import BUILTIN, builtin_path, load
from sww_ros.settings import add_option
from sww_ros.streaming.config import BY_NAME, check_prompt
from sww_ros.training.annotations import FORMS, PAPER, Report, check_there

_DEFAULTS = Options()


def main(arguments: list[str] | None = None) -> int:
    """Evaluate; return 0, 1 if a mode has no clip to score, 2 if a setting cannot be used."""
    given = _parser().parse_args(arguments)
    try:
        results = _evaluate(given)
        if given.json:
            _write(given.json, results)
    except (ValueError, OSError, JudgeError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = 'the same command goes on from here' if given.json else 'nothing was kept'
        print(f'stopped: {kept}', file=sys.stderr)
        return 130
    print_tables(results, sys.stdout)
    return 0 if all(mode['scored'] for mode in results['modes'].values()) else 1


def _evaluate(given: argparse.Namespace) -> dict:
    judge = judge_from(given)
    # What is wrong with it is said before a large checkpoint is loaded.
    options = Options(
        tuple(given.mode),
        replace(_DEFAULTS.session, **{name: getattr(given, name) for name in CHOSEN}),
        given.max_pixels, given.live, given.resamples, given.bootstrap_seed)
    if given.ray and given.live:
        raise ValueError('--live measures how late one engine is, and with --ray others would '
                         'compute beside it: give one of them')
    check_there(given.data)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = load(given.model, device=given.device, dtype=given.dtype,
                      allow_download=given.allow_download, quantize=given.quantize)
    report = Report()
    clips = read_clips(given.data, prompt=check_prompt(given.prompt or checkpoint.defaults.prompt),
                       tokenizer=checkpoint.tokenizer if given.paper_filter else None,
                       form=given.form, video_root=given.video_root,
                       localization=given.localization, report=report)
    print(report, file=sys.stderr)
    clips = clips[:given.max_clips or None]
    if not clips:
        raise ValueError('there is no clip to evaluate on')
    options = options.resolved(checkpoint)
    settings = run_settings(checkpoint, clips, options)
    log = ClipLog(given.json and _log_path(given.json),
                  dict(settings, model_files=_files(given.model)))
    if len(log):
        print(f'{len(log)} results are in {log.path} already', file=sys.stderr)
    bleurt = given.bleurt and Bleurt(given.bleurt, device=given.device,
                                     allow_download=given.allow_download)
    workers = partial(
        work_off, partial(_performer, given.model, options, device=given.device, dtype=given.dtype,
                          allow_download=given.allow_download, quantize=given.quantize),
        cpus=max(1, given.threads), gpu=given.device != 'cpu') if given.ray else None
    results = evaluate(checkpoint, clips, options, log=log, bleurt=bleurt, judge=judge,
                       workers=workers)
    results['settings'].update(data=[str(path) for path in given.data], bleurt=given.bleurt)
    results['left_out'] = dict(report.left_out)
    return results


def _performer(model: str, options: Options, **loading: Any) -> Performer:
    """Make one in a process of its own."""
    return Performer(load(model, **loading), options)


def _log_path(path: Path) -> Path:
    return path.with_name(f'{path.stem}.clips.jsonl')


def _write(path: Path, results: dict) -> None:
    part = path.with_name(path.name + '.part')
    part.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    part.replace(path)


def _files(model: str) -> str:
    """A digest that changes when the files of a folder do, so that no run mixes two trainings."""
    folder = builtin_path() if model == BUILTIN else Path(model).expanduser()
    found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns)
             for path in sorted([*folder.glob('*.json'), *folder.glob('*.safetensors')])]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m sww_ros.evaluation',
                                     description=__doc__.strip().splitlines()[0])
    parser.add_argument('--model', default=BUILTIN,
                        help="'builtin', a folder, or a hub id (default: %(default)s)")
    parser.add_argument('--data', type=Path, nargs='+', required=True, metavar='FILE',
                        help='annotations: captions (PE-Video), questions (FunQA), or bags')
    parser.add_argument('--mode', nargs='+', choices=MODES, default=list(_DEFAULTS.modes),
                        help='schedules to evaluate (default: wait_k)')
    parser.add_argument('--json', type=Path, metavar='FILE',
                        help='results; FILE.clips.jsonl beside it keeps the texts')
    clips = parser.add_argument_group('clips')
    clips.add_argument('--form', choices=FORMS, default='',
                       help='form of the annotations (default: guessed for each FILE)')
    clips.add_argument('--prompt', default='', help='the standing question of captioned clips '
                       "(default: the checkpoint's)")
    clips.add_argument('--video-root', type=Path, metavar='FOLDER',
                       help='what relative paths start from (default: the folder of each FILE)')
    clips.add_argument('--max-clips', type=_count, default=0, help='only the first so many')
    clips.add_argument('--paper-filter', action='store_true',
                       help='captions: {:g} to {:g} s and {:g} to {:g} tokens a second only'.format(
                           *PAPER.seconds, *PAPER.tokens_per_second))
    clips.add_argument('--localization', action='store_true',
                       help="keep FunQA's questions that ask for times")
    _add(clips, 'max_steps', help="longer clips are skipped (default: the checkpoint's)")
    clips.add_argument('--max-pixels', type=int, default=0,
                       help='larger frames are scaled down as they are decoded (default: '
                       'those of 16 times what is perceived)')
    speech = parser.add_argument_group('speech')
    for name in ('position_encoding', 'position_gap', 'wait_k'):
        _add(speech, name)
    _add(speech, 'schedule_seed', help='for random_wait_k; clip n draws with the seed + n, from '
         "half of its caption's tokens per step up to all of them")
    _add(speech, 'repetition_penalty',
         help="1 is none, 1.15 the paper's (default: the checkpoint's)")
    for name in ('temperature', 'top_k', 'top_p', 'sampling_seed'):
        _add(speech, name)
    _add(speech, 'max_rest_tokens', help="tokens after a clip's end (default: %(default)s)")
    speech.add_argument('--live', action='store_true',
                        help='feed frames in real time instead of step by step')
    scores = parser.add_argument_group('scores')
    scores.add_argument('--bleurt', metavar='CHECKPOINT', help='also BLEURT, with this checkpoint')
    scores.add_argument('--resamples', type=int, default=_DEFAULTS.resamples,
                        help='for 95 %% intervals; 0: none (default: %(default)s)')
    scores.add_argument('--bootstrap-seed', type=int, default=0)
    add_judge_options(parser)
    machine = parser.add_argument_group('machine')
    machine.add_argument('--ray', action='store_true',
                         help='have clips played side by side, on the Ray cluster that is running, '
                         'or on the cores of this machine')
    for name in ('device', 'dtype', 'quantize', 'allow_download'):
        _add(machine, name)
    _add(machine, 'threads', help='of each of the two sides (default: %(default)s)')
    return parser


def _add(group: argparse._ArgumentGroup, name: str, **instead: str) -> None:
    """Add the option of a session's setting, with the default of an evaluation."""
    add_option(group, BY_NAME[name], default=getattr(_DEFAULTS.session, name), **instead)


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f'{text!r} is not a number from 1')
    return int(text)


_LATENESS = {'first_step': 'first token, step', 'first_s': 'first token, s',
             'before_end': 'before the end', 'tail_s': 'goes on for, s',
             'live_tail_s': 'measured, s', 'tokens': 'tokens', 'silent': 'silent clips'}
_WIDTH = 120
"""In a pipe; in a terminal a table is as wide as that is."""


def print_tables(results: dict, stream: TextIO) -> None:
    """Print what `run.evaluate` returned."""
    if stream.isatty():
        _print(results, Console(file=stream, highlight=False))
        return
    # A pipe needs neither colors nor the blanks that fill a line.
    text = io.StringIO()
    _print(results, Console(file=text, highlight=False, width=_WIDTH))
    print('\n'.join(line.rstrip() for line in text.getvalue().splitlines()), file=stream)


def _print(results: dict, console: Console) -> None:
    modes, settings = results['modes'], results['settings']
    names = list(dict.fromkeys(name for found in modes.values() for name in found['metrics']))
    console.print(_table(
        f'{settings["model"]}: {settings["position_encoding"]} positions, '
        f'K = {settings["wait_k"]}, repetition penalty {settings["repetition_penalty"]:g}',
        ['clips', 'skipped', *names], {mode: [
            str(found['scored']), str(len(found['skipped'])),
            *(_figure(found['metrics'].get(name), found['intervals'].get(name)) for name in names)]
            for mode, found in modes.items()}))
    known = {name for found in modes.values() for name in found['lateness']}
    if names := [name for name in _LATENESS if name in known]:
        console.print(_table(
            'When it was spoken (means over clips)', [_LATENESS[name] for name in names],
            {mode: [_late(name, found['lateness'].get(name)) for name in names]
             for mode, found in modes.items()}))


def _table(title: str, columns: list[str], rows: dict[str, list[str]]) -> Table:
    table = Table('mode', title=title, title_justify='left', box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify='right')
    for mode, cells in rows.items():
        table.add_row(mode, *cells)
    return table


def _figure(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return '-'
    return f'{value:.2f}' + (f'\n{interval[0]:.1f} to {interval[1]:.1f}' if interval else '')


def _late(name: str, value: float | None) -> str:
    if value is None:
        return '-'
    if name == 'before_end':
        return f'{100 * value:.0f} %'
    return str(value) if name == 'silent' else f'{value:.1f}'


if __name__ == '__main__':
    sys.exit(main())
