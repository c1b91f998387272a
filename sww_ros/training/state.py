"""The state of a training that may be stopped: weights, optimizer, how far it has come."""

from __future__ import annotations

from collections.abc import Sequence
import hashlib
import json
from pathlib import Path
import shutil
from types import SimpleNamespace

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch

from sww_ros.training.data.samples import Sample
from sww_ros.training.recipe import Recipe

_PATTERN = 'state-*[0-9]'


def latest(out: Path) -> Path | None:
    """Return the newest whole state in a folder, if there is one."""
    return max(out.glob(_PATTERN), default=None, key=lambda path: path.name)


def identity(recipe: Recipe, samples: Sequence[Sample]) -> dict:
    """
    Return what a resumed training must share with the one that was stopped, as plain data.

    Samples count by what they say and in their order, files of annotations by nothing: they may
    have moved, and so may the folder of the videos.
    """
    told = [[sample.video.name, sample.topic, sample.prompt, sample.answer, sample.start_s,
             sample.end_s] for sample in samples]
    return dict(recipe.identity(), samples=hashlib.sha256(json.dumps(told).encode()).hexdigest())


def save_state(out: Path, about: dict, update: int, weights: dict[str, torch.Tensor],
               optimizer: torch.optim.Optimizer) -> None:
    """
    Write the state after `update` updates, then remove older ones.

    What is drawn at random depends on the seed and the update alone, and so does the learning
    rate: neither has a state.

    :param about: the training's `identity`
    :raises OSError: where it cannot be written; older states are kept
    """
    folder = out / f'state-{update:08d}'
    partial = folder.with_suffix('.partial')
    clear(partial)
    try:
        partial.mkdir(parents=True)
        save_file({name: weight.detach().contiguous() for name, weight in weights.items()},
                  partial / 'weights.safetensors')
        _save_moments(optimizer, partial / 'optimizer.pt')
        (partial / 'about.json').write_text(
            json.dumps(dict(update=update, recipe=about), indent=2) + '\n')
    except (OSError, SafetensorError, RuntimeError) as error:
        # On a full disk, what there is of it would be in the way of everything else.
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f'cannot write the state {folder}: {error}') from error
    clear(folder)
    # A state is whole once it has its name.
    partial.rename(folder)
    for path in out.glob(_PATTERN):
        if path != folder:
            clear(path)


def _save_moments(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """
    Write the optimizer's state.

    :raises OSError: with the system's own reason, for which torch says "unexpected pos"
    """
    failed: list[OSError] = []
    with path.open('wb') as file:
        write = file.write

        def noted(data: bytes) -> int:
            try:
                return write(data)
            except OSError as error:
                failed.append(error)
                raise

        file = SimpleNamespace(write=noted, flush=file.flush)
        try:
            torch.save(optimizer.state_dict(), file)
        except RuntimeError as error:
            raise (failed or [error])[0] from error


def load_state(folder: Path, wanted: dict, weights: dict[str, torch.Tensor],
               optimizer: torch.optim.Optimizer) -> int:
    """
    Put a state into weights and optimizer, and return how many updates it has had.

    :param wanted: the `identity` of the training that goes on
    :raises ValueError: for a state of another recipe, or one that cannot be read
    """
    try:
        about = json.loads((folder / 'about.json').read_text())
        saved = load_file(folder / 'weights.safetensors')
        moments = torch.load(folder / 'optimizer.pt', map_location='cpu', weights_only=True)
    except Exception as error:  # noqa: BLE001 - each file has errors of its own kind
        raise ValueError(f'cannot read the state {folder}: {error}; remove it, or start anew '
                         'with --no-resume') from error
    for name, value in wanted.items():
        was = about['recipe'].get(name)
        if was != value:
            told = (f'with {name} {was!r}, not {value!r}' if name != 'samples' else
                    'on other samples (the annotations have changed, or their order)')
            raise ValueError(f'{folder.parent} holds a training {told}: give another --out, '
                             'or start anew with --no-resume')
    if saved.keys() != weights.keys():
        raise ValueError(f'the state {folder} is of another model: give another --out, or start '
                         'anew with --no-resume')
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(saved[name])
    optimizer.load_state_dict(moments)
    return int(about['update'])


def clear(path: Path) -> None:
    """Remove a state, or what is left of one."""
    if path.exists():
        shutil.rmtree(path)


def clear_all(out: Path) -> None:
    """Remove all states of a folder."""
    for path in out.glob('state-*'):
        clear(path)
