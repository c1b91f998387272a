"""
The README's table of figures, from the JSON files in docs/benchmarks alone.

`python -m sww_ros.benchmark.figures` prints it; a test compares it with the README.
"""

from __future__ import annotations

import json
from pathlib import Path

from sww_ros.benchmark.overlap import DECODE_S, PERCEIVE_S

FOLDER = Path(__file__).resolve().parents[2] / 'docs/benchmarks'


def rows(folder: Path = FOLDER) -> list[str]:
    """Return the table's rows as Markdown."""
    score, endurance, proof, overlap, demo, load, medium, peers = (
        json.loads((folder / f'{name}.json').read_text())
        for name in ('score', 'endurance', 'proof', 'overlap', 'demo', 'full_load',
                     'full_load_medium', 'peers'))
    return [f'| {words} | {figure} |' for words, figure in (
        *_peers(peers), *_latency(demo), *_quality(score), _endurance(endurance),
        *_exactness(proof), *_calibrated(overlap), _load(medium), _load(load))]


def _quality(score: dict) -> list[tuple[str, str]]:
    summary, three = score['summary'], score['with_3_objects']['summary']
    return [
        (f'built-in checkpoint, {score["count"]} unseen scenes of {score["steps"]} steps with up '
         'to two shapes, live: narrated facts true / true facts narrated',
         f'{summary["facts_true"]:.1%} / {summary["facts_narrated"]:.1%}'),
        ('sentences grammatical / answers right / median lateness',
         f'{summary["grammatical"]:.1%} / {summary["answers_right"]:.1%} / '
         f'{summary["median_lateness_steps"]} steps'),
        ('with three shapes: facts true / narrated / answers right',
         f'{three["facts_true"]:.1%} / {three["facts_narrated"]:.1%} / '
         f'{three["answers_right"]:.1%}')]


def _endurance(stream: dict) -> tuple[str, str]:
    told = {name: part['share'] for name, part in stream['narrated'].items()}
    return (f'in one stream of {stream["steps"]} steps, begun anew every {stream["max_steps"]}: '
            'facts true (without what is told again after a restart) / narrated',
            f'{stream["facts_true"]:.1%} ({stream["facts_true_and_new"]:.1%}) / '
            f'{stream["facts_narrated"]:.1%}; of the facts in the first {stream["soon_steps"]} '
            f'steps after a restart {told["soon_after_a_restart"]:.1%}, of the others '
            f'{told["otherwise"]:.1%}')


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
         'computing; perception = generation',
         f'{at_one["speedup"]:.2f} times as fast (limit {at_one["limit"]:.2f}); at worst '
         f'{worst:.0%} of the limit, r from 0.1 to 10'),
        (f'on the same sleeping devices ({PERCEIVE_S * 1e3:.0f} ms a step, {DECODE_S * 1e3:.0f} '
         'ms a token) a step that comes during a '
         f'sentence of {longest["tokens"]} tokens is seen after (one after the other)',
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
        (f'a step that comes while a sentence of {peers["sentence"]} tokens is spoken is seen by a '
         f'token after ({here})',
         f'{seen["gdpe_fused"]} (fused), {seen["gdpe_processes"]} (processes); interleaved '
         f'{seen["interleaved"]}; stock modules with a carried cache {seen["carried"]}; '
         f'`generate()` on the newest frames {seen["generate_newest"]}, on all '
         f'{seen["generate_whole"]}'),
        ('the same stream at full load takes, of the time of this engine',
         f'stock modules with a carried cache {slower["carried"]} times as long, in windows '
         f'{slower["windows"]}; `generate()` on the newest frames {slower["generate_newest"]}, on '
         f'all {slower["generate_whole"]}')]


def _latency(demo: dict) -> list[tuple[str, str]]:
    event, frame = (demo['latency'][name] for name in ('hazard', 'capture_to_first_token'))
    return [('demo, over ROS on two CPU cores: an event becomes visible → the first token that '
             'saw it', f'{event["p50_ms"]:.0f} ms (p95 {event["p95_ms"]:.0f} ms), most of it the '
             "rest of the step's own second"),
            ("of it, from the capture of the step's last frame on",
             f'{frame["p50_ms"]:.0f} ms (p95 {frame["p95_ms"]:.0f} ms)')]


if __name__ == '__main__':
    print('\n'.join(rows()))
