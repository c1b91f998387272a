"""The files of a checkpoint, in its folder or the local cache of the hub, read with suspicion."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

JSON_FILES = ('config.json', 'generation_config.json', 'tokenizer_config.json', 'tokenizer.json',
              'video_preprocessor_config.json', 'preprocessor_config.json')
_WEIGHTS, _INDEX = 'model.safetensors', 'model.safetensors.index.json'


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the reason and what to do."""


class Files:
    """
    The files of one checkpoint; JSON must be an object.

    :param source: a folder, or a hub id
    :param local: whether only what is on this machine may be used
    """

    def __init__(self, source: str, local: bool = True) -> None:
        self._source, self._local = source, local

    def find(self, name: str) -> Path | None:
        """Return the path of a file, None where there is none."""
        found = cached_file(self._source, name, local_files_only=self._local,
                            _raise_exceptions_for_missing_entries=False,
                            _raise_exceptions_for_connection_errors=False)
        return Path(found) if found else None

    def json(self, name: str) -> dict:
        """
        Return the content of a JSON file, {} where there is none.

        :raises CheckpointError: for one that holds no object
        """
        file = self.find(name)
        if file is None:
            return {}
        try:
            content = json.loads(file.read_text(encoding='utf-8'))
        except (ValueError, OSError, RecursionError) as error:
            raise CheckpointError(f'cannot read {name}: {error}') from None
        if not isinstance(content, dict):
            raise CheckpointError(f'{name} holds a {type(content).__name__}, not an object with '
                                  'names and values')
        return content

    def weights(self) -> dict[str, str]:
        """
        Return the type, 'F32' or the like, of every tensor in the safetensors, by name.

        Only the headers are read; {} where there are no such files.

        :raises CheckpointError: for a file that is broken or missing
        """
        return {name: kind for file in self._weight_files() for name, kind in _header(file)}

    def _weight_files(self) -> list[Path]:
        if (whole := self.find(_WEIGHTS)) is not None:
            return [whole]
        named = self.json(_INDEX).get('weight_map', {})
        if not isinstance(named, dict) or not all(isinstance(n, str) for n in named.values()):
            raise CheckpointError(f'{_INDEX} has a weight_map that names no files')
        found = {name: self.find(name) for name in sorted(set(named.values()))}
        if missing := [name for name, file in found.items() if file is None]:
            raise CheckpointError(f'{missing[0]} is missing, which {_INDEX} names: save or '
                                  'download it again, whole')
        return [file for file in found.values() if file is not None]


def told(error: Exception) -> str:
    """Return an error in words: its own where it has some, else with its kind."""
    return str(error) if isinstance(error, (OSError, ValueError)) and str(error) else (
        f'{type(error).__name__}: {error}')


def _header(file: Path) -> list[tuple[str, str]]:
    try:
        with safe_open(file, 'pt') as content:
            return [(name, content.get_slice(name).get_dtype()) for name in content.keys()]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f'{file.name} is broken: {error}; save or download it again, '
                              'whole') from None
