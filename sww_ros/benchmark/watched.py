"""
Cameras that cost next to nothing, for measurements in which engines are to have all cores.

What they send is what the node and a robot send, made before it is needed; of what they are told
they keep times. All cameras live on one thread, on an engine's process of this machine or on
WebSockets to a pool.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
import os
from pathlib import Path
import socket
import ssl
import time
from typing import Protocol

import aiohttp

from sww_ros.benchmark.latency import percentiles
from sww_ros.frames import NANOSECONDS
from sww_ros.shapes.scene import TICK_S
from sww_ros.wire import next_packed, packed, unpacked

TAIL_S = 1.0
"""How long what came last may take to be told [s]."""
Picture = tuple[dict, bytes]
"""What the header of its message says of a frame, and the frame as it is sent."""


class Route(Protocol):
    """To an engine, and back; messages are those of `wire.py`."""

    async def send(self, data: bytes) -> None:
        """Send a message; raises OSError or aiohttp's errors when nobody is there."""

    async def receive(self) -> bytes:
        """
        Return the next message.

        :raises ConnectionError: when there will be none
        """

    async def close(self) -> None:
        """Close it."""


class Near:
    """The route to an engine's process, by a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @staticmethod
    async def on(ours: socket.socket) -> Near:
        """Return the one on a connected socket."""
        return Near(*await asyncio.open_connection(sock=ours))

    async def send(self, data: bytes) -> None:
        """See `Route`."""
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self) -> bytes:
        """See `Route`."""
        return await next_packed(self._reader)

    async def close(self) -> None:
        """See `Route`."""
        self._writer.close()


class Far:
    """The route to a pool, by a WebSocket."""

    def __init__(self, http: aiohttp.ClientSession,
                 robot: aiohttp.ClientWebSocketResponse) -> None:
        self._http, self._robot = http, robot

    @staticmethod
    async def to(address: str, token: str, tls: ssl.SSLContext | bool = True) -> Far:
        """
        Connect; raises aiohttp's errors.

        :param tls: how, to a wss:// address whose certificate not everybody trusts
        """
        http = aiohttp.ClientSession()
        return Far(http, await http.ws_connect(
            address, headers={'Authorization': f'Bearer {token}'}, max_msg_size=0, ssl=tls))

    async def send(self, data: bytes) -> None:
        """See `Route`."""
        await self._robot.send_bytes(data)

    async def receive(self) -> bytes:
        """See `Route`."""
        message = await self._robot.receive()
        if message.type is not aiohttp.WSMsgType.BINARY:
            raise ConnectionError(f'the pool is gone: {message}')
        return message.data

    async def close(self) -> None:
        """See `Route`."""
        await self._robot.close()
        await self._http.close()


class LightCamera:
    """
    Shows its pictures, two a step, again and again, and keeps what is told of steps.

    Times are those of `time.monotonic_ns`. Of each step `perceived` has when it was, and when its
    pictures were taken and had come to the engine; `sights` has when its pictures were taken, when
    a token had seen them, and when that was heard of.
    """

    def __init__(self, route: Route, pictures: Sequence[Picture]) -> None:
        self._route, self._pictures, self._shown = route, pictures, 0
        self.info: dict = {}
        self.step_tokens = 0
        """Visual tokens of the newest step."""
        self.in_flight = 0
        """So many steps are kept on the way; 0: those that are shown, and no others."""
        self._frames_on_the_way = 0
        self.perceived: list[tuple[int, int, int]] = []
        self.sights: list[tuple[int, int, int]] = []
        self.dropped: Counter[str] = Counter()
        self._captured: dict[tuple[int, int], int] = {}

    async def open(self, request: dict) -> None:
        """
        Open a session.

        :raises RuntimeError: in words, when it is refused
        """
        await self._route.send(packed(request))
        answer = unpacked(await self._route.receive())[0]
        if answer['type'] != 'ready':
            raise RuntimeError(f'no session was opened: {answer}')
        self.info = answer['info']

    async def show(self) -> None:
        """Take the pictures of the next step."""
        stamp_s = self._shown * TICK_S
        for number in (self._shown, self._shown + 1):
            about, data = self._pictures[number % len(self._pictures)]
            stamp_s += TICK_S
            await self._route.send(packed(about | dict(
                command='feed', stamp_ns=round(stamp_s * NANOSECONDS),
                received_ns=time.monotonic_ns()), data))
        self._shown += 2
        self._frames_on_the_way += 2

    async def watch(self) -> None:
        """
        Take what is told, for ever.

        :raises RuntimeError: for what ends all
        :raises ConnectionError: when there will be nothing more
        """
        while True:
            self._take(unpacked(await self._route.receive())[0])
            await self.fill()

    async def fill(self) -> None:
        """Show as many steps as are to be on the way."""
        while self._frames_on_the_way < 2 * self.in_flight:
            await self.show()

    async def close(self) -> None:
        """End the session."""
        await self._route.close()

    def _take(self, told: dict) -> None:
        kind = told['type']
        if kind == 'step':
            self._frames_on_the_way -= told['frames']
            self._captured[told['video'], told['index']] = told['received_ns']
            self.perceived.append((told['perceived_ns'], told['received_ns'], told['fed_ns']))
            self.step_tokens = told['tokens']
        elif kind == 'sight':
            captured_ns = self._captured.pop((told['video'], told['index']))
            self.sights.append((captured_ns, told['decoded_ns'], time.monotonic_ns()))
        elif kind == 'dropped':
            self._frames_on_the_way -= told['count']
            self.dropped[told['reason']] += told['count']
        elif kind in ('failed', 'trouble'):
            raise RuntimeError(f'a camera was told: {told["message"]}')


@dataclass(frozen=True)
class Phase:
    """
    How cameras are fed, and for how long that is measured, once it has gone on for `warm_s`.

    Each has `in_flight` steps on the way all the time; with 0, a step comes every `step_s`
    seconds, each camera's at moments of its own.
    """

    warm_s: float
    measured_s: float
    in_flight: int = 0
    step_s: float = 0.0


async def play(cameras: Sequence[LightCamera], phase: Phase) -> dict:
    """
    Feed cameras whose sessions are open, and return what was measured, ready for JSON.

    :raises RuntimeError: for what a camera is told that ends all
    """
    watching = [asyncio.create_task(camera.watch()) for camera in cameras]
    feeding = []
    for number, camera in enumerate(cameras):
        camera.in_flight = phase.in_flight
        feeding.append(asyncio.create_task(
            camera.fill() if phase.in_flight else
            _pace(camera, phase.step_s, number / len(cameras))))
    try:
        await _while_it_goes(phase.warm_s, watching)
        begin_ns, before = time.monotonic_ns(), cpu_seconds()
        for camera in cameras:
            camera.dropped.clear()
        await _while_it_goes(phase.measured_s, watching)
        end_ns, spent = time.monotonic_ns(), cpu_seconds()
        dropped = sum((camera.dropped for camera in cameras), Counter[str]())
        for camera in cameras:
            camera.in_flight = 0
        for task in feeding:
            task.cancel()
        await _while_it_goes(TAIL_S, watching)
    finally:
        for task in (*watching, *feeding):
            task.cancel()
        await asyncio.gather(*watching, *feeding, return_exceptions=True)
    seconds = (end_ns - begin_ns) / NANOSECONDS
    return figures_of(cameras, begin_ns, end_ns) | dict(
        window_ns=[begin_ns, end_ns], dropped=dict(dropped), cores={
        who: round((spent[who] - before.get(who, 0.0)) / seconds, 3) for who in sorted(spent)})


async def _pace(camera: LightCamera, step_s: float, share: float) -> None:
    """Show a step every so many seconds, the first after a share of that."""
    due_s = time.monotonic() + share * step_s
    while True:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        due_s += step_s
        await camera.show()


async def _while_it_goes(seconds: float, watching: Sequence[asyncio.Task]) -> None:
    """Wait, but for an end of those that watch, whose error is raised."""
    done, _ = await asyncio.wait(watching, timeout=seconds,
                                 return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


def figures_of(cameras: Sequence[LightCamera], begin_ns: int, end_ns: int) -> dict:
    """Return what cameras were told of steps between two moments, ready for JSON."""
    perceived = [[each for each in camera.perceived if begin_ns <= each[0] < end_ns]
                 for camera in cameras]
    sights = [each for camera in cameras for each in camera.sights if begin_ns <= each[0] < end_ns]
    return dict(
        steps_per_s=round(sum(map(len, perceived)) / ((end_ns - begin_ns) / NANOSECONDS), 3),
        steps=[len(each) for each in perceived],
        fed=percentiles([(fed - taken) / NANOSECONDS for each in perceived
                         for _, taken, fed in each]),
        first_token=percentiles([(seen - taken) / NANOSECONDS for taken, seen, _ in sights]),
        heard=percentiles([(heard - taken) / NANOSECONDS for taken, _, heard in sights]))


def cpu_seconds() -> dict[str, float]:
    """
    Return the time that cores have computed for this process and those that it began [s].

    By who they are: cameras (this one), engines, the gateway, where it has a process of its own,
    and Ray, replicas without their engines included.
    """
    tick_s = 1 / os.sysconf('SC_CLK_TCK')
    parents, spent = {}, {}
    for folder in Path('/proc').iterdir():
        # It may have ended meanwhile.
        with suppress(OSError, ValueError):
            fields = (folder / 'stat').read_text().rpartition(')')[2].split()
            parents[int(folder.name)] = int(fields[1])
            spent[int(folder.name)] = (int(fields[11]) + int(fields[12])) * tick_s
    found: defaultdict[str, float] = defaultdict(float)
    for pid in parents:
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid():
            found[_who(pid)] += spent[pid]
    return dict(found)


def _who(pid: int) -> str:
    if pid == os.getpid():
        return 'cameras'
    try:
        words = Path(f'/proc/{pid}/cmdline').read_text().replace('\0', ' ')
    except OSError:
        words = ''
    for sign, who in (('sww_ros.engine.process', 'engines'), ('spawn_main', 'gateway')):
        if sign in words:
            return who
    return 'ray'
