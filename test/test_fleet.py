"""A pool of engines on Ray Serve: who is placed where, and what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
import time

import pytest

pytest.importorskip('ray', reason='Ray is not installed: pip install -r requirements/fleet.txt')

from engine_harness import START_S, Listener, numbers, speak  # noqa: E402
from fake_session import ENGINE  # noqa: E402
from fleet_kit import CERTIFICATE, KEY, TOKENS, opening, said_to  # noqa: E402
import numpy as np  # noqa: E402
import ray  # noqa: E402
from waiting import wait_until  # noqa: E402

from experiments.outages import Proxy, Robot  # noqa: E402
from sww_ros.benchmark.pool import watched  # noqa: E402
from sww_ros.benchmark.watched import Far, Phase  # noqa: E402
from sww_ros.engine.link import Link, tls_to  # noqa: E402
from sww_ros.fleet import pool  # noqa: E402
from sww_ros.fleet.gateway import TOO_LARGE, WRONG_TOKEN, Bounds  # noqa: E402
from sww_ros.fleet.robots import Robots  # noqa: E402
from sww_ros.fleet.server import tls_of  # noqa: E402
from sww_ros.images import jpeg_of  # noqa: E402
from sww_ros.streaming.config import SessionConfig  # noqa: E402
from sww_ros.wire import packed  # noqa: E402


@pytest.fixture(scope='module')
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of a pool of two engines without a model."""
    file = tmp_path_factory.mktemp('pool') / 'robots'
    file.write_text(''.join(f'{name} {token}\n' for name, token in TOKENS.items()))
    with pool.running('fake', SessionConfig(), Robots(file), Bounds(frame_bytes=100_000),
                      replicas=2, tls=tls_of(CERTIFICATE, KEY), address='local',
                      cpus_each=0.1, session=ENGINE) as address:
        yield address.replace('127.0.0.1', 'localhost')


def replicas() -> list[str]:
    """Return the names of those that run."""
    return [each['name'] for each in ray.util.list_named_actors(all_namespaces=True)
            if each['name'].startswith('SERVE_REPLICA')]


def test_sessions_are_placed_by_load_and_come_back_when_a_replica_is_killed(url: str):
    with ExitStack() as stack:
        robots = []
        for token in [TOKENS['front'], TOKENS['rear']] * 2:
            robots.append(Listener('any', host=Link(url, token, authority=str(CERTIFICATE))))
            stack.callback(robots[-1].client.close)
            robots[-1].client.start(START_S)
            speak(robots[-1])
        for robot in robots:
            robot.client.ask('long', 'long')
        assert len(replicas()) == 2
        ray.kill(ray.get_actor(replicas()[0], namespace='serve'))
        wait_until(lambda: sum(bool(robot.lost) for robot in robots) >= 2)
        lost = [robot for robot in robots if robot.lost]
        for robot in robots:
            robot.client.cancel('long')  # It has ended where the robot was lost.
            assert robot.wait_final('long').finish_reason == (
                'error' if robot in lost else 'cancelled')
        for robot in lost:
            robot.wait(lambda robot=robot: len(robot.ready) == 2)
        for robot in robots:
            robot.events[:] = [each for each in robot.events if each.type != 'dropped']
            speak(robot)
            assert numbers(robot) == list(range(len(numbers(robot)))), 'no gap'
        assert [robot for robot in robots if robot.lost] == lost, 'the others went on'
        assert len(lost) == 2, 'they had been placed by load'


def test_cameras_at_full_load_and_paced_are_measured_on_a_pool(url: str):
    """The benchmark `pool`, a small one, with engines that have no model."""
    picture = [({}, jpeg_of(np.full((84, 84, 3), 77, np.uint8), 90))]

    async def connect() -> Far:
        return await Far.to(url, TOKENS['front'], tls_to(str(CERTIFICATE)))

    found = asyncio.run(watched(connect, dict(command='open', config={}), [picture] * 2, dict(
        full=Phase(0.2, 3.0, in_flight=2), paced=Phase(0.2, 3.0, step_s=1.0))))
    for name in ('full', 'paced'):
        each = found[name]
        assert min(each['steps']) > 0 and not each['dropped'], name
        assert 0 < each['first_token']['p50_ms'] <= each['heard']['p99_ms'], name
        assert {'cameras', 'engines', 'ray'} == {*each['cores']}, name
    assert sum(found['paced']['steps']) <= 2 * 4 < sum(found['full']['steps'])


def test_robots_are_told_of_their_own_scene_again_after_a_cut_and_a_killed_replica(url: str):
    """The short form of `python -m experiments.outages`, without a model."""
    proxy = Proxy(int(url.rpartition(':')[2]))
    with ExitStack() as stack:
        stack.callback(proxy.close)
        robots = [Robot(number, Link(f'wss://localhost:{proxy.port}', token,
                                     authority=str(CERTIFICATE)))
                  for number, token in enumerate([TOKENS['front'], TOKENS['rear']] * 2)]

        def told_after(moment_s: float) -> bool:
            return all(robot.told_after(moment_s) is not None for robot in robots)

        for robot in robots:
            stack.callback(robot.client.close)
            robot.start()
            stack.callback(robot.stop)
        wait_until(lambda: told_after(0.0))
        for robot in robots:
            robot.ask()
        proxy.sever()
        wait_until(lambda: all(robot.losses for robot in robots))
        proxy.mend()
        mended_s = time.monotonic()
        wait_until(lambda: told_after(mended_s))
        losses = [robot.losses for robot in robots]
        for robot in robots:
            robot.ask()
        ray.kill(ray.get_actor(replicas()[0], namespace='serve'))
        wait_until(lambda: [robot.losses for robot in robots] != losses)
        killed_s = time.monotonic()
        wait_until(lambda: told_after(killed_s))
        for robot in robots:
            robot.stop()
        wait_until(lambda: all(robot.is_answered for robot in robots))
        assert [robot.foreign for robot in robots] == [[]] * 4
        assert all(len(robot.asked) >= 2 for robot in robots)


def test_who_is_refused_is_told_why_by_a_pool_too(url: str):
    answers, code = said_to(url, 'wrong', opening())
    assert code == WRONG_TOKEN and 'not known here' in answers[0]['message']
    answers, code = said_to(url, TOKENS['rear'], packed({}, b'x' * 300_000))
    assert code == TOO_LARGE and 'too large' in answers[0]['message']
