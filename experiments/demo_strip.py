"""
Draws a run of the demo: a strip of frames with the words spoken under them.

`python -m experiments.demo_strip SUMMARY.json PICTURE.png`, of what `scripts/demo --json` wrote.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import sys
import textwrap

from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import generate

FRAMES = 8
COLUMNS = 4
FRAME_PIXELS = 336
WORDS_A_LINE = 30
INK, FAINT, ASKED = '#1f2328', '#848d97', '#0969da'


def moments(summary: dict, count: int = FRAMES) -> list[dict]:
    """
    Choose the moments to show, each with the frame's `time` [s] and what was said: `lines`.

    A moment is a sentence, or a question with its answer; of too many, those in between are left
    out evenly. The time is that of the newest frame which the first word rests on.
    """
    found = [dict(time=said['time'], lines=[(said['text'], said.get('true') is not False)])
             for said in summary['narration']]
    found += [dict(time=said['time'], question=said['question'],
                   lines=[(said['answer'], said['right'] is not False)])
              for said in summary['answers'] if said['answer']]
    found.sort(key=lambda moment: moment['time'])
    if len(found) <= count:
        return found
    return [found[round(index * (len(found) - 1) / (count - 1))] for index in range(count)]


def draw(summary: dict, path: Path) -> None:
    """
    Draw the strip into a PNG file.

    :raises ValueError: for the summary of a video, whose frames are not known, or of silence
    """
    scene_data, chosen = summary['scene'], moments(summary)
    if scene_data is None:
        raise ValueError('only a scene of the shapes world can be drawn again, not a video')
    if not chosen:
        raise ValueError('nothing was said: there is nothing to draw')
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    scene = generate(scene_data['seed'], scene_data['seconds'], scene_data['difficulty'],
                     scene_data['max_objects'])
    renderer = Renderer(scene, FRAME_PIXELS, FRAME_PIXELS)
    columns = min(COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(2.55 * columns, 3.25 * rows),
                                   squeeze=False)
    for axis in axes.flat:
        axis.axis('off')
    for moment, axis in zip(chosen, axes.flat):
        axis.imshow(renderer.frame(moment['time']), interpolation='lanczos')
        axis.set_title(f'{moment["time"]:.1f} s', loc='left', fontsize=8, color=FAINT, pad=3)
        _write(axis, moment)
    figure.subplots_adjust(left=.01, right=.99, top=.96, bottom=.09 if rows > 1 else .17,
                           wspace=.04, hspace=.24)
    figure.savefig(path, dpi=90, facecolor='white')
    pyplot.close(figure)


def _write(axis, moment: dict) -> None:
    """Write what was said under a frame: a question in blue, what was not true struck out."""
    line = 0
    texts = [(moment['question'], ASKED, True)] if 'question' in moment else []
    texts += [(text, INK, true) for text, true in moment['lines']]
    for text, color, true in texts:
        for part in textwrap.wrap(text, WORDS_A_LINE):
            axis.text(0, -.035 - .075 * line, part if true else f'× {part}', color=color,
                      fontsize=9.5, va='top', transform=axis.transAxes)
            line += 1


def main(arguments: list[str] | None = None) -> int:
    """Draw; return the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m experiments.demo_strip',
        description='Draws a strip of frames with the words that the demo spoke under them.')
    parser.add_argument('summary', type=Path, help='what scripts/demo --json wrote')
    parser.add_argument('picture', type=Path, help='the PNG file to write')
    given = parser.parse_args(arguments)
    try:
        draw(json.loads(given.summary.read_text()), given.picture)
    except (OSError, ValueError, KeyError) as error:
        reason = f'{error} is missing' if isinstance(error, KeyError) else error
        print(f'{given.summary}: {reason}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
