"""A gateway over an engine without a model, and robots that come to it, for tests of both."""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import shutil
import tempfile

import aiohttp
from engine_harness import START_S, Listener
from fake_session import ENGINE
import trustme

from sww_ros.engine.link import Link, tls_to
from sww_ros.engine.process import EngineHost
from sww_ros.fleet.gateway import Bounds, Gateway
from sww_ros.fleet.meters import LocalMeter
from sww_ros.fleet.robots import Robots
from sww_ros.fleet.server import GatewayServer, tls_of
from sww_ros.wire import packed, unpacked

TLS = Path(tempfile.mkdtemp(prefix='sww_ros-tls-'))
CERTIFICATE, KEY = TLS / 'certificate.pem', TLS / 'key.pem'
_authority = trustme.CA()
_issued = _authority.issue_cert('localhost')
# Robots trust the certificate's issuer, which comes after it.
_issued.private_key_pem.write_to_path(KEY)
for _pem in (*_issued.cert_chain_pems, _authority.cert_pem):
    _pem.write_to_path(CERTIFICATE, append=True)
atexit.register(shutil.rmtree, TLS)
TOKENS = {name: f'a-token-of-the-{name}-robot' for name in ('front', 'rear', 'third')}
UPGRADE = (b'GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n'
           b'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n'
           b'Authorization: Bearer wrong\r\n\r\n')
"""What a robot says first, but for its token."""


class Served:
    """A gateway that is served, with its meter."""

    def __init__(self, folder: Path, bounds: Bounds, tls: bool, model: str) -> None:
        file = folder / 'robots'
        file.write_text(''.join(f'{name} {token}\n' for name, token in TOKENS.items()))
        self.meter, self.host = LocalMeter(), EngineHost()
        self.gateway = Gateway(self.host, model, Robots(file), self.meter, bounds, ENGINE)
        self.server = GatewayServer(self.gateway, self.meter, tls=(
            tls_of(CERTIFICATE, KEY) if tls else None))

    @property
    def url(self) -> str:
        return self.server.url.replace('127.0.0.1', 'localhost')

    def link(self, robot: str = 'front', **options) -> Link:
        return Link(self.url, TOKENS[robot], authority=str(CERTIFICATE), **options)

    def listener(self, robot: str = 'front', **options) -> Listener:
        return Listener('any', host=self.link(robot), **options)


@contextmanager
def serving(folder: Path, bounds: Bounds | None = None, tls: bool = False,
            model: str = 'fake') -> Iterator[Served]:
    """Serve fake sessions to robots."""
    served = Served(folder, bounds or Bounds(), tls, model)
    served.server.start()
    try:
        yield served
    finally:
        served.server.close()


@contextmanager
def narrated_to(served: Served, robot: str = 'front', **options) -> Iterator[Listener]:
    """Give a robot whose session is open."""
    listener = served.listener(robot, **options)
    try:
        listener.client.start(START_S)
        yield listener
    finally:
        listener.client.close()


def said_to(url: str, token: str | None, *messages: bytes | str) -> tuple[list[dict], int]:
    """Say things on a WebSocket of one's own; return what is answered, and the code of its end."""
    async def say() -> tuple[list[dict], int]:
        headers = {} if token is None else {'Authorization': f'Bearer {token}'}
        async with aiohttp.ClientSession() as http:
            tls = {'ssl': tls_to(str(CERTIFICATE))} if url.startswith('wss') else {}
            async with http.ws_connect(url, headers=headers, max_msg_size=0, **tls) as robot:
                answers: list[dict] = []
                for message in messages:
                    try:
                        await (robot.send_str(message) if isinstance(message, str)
                               else robot.send_bytes(message))
                    except (OSError, aiohttp.ClientError):
                        break
                    if message is OPENING:  # Before it is open, nothing else is obeyed.
                        answers.append(unpacked((await robot.receive()).data)[0])
                while (answer := await robot.receive()).type is aiohttp.WSMsgType.BINARY:
                    answers.append(unpacked(answer.data)[0])
                return answers, robot.close_code or 0
    return asyncio.run(asyncio.wait_for(say(), 60.0))


OPENING = packed(dict(command='open', session='os:system', model='touch /tmp/x', config={}))
"""Opens a session, or would like to do more."""


def opening(**config: object) -> bytes:
    """Return the message that opens a session."""
    return packed(dict(command='open', config=config))
