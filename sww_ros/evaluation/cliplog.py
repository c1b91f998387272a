"""The results of clips on disk, a line each, so that a run that was killed goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path


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
