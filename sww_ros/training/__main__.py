"""`python -m sww_ros.training`: trains a checkpoint to speak while watching."""

from __future__ import annotations

import os
import sys

from sww_ros.training.recipe import Recipe, parse


def main(arguments: list[str] | None = None) -> int:
    """Train; return 2 for what cannot be used or written, said in words."""
    try:
        recipe = parse(arguments)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    try:
        # Heavy imports only once the command line is known to make sense.
        from sww_ros.training.trainer import train
        train(recipe)
    except OSError as error:
        reason = f'{error.filename}: {error.strerror}' if error.filename else error
        print(f'error: {reason}; {_kept(recipe)}', file=sys.stderr)
        return 2
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if os.environ.get('RANK', '0') == '0':
            print(f'\nstopped; {_kept(recipe)}', file=sys.stderr)
        return 130
    return 0


def _kept(recipe: Recipe) -> str:
    """In words, what the same command would go on with."""
    from sww_ros.training.model import latest
    state = latest(recipe.out)
    if state is None:
        return 'no state of the training is kept'
    again = 'the same command' if recipe.resume else 'the same command without --no-resume'
    return f'{state} is kept: {again} goes on from there'


if __name__ == '__main__':
    sys.exit(main())
