"""`python -m sww_ros.training`: trains a Qwen2.5-VL checkpoint to speak while watching."""

from __future__ import annotations

import sys

from sww_ros.training.options import parse


def main(arguments: list[str] | None = None) -> int:
    """Train; return 2 for what cannot be used, said in words."""
    try:
        recipe = parse(arguments)
        # Heavy imports only once the command line is known to make sense.
        from sww_ros.training.run import train
        train(recipe)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\nstopped; the same command goes on from the last state', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
