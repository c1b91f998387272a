"""
What cameras cost one another on one engine: latency to the first token, and memory.

`python -m sww_ros.benchmark cameras --json FILE`: an engine's process, as of the node, watches 1,
2, 4 and 8 scenes of the shapes world at a time, live. All cameras take their pictures at the same
moments, which is the worst: whoever is last sees its step once one of each of the others has been
perceived, before it or in the same pass. So p99 from capture to the first token that saw it may be
that of one camera, and what their perception takes, at most. Memory is that of the engine's process
(PSS), once all have been watched; what the lanes of one have reserved is told beside it. Passes are
timed: from their `costs`, `python -m sww_ros.fleet plan` knows how many cameras an engine bears.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from statistics import median
import time

import numpy as np
from tqdm import tqdm

from sww_ros.benchmark import harness
from sww_ros.benchmark.latency import percentiles
from sww_ros.benchmark.passes import TIMED, costs_of, relay_of, timing
from sww_ros.engine.client import EngineClient
from sww_ros.engine.process import EngineHost
from sww_ros.frames import NANOSECONDS, CameraFrame
from sww_ros.shapes.endurance import pss_bytes
from sww_ros.shapes.long_scenes import Film
from sww_ros.shapes.scene import TICK_S, generate
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import Event, FirstSight, FramesDropped, StepPerceived

FIRST_SEED = 50_000
MB = 1e6
LAST_S = 30.0
"""How long the last steps may take to be seen."""
POLL_S = 0.02


class WatchedScene:
    """A scene, and a session that watches it on an engine that others share; with all it tells."""

    def __init__(self, model: str, config: SessionConfig, host: EngineHost,
                 pictures: Sequence[np.ndarray]) -> None:
        self._pictures = pictures
        self.events: list[Event] = []
        self.client = EngineClient(model, config, host=host, session=TIMED,
                                   on_event=self.events.append)

    def show(self, step: int) -> None:
        """Take the pictures of a step, whose stamps are those of the scene."""
        for number in (2 * step, 2 * step + 1):
            pixels = self._pictures[number]
            self.client.feed(CameraFrame(
                lambda pixels=pixels: pixels, round((number + 1) * TICK_S * NANOSECONDS),
                time.monotonic_ns()))

    def of(self, kind: type) -> list:
        """Return the events of a kind so far."""
        return [event for event in [*self.events] if isinstance(event, kind)]

    def latencies_s(self) -> list[float]:
        """Return, for each step, the time from its capture to the first token that saw it [s]."""
        captured = {(step.video, step.index): step.received_ns for step in self.of(StepPerceived)}
        return [(sight.decoded_ns - captured[sight.video, sight.index]) / NANOSECONDS
                for sight in self.of(FirstSight)]


def pictures(seed: int, steps: int) -> list[np.ndarray]:
    """Return the frames of a scene, two a step, (H, W, 3) uint8 RGB each."""
    film = Film.of(generate(seed, steps + 1.0, max_objects=2), np.random.default_rng([seed, 2]))
    return [pixels for pixels, _ in film.steps(0, steps)]


@contextmanager
def watching(model: str, config: SessionConfig,
             scenes: Sequence[Sequence[np.ndarray]]) -> Iterator[list[WatchedScene]]:
    """Give a camera for each scene, all on one engine, which is started and ended."""
    host = EngineHost()
    with ExitStack() as stack:
        cameras = [WatchedScene(model, config, host, scene) for scene in scenes]
        for camera in cameras:
            stack.callback(camera.client.close)
            camera.client.start(harness.PATIENCE_S)
        yield cameras


def play(cameras: Sequence[WatchedScene], steps: int, step_s: float) -> None:
    """
    Show so many steps to all cameras, at the same moments.

    :param step_s: a step comes every so many seconds
    """
    due = time.monotonic()
    for step in tqdm(range(steps), desc=f'{len(cameras)} cameras', unit='step', disable=None):
        time.sleep(max(0.0, due - time.monotonic()))
        due += step_s
        for camera in cameras:
            camera.show(step)
    end = time.monotonic() + LAST_S
    while time.monotonic() < end and any(
            len(camera.of(FirstSight)) < steps for camera in cameras):
        time.sleep(POLL_S)


def feed_s(cameras: Sequence[WatchedScene]) -> float:
    """Return how long after those of one camera the pictures of the next come to the engine [s]."""
    if len(cameras) < 2:
        return 0.0
    together = zip(*(camera.of(StepPerceived) for camera in cameras))
    return median(max(step.fed_ns for step in steps) - min(step.fed_ns for step in steps)
                  for steps in together) / NANOSECONDS / (len(cameras) - 1)


def figures_of(cameras: Sequence[WatchedScene]) -> dict:
    """Return what was measured of cameras that were played, ready for JSON."""
    seen = [camera.of(StepPerceived) for camera in cameras]
    return dict(
        latency=percentiles([each for camera in cameras for each in camera.latencies_s()]),
        each_p99_ms=[percentiles(camera.latencies_s())['p99_ms'] for camera in cameras],
        perception_ms=harness.milliseconds(median(
            step.perceived_ns - step.started_ns for steps in seen for step in steps) / NANOSECONDS),
        steps=[len(steps) for steps in seen],
        dropped=sum(event.count for camera in cameras for event in camera.of(FramesDropped)),
        pss_mb=round(pss_bytes(cameras[0].client.pid) / MB, 1),
        lanes_mb=round(cameras[0].client.info['lane_bytes'] / MB, 1))


def summarize(found: dict[str, dict]) -> dict:
    """Return p99 beside what it may be, and the memory of one more camera."""
    counts = sorted(map(int, found))
    one, most = found[str(counts[0])], found[str(counts[-1])]
    p99 = {count: found[str(count)]['latency']['p99_ms'] for count in counts}
    allowed = {count: round(p99[counts[0]] + (count - counts[0]) * one['perception_ms'], 4)
               for count in counts}
    more = counts[-1] - counts[0]
    return dict(
        p99_ms=p99, allowed_ms=allowed,
        holds={count: p99[count] <= allowed[count] for count in counts},
        dropped=sum(each['dropped'] for each in found.values()),
        mb_a_camera=round((most['pss_mb'] - one['pss_mb']) / more, 2) if more else 0.0,
        reserved_mb_a_camera=one['lanes_mb'])


def run(given: argparse.Namespace) -> dict:
    """Measure what the options ask for; return it, ready for JSON."""
    config, info, found = SessionConfig(overlap=given.overlap), {}, {}
    scenes = [pictures(FIRST_SEED + number, given.steps) for number in range(max(given.cameras))]
    with timing() as passes:
        for count in given.cameras:
            with watching(given.model, config, scenes[:count]) as cameras:
                play(cameras, given.steps, given.step_s)
                found[str(count)], info = figures_of(cameras), cameras[0].client.info
                step_tokens, between_s = cameras[0].of(StepPerceived)[-1].tokens, feed_s(cameras)
    costs, relay = replace(costs_of(passes, step_tokens), feed_s=between_s), relay_of(info)
    summary = dict(model=given.model, overlap=info['overlap'], threads=info['threads'],
                   step_every_s=given.step_s, steps=given.steps, **summarize(found))
    return dict(summary=summary, costs=asdict(costs),
                relay=asdict(relay) if relay else None, cameras=found)


CAMERAS = harness.Measurement(
    'cameras', 'how late, and how large, several cameras on one engine are', run, {
        '--model': dict(default='builtin'),
        '--cameras': dict(type=int, nargs='+', default=[1, 2, 4, 8], metavar='COUNT',
                          help='how many at a time, fewest first'),
        '--overlap': dict(default='fused', choices=['fused', 'threads', 'serial']),
        '--steps': dict(type=int, default=300, help='of each camera'),
        '--step-s': dict(type=float, default=0.25,
                         help='a step comes every so many seconds (default: %(default)s)')})
