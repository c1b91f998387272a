"""The captioned clips that a checkpoint is evaluated on, and their results on disk."""

from __future__ import annotations

from collections.abc import Sequence
import json
import os
from pathlib import Path

from sww_ros.evaluation.metrics import words
from sww_ros.training.annotations import PAPER, Rejected, Report, read_annotations
from sww_ros.training.frames import Sample


def read_clips(paths: Sequence[Path], *, prompt: str, form: str = '', tokenizer=None,
               video_root: Path | None = None, localization: bool = False,
               report: Report | None = None) -> list[Sample]:
    """
    Read annotation files of any form; clips without words are left out.

    :param prompt: the standing question of captioned clips; a question about a clip is its own
    :param form: that of all files; '': each file's is guessed by its keys
    :param tokenizer: if given, PE-Video goes through the paper's filter of lengths
    :param video_root: what relative paths start from; None: the folder of each file
    :param localization: keep FunQA's tasks whose answer is a stretch of time
    :param report: takes what was kept, what not and why
    :raises ValueError: for a file that cannot be read, is of no known form, or has no usable clip
    """
    clips = read_annotations(paths, form=form, prompt=prompt, tokenizer=tokenizer,
                             limits=PAPER if tokenizer else None, video_root=video_root,
                             localization=localization, report=report)
    return [clip for clip in clips if _has_words(clip, report)]


def _has_words(clip: Sample, report: Report | None) -> bool:
    """Whether there is something to compare with; a reference without words fits no metric."""
    if words(clip.answer):
        return True
    if report:
        report.kept -= 1
        report.reject(Rejected('without words', f'{clip.source}: the reference {clip.answer!r} '
                                                'has no words'))
    return False


class ClipLog:
    """
    Results by schedule and clip, appended as they come; without a path, kept in memory.

    The first line of the file holds the settings of the run; only the same ones may add to it.
    """

    def __init__(self, path: Path | None, settings: dict) -> None:
        """
        Open the file and read what is in it, or begin it.

        :raises ValueError: for a file that cannot be written, is none of ours, or was begun with
            other settings; the message names them
        """
        self.path = path
        self._results: dict[tuple[str, int], dict] = {}
        if path is None:
            return
        # As JSON gives them back: a tuple is a list.
        settings = json.loads(json.dumps(settings))
        try:
            if path.exists() and path.stat().st_size:
                self._read(path, settings)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._append(settings)
        except OSError as error:
            raise ValueError(f'cannot keep the results in {path}: {error.strerror}') from None

    def __len__(self) -> int:
        return len(self._results)

    def get(self, mode: str, clip: int) -> dict | None:
        """The result of a clip, None where there is none yet."""
        return self._results.get((mode, clip))

    def add(self, mode: str, clip: int, result: dict) -> None:
        """Keep a result."""
        self._results[mode, clip] = result
        if self.path is not None:
            self._append(dict(mode=mode, clip=clip, result=result))

    def _append(self, line: dict) -> None:
        with self.path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(line) + '\n')

    def _read(self, path: Path, settings: dict) -> None:
        text = path.read_bytes()
        whole = text.rfind(b'\n') + 1
        if whole < len(text):
            # A line that was being written when the run was killed; that clip is played again.
            os.truncate(path, whole)
        try:
            first, *lines = map(json.loads, text[:whole].splitlines())
            results = {(line['mode'], line['clip']): line['result'] for line in lines}
            others = sorted(name for name in {*first, *settings}
                            if first.get(name) != settings.get(name))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f'{path} holds no results of an evaluation: remove it, or give '
                             'another --json') from None
        if others:
            differences = '; '.join(f'{name} was {first.get(name)!r}, is {settings.get(name)!r}'
                                    for name in others)
            raise ValueError(f'{path} was begun with other settings ({differences}): remove it '
                             'to begin anew, or give another --json')
        self._results = results
