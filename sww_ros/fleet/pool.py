"""
A pool of engines on Ray Serve: each replica is one engine of many sessions, behind one address.

A WebSocket is one request to Serve, which gives it to the replica that has fewer, and it stays
there: that is how sessions are placed by load, and stay where they are. A replica that dies takes
its WebSockets with it; robots come again, and are placed anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
import os
import time
from typing import Any

# Ray asks for nothing, and tells nobody: no network unless asked.
os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
# A Ray of our own has its workers be as urgent as any process: it would have an engine computed by
# what others leave, who came to see at once.
os.environ.setdefault('RAY_worker_niceness', '0')

# isort: split
import ray
from ray import serve
from ray.util import metrics

from sww_ros.engine.client import ENGINE
from sww_ros.engine.process import EngineHost
from sww_ros.engine.standby import Standby
from sww_ros.fleet.gateway import Bounds, Gateway
from sww_ros.fleet.meters import BUCKETS_S, COUNTERS, GAUGES, PREFIX, TIMES
from sww_ros.fleet.robots import Robots
from sww_ros.fleet.server import bearer
from sww_ros.streaming.config import SessionConfig

APPLICATION = 'sww'
MEASURED_S = 1.0
AWAY_S = 120.0
BEYOND = 16
"""So many more connections than sessions reach a replica, which refuses them in words."""
Message = dict[str, Any]


class RayMeter:
    """Measures by Ray: its dashboard, and Prometheus, have it with the replica's name."""

    def __init__(self) -> None:
        self._gauges = {name: metrics.Gauge(PREFIX + name, words, tag_keys=('replica',))
                        for name, words in GAUGES.items()}
        self._counters = {name: metrics.Counter(f'{PREFIX}{name}', words,
                                                tag_keys=('replica', 'why'))
                          for name, words in COUNTERS.items()}
        self._times = {name: metrics.Histogram(PREFIX + name, words, boundaries=[*BUCKETS_S],
                                               tag_keys=('replica',))
                       for name, words in TIMES.items()}
        replica = serve.get_replica_context().replica_id.unique_id
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


class _Socket:
    """A WebSocket of ASGI, as the gateway sees it."""

    def __init__(self, receive: Callable[[], Awaitable[Message]],
                 send: Callable[[Message], Awaitable[None]]) -> None:
        self._receive, self._send = receive, send

    async def receive(self) -> bytes | str | None:
        message = await self._receive()
        if message['type'] != 'websocket.receive':
            return None
        data = message.get('bytes')
        return message.get('text') if data is None else data

    async def send(self, data: bytes) -> None:
        await self._send({'type': 'websocket.send', 'bytes': data})

    async def close(self, code: int) -> None:
        await self._send({'type': 'websocket.close', 'code': code})


class Replica:
    """One engine, loaded once, with its gateway; it counts as well once the model is loaded."""

    async def __init__(self, model: str, config: SessionConfig, robots: Robots, bounds: Bounds,
                       session: str = ENGINE) -> None:
        host = EngineHost()
        self._standby = Standby(host, model, config, session, on_line=print)
        await asyncio.to_thread(self._standby.load)
        self._ready_s = time.monotonic()
        self._meter = RayMeter()
        self._gateway = Gateway(host, model, robots, self._meter, bounds, session)
        self._measuring = asyncio.create_task(self._measure())

    def __serve_build_asgi_app__(self) -> Callable:
        # A function: of a method, uvicorn does not see that it is ASGI's third version.
        async def app(scope: dict, receive: Callable, send: Callable) -> None:
            await self.serve(scope, receive, send)
        return app

    def check_health(self) -> None:
        """
        Let Serve replace a replica whose engine does not come back, though it is supervised.

        :raises RuntimeError: where it has been away for too long
        """
        if self._standby.ready:
            self._ready_s = time.monotonic()
        elif time.monotonic() - self._ready_s > AWAY_S:
            raise RuntimeError(f'the engine does not come back: {self._standby.client.doing}')

    async def _measure(self) -> None:
        while True:
            self._meter.gauge('ready', self._standby.ready)
            self._gateway.measure()
            await asyncio.sleep(MEASURED_S)

    async def serve(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Serve as an ASGI application does: the WebSockets of robots, and how the engine is."""
        if scope['type'] == 'websocket':
            await receive()
            await send({'type': 'websocket.accept'})
            headers = {name.decode('latin-1'): value.decode('utf-8', 'replace')
                       for name, value in scope['headers']}
            await self._gateway.attend(_Socket(receive, send),
                                       bearer(headers.get('authorization', '')))
        elif scope['type'] == 'http':
            ready = self._standby.ready
            await send({'type': 'http.response.start', 'status': 200 if ready else 503,
                        'headers': [(b'content-type', b'text/plain')]})
            await send({'type': 'http.response.body', 'body':
                        b'the engine runs\n' if ready else b'the engine does not run\n'})
        else:  # The application's life.
            while (await receive())['type'] == 'lifespan.startup':
                await send({'type': 'lifespan.startup.complete'})
            await asyncio.to_thread(self._standby.close)
            await send({'type': 'lifespan.shutdown.complete'})


def start(model: str, config: SessionConfig, robots: Robots, bounds: Bounds, *, replicas: int,
          host: str, port: int, certificate: str = '', key: str = '', address: str = '',
          cpus_each: float = 1.0, gpus_each: float = 0.0, session: str = ENGINE) -> None:
    """
    Have a pool run, on the Ray cluster that there is or one in this process; waits until it does.

    :param address: of a cluster, 'local' for one of this process's own; empty: one that runs on
        this machine or that RAY_ADDRESS names, and if there is none, one of its own
    :param cpus_each: cores that a replica has reserved, and `gpus_each` GPUs, which may be shares
    :raises RuntimeError: when it cannot
    """
    if not ray.is_initialized():
        ray.init(address=address or None, log_to_driver=False, logging_level='warning')
    # One door, on the machine where this is called, whose certificate is read there.
    http = dict(host=host, port=port, ssl_certfile=certificate or None, ssl_keyfile=key or None)
    serve.start(proxy_location='HeadOnly', http_options=http)
    deployment = serve.deployment(serve.ingress()(Replica)).options(
        name='engine', num_replicas=replicas, max_ongoing_requests=bounds.sessions + BEYOND,
        ray_actor_options=dict(num_cpus=cpus_each, num_gpus=gpus_each),
        health_check_period_s=2.0, graceful_shutdown_timeout_s=2.0)
    serve.run(deployment.bind(model, config, robots, bounds, session), name=APPLICATION)


def stop() -> None:
    """End the pool, and a Ray that it has started."""
    serve.shutdown()
    ray.shutdown()
