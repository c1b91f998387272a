"""
The tables and pictures of the README, docs/paper.md and docs/scale.md, from the JSON in docs alone.

`python -m experiments.figures` prints the tables and draws the pictures; tests compare the tables
with the pages. With `--strip SUMMARY.json PICTURE.png` it draws a run of the demo, of what
`scripts/demo --json` wrote: a strip of frames with the words spoken under them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import sys
import textwrap

import numpy as np

from experiments.paper import interval, words
from sww_ros.benchmark.overlap import DECODE_S, PERCEIVE_S
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import generate

DOCS = Path(__file__).resolve().parents[1] / 'docs'
OTHER_CLOCK = '2-clock2'
"""Table 2 again, of a model whose clock is 2 positions a second."""
OURS = dict(facts_true='facts true %', facts_narrated='facts told %',
            answers_right='answers right %', grammatical='grammatical %', **{
                name: name for name in ('CIDEr', 'BLEU-1', 'BLEU-4', 'METEOR', 'ROUGE-L')})
THEIRS = ('CIDEr', 'BLEU-1', 'BLEU-4', 'METEOR', 'ROUGE-L', 'BLEURT', 'fluency')
COLORS = dict(offline_origin='0.45', offline_gdpe='0.65', interleaved='#d55e00', ospe='#0072b2',
              gdpe='#009e73', gipe='#cc79a7')


def rows(folder: Path = DOCS / 'benchmarks') -> list[str]:
    """Return the rows of the README's table as Markdown."""
    score, long_scenes, proof, overlap, demo, load, medium, peers, on_gpu = (
        json.loads((folder / f'{name}.json').read_text())
        for name in ('score', 'long_scenes', 'proof', 'overlap', 'demo', 'full_load',
                     'full_load_medium', 'peers', 'peers_gpu'))
    return [f'| {words} | {figure} |' for words, figure in (
        *_peers(peers), _gpu(on_gpu), *_latency(demo), *_quality(score), _long_scenes(long_scenes),
        *_exactness(proof), *_calibrated(overlap), _load(medium), _load(load))]


def _quality(score: dict) -> list[tuple[str, str]]:
    summary, three = score['summary'], score['with_3_objects']['summary']
    return [
        (f'built-in checkpoint, {score["count"]} unseen scenes of {score["steps"]} steps with up '
         'to two shapes, live: sentences true / facts narrated',
         f'{summary["facts_true"]:.1%} / {summary["facts_narrated"]:.1%}'),
        ('sentences grammatical / answers right / median lateness',
         f'{summary["grammatical"]:.1%} / {summary["answers_right"]:.1%} / '
         f'{summary["median_lateness_steps"]} steps'),
        ('with three shapes: sentences true / facts narrated / answers right',
         f'{three["facts_true"]:.1%} / {three["facts_narrated"]:.1%} / '
         f'{three["answers_right"]:.1%}')]


def _long_scenes(found: dict) -> tuple[str, str]:
    relay, anew = found['summary'], found['begun_anew']['summary']
    return (f'{relay["scenes"]} unseen scenes of {found["seconds"] / 60:.0f} minutes, streams of '
            f'{found["capacity"]} steps relieved by others that begin with the last '
            f'{found["memory"]} (in parentheses: streams that begin anew): sentences true / '
            'facts narrated / sentences cut / told again',
            ' ('.join(f'{each["facts_true"]:.1%} / {each["facts_narrated"]:.1%} / '
                      f'{each["sentences_cut"]} / {each["told_again"]} of {each["sentences"]}'
                      for each in (relay, anew)) + ')')


def _exactness(proof: dict) -> list[tuple[str, str]]:
    proof = {name: proof[name] for name in ('float32', 'float64')}
    cases = sum(entry['cases'] for entry in proof.values())
    tokens = sum(entry['tokens'] for entry in proof.values())
    differing = sum(entry['differing'] for entry in proof.values())
    return [(
        f'{cases} random live runs, by every executor, against one masked full forward of the '
        'stock model: tokens that differ',
        f'{differing} of {tokens}; logits within {proof["float32"]["largest_error"]:.0e} (fp32), '
        f'{proof["float64"]["largest_error"]:.0e} (fp64)')]


def _calibrated(overlap: dict) -> list[tuple[str, str]]:
    at_one = next(row for row in overlap['speedup'] if row['r'] == 1.0)
    worst = min(row['speedup'] / row['limit'] for row in overlap['speedup'])
    longest = overlap['hazard'][-1]
    return [
        ('both at once against one after the other, on calibrated devices, which sleep instead of '
         'computing; perceiving and generating take equally long',
         f'{at_one["speedup"]:.2f} times as fast (limit {at_one["limit"]:.2f}); at worst '
         f'{worst:.0%} of the limit, r from 0.1 to 10'),
        (f'on the same sleeping devices ({PERCEIVE_S * 1e3:.0f} ms a step, {DECODE_S * 1e3:.0f} '
         'ms a token) a step that comes during a '
         f'sentence of {longest["tokens"]} tokens is seen after (in parentheses: one after the '
         'other)',
         f'{longest["threads_s"] * 1e3:.0f} ms ({longest["serial_s"]:.1f} s)')]


def _load(load: dict) -> tuple[str, str]:
    said, more = load['summary']
    return (f'both at once (`overlap: auto` takes {said["chosen"]}) against the best interleaved '
            f'engine, real arithmetic at full load, {load["machine"]["cores"]} CPU cores, '
            f'{load["parameters"] / 1e6:.1f} M parameters, {said["wait_k"]} tokens a step',
            f'{said["speedup"]:.2f} times as fast (limit {said["limit"]:.2f}); with '
            f'{more["wait_k"]} tokens a step ({more["chosen"]}) {more["speedup"]:.2f} '
            f'({more["limit"]:.2f})')


def _peers(peers: dict) -> list[tuple[str, str]]:
    longest = peers['summary'][-1]
    seen = {name: f'{seconds * 1e3:.0f} ms' for name, seconds in longest['hazard_s'].items()}
    slower = {name: f'{times:.1f}' for name, times in longest['times_as_long'].items()}
    here = (f'{peers["parameters"] / 1e6:.1f} M parameters, {peers["machine"]["cores"]} CPU cores, '
            f'after {longest["steps"]} steps')
    return [
        ('from the arrival of a step, while a sentence of '
         f'{peers["sentence"]} tokens is being spoken, to the first token that sees it ({here})',
         f'{seen["gdpe_fused"]} (fused), {seen["gdpe_processes"]} (processes); interleaved '
         f'{seen["interleaved"]}; stock modules with a carried cache {seen["carried"]}; '
         f'`generate()` on the newest frames {seen["generate_newest"]}, on all '
         f'{seen["generate_whole"]}'),
        ('how long others take for the same stream at full load, compared with this engine',
         f'stock modules with a carried cache {slower["carried"]} times as long, in windows '
         f'{slower["windows"]}; `generate()` on the newest frames {slower["generate_newest"]}, on '
         f'all {slower["generate_whole"]}')]


def _gpu(peers: dict) -> tuple[str, str]:
    longest, gpu = peers['summary'][-1], peers['machine']['gpu'].removeprefix('NVIDIA ')
    ours, steps = longest['ours'].partition('@')[0], longest['steps']
    step_ms, = (row['step_ms'] for row in peers['rows']
                if row['name'] == longest['ours'] and row['steps'] == steps)
    return (f'on one {gpu}, {peers["parameters"] / 1e9:.2f} G random parameters of the shape of '
            f'Qwen2.5-VL-3B, {peers["dtype"]}: a step of {peers["tokens_per_step"]} visual tokens '
            f'and {peers["wait_k"]} tokens about it, at full load, {steps} steps',
            f'{step_ms:.0f} ms ({ours.removeprefix("gdpe_")}); stock modules with a carried cache, '
            f'not compiled, {longest["times_as_long"]["carried"]:.1f} times as long')


def _latency(demo: dict) -> list[tuple[str, str]]:
    event, frame = (demo['latency'][name] for name in ('hazard', 'capture_to_first_token'))
    return [('demo, over ROS on two CPU cores: from the moment that an event is visible to the '
             'first token that saw it',
             f'{event["p50_ms"]:.0f} ms (p95 {event["p95_ms"]:.0f} ms), most of it the rest of the '
             "step's own second"),
            ("of which, after the capture of the step's last frame",
             f'{frame["p50_ms"]:.0f} ms (p95 {frame["p95_ms"]:.0f} ms)')]


POOLS = {'1 engine': 'one engine', '2 engines': 'two engines', 'pool of 1': 'a pool of one',
         'pool of 2': 'a pool of two'}
ENDS = ('p50_ms', 'p99_ms')
FORETOLD = ('steps_per_s', 'first_token_p50_ms', 'first_token_p99_ms')


def pool_rows(folder: Path = DOCS / 'benchmarks') -> list[str]:
    """Return the rows of docs/scale.md that tell of engines and pools: loads, times, foretold."""
    pool = json.loads((folder / 'pool.json').read_text())['summary']
    plan = json.loads((folder / 'plan.json').read_text())
    return [*_full_load(pool), *_paced(pool), *_foretold(pool), *map(_checked, plan['checked'])]


def _checked(found: dict) -> str:
    return _line(str(found['cameras']), *(
        f'{found[side][name]:.1f}' for name in ENDS for side in ('predicted', 'measured')))


def _full_load(pool: dict) -> list[str]:
    gains = {'2 engines': pool['gain_without_ray'], 'pool of 2': pool['gain']}
    found = []
    for case, name in POOLS.items():
        cores, gain = pool['core_ms_a_step'][case], gains.get(case)
        times = ''
        if gain:
            low, *_, high = sorted(gain['each'])
            times = f' ({gain["median"]:.2f} times: {low:.2f} to {high:.2f})'
        found.append(_line(name, f'{pool["steps_per_s"][case]:.0f}{times}', *(
            f'{cores[who]:.1f} ms' if cores.get(who) else ''
            for who in ('engines', 'gateway', 'ray', 'cameras'))))
    return found


def _paced(pool: dict) -> list[str]:
    return [_line(POOLS[case], *(
        f'{pool[what][case][name]:.1f}' for what in ('first_token', 'heard') for name in ENDS))
        for case in pool['first_token']]


def _foretold(pool: dict) -> list[str]:
    def cell(found: dict, digits: int) -> str:
        return (f'{found["predicted"]:.{digits}f} / {found["measured"]:.{digits}f} '
                f'({found["ratio"]:.2f})')

    return [_line(POOLS[case], *(cell(told[name], 0 if name == 'steps_per_s' else 1)
                                 if name in told else '' for name in FORETOLD))
            for case, told in pool['predicted'].items()]


def read(table: int | str) -> dict:
    """Return what was measured for a table."""
    return json.loads((DOCS / f'paper/table{table}.json').read_text())


def _line(*cells: str) -> str:
    return f'| {" | ".join(cells)} |'


def ours(table: int | str) -> list[str]:
    """Our figures as Markdown: mean ± half the 95 % interval over seeds."""
    lines = [_line('', 'tested at', 'seeds', *OURS.values()), '|---' * (3 + len(OURS)) + '|']
    for entry in read(table)['rows'].values():
        for schedule, figures in entry['measured'].items():
            lines.append(_line(entry['title'], schedule, str(len(figures['seeds'])),
                               *(words(figures[metric], metric) for metric in OURS)))
    return lines


def differences(table: int | str) -> list[str]:
    """
    Differences seed by seed, as the seeds of a table share their clips, with their intervals.

    Table 1: each row against streaming GDPE; table 2: random wait-K against wait-3.
    """
    rows = read(table)['rows']
    metrics = ('facts_true', 'facts_narrated', 'answers_right') if table == 1 else (
        'facts_true', 'facts_narrated', 'grammatical')
    lines = [_line('minus GDPE, in points' if table == 1 else 'random minus wait-3, in points',
                   *(OURS[metric].removesuffix(' %') for metric in metrics)),
             '|---' * (1 + len(metrics)) + '|']
    for name, entry in rows.items():
        found = entry['measured']
        if table == 1 and name == 'gdpe':
            continue
        if table == 1:
            one, other = next(iter(found.values())), rows['gdpe']['measured']['wait_k']
        else:
            one, other = found['random_wait_k'], found['wait_k']
        lines.append(_line(entry['title'], *(
            words(interval([a - b for a, b in zip(one[m]['values'], other[m]['values'])]), m)
            for m in metrics)))
    return lines


def theirs(table: int) -> list[str]:
    """The paper's figures as Markdown."""
    rows = read(table)['rows'].values()
    if table == 2:
        return [_line('paper, BLEURT', 'wait-3', 'random wait-K'), '|---|---|---|',
                *(_line(entry['title'], *map(str, entry['paper']['random'].values()))
                  for entry in rows)]
    return [_line('paper', *THEIRS, 'QA BLEURT', 'QA fluency'), '|---' * (3 + len(THEIRS)) + '|',
            *(_line(entry['title'],
                    *(f'{entry["paper"]["description"][name]}' for name in THEIRS),
                    *(f'{value}' for value in entry['paper']['answers'].values()))
              for entry in rows)]


def _reach(figure: dict) -> np.ndarray:
    """How far a share's interval reaches below and above its mean, in points; (2, 1)."""
    half = figure['half'] or 0.0
    return 100 * np.array([[min(half, figure['mean'])], [min(half, 1 - figure['mean'])]])


def draw_table1(file: Path) -> None:
    """Draw the rows of table 1: ours with intervals and every seed, the paper's beside."""
    from matplotlib import pyplot as plt
    rows = read(1)['rows']
    names = list(rows)[::-1]
    figure, panels = plt.subplots(1, 5, figsize=(13, 3.6), sharey=True)
    for panel, metric, title in zip(panels, ('facts_true', 'facts_narrated', 'answers_right'), (
            'ours: facts true [%]', 'ours: facts told [%]', 'ours: answers right [%]')):
        for at, name in enumerate(names):
            found = next(iter(rows[name]['measured'].values()))[metric]
            panel.plot([100 * value for value in found['values']],
                       [at - 0.25] * len(found['values']), '|', color=COLORS[name])
            panel.errorbar(100 * found['mean'], at, xerr=_reach(found), fmt='o',
                           color=COLORS[name], capsize=3)
        panel.set_title(title, fontsize=10)
    for panel, task, title in zip(panels[3:], ('description', 'answers'), (
            'paper: description, BLEURT', 'paper: QA, BLEURT')):
        for at, name in enumerate(names):
            panel.plot(rows[name]['paper'][task]['BLEURT'], at, 's', color=COLORS[name])
        panel.set_title(title, fontsize=10)
    panels[0].set_yticks(range(len(names)), [rows[name]['title'] for name in names])
    for panel in panels:
        panel.grid(axis='x', alpha=0.3)
        panel.set_ylim(-0.6, len(names) - 0.4)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def draw_table2(file: Path) -> None:
    """Draw table 2: trained at wait-3, tested at wait-3 and at random wait-K."""
    from matplotlib import pyplot as plt
    rows = read(2)['rows']
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.6))
    for panel, metric, title in zip(panels, ('facts_true', 'facts_narrated'), (
            'ours: facts true [%]', 'ours: facts told [%]')):
        for shift, (name, entry) in enumerate(rows.items()):
            found = [entry['measured'][s][metric] for s in ('wait_k', 'random_wait_k')]
            panel.errorbar([0.03 * shift, 1 + 0.03 * shift], [100 * f['mean'] for f in found],
                           np.concatenate([_reach(f) for f in found], axis=1), fmt='o-',
                           capsize=3, color=COLORS[name], label=entry['title'])
        panel.set_title(title, fontsize=10)
        panel.set_ylim(0, 102)
    for name, entry in rows.items():
        panels[2].plot([0, 1], list(entry['paper']['random'].values()), 's-', color=COLORS[name])
    panels[2].set_title('paper: BLEURT', fontsize=10)
    for panel in panels:
        panel.set_xticks([0, 1], ['wait-3', 'random wait-K'])
        panel.set_xlim(-0.25, 1.35)
        panel.grid(axis='y', alpha=0.3)
    panels[0].legend(fontsize=8, loc='lower left')
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


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


def draw_strip(summary: dict, path: Path) -> None:
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


def strip(summary: Path, picture: Path) -> int:
    """Draw the strip of a run of the demo; return the exit code."""
    try:
        draw_strip(json.loads(summary.read_text()), picture)
    except (OSError, ValueError, KeyError) as error:
        reason = f'{error} is missing' if isinstance(error, KeyError) else error
        print(f'{summary}: {reason}', file=sys.stderr)
        return 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Print all tables and draw both pictures, or the strip alone; return the exit code."""
    parser = argparse.ArgumentParser(prog='python -m experiments.figures',
                                     description=__doc__.split('\n')[1])
    parser.add_argument('--strip', type=Path, nargs=2, metavar=('SUMMARY', 'PICTURE'),
                        help='only draw a run of the demo (scripts/demo --json) into a PNG file: '
                        'frames with the words spoken under them')
    given = parser.parse_args(arguments)
    if given.strip:
        return strip(*given.strip)
    import matplotlib
    matplotlib.use('Agg')
    print('\n'.join([*rows(), '', *pool_rows(), '']))
    for table, draw in ((1, draw_table1), (2, draw_table2)):
        print('\n'.join([*ours(table), '', *differences(table), '', *theirs(table), '']))
        draw(DOCS / f'paper-table{table}.png')
    print('\n'.join([*ours(OTHER_CLOCK), '', *differences(OTHER_CLOCK)]))
    return 0


if __name__ == '__main__':
    sys.exit(main())
