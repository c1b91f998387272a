"""
One small clip laid out in every position scheme, and the masks, as a picture drawn by the code.

`python -m experiments.layouts --out docs/layouts.png` draws a prefix of 4 tokens,
3 steps of 2 x 2 and K = 2; with `--timed` each step carries text, as in Qwen3-VL: 2 tokens before
and 1 after it. It needs matplotlib, which is not among the package's dependencies.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
import itertools
from pathlib import Path
import sys

import numpy as np

from sww_ros.streaming.layout import ClipShape, lay_out
from sww_ros.streaming.positions import GIPE_GAP, SCHEMES, TAIL_TOKENS, make_scheme
from sww_ros.streaming.schedule import WaitK

PREFIX, GRID, HEAD, GAP = 4, (2, 2), 3, 14
STEPS, STEP_TOKENS, WAIT_K = 3, GRID[0] * GRID[1], 2
TIMED = (2, 1)
# Okabe and Ito's, which all kinds of colour vision tell apart.
COLOURS = dict(prefix='#999999', V='#0072B2', tail='#000000', A='#E69F00', T='#009E73')
PALE = '#A6CFE8'


@dataclass(frozen=True)
class Drawing:
    """One scheme's rows in the order they come: groups of rows, positions (3, n), mask (n, n)."""

    groups: list[tuple[str, int]]
    positions: np.ndarray
    mask: np.ndarray


def drawing(name: str, around: tuple[int, int] = (0, 0)) -> Drawing:
    """
    Lay out the clip in a scheme, its mask that of training.

    :param around: how many tokens of text stand before and after the visual rows of a step
    """
    layout = lay_out(make_scheme(name, gap=GAP), WaitK(WAIT_K), ClipShape(
        PREFIX, [GRID] * STEPS, HEAD, STEPS * WAIT_K, around=[around] * STEPS))

    def rows_of(step: int) -> list[tuple[str, int]]:
        return [(f'T{step}', around[0]), (f'V{step}', STEP_TOKENS), (f'T{step}', around[1])]

    if SCHEMES[name].after_video:
        groups = [('prefix', PREFIX), *(row for i in range(1, STEPS + 1) for row in rows_of(i)),
                  ('tail', TAIL_TOKENS), ('A', HEAD + STEPS * WAIT_K)]
        groups = [group for group in groups if group[1]]
        return Drawing(groups, layout.positions, np.tri(len(layout), dtype=bool))
    groups = [('prefix', PREFIX)]
    for step in range(1, STEPS + 1):
        groups += [*rows_of(step), ('tail', TAIL_TOKENS if step == STEPS else 0),
                   (f'A{step}', WAIT_K + (HEAD if step == 1 else 0))]
    came = np.argsort(layout.came, kind='stable')
    return Drawing([group for group in groups if group[1]], layout.positions[:, came],
                   layout.rows.mask()[np.ix_(came, came)])


def title(name: str) -> str:
    """What is written above a scheme's cell: its own words, with the gap of the drawing."""
    words = SCHEMES[name].text.replace(f'`position_gap` ({GIPE_GAP})', f'the gap (here {GAP})')
    return f'{name}: text {words}'.replace('_{i+1}', 'ᵢ₊₁').replace('_i', 'ᵢ')


def reading(timed: bool) -> str:
    """What is to be seen in the picture, in words."""
    said = 'Tᵢ is the time of the step, written before it, and what closes it.\n' if timed else ''
    free = [name for name, info in SCHEMES.items() if not (info.serial or info.after_video)]
    return (f'One clip in {len(SCHEMES)} schemes: a prefix of 4 tokens, 3 steps Vᵢ of 2 × 2\n'
            'visual tokens, a tail of 3, and 2 tokens of text Aᵢ about each step;\n'
            'A₁ begins with the assistant prefix of 3.\n'
            f'{said}\n'
            'Left: each token, from top to bottom as they come, at its position t\n'
            '(visual tokens: pale at their h and w too).\n\n'
            'Right: what each token sees, in the colour of what it looks at. The\n'
            'last row of Aᵢ predicts the first token of Aᵢ₊₁, so it sees Vᵢ₊₁.\n\n'
            f'With {", ".join(free)} no Vᵢ sees text or depends on what is said:\n'
            'the video is perceived while text is spoken.')


def draw(out: Path, timed: bool = False) -> None:
    """Write the picture; where it is `timed` steps carry text."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(13, 11.2), layout='constrained')
    drawings = {name: drawing(name, TIMED if timed else (0, 0)) for name in SCHEMES}
    cells = figure.subfigures(len(drawings) // 2 + 1, 2, wspace=0.02, hspace=0.02).flat
    width = max(int(one.positions.max()) for one in drawings.values()) + 1
    for cell, (name, one) in zip(cells, drawings.items()):
        cell.suptitle(title(name), fontsize=13, fontweight='bold')
        rows = one.positions.shape[1]
        left, right = cell.subplots(1, 2, width_ratios=[width, rows])
        _draw_positions(left, one, width)
        _draw_mask(right, one)
    _explain(figure.subfigs[-1], timed)
    figure.savefig(out, dpi=110, bbox_inches='tight', pad_inches=0.15)


def _kind(group: str) -> str:
    return group if group in COLOURS else group[0]


def _spelt(group: str) -> str:
    return group[0] + '₁₂₃'[int(group[1]) - 1] if group[1:].isdigit() else group


def _spans(one: Drawing) -> list[tuple[str, int, int]]:
    """Each group with its first row and the one after its last."""
    ends = [*itertools.accumulate(count for _, count in one.groups)]
    return [(name, end - count, end) for (name, count), end in zip(one.groups, ends)]


def _ticks(one: Drawing) -> tuple[list[float], list[str]]:
    """Where the names of groups stand, and the names; a single row has no room for one."""
    wide = [(name, first, end) for name, first, end in _spans(one) if end > first + 1]
    return [(first + end) / 2 for _, first, end in wide], [_spelt(name) for name, _, _ in wide]


def _draw_positions(axes, one: Drawing, width: int) -> None:
    from matplotlib.patches import Rectangle
    for name, first, end in _spans(one):
        colour = COLOURS[_kind(name)]
        for row in range(first, end):
            # t last, so that it covers h and w where they are the same.
            for at, shade in zip(one.positions[::-1, row], (PALE, PALE, colour)):
                axes.add_patch(Rectangle((at, row), 1, 1, facecolor=shade, edgecolor='white',
                                         linewidth=0.6))
    _frame(axes, one, width)
    axes.set_xticks(np.arange(0, width, 4) + 0.5, [str(x) for x in range(0, width, 4)])
    axes.set_xlabel('position t', fontsize=10)
    axes.set_yticks(*_ticks(one))


def _draw_mask(axes, one: Drawing) -> None:
    from matplotlib.patches import Rectangle
    rows = len(one.mask)
    for name, first, end in _spans(one):
        for row, column in np.argwhere(one.mask[:, first:end]):
            axes.add_patch(Rectangle((first + column, row), 1, 1, edgecolor='white',
                                     facecolor=COLOURS[_kind(name)], linewidth=0.4))
        axes.axvline(end, color='#cccccc', linewidth=0.6, zorder=0)
    _frame(axes, one, rows)
    axes.set_xticks(*_ticks(one))
    axes.set_yticks([])
    axes.set_xlabel('sees', fontsize=10)


def _frame(axes, one: Drawing, width: int) -> None:
    for _, _, end in _spans(one):
        axes.axhline(end, color='#cccccc', linewidth=0.6, zorder=0)
    axes.set(xlim=(0, width), ylim=(one.positions.shape[1], 0), aspect='equal')
    axes.tick_params(length=0, labelsize=10)
    for side in axes.spines.values():
        side.set_color('#888888')


def _explain(cell, timed: bool) -> None:
    from matplotlib.patches import Patch
    names = dict(prefix='system turn, prompt', tail='tail: the video ends',
                 V='Vᵢ: video, step i', A='Aᵢ: text about step i',
                 **dict(T='Tᵢ: text of step i') if timed else {})
    cell.legend(handles=[Patch(color=COLOURS[kind], label=name) for kind, name in names.items()],
                loc='upper left', bbox_to_anchor=(0.04, 0.95), frameon=False, fontsize=12, ncols=2)
    cell.text(0.055, 0.7 if timed else 0.75, reading(timed), va='top', fontsize=11,
              linespacing=1.35)


def main(arguments: list[str] | None = None) -> int:
    """Draw the layouts."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--out', type=Path, required=True, help='the PNG to write')
    parser.add_argument('--timed', action='store_true', help='have steps carry text')
    options = parser.parse_args(arguments)
    try:
        draw(options.out, options.timed)
    except ImportError as error:
        print(f'error: {error}: pip install matplotlib', file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f'error: {options.out}: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
