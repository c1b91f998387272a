"""
The layout of a whole clip: positions of every row in every scheme, and who sees whom.

`python -m sww_ros.streaming.layout CASES.json` prints, for cases that give `prefix_tokens`,
`frames` (steps), `grid_h`, `grid_w`, `wait_k`, `assistant_prefix_start`, `answer_start` and
`length`, the same list with the positions of all five schemes and the training mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
import itertools
import json
from pathlib import Path
import sys

import numpy as np

from sww_ros.streaming.positions import TAIL_TOKENS, Scheme, make_scheme, text_positions
from sww_ros.streaming.visibility import ranges, wait_k_rows

KEYS = dict(offline='positions_origin', gdpe='positions_group', gipe='positions_gap',
            ospe='positions_overlap', interleaved='positions_interleaved')
"""The key of each scheme in a file of layouts."""


def wait_k_counts(tokens: int, wait_k: int, steps: int) -> list[int]:
    """How many of `tokens` answer tokens each step emits: K, and the last one all the rest."""
    counts = [min(wait_k, max(0, tokens - wait_k * step)) for step in range(steps)]
    counts[-1] += tokens - sum(counts)
    return counts


@dataclass(frozen=True)
class Layout:
    """
    Where the rows `prefix, V_1..V_n, tail, assistant prefix, answer` sit.

    `positions` (3, n); `order` (n,) is when each row comes in a stream that runs through
    V_1 A_1 V_2 A_2 ..., the order in which interleaved rows are causal.
    """

    positions: np.ndarray
    order: np.ndarray


def lay_out(scheme: Scheme, prefix_tokens: int, grids: Sequence[tuple[int, int]],
            counts: Sequence[int], head_tokens: int, tail: bool = True) -> Layout:
    """
    Lay out one clip whose step i has grid `grids[i]` and emits `counts[i]` answer tokens.

    The assistant prefix belongs to the first step's text, which counts in that step's k; the
    tail follows the last step.
    """
    totals = [0, *itertools.accumulate(counts)]
    timeline = scheme.timeline(prefix_tokens, granted=lambda step: totals[step],
                               head_tokens=head_tokens, reserved_steps=len(counts))
    track, lengths = timeline.narration(), [head_tokens + counts[0], *counts[1:]]
    visual, text = [text_positions(0, prefix_tokens)], []
    for index, grid in enumerate(grids):
        visual.append(timeline.step(*grid))
        if tail and index == len(grids) - 1:
            visual.append(timeline.tail())
        if scheme.serial:
            text.append(track.place(lengths[index], index + 1))
    if not scheme.serial:
        # Stock text goes after the tail, wherever that is.
        text = [track.place(length, index) for index, length in enumerate(lengths, 1)]
    came = [(height * width, length) for (height, width), length in zip(grids, lengths)]
    if tail:
        came[-1] = came[-1][0] + TAIL_TOKENS, came[-1][1]
    return Layout(np.concatenate([*visual, *text], axis=1), _running_order(prefix_tokens, came))


def _running_order(prefix: int, came: list[tuple[int, int]]) -> np.ndarray:
    """Ranks of the rows `prefix, visual, text` when each step's text follows its video."""
    seen, said, at = [np.arange(prefix)], [], prefix
    for visual, text in came:
        seen.append(np.arange(at, at + visual))
        said.append(np.arange(at + visual, at + visual + text))
        at += visual + text
    return np.concatenate([*seen, *said])


def describe(case: dict) -> dict:
    """
    Return a case of a layouts file with the positions of all schemes and `visible_train`.

    :raises ValueError: for a case without a field, or with sizes that do not fit together
    """
    needed = ('prefix_tokens', 'frames', 'grid_h', 'grid_w', 'wait_k', 'assistant_prefix_start',
              'answer_start', 'length')
    if not isinstance(case, dict):
        raise ValueError(f'a layout is an object, not {type(case).__name__}')
    for name in needed:
        least = 0 if name == 'prefix_tokens' else 1
        # By type, as true is an int in Python.
        if type(case.get(name)) is not int or case[name] < least:
            raise ValueError(f'{name} must be a whole number of at least {least}, '
                             f'not {case.get(name)!r}')
    prefix, steps, wait_k = case['prefix_tokens'], case['frames'], case['wait_k']
    grid = case['grid_h'], case['grid_w']
    head = case['answer_start'] - case['assistant_prefix_start']
    answer = case['length'] - case['answer_start']
    before = prefix + steps * grid[0] * grid[1] + TAIL_TOKENS
    if head < 1 or answer < 0 or before != case['assistant_prefix_start']:
        raise ValueError(
            f'prefix_tokens + frames * grid_h * grid_w + {TAIL_TOKENS} = {before} must be '
            f'assistant_prefix_start ({case["assistant_prefix_start"]}), then answer_start '
            f'({case["answer_start"]}), then length ({case["length"]})')
    counts = wait_k_counts(answer, wait_k, steps)
    found = {key: lay_out(make_scheme(name), prefix, [grid] * steps, counts, head)
             .positions.tolist() for name, key in KEYS.items()}
    rows = wait_k_rows(prefix, steps, grid[0] * grid[1], wait_k, head, answer, TAIL_TOKENS)
    return case | found | dict(visible_train=[ranges(row) for row in rows.mask()])


def main(arguments: list[str] | None = None) -> int:
    """Print the cases of a file with their layouts."""
    parser = argparse.ArgumentParser(prog='python -m sww_ros.streaming.layout',
                                     description=__doc__)
    parser.add_argument('cases', type=Path, help='JSON list of layouts')
    options = parser.parse_args(arguments)
    try:
        cases = json.loads(options.cases.read_text())
        if not isinstance(cases, list):
            raise ValueError(f'a list of layouts is wanted, not {type(cases).__name__}')
        described = []
        for number, case in enumerate(cases):
            try:
                described.append(describe(case))
            except ValueError as error:
                raise ValueError(f'case {number}: {error}') from error
    except (OSError, ValueError) as error:
        print(f'error: {options.cases}: {error}', file=sys.stderr)
        return 2
    json.dump(described, sys.stdout)
    print()
    return 0


if __name__ == '__main__':
    sys.exit(main())
