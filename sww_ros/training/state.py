"""The state of a training that may be stopped: weights, optimizer, how far it has come."""

from __future__ import annotations

import json
from pathlib import Path
import shutil

from safetensors.torch import load_file, save_file
import torch

from sww_ros.training.recipe import Recipe

_PATTERN = 'state-*[0-9]'


def latest(out: Path) -> Path | None:
    """Return the newest whole state in a folder, if there is one."""
    return max(out.glob(_PATTERN), default=None, key=lambda path: path.name)


def save_state(recipe: Recipe, update: int, weights: dict[str, torch.Tensor],
               optimizer: torch.optim.Optimizer) -> None:
    """
    Write the state after `update` updates, then remove older ones.

    What is drawn at random depends on the seed and the update alone, and so does the learning
    rate: neither has a state.
    """
    folder = recipe.out / f'state-{update:08d}'
    partial = folder.with_suffix('.partial')
    clear(partial)
    partial.mkdir(parents=True)
    save_file({name: weight.detach().contiguous() for name, weight in weights.items()},
              partial / 'weights.safetensors')
    torch.save(optimizer.state_dict(), partial / 'optimizer.pt')
    about = dict(update=update, recipe=recipe.identity())
    (partial / 'about.json').write_text(json.dumps(about, indent=2) + '\n')
    clear(folder)
    # A state is whole once it has its name.
    partial.rename(folder)
    for path in recipe.out.glob(_PATTERN):
        if path != folder:
            clear(path)


def load_state(folder: Path, recipe: Recipe, weights: dict[str, torch.Tensor],
               optimizer: torch.optim.Optimizer) -> int:
    """
    Put a state into weights and optimizer, and return how many updates it has had.

    :raises ValueError: for a state of another recipe, or one that cannot be read
    """
    try:
        about = json.loads((folder / 'about.json').read_text())
        saved = load_file(folder / 'weights.safetensors')
        moments = torch.load(folder / 'optimizer.pt', map_location='cpu', weights_only=True)
    except Exception as error:  # noqa: BLE001 - each file has errors of its own kind
        raise ValueError(f'cannot read the state {folder}: {error}; remove it, or start anew '
                         'with --no-resume') from error
    for name, value in recipe.identity().items():
        if about['recipe'].get(name) != value:
            raise ValueError(f'{folder.parent} holds a training with {name} '
                             f'{about["recipe"].get(name)!r}, not {value!r}: give another --out, '
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
