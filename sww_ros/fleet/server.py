"""A gateway on this machine, without Ray: TLS, the WebSocket, health and metrics over HTTP."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from pathlib import Path
import ssl

from aiohttp import WSMsgType, web
from aiohttp.web_protocol import RequestHandler

from sww_ros.engine.address import is_local
from sww_ros.fleet.gateway import Gateway
from sww_ros.fleet.meters import LocalMeter
from sww_ros.fleet.strangers import Strangers
from sww_ros.web.serving import ServingThread

HEARTBEAT_S = 10.0
END_S = 5.0
AT_ONCE, QUEUE = 16, 1024
"""So many connections are taken at once, so that those before have their turn too, and so many may
wait for that: more have to try again, which TCP does after a second."""


def bearer(header: str) -> str:
    """Return the token of an Authorization header; empty where it has none."""
    kind, _, token = header.partition(' ')
    return token.strip() if kind.lower() == 'bearer' else ''


def tls_of(certificate: Path, key: Path) -> ssl.SSLContext:
    """
    Return how a server speaks TLS.

    :raises ValueError: for files that hold no certificate and key
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f'{certificate} and {key} are no certificate and key: {error}') from None
    return context


class _Socket:
    """A WebSocket of aiohttp, as the gateway sees it."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket

    async def receive(self) -> bytes | str | None:
        message = await self._socket.receive()
        return message.data if message.type in (WSMsgType.BINARY, WSMsgType.TEXT) else None

    async def send(self, data: bytes) -> None:
        await self._socket.send_bytes(data)

    async def close(self, code: int) -> None:
        await self._socket.close(code=code)


class GatewayServer(ServingThread):
    """
    Serves a gateway in a thread of its own, from `start` to `close`.

    :param meter: is told over HTTP; None: it is not
    :param port: 0: any that is free, which `port` says then
    :param tls: how; None: not at all, which only this machine itself may do without
    :param ready: says whether the engine runs
    :raises ValueError: where others could listen to what is said
    """

    def __init__(self, gateway: Gateway, meter: LocalMeter | None, *, host: str = '127.0.0.1',
                 port: int = 0, tls: ssl.SSLContext | None = None, ready=lambda: True) -> None:
        if tls is None and not is_local(host):
            raise ValueError(f'{host} can be reached by others: give a certificate and its key, '
                             'or listen on 127.0.0.1')
        super().__init__('robots', END_S, host, port)
        self._gateway, self._meter, self._ready, self._tls = gateway, meter, ready, tls
        self._strangers = Strangers(self._handler, tls,
                                    lambda: gateway.meter.count('refused', '503'))
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The address for robots."""
        host = f'[{self._host}]' if ':' in self._host else self._host
        return f'{"wss" if self._tls else "ws"}://{host}:{self.port}'

    async def _open(self) -> None:
        app = web.Application()
        app.router.add_get('/', self._serve)
        app.router.add_get('/health', self._tell_health)
        if self._meter is not None:
            app.router.add_get('/metrics', self._tell_metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=END_S)
        await self._runner.setup()
        self._server = await self._loop.create_server(
            self._strangers.admit, self._host, self.port, backlog=AT_ONCE)
        for each in self._server.sockets:
            with each.dup() as listening:
                listening.listen(QUEUE)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._gateway.send_away()
        await super()._shut()
        self._strangers.close()

    def _handler(self) -> RequestHandler:
        """Return what talks to one that connects."""
        assert self._runner is not None and self._runner.server is not None
        return self._runner.server()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get('Upgrade', '').lower() != 'websocket':
            raise web.HTTPUpgradeRequired(text='this is for robots, which come by a WebSocket\n')
        token = bearer(request.headers.get('Authorization', ''))
        if not self._strangers.let_in(request.protocol, self._gateway.knows(token)):
            return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE)  # As it has been told.
        # What is a little too large is refused in words, by the gateway; the rest is not even read.
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, compress=False,
                                       max_msg_size=4 * self._gateway.bounds.message_bytes)
        try:
            await socket.prepare(request)
        except (ValueError, ConnectionError) as error:  # A key that is no text; it has gone.
            raise web.HTTPBadRequest(text=f'there is no WebSocket with this: {error}\n') from None
        await self._gateway.attend(_Socket(socket), token)
        return socket

    async def _tell_health(self, _: web.Request) -> web.Response:
        ready = await asyncio.to_thread(self._ready)
        return web.Response(text='the engine runs\n' if ready else 'the engine does not run\n',
                            status=200 if ready else 503)

    async def _tell_metrics(self, request: web.Request) -> web.Response:
        if not self._gateway.knows(bearer(request.headers.get('Authorization', ''))):
            raise web.HTTPUnauthorized(text='a token is needed\n')
        assert self._meter is not None
        self._meter.gauge('ready', self._ready())
        self._gateway.measure()
        return web.Response(text=self._meter.text())
