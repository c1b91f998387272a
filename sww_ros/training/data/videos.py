"""Finds the videos that annotations name."""

from __future__ import annotations

import functools
from pathlib import Path

from sww_ros.training.data.errors import Rejected
from sww_ros.training.data.records import Record


class VideoRoot:
    """A folder of videos; a name that is not in it is looked for in its folders, one level down."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, record: Record, *keys: str) -> Path:
        """
        Return the path of the video that a record names under one of these keys.

        :raises Rejected: where it names none, or there is no such file
        """
        name = Path(record.text(*keys)).expanduser()
        path = self._root / name
        if not path.exists():
            path = self._below.get(name.name, path) if len(name.parts) == 1 else path
        if not path.exists():
            raise Rejected('without video', f'{record.source}: there is no video {path}; paths are '
                                            'relative to the annotations, or to --video-root')
        return path

    @functools.cached_property
    def _below(self) -> dict[str, Path]:
        # FunQA unpacks into train_humor, train_creative and train_magic, and names bare files.
        return {path.name: path for path in sorted(self._root.glob('*/*'), reverse=True)}
