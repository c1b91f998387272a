"""
A pool of engines on Ray Serve: each replica is one engine of many sessions, behind one gateway.

A session is one call to Serve, which gives it to the replica that has fewer, and lasts as long:
that is how sessions are placed by load, and stay where they are. The replica answers where it
listens, and hands the socket that is opened there to its engine's process: what is said goes from
the gateway to the engine, and neither Ray nor the replica has a part in it. A replica that dies
takes its sessions with it; robots come again, and are placed anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache
import hmac
import os
import secrets
import socket
import ssl
import threading
import time

# Ray asks for nothing, and tells nobody: no network unless asked.
os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
# A Ray of our own has its workers be as urgent as any process: it would have an engine computed by
# what others leave, who came to see at once.
os.environ.setdefault('RAY_worker_niceness', '0')

# isort: split
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray.util import metrics

from sww_ros.engine.client import ENGINE, Standby
from sww_ros.engine.process import EngineHost
from sww_ros.fleet.gateway import Bounds, Gateway
from sww_ros.fleet.meters import BUCKETS_S, COUNTERS, GAUGES, PREFIX, TIMES
from sww_ros.fleet.robots import Robots
from sww_ros.fleet.server import GatewayServer
from sww_ros.streaming.config import SessionConfig
from sww_ros.wire import Channel

APPLICATION, DEPLOYMENT = 'sww', 'engine'
MEASURED_S = 1.0
AWAY_S = 120.0
PLACE_S = 10.0
"""How long a session may wait for a place [s]: until a replica has started that took another's."""
CONNECT_S = 5.0
TICKET_BYTES = 32
HERE = '127.0.0.1'


class RayMeter:
    """Measures by Ray: its dashboard, and Prometheus, have it with the replica's name."""

    def __init__(self, replica: str = '') -> None:
        self._gauges = {name: metrics.Gauge(PREFIX + name, words, tag_keys=('replica',))
                        for name, words in GAUGES.items()}
        self._counters = {name: metrics.Counter(f'{PREFIX}{name}', words,
                                                tag_keys=('replica', 'why'))
                          for name, words in COUNTERS.items()}
        self._times = {name: metrics.Histogram(PREFIX + name, words, boundaries=[*BUCKETS_S],
                                               tag_keys=('replica',))
                       for name, words in TIMES.items()}
        for each in (*self._gauges.values(), *self._counters.values(), *self._times.values()):
            each.set_default_tags({'replica': replica})

    def gauge(self, name: str, value: float) -> None:
        """See `Meter`."""
        self._gauges[name].set(value)

    def count(self, name: str, why: str = '', times: int = 1) -> None:
        """See `Meter`."""
        if times > 0:
            self._counters[name].inc(times, {'why': why})

    def observe(self, name: str, seconds: float) -> None:
        """See `Meter`."""
        self._times[name].observe(seconds)


class Replica:
    """One engine, loaded once; it counts as well once the model is loaded."""

    async def __init__(self, model: str, config: SessionConfig, session: str = ENGINE) -> None:
        self._host = EngineHost()
        self._standby = Standby(self._host, model, config, session, on_line=print)
        await asyncio.to_thread(self._standby.load)
        self._ready_s = time.monotonic()
        self._name = serve.get_replica_context().replica_id.unique_id
        self._measuring = asyncio.create_task(self._measure(RayMeter(self._name)))

    def check_health(self) -> None:
        """
        Let Serve replace a replica whose engine does not come back, though it is supervised.

        :raises RuntimeError: where it has been away for too long
        """
        if self._standby.ready:
            self._ready_s = time.monotonic()
        elif time.monotonic() - self._ready_s > AWAY_S:
            raise RuntimeError(f'the engine does not come back: {self._standby.client.doing}')

    async def _measure(self, meter: RayMeter) -> None:
        while True:
            meter.gauge('ready', self._standby.ready)
            await asyncio.sleep(MEASURED_S)

    async def session(self, node: str) -> AsyncIterator[tuple[str, str, int, bytes]]:
        """
        Begin a session, which lasts until the call is cancelled.

        Yields this replica's name, where the session's socket is to be connected to, and what is
        to be said there first.

        :param node: of Ray, from which that is done
        """
        context, ticket = ray.get_runtime_context(), secrets.token_bytes(TICKET_BYTES)
        address = HERE if context.get_node_id() == node else ray.util.get_node_ip_address()
        with socket.create_server((address, 0), backlog=1) as door:
            door.setblocking(False)
            yield self._name, address, door.getsockname()[1], ticket
            theirs = await asyncio.wait_for(_let_in(door, ticket), CONNECT_S)
        with theirs:
            place = await asyncio.to_thread(self._host.join, theirs, print)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(place.leave, wanted=True)


async def _let_in(door: socket.socket, ticket: bytes) -> socket.socket:
    """
    Return the socket of the session that is to begin.

    :raises ConnectionError: where somebody else has come
    """
    loop = asyncio.get_running_loop()
    theirs, _ = await loop.sock_accept(door)
    shown = b''
    while len(shown) < len(ticket) and (more := await loop.sock_recv(
            theirs, len(ticket) - len(shown))):
        shown += more
    if not hmac.compare_digest(shown, ticket):
        theirs.close()
        raise ConnectionError('somebody came who was not meant')
    theirs.setblocking(True)
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return theirs


class PoolSession:
    """What stands for the engine's process to the gateway: a session of a replica."""

    def __init__(self, call: DeploymentResponseGenerator, channel: Channel, replica: str) -> None:
        self._call, self.channel, self.replica = call, channel, replica

    def end(self) -> None:
        """End the session."""
        self.channel.close()
        self._call.cancel()

    def report(self) -> str:
        """Return, after the end, how it ended."""
        return f'the engine {self.replica} of the pool has ended the session'


class PoolHost:
    """Has sessions be those of replicas, which Serve chooses. Any thread may use it."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._sessions = handle.options(stream=True).session
        self._node = ray.get_runtime_context().get_node_id()

    def session(self, on_line: Callable[[str], None]) -> PoolSession:
        """
        Return a new session; waits until there is a place. `on_line` is told nothing.

        :raises OSError: in words, when there is none
        """
        call = self._sessions.remote(self._node)
        late = threading.Timer(PLACE_S, call.cancel)
        late.start()
        try:
            replica, address, port, ticket = next(call)
            ours = socket.create_connection((address, port), CONNECT_S)
            ours.settimeout(None)
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ours.sendall(ticket)
        except (RayError, RayServeException, StopIteration, OSError) as error:
            call.cancel()
            raise ConnectionError('no engine of the pool has a place now: '
                                  f'{error or type(error).__name__:.200}') from error
        finally:
            late.cancel()
        return PoolSession(call, Channel(ours), replica)


@contextmanager
def running(model: str, config: SessionConfig, robots: Robots, bounds: Bounds, *, replicas: int,
            host: str = HERE, port: int = 0, tls: ssl.SSLContext | None = None, address: str = '',
            cpus_each: float = 1.0, gpus_each: float = 0.0, session: str = ENGINE,
            ) -> Iterator[str]:
    """
    Have a pool run, on the Ray cluster that there is or one of its own; gives its address.

    :param bounds: `sessions` are those of each replica
    :param address: of a cluster, 'local' for one of this process's own; empty: one that runs on
        this machine or that RAY_ADDRESS names, and if there is none, one of its own
    :param cpus_each: cores that a replica has reserved, and `gpus_each` GPUs, which may be shares
    :raises RuntimeError: when it cannot
    :raises ValueError: where robots cannot be served, in words
    """
    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        if not ray.is_initialized():
            ray.init(address=address or None, log_to_driver=False, logging_level='warning')
        stack.callback(serve.shutdown)
        serve.start(proxy_location='Disabled')
        # One whose gateway was killed would count sessions that nobody has any more.
        serve.delete(APPLICATION)
        deployment = serve.deployment(Replica).options(
            name=DEPLOYMENT, num_replicas=replicas, max_ongoing_requests=bounds.sessions,
            ray_actor_options=dict(num_cpus=cpus_each, num_gpus=gpus_each),
            health_check_period_s=2.0, graceful_shutdown_timeout_s=2.0)
        handle = serve.run(deployment.bind(model, config, session), name=APPLICATION,
                           route_prefix=None)
        meter_of = cache(RayMeter)
        gateway = Gateway(
            PoolHost(handle), model, robots, meter_of(''), replace(
                bounds, sessions=replicas * bounds.sessions), session,
            meter_of=lambda process: meter_of(process.replica))
        server = GatewayServer(gateway, None, host=host, port=port, tls=tls, ready=is_ready)
        stack.callback(server.close)
        server.start()
        over = threading.Event()
        stack.callback(over.set)
        threading.Thread(target=_measure, args=[gateway, over], daemon=True).start()
        yield server.url


def is_ready() -> bool:
    """Return whether there is a replica that runs."""
    with suppress(RayError, RayServeException, KeyError):
        deployments = serve.status().applications[APPLICATION].deployments
        return deployments[DEPLOYMENT].replica_states.get('RUNNING', 0) > 0
    return False


def _measure(gateway: Gateway, over: threading.Event) -> None:
    while not over.wait(MEASURED_S):
        gateway.measure()
