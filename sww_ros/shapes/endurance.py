"""
Watches a scene for days on end, as fast as it can, and says whether anything grows.

`python -m sww_ros.shapes.endurance --steps N --json FILE --plot FILE` plays one video through the
live engine, whose streams relieve one another: memory of its processes, time from the capture of a
step to the first token that saw it, and the largest position must stay as they are. A machine's
pace changes within minutes: at the end the old video and one that has just begun go on by turns,
and must cost the same. The plot needs matplotlib, which is not among the package's dependencies.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
import gc
import json
import os
from pathlib import Path
import time
from typing import Any

import numpy as np
from tqdm import tqdm

from sww_ros.library import ClipError
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import TICK_S, generate
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import FirstSight, FramesDropped, Restarted, TextDelta, Trouble
from sww_ros.streaming.positions import Track
from sww_ros.streaming.session import Session
from sww_ros.streaming.stream import PlacedStep, Stream

SCENE_S = 600
"""The scene's length; it is shown again and again, and drawn before anything is measured [s]."""
SAMPLES = 200
"""How often memory is looked at, and of how many stretches the plot shows the times."""
TURNS = 20
"""How often the old video and a fresh one take turns, a hundredth of all steps each time."""
PATIENCE_S = 60.0
MIB = 1 << 20


class Watching:
    """A session that is shown a scene again and again, each step once a token has seen the last."""

    def __init__(self, session: Session, frames: Sequence[np.ndarray]) -> None:
        self.counts: Counter[str] = Counter()
        self._session, self._frames, self._step = session, frames, 0

    def see_step(self) -> float:
        """
        Show one step more; return the time from its capture to the first token that saw it [s].

        :raises ClipError: when a frame is lost, something goes wrong, or nothing comes for
            PATIENCE_S
        """
        for index in (2 * self._step, 2 * self._step + 1):
            self._session.feed(self._frames[index % len(self._frames)], stamp_ns=index + 1)
        captured_ns = time.monotonic_ns()
        seen_ns = _first_sight(self._session, self._step, self.counts)
        self._step += 1
        return (seen_ns - captured_ns) / 1e9


def measure(session: Session, watching: Watching, steps: int, largest: list[int]) -> dict:
    """
    Watch so many steps; return `summary` and series.

    :param largest: holds the largest position so far, see `positions_noted`
    :raises ClipError: as `Watching.see_step`
    """
    seconds = np.full(steps, np.nan)  # Memory that is touched now, not as it is filled.
    every, samples, positions = max(1, steps // SAMPLES), [], []
    begun_s = time.monotonic()
    for step in tqdm(range(steps), desc='one video', unit='step', disable=None):
        seconds[step] = watching.see_step()
        if step % every == every - 1:
            samples.append(resident_mib())
            positions.append(largest[0])
    minutes = (time.monotonic() - begun_s) / 60
    memory, tenth = np.array(samples), max(1, len(samples) // 10)
    first, last = (float(np.percentile(part, 99)) for part in (
        seconds[:max(1, steps // 10)], seconds[-max(1, steps // 10):]))
    # The first tenth is the warm-up: allocators take what they need then.
    before, after = np.median(memory[tenth:2 * tenth]), np.median(memory[-tenth:])
    series = dict(
        every=every, rss_mib=[round(float(value), 2) for value in memory], positions=positions,
        p50_ms=_percentiles(seconds, every, 50), p99_ms=_percentiles(seconds, every, 99))
    summary = dict(
        steps=steps, minutes=round(minutes, 1), hand_overs=watching.counts['hand_overs'],
        sentences=watching.counts['sentences'], overlap=session.info['overlap'],
        capacity=session.info['capacity'], memory=session.info['memory'],
        rss_drift=round(float(after / before - 1), 4), rss_mib=round(float(after), 1),
        p99_drift=round(last / first - 1, 4), p99_first_tenth_ms=round(1e3 * first, 2),
        p99_last_tenth_ms=round(1e3 * last, 2), largest_position=largest[0],
        largest_position_of_first_tenth=positions[tenth - 1])
    return dict(summary=summary, series=series)


def compare(old: Watching, fresh: Watching, steps: int) -> dict:
    """Return what steps of an old video cost beside those of a fresh one, `steps` at a time."""
    for _ in range(steps):
        fresh.see_step()  # It opens its stream, and finds memory cold.
    p99_ms: dict[str, list[float]] = dict(old=[], fresh=[])
    for _ in tqdm(range(TURNS), desc='beside a fresh one', unit='turn', disable=None):
        for name, watching in (('old', old), ('fresh', fresh)):
            seconds = [watching.see_step() for _ in range(steps)]
            p99_ms[name].append(round(1e3 * float(np.percentile(seconds, 99)), 2))
    now, then = np.median(p99_ms['old']), np.median(p99_ms['fresh'])
    return dict(steps_a_turn=steps, p99_ms=p99_ms, p99_drift=round(float(now / then - 1), 4))


def _draw(seed: int) -> list[np.ndarray]:
    renderer = Renderer(generate(seed, SCENE_S))
    return [renderer.frame(index * TICK_S) for index in range(int(SCENE_S / TICK_S))]


def _first_sight(session: Session, step: int, counts: Counter[str]) -> int:
    """Take events until a token has seen the step; return when it was decoded [ns, monotonic]."""
    while (event := session.poll(PATIENCE_S)) is not None:
        if isinstance(event, Trouble | FramesDropped):
            raise ClipError(f'at step {step}: {event}')
        if isinstance(event, TextDelta):
            counts['sentences'] += bool(event.sentence)
        if isinstance(event, Restarted):
            if event.reason != 'relay':
                raise ClipError(f'at step {step}: the video began anew ({event.reason})')
            counts['hand_overs'] += 1
        if isinstance(event, FirstSight) and event.index == step:
            return event.decoded_ns
    raise ClipError(f'no token sees step {step} within {PATIENCE_S:.0f} s')


def _percentiles(seconds: np.ndarray, every: int, percent: float) -> list[float]:
    whole = seconds[:len(seconds) // every * every].reshape(-1, every)
    return [round(1e3 * float(value), 2) for value in np.percentile(whole, percent, axis=1)]


def pss_bytes(pid: int) -> int:
    """Return the memory of a process, each page that others have too in its share [bytes]."""
    lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('Pss:'))


def resident_mib() -> float:
    """Return the memory of this process and its children, what they share counted once [MiB]."""
    found = Path('/proc/self/task').glob('*/children')
    pids = [os.getpid(), *(int(pid) for each in found for pid in each.read_text().split())]
    return sum(map(pss_bytes, pids)) / MIB


@contextmanager
def positions_noted() -> Iterator[list[int]]:
    """Within, keep the largest position that any row of video or text is given."""
    largest, kept = [0], [(Track, 'place'), (Stream, 'place_step')]
    methods = [getattr(owner, name) for owner, name in kept]
    for (owner, name), method in zip(kept, methods, strict=True):
        setattr(owner, name, _noting(method, largest))
    try:
        yield largest
    finally:
        for (owner, name), method in zip(kept, methods, strict=True):
            setattr(owner, name, method)


def _noting(method: Callable, largest: list[int]) -> Callable:
    def place(*arguments: Any, **options: Any) -> Any:
        placed = method(*arguments, **options)
        positions = placed.positions if isinstance(placed, PlacedStep) else placed
        largest[0] = max(largest[0], int(positions.max(initial=0)))
        return placed
    return place


def plot(result: dict, file: Path) -> None:
    """Draw memory, times and positions over the steps."""
    from matplotlib import pyplot
    series = result['series']
    steps = series['every'] * (1 + np.arange(len(series['rss_mib'])))
    figure, axes = pyplot.subplots(3, 1, sharex=True, figsize=(8, 7))
    axes[0].plot(steps, series['rss_mib'])
    axes[0].set(ylabel='memory [MiB]', ylim=(0, None))
    for name, percent in (('p50_ms', 'median'), ('p99_ms', '99th percentile')):
        axes[1].plot(steps, series[name], label=percent)
    # Above the curves there is room for their names.
    axes[1].set(ylabel='capture → first token [ms]', ylim=(0, 1.3 * max(series['p99_ms'])))
    axes[1].legend(loc='upper right', ncols=2)
    axes[2].plot(steps, series['positions'])
    axes[2].set(ylabel='largest position', xlabel='steps', ylim=(0, None))
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--model', default='builtin', help='checkpoint (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=3000)
    parser.add_argument('--steps', type=int, default=100_000, help='length (default: %(default)s)')
    parser.add_argument('--overlap', default='processes', help='as the node has it (default: '
                        '%(default)s)')
    parser.add_argument('--json', type=Path, help='file for the figures')
    parser.add_argument('--plot', type=Path, help='file for the picture, .png')
    arguments = parser.parse_args()
    config, frames = SessionConfig(overlap=arguments.overlap), _draw(arguments.seed)
    with positions_noted() as largest, Session.open(arguments.model, config) as session:
        gc.freeze()  # As the engine does: a collection would copy what the child shares.
        watching = Watching(session, frames)
        result = measure(session, watching, arguments.steps, largest)
        with Session.open(arguments.model, config) as other:
            result['beside_fresh'] = compare(
                watching, Watching(other, frames), max(10, arguments.steps // 100))
    result['summary']['p99_drift_beside_fresh'] = result['beside_fresh']['p99_drift']
    print(json.dumps(result['summary'], indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + '\n')
    if arguments.plot:
        plot(result, arguments.plot)


if __name__ == '__main__':
    main()
