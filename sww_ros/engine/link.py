"""
An engine far away: the engine's own protocol over a WebSocket, `engine: wss://host:port`.

A session is a WebSocket, and each message of it one of `wire.py`. Frames are made as small as the
model would make them, and sent as JPEG. Times of the engine are in the clock of its machine: they
are told in this one's, whose difference is measured anew all the time (as NTP does: the answer that
came soonest says most).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as Late
from contextlib import suppress
from http import HTTPStatus
import queue
import ssl
import threading
import time

import aiohttp
import cv2
import numpy as np

from sww_ros.engine.address import check_address
from sww_ros.frames import fitted_size
from sww_ros.images import jpeg_of
from sww_ros.wire import packed, unpacked

CONNECT_S = 10.0
"""How long it may take to be let in [s]."""
HEARTBEAT_S = 10.0
"""A link on which nothing has come back for so long, and half as long again, is gone [s]."""
CLOCK_S = 20.0
"""How often the clocks are compared [s], `FIRST_CLOCKS` times before the session begins."""
FIRST_CLOCKS = 3
POLL_S = 0.5
"""How often whoever waits until a message is sent looks whether the link is still there [s]."""
STALE_NS = 300 * 10 ** 9
"""A comparison that is so old gives way to any other [ns]."""
MAX_MESSAGE = 1 << 21
"""Largest message of an engine [bytes]."""
TIMES = ('received_ns', 'fed_ns', 'started_ns', 'preprocessed_ns', 'vision_ns', 'perceived_ns',
         'emitted_ns', 'decoded_ns')
"""The fields of events that are times on the clock of the engine's machine."""
CODES = {1009: 'a message was too large', 1001: 'the other end is being shut down',
         1006: 'without a word'}


def tls_to(authority: str) -> ssl.SSLContext:
    """
    Return how TLS is spoken, with a server whose name its certificate proves.

    :param authority: file of the certificate that vouches for it; empty: those of the system
    :raises ValueError: for a file that holds none
    """
    try:
        return ssl.create_default_context(cafile=authority or None)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f'{authority} holds no certificate: {error}') from None


def sent_as(pixels: np.ndarray, wanted: Sequence[int], quality: int) -> bytes:
    """
    Return a frame, (height, width, 3) uint8 RGB, as a JPEG no larger than the model sees it.

    :param wanted: what `info['pixels']` says of that
    :raises ValueError: for a frame that is too narrow
    """
    size = height, width = pixels.shape[:2]
    if len(wanted) == 3:
        size = fitted_size(height, width, *wanted)
    elif wanted:
        size = wanted[0], wanted[1]
    if size[0] * size[1] < height * width:
        pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA)
    return jpeg_of(pixels, quality)


def _why(error: Exception) -> str:
    """Return why there is no way: aiohttp tells of objects, and a time-out says nothing."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    if (isinstance(error, aiohttp.WSServerHandshakeError)
            and error.status == HTTPStatus.SERVICE_UNAVAILABLE):
        return 'too many are connected there'
    return str(error) or 'no answer in time'


class Link:
    """
    Has sessions be those of an engine at an address, where `python -m sww_ros.fleet up` runs.

    :param address: wss://host:port, or on this machine ws://
    :param token: what this robot is known by
    :param authority: as of `tls_to`
    :param quality: of the JPEGs that frames are sent as, 1 to 100
    :raises ValueError: for an address or a file that cannot be used
    """

    loss = 'link'

    def __init__(self, address: str, token: str, *, authority: str = '',
                 quality: int = 90) -> None:
        self.address, self._token, self._quality = check_address(address), token, quality
        self._tls = tls_to(authority) if address.startswith('wss') else None

    def session(self, on_line: Callable[[str], None]) -> LinkSession:
        """
        Return a new session, which is not open yet; `on_line` is told nothing.

        :raises OSError: in words, where there is no way there, or none in
        """
        return LinkSession(LinkChannel(self.address, self._token, self._tls, self._quality))


class LinkSession:
    """What stands for the engine's process to the client of one session."""

    pid = 0

    def __init__(self, channel: LinkChannel) -> None:
        self.channel = channel

    def end(self) -> None:
        """End the session."""
        self.channel.close()

    def kill(self) -> None:
        """End the session, which is what hangs as far as can be seen from here."""
        self.channel.close()

    def report(self) -> str:
        """Return, after the end, how it ended."""
        return self.channel.report


class Clocks:
    """By how much the clock of the other machine is ahead of this one's, `ahead_ns`."""

    def __init__(self) -> None:
        self.ahead_ns = 0
        self._best_ns, self._at_ns = -1, 0

    def compare(self, sent_ns: int, there_ns: int, now_ns: int) -> None:
        """Take what their clock said between two times of this one."""
        took_ns = now_ns - sent_ns
        if self._best_ns < 0 or took_ns <= self._best_ns or now_ns - self._at_ns > STALE_NS:
            self._best_ns, self._at_ns = took_ns, now_ns
            self.ahead_ns = there_ns - (sent_ns + now_ns) // 2

    def here(self, message: dict) -> dict:
        """Return a message of the engine with its times told in this machine's clock."""
        told = {name: value - self.ahead_ns if name in TIMES and value else value
                for name, value in message.items()}
        if told.get('type') == 'alive' and told.get('work'):
            what, since_ns = told['work']
            told['work'] = [what, since_ns - self.ahead_ns]
        return told


class LinkChannel:
    """
    One end of a WebSocket, as a `Channel` is one of a socket; it runs on a thread of its own.

    :raises OSError: in words, where there is no way there, or none in
    """

    def __init__(self, address: str, token: str, tls: ssl.SSLContext | None,
                 quality: int) -> None:
        self._address, self._token, self._tls, self._quality = address, token, tls, quality
        self.report = f'the link to {address} is gone'
        self.closed = self._opened = False
        self._clocks, self._pixels = Clocks(), list[int]()
        self._received: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._socket: aiohttp.ClientWebSocketResponse[bool] | None = None
        self._let_in: Future[None] = Future()
        self._task: asyncio.Task | None = None
        threading.Thread(target=self._run, name='link', daemon=True).start()
        try:
            self._let_in.result(2 * CONNECT_S)
        except Late:
            self.close()
            raise ConnectionError(f'{address} does not answer') from None

    def send(self, header: dict, payload: bytes | memoryview = b'') -> None:
        """
        Send one message; waits while the link is busy. A frame is made small, and a JPEG.

        :raises ValueError: for a frame that cannot be
        :raises OSError: when the other end is gone
        """
        if header.get('command') == 'feed':
            header, payload = self._small(header, payload)
        data = packed(header, bytes(payload))
        sending = self._told.send_bytes(data)
        try:
            sent = asyncio.run_coroutine_threadsafe(sending, self._loop)
        except RuntimeError as error:  # The loop has ended.
            sending.close()
            raise ConnectionError(self.report) from error
        try:
            while not self.closed:
                with suppress(Late):
                    return sent.result(POLL_S)
        except (CancelledError, aiohttp.ClientError) as error:
            raise ConnectionError(self.report) from error
        raise ConnectionError(self.report)

    def receive(self) -> tuple[dict, bytearray] | None:
        """Wait for the next message; None when the other end is gone."""
        message = self._received.get()
        if message is None:
            self._received.put(None)
            return None
        if message.get('type') == 'ready':
            self._pixels = message['info'].get('pixels', [])
        return message, bytearray()

    def close(self) -> None:
        """Close it, which wakes whoever waits."""
        self.closed = True
        self._received.put(None)
        with suppress(RuntimeError):  # It has ended already.
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _small(self, header: dict, payload: bytes | memoryview) -> tuple[dict, bytes]:
        """Return a frame's message with its picture no larger than the model sees it."""
        pixels = np.frombuffer(payload, np.uint8).reshape(header['shape'])
        header = {name: value for name, value in header.items() if name != 'shape'}
        if header.get('received_ns'):
            header['received_ns'] += self._clocks.ahead_ns
        return header, sent_as(pixels, self._pixels, self._quality)

    # On the link's own thread.

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._live_in_words())
        finally:
            self.closed = True
            self._received.put(None)
            if not self._let_in.done():
                self._let_in.set_exception(ConnectionError(self.report))
            self._loop.close()

    async def _live_in_words(self) -> None:
        self._task = asyncio.ensure_future(self._live())
        try:
            await self._task
        except asyncio.CancelledError:
            pass
        except (OSError, aiohttp.ClientError, asyncio.TimeoutError, ValueError, TypeError,
                KeyError) as error:  # The last two: what is said there is not understood here.
            self.report = f'the link to {self._address}: {_why(error)}'

    async def _live(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_connect=CONNECT_S)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            opening = http.ws_connect(
                self._address, headers={'Authorization': f'Bearer {self._token}'},
                heartbeat=HEARTBEAT_S, max_msg_size=MAX_MESSAGE,
                timeout=aiohttp.ClientWSTimeout(ws_close=1.0), ssl=self._tls or True)
            async with await asyncio.wait_for(opening, CONNECT_S) as self._socket:
                for _ in range(FIRST_CLOCKS):
                    await self._ask_clock()
                    await asyncio.wait_for(self._take_one(), CONNECT_S)
                self._let_in.set_result(None)
                asking = asyncio.create_task(self._keep_clock())
                try:
                    while True:
                        await self._take_one()
                finally:
                    asking.cancel()

    async def _ask_clock(self) -> None:
        await self._told.send_bytes(packed(dict(command='clock', sent_ns=time.monotonic_ns())))

    async def _keep_clock(self) -> None:
        with suppress(OSError, aiohttp.ClientError):  # Whoever reads hears of it.
            while True:
                await asyncio.sleep(CLOCK_S)
                await self._ask_clock()

    async def _take_one(self) -> None:
        """
        Take a message.

        :raises ConnectionError: in words, when there will be no more
        """
        message = await self._told.receive()
        if message.type is not aiohttp.WSMsgType.BINARY:
            code = self._told.close_code or 1006
            raise ConnectionError(f'it was closed: {CODES.get(code, f"code {code}")}')
        header = unpacked(message.data)[0]
        if header.get('type') == 'clock':
            self._clocks.compare(int(header['sent_ns']), int(header['here_ns']),
                                 time.monotonic_ns())
        elif header.get('type') == 'failed':
            if self._let_in.done() and not self._opened:  # Whoever opens a session reads it.
                self._received.put(header)
            raise ConnectionError(str(header.get('message')))
        else:
            self._opened = True
            self._received.put(self._clocks.here(header))

    @property
    def _told(self) -> aiohttp.ClientWebSocketResponse[bool]:
        assert self._socket is not None
        return self._socket
