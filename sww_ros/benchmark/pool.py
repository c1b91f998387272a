"""
What a pool on Ray gives, and costs: one engine or two behind one address, beside those without it.

`python -m sww_ros.benchmark pool --json FILE`: cameras of the shapes world on one engine's process
of this machine, as the node has one, and on two, which is what the machine itself allows; on a
pool of one engine, and on one of two. Each engine computes on one thread (`fused`). To pools
cameras come over WebSockets, as thin robots do, with frames that were made JPEGs before. At full
load, with steps of each camera on the way all the time, steps a second are counted, once all
sessions run. Paced, with a step of each camera every so often, it is measured how late the first
token about a step is, and how late that is heard of. It is told what a step takes of the cores,
and whose that is: the cameras are on the same ones.

Passes of the one engine are timed, in both loads. By what they take, and for pools by what cores
do outside of engines for the pool of one, and how long frames are on the way to it, all of this is
simulated, as `python -m sww_ros.fleet plan` does: in each round, before two engines and the pool of
two are measured in it. It is told beside that. Of two engines it is taken from one at what pace
passes are there.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
import importlib.util
from itertools import cycle
import json
import multiprocessing
from multiprocessing.connection import Connection
import os
from pathlib import Path
import socket
from statistics import median
import sys
import tempfile

import numpy as np
import torch

from sww_ros.benchmark import harness
from sww_ros.benchmark.cameras import FIRST_SEED, pictures
from sww_ros.benchmark.latency import percentiles
from sww_ros.benchmark.passes import TIMED, TimedPass, costs_of, relay_of, timing
from sww_ros.benchmark.watched import Far, LightCamera, Near, Phase, Picture, Route, play
from sww_ros.engine.process import EngineHost
from sww_ros.engine.worker import open_request
from sww_ros.evaluation.random_model import save_random
from sww_ros.fleet.simulated import Costs, Load, simulate_engine, steps_a_second
from sww_ros.images import jpeg_of
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.relay import Relay

ENGINE_1, ENGINE_2, POOL_1, POOL_2 = '1 engine', '2 engines', 'pool of 1', 'pool of 2'
ENGINES = {ENGINE_1: 1, POOL_1: 1, ENGINE_2: 2, POOL_2: 2}
"""How many a case has: those of two come after those by which they are foretold."""
POOLS = (POOL_1, POOL_2)
FULL, PACED = 'full', 'paced'
QUALITY = 90
"""Of the frames' JPEGs, as a robot's are by default."""
SCENE_STEPS = 60
"""So many steps of a scene are rendered, and shown again and again."""
PACED_STEPS = 300
"""So many of each camera are simulated."""
MESSAGES = 10_000
"""So many a second may come from a camera: it is the engine that is to be the limit."""
TOKEN = 'a-token-of-cameras-that-are-measured'
Connect = Callable[[], Awaitable[Route]]


@contextmanager
def engines(count: int) -> Iterator[Connect]:
    """Give the route to so many engines' processes, in turn; the first sessions start them."""
    hosts, places = cycle([EngineHost() for _ in range(count)]), []

    async def connect() -> Route:
        ours, theirs = socket.socketpair()
        with theirs:
            places.append(await asyncio.to_thread(next(hosts).join, theirs, lambda line: None))
        return await Near.on(ours)

    try:
        yield connect
    finally:
        for place in places:
            place.leave(wanted=True)


@contextmanager
def pool_of(replicas: int, model: str, config: SessionConfig, sessions: int) -> Iterator[Connect]:
    """Give the route to a pool of so many engines, on a Ray of its own, in a process of its own."""
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    process = context.Process(target=_have_pool, args=(theirs, replicas, model, config, sessions))
    process.start()
    theirs.close()
    try:
        address = ours.recv()
        yield lambda: Far.to(address, TOKEN)
    finally:
        ours.close()
        process.join()


def _have_pool(owner: Connection, replicas: int, model: str, config: SessionConfig,
               sessions: int) -> None:
    """Have a pool until the other end of a pipe, which is told its address, is closed."""
    from sww_ros.fleet import pool  # Ray, which need not be there for anything else.
    from sww_ros.fleet.gateway import Bounds
    from sww_ros.fleet.robots import Robots
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'robots'
        file.write_text(f'cameras {TOKEN}\n')
        robots = Robots(file)
    # A share of a core is reserved, as otherwise two may not fit on two.
    with pool.running(model, config, robots, Bounds(
            of_one=sessions, messages=MESSAGES, bytes=MESSAGES * 10_000),
            replicas=replicas, address='local', cpus_each=0.5) as address:
        owner.send(address)
        with suppress(EOFError):
            owner.recv()


async def watched(connect: Connect, request: dict, scenes: Sequence[Sequence[Picture]],
                  phases: dict[str, Phase]) -> dict:
    """Open a session for each scene, and return what was measured in each phase."""
    cameras: list[LightCamera] = []
    try:
        for scene in scenes:
            cameras.append(LightCamera(await connect(), scene))
            await cameras[-1].open(request)
        found = {name: await play(cameras, phase) for name, phase in phases.items()}
        return found | dict(info=cameras[0].info, step_tokens=cameras[0].step_tokens)
    finally:
        for camera in cameras:
            await camera.close()


def run(given: argparse.Namespace) -> dict:
    """Measure what the options ask for; return it, ready for JSON."""
    with tempfile.TemporaryDirectory() as folder:
        model = given.model
        if model in harness.SHAPES:
            save_random(Path(folder), harness.SHAPES[model], 0, torch.float32)
            model = folder
        return _run(model, given)


def _run(model: str, given: argparse.Namespace) -> dict:
    config = SessionConfig(overlap='fused', threads=1)
    request = open_request(TIMED, model, config)
    scenes = [pictures(FIRST_SEED + number, SCENE_STEPS) for number in range(given.cameras)]
    raw = [[(dict(shape=list(pixels.shape)), pixels.tobytes()) for pixels in scene]
           for scene in scenes]
    jpegs: list[list[Picture]] = [[({}, jpeg_of(pixels, QUALITY)) for pixels in scene]
                                  for scene in scenes]
    phases = {FULL: Phase(given.warm_s, given.full_s, in_flight=given.in_flight),
              PACED: Phase(given.warm_s, given.paced_s, step_s=given.step_s)}

    foretold: list[dict[str, dict[str, float]]] = []
    costs: list[dict[str, Costs]] = []
    # Of the round that goes on.
    passes: dict[str, list[TimedPass]] = {}
    so_far: dict[str, list[dict]] = {}

    def foretell() -> None:
        one = so_far[ENGINE_1][0]
        costs.append({name: costs_of(each, one['step_tokens']) for name, each in passes.items()})
        foretold.append(simulated(costs[-1], relay_of(one['info']), one['info']['wait_k'],
                                  figures(so_far), given))
        print(f'foretold: {json.dumps(foretold[-1])}', file=sys.stderr, flush=True)

    def measure(number: int, case: str) -> dict:
        count, is_pool = ENGINES[case], case in POOLS
        if count > 1 and len(foretold) == number:
            foretell()
        with timing() as timed, (
                pool_of(count, model, config, given.cameras) if is_pool else
                engines(count)) as connect:
            found = asyncio.run(watched(connect, request, jpegs if is_pool else raw, {
                name: phase for name, phase in phases.items()
                if name == FULL or case != ENGINE_2}))
        if case == ENGINE_1:
            so_far.clear()
            for name in phases:
                begin_ns, end_ns = found[name]['window_ns']
                passes[name] = [each for each in timed if begin_ns <= each.start_ns < end_ns]
        so_far[case] = [found]
        return found

    rounds = harness.alternate('pools', ENGINES, given.repeats, measure)
    relay = relay_of(rounds[ENGINE_1][0]['info'])
    summary = summarize(rounds)
    return dict(summary=dict(
        model=given.model, cameras=given.cameras, in_flight=given.in_flight,
        step_every_s=given.step_s, **summary, predicted=compared(foretold, rounds)),
        costs=[{name: asdict(each) for name, each in of_round.items()} for of_round in costs],
        relay=asdict(relay) if relay else None, rounds=rounds)


def simulated(costs: dict[str, Costs], relay: Relay | None, tokens: int, found: dict,
              given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """
    Return what is simulated of each case, by what was measured of one engine and a pool of one.

    :param costs: of passes in each load
    :param tokens: said of a step
    :param found: what `figures` returns of those two
    """
    result: dict[str, dict[str, float]] = {}
    alone = steps_a_second(costs[FULL], tokens, given.cameras, relay=relay,
                           waiting=given.in_flight)
    for case, count in ENGINES.items():
        one = POOL_1 if case in POOLS else ENGINE_1
        core_s = {who: ms / 1e3 for who, ms in found['core_ms_a_step'][one].items()}
        engine_s = core_s.pop('engines')
        result[case] = dict(steps_per_s=round(steps_a_second(
            costs[FULL], tokens, given.cameras, count, relay=relay, outside_s=sum(core_s.values()),
            cores=len(os.sched_getaffinity(0)), waiting=given.in_flight,
            pace=1.0 if count == 1 else engine_s * alone), 3))
        if case == ENGINE_2:
            continue
        each = simulate_engine(costs[PACED], Load(given.step_s, tokens, 'spaced'),
                               given.cameras // count, PACED_STEPS, relay=relay)
        late = percentiles(late_by(each.latencies_s, found['fed'][one]))
        result[case] |= {f'first_token_{name}': late[name] for name in ('p50_ms', 'p99_ms')}
    return result


def late_by(latencies_s: Sequence[float], way: dict[str, float]) -> list[float]:
    """Return latencies, each with a draw from the times that frames were on the way [s]."""
    shares, times_ms = (0.5, 0.95, 0.99), [way[f'p{percent}_ms'] for percent in (50, 95, 99)]
    draws = np.random.default_rng(0).random(len(latencies_s))
    return (np.asarray(latencies_s) + np.interp(draws, shares, times_ms) / 1e3).tolist()


def compared(foretold: Sequence[dict[str, dict[str, float]]],
             rounds: dict[str, list[dict]]) -> dict[str, dict]:
    """
    Return what was simulated of each case and what was measured, medians over the rounds.

    `ratio` is the first over the second, and `each` that of each round.
    """
    result: dict[str, dict] = {}
    for case, names in foretold[0].items():
        result[case] = {}
        for name in names:
            predicted = [told[case][name] for told in foretold]
            measured = [measured_of(found, name) for found in rounds[case]]
            each = [round(told / found, 3) for told, found in zip(predicted, measured, strict=True)]
            result[case][name] = dict(predicted=middle(predicted), measured=middle(measured),
                                      ratio=round(middle(predicted) / middle(measured), 3),
                                      each=each)
    return result


def measured_of(found: dict, name: str) -> float:
    """Return a figure of one run, by the name under which it is foretold."""
    kind, _, percentile = name.rpartition('token_')
    return found[PACED]['first_token'][percentile] if kind else found[FULL][name]


def summarize(rounds: dict[str, list[dict]]) -> dict:
    """Return medians over the rounds, and of what is compared, of the ratios within each."""
    def gain(two: str, one: str) -> dict:
        found = [many[FULL]['steps_per_s'] / few[FULL]['steps_per_s']
                 for many, few in zip(rounds[two], rounds[one], strict=True)]
        return dict(median=round(median(found), 3), each=[round(each, 3) for each in found])

    return dict(gain=gain(POOL_2, POOL_1), gain_without_ray=gain(ENGINE_2, ENGINE_1),
                **figures(rounds))


def figures(rounds: dict[str, list[dict]]) -> dict:
    """Return medians over the rounds, of each case that there is."""
    return dict(
        steps_per_s={case: middle(each[FULL]['steps_per_s'] for each in rounds[case])
                     for case in rounds},
        core_ms_a_step={case: core_ms([each[FULL] for each in rounds[case]]) for case in rounds},
        **{what: {case: {name: middle(each[PACED][what][name] for each in rounds[case])
                         for name in ('p50_ms', 'p95_ms', 'p99_ms')}
                  for case in rounds if case != ENGINE_2}
           for what in ('fed', 'first_token', 'heard')})


def core_ms(found: Sequence[dict]) -> dict[str, float]:
    """Return how long cores computed for a step, by who they are, median over the rounds [ms]."""
    return {who: middle(1e3 * each['cores'].get(who, 0.0) / each['steps_per_s'] for each in found)
            for who in sorted({who for each in found for who in each['cores']})}


def middle(values: Iterable[float]) -> float:
    """Return the median, to be read."""
    return round(median(values), 3)


def complaint(_: argparse.Namespace) -> str:
    """Say what is missing, if anything is."""
    if importlib.util.find_spec('ray') is None:
        return 'a pool needs Ray: pip install -r requirements/fleet.txt'
    return ''


POOL = harness.Measurement(
    'pool', 'what two engines on Ray do more than one, and what Ray costs', run, {
        '--model': dict(default='builtin', help='a folder, or one of builtin, small, medium'),
        '--cameras': dict(type=int, default=8, help='at a time (default: %(default)s)'),
        '--in-flight': dict(type=int, default=3, help='steps of each camera on the way, at full '
                                                      'load (default: %(default)s)'),
        '--step-s': dict(type=float, default=0.25, help='paced, a step of each comes every so '
                                                        'many seconds (default: %(default)s)'),
        '--warm-s': dict(type=float, default=1.5, help='what goes before does not count'),
        '--full-s': dict(type=float, default=5.0, help='how long full load is measured'),
        '--paced-s': dict(type=float, default=6.0, help='how long paced cameras are measured'),
        **harness.repeats(2)}, check=complaint)
