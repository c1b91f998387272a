"""
What so many cameras need, engines and network: a pool is simulated before it is built.

`python -m sww_ros.fleet plan --cameras N`: what a step and a token cost is read from what the
benchmark `cameras` wrote on the machine that is asked about, and a pool is simulated in virtual
time (docs/scale.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
import json
import math
from pathlib import Path
import sys
from typing import Any

from sww_ros.fleet.simulated import (
    ARRIVALS,
    FULL,
    Costs,
    Load,
    Served,
    simulate_engine,
    steps_a_second,
)
from sww_ros.streaming.relay import Relay

PERCENTS = (50, 95, 99)
MOST_CAMERAS = 1_000_000
MOST_ON_ONE = 4096
"""More cameras than this on one engine are not tried."""
ENGINES_LOOKED_AT = 16
"""Of a large pool so many are simulated: all have as many cameras, or one less."""
SEEDS = 3
"""Engines of so many cameras that are simulated before it is said that one bears them."""
FRAMES_A_STEP = 2
AT_FULL_LOAD = 8
"""So many cameras, or as many as one engine bears, are simulated at full load."""


class Measured:
    """What the benchmark `cameras` wrote of one model on one machine."""

    def __init__(self, cameras: Path) -> None:
        """
        Read the file.

        :raises ValueError: for one that is not its
        """
        try:
            found = json.loads(cameras.read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise ValueError(f'cannot read the measurements {cameras}: {error}') from None
        try:
            self.summary: dict[str, Any] = found['summary']
            self.by_count = {int(count): each for count, each in found['cameras'].items()}
            self.costs = Costs.read(found['costs'])
            self.relay = Relay(**found['relay']) if found['relay'] else None
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{cameras} is not what the benchmark cameras writes '
                             f'({error!r})') from None

    def checked(self, load: Load) -> list[dict]:
        """Return, for each number of cameras that was measured, what is predicted of it."""
        load = replace(load, step_every_s=self.summary['step_every_s'], arrivals='together')
        lines = []
        for count, each in sorted(self.by_count.items()):
            outcome = simulate_engine(self.costs, load, count, self.summary['steps'],
                                      overlap=self.summary['overlap'], relay=self.relay)
            lines.append(dict(cameras=count, measured=each['latency'],
                              predicted=percentiles(outcome.latencies_s)))
        return lines


def percentiles(latencies_s: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99 [ms]; the value that so many do not exceed."""
    ordered = sorted(latencies_s)
    return {f'p{percent}_ms': round(
        1e3 * ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)], 3)
        for percent in PERCENTS}


class Pool:
    """Engines of one kind, with cameras that ask for the same; what was simulated is kept."""

    def __init__(self, costs: Costs, load: Load, steps: int, limit_ms: float,
                 limit_busy: float = 1.0, overlap: str = 'fused',
                 relay: Relay | None = None) -> None:
        """
        Make one.

        :param steps: how many steps each camera is watched for
        :param limit_ms: what the 99th percentile from capture to first token may be
        :param limit_busy: the share of its time that an engine may compute
        :param relay: when streams are relieved; None: they go on
        """
        self._costs, self._load, self._steps, self._overlap = costs, load, steps, overlap
        self._relay = relay
        self._limit_ms, self._limit_busy = limit_ms, limit_busy
        self.engine: Callable[[int, int], Served] = cache(self._engine)
        self.most = self._most()

    def _engine(self, cameras: int, seed: int) -> Served:
        return simulate_engine(self._costs, self._load, cameras, self._steps, seed=seed,
                               overlap=self._overlap, relay=self._relay)

    def _bears(self, cameras: int) -> bool:
        return all(
            not found.dropped and found.busy_s <= self._limit_busy * found.lasted_s
            and percentiles(found.latencies_s)['p99_ms'] <= self._limit_ms
            for found in (self.engine(cameras, seed) for seed in range(SEEDS)))

    def _most(self) -> int:
        """Return how many cameras one engine bears; 0: not one."""
        too_many = 1
        while too_many <= MOST_ON_ONE and self._bears(too_many):
            too_many *= 2
        bears = too_many // 2
        while too_many - bears > 1:
            middle = (bears + too_many) // 2
            bears, too_many = (middle, too_many) if self._bears(middle) else (bears, middle)
        return bears

    def of(self, cameras: int) -> dict:
        """
        Return what so many cameras need, ready for JSON.

        :raises ValueError: where not one camera is served within the limit
        """
        if not self.most:
            one = self.engine(1, 0)
            raise ValueError('one engine does not serve one camera within the limits: '
                             f'p99 {percentiles(one.latencies_s)["p99_ms"]:g} ms (allowed '
                             f'{self._limit_ms:g}), busy {100 * one.busy_s / one.lasted_s:.0f} % '
                             f'(allowed {100 * self._limit_busy:g}), {one.dropped} steps dropped')
        engines = math.ceil(cameras / self.most)
        looked_at = min(engines, ENGINES_LOOKED_AT)
        # As they are spread over the pool: some engines may have one less than others.
        fuller = round(cameras % engines / engines * looked_at) if cameras % engines else 0
        found = [self.engine(cameras // engines + (number < fuller), number)
                 for number in range(looked_at)]
        return dict(cameras=cameras, engines=engines, cameras_an_engine=cameras / engines,
                    **percentiles([each for one in found for each in one.latencies_s]),
                    busy=round(sum(each.busy_s for each in found)
                               / sum(each.lasted_s for each in found), 4),
                    dropped=sum(each.dropped for each in found))


def main(arguments: list[str] | None = None) -> int:
    """Plan; return the exit code: 2 for what cannot be used."""
    given = _parser().parse_args(arguments)
    try:
        found = planned(given)
        if given.json:
            given.json.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
        print('\n'.join(lines(found)))
        if given.picture:
            draw(found, given.picture)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def planned(given: argparse.Namespace) -> dict:
    """Return the plan that the options ask for, ready for JSON."""
    load = Load(given.step_every_s, given.tokens, given.arrivals)
    measured = None
    if given.step_ms:
        costs = Costs(given.step_ms / 1e3, ((1, given.token_ms / 1e3),))
    else:
        measured = Measured(given.measured)
        costs = measured.costs
    relay = measured.relay if measured else None
    pool = Pool(costs, load, given.steps, given.p99_ms, given.busy, given.overlap, relay)
    needed = pool.of(given.cameras)
    kbit_s = given.frame_kb * 8 * FRAMES_A_STEP / given.step_every_s
    needed |= dict(gpus=math.ceil(needed['engines'] / given.engines_a_gpu),
                   mbit_s=round(kbit_s * given.cameras / 1e3, 3))
    if measured:
        per_camera, one = measured.summary['mb_a_camera'], measured.by_count[1]['pss_mb']
        needed['mb_an_engine'] = round(one + per_camera * (needed['cameras_an_engine'] - 1), 1)
    counts = sorted({round(10 ** (tenth / 4)) for tenth in range(
        math.floor(4 * math.log10(given.cameras)) + 1)} | {given.cameras})
    return dict(
        load=asdict(load) | dict(
            p99_ms=given.p99_ms, busy=given.busy, frame_kb=given.frame_kb, steps=given.steps,
            overlap=given.overlap, kbit_s_a_camera=round(kbit_s, 3)),
        costs=asdict(costs), relay=asdict(relay) if relay else None,
        cameras_on_one_engine=pool.most, full_load_steps_per_s=round(steps_a_second(
            costs, given.tokens, min(AT_FULL_LOAD, pool.most), relay=relay,
            overlap=given.overlap), 1), needed=needed,
        curve=[pool.of(count) for count in counts] if given.curve else [],
        checked=measured.checked(load) if measured else [])


def lines(found: dict) -> list[str]:
    """Return a plan in words."""
    load, needed = found['load'], found['needed']
    told = [f'a step every {load["step_every_s"]:g} s, {load["tokens"]} tokens each, '
            f'p99 from capture to first token within {load["p99_ms"]:g} ms',
            f'one engine bears {found["cameras_on_one_engine"]} cameras, and at full load '
            f'{found["full_load_steps_per_s"]:g} steps a second',
            f'{needed["cameras"]} cameras: {needed["engines"]} engines on {needed["gpus"]} GPUs '
            f'(or so many cores), busy {100 * needed["busy"]:.0f} % of the time',
            f'latency      p50 {needed["p50_ms"]:g}, p95 {needed["p95_ms"]:g}, '
            f'p99 {needed["p99_ms"]:g} ms',
            f'network      {needed["mbit_s"]:g} Mbit/s, {load["kbit_s_a_camera"]:g} kbit/s each']
    if 'mb_an_engine' in needed:
        told.append(f'memory       {needed["mb_an_engine"]:g} MB an engine')
    for each in found['checked']:
        of = ', '.join(f'{name[:-3]} {each["predicted"][name]:.1f} for {each["measured"][name]:.1f}'
                       for name in ('p50_ms', 'p99_ms'))
        told.append(f'checked      {each["cameras"]} cameras, ms predicted for measured: {of}')
    return told


def draw(found: dict, picture: Path) -> None:
    """
    Draw what one engine does, beside what was measured, and what a pool needs, into a file.

    :raises ValueError: where there is no matplotlib, or no curve
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f'--picture needs matplotlib: pip install matplotlib ({error})') from None
    figure = Figure(figsize=(11, 4), layout='constrained')
    left, right = figure.subplots(1, 2)
    for name, color in (('p50_ms', 'tab:blue'), ('p99_ms', 'tab:red')):
        checked = found['checked']
        left.plot([each['cameras'] for each in checked],
                  [each['predicted'][name] for each in checked], color=color,
                  label=f'{name[:-3]}, simulated')
        left.plot([each['cameras'] for each in checked],
                  [each['measured'][name] for each in checked], 'o', color=color,
                  label=f'{name[:-3]}, measured')
    left.set(xlabel='cameras on one engine, all at the same moments',
             ylabel='capture to first token, ms', ylim=(0, None))
    left.legend()
    counts = [each['cameras'] for each in found['curve']]
    right.plot(counts, [each['engines'] for each in found['curve']], 'o-', color='tab:green',
               label='engines')
    right.plot(counts, [count * found['load']['kbit_s_a_camera'] / 1e3 for count in counts],
               '--', color='tab:purple', label='network, Mbit/s')
    right.plot(counts, [each['p99_ms'] for each in found['curve']], ':', color='tab:red',
               label='p99, ms')
    right.set(xscale='log', yscale='log', xlabel='cameras',
              title=f'a step every {found["load"]["step_every_s"]:g} s, '
                    f'p99 within {found["load"]["p99_ms"]:g} ms')
    right.legend()
    figure.savefig(picture, dpi=110)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m sww_ros.fleet plan', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cameras', type=_count, required=True, metavar='N')
    asked = parser.add_argument_group('what is asked for')
    asked.add_argument('--step-every-s', type=float, default=1.0,
                       help='a step of each camera comes every so many seconds '
                       '(default: %(default)s)')
    asked.add_argument('--tokens', type=int, default=3,
                       help='said of each step, silence included (default: %(default)s)')
    asked.add_argument('--arrivals', choices=[each for each in ARRIVALS if each != FULL],
                       default='apart',
                       help='whether cameras take their pictures at the same moments, each at its '
                       'own, or at random ones (default: %(default)s)')
    asked.add_argument('--p99-ms', type=float, default=500.0,
                       help='what p99 from capture to first token may be (default: %(default)s)')
    asked.add_argument('--busy', type=float, default=0.8,
                       help='the share of its time that an engine may compute '
                       '(default: %(default)s)')
    asked.add_argument('--frame-kb', type=float, default=2.45,
                       help='of a frame on the network [kB]; the default is that of the shapes '
                       'world, 84 x 84 pixels as JPEG of quality 90 (%(default)s)')
    have = parser.add_argument_group('what there is')
    have.add_argument('--measured', type=Path, metavar='FILE',
                      default=Path('docs/benchmarks/cameras.json'),
                      help='what the benchmark cameras wrote (default: that of the built-in, in a '
                      'clone)')
    have.add_argument('--step-ms', type=float, default=0.0,
                      help='what a step takes, in place of what was measured')
    have.add_argument('--token-ms', type=float, default=0.0,
                      help='what a token of all speakers takes, with --step-ms')
    have.add_argument('--overlap', choices=['fused', 'serial', 'threads'], default='fused')
    have.add_argument('--engines-a-gpu', type=_count, default=1)
    parser.add_argument('--steps', type=_count, default=60,
                        help='of each camera that are simulated (default: %(default)s)')
    parser.add_argument('--curve', action='store_true',
                        help='plan for 1, 2, 3, 6, 10, … cameras, up to so many, too')
    parser.add_argument('--json', type=Path, metavar='FILE', help='where the plan goes')
    parser.add_argument('--picture', type=Path, metavar='FILE',
                        help='where the curve is drawn, with what was measured')
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) <= MOST_CAMERAS:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number from 1 to {MOST_CAMERAS}')
    return int(text)
