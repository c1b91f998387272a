"""The server of the live page: three files, and one WebSocket a browser that cannot hold it up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
import hmac
from importlib.resources import files
import json
import secrets
import socket
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web

from sww_ros.engine.address import is_local
from sww_ros.web import (
    CROWDED,
    WRONG_TOKEN,
    WRONG_TOKEN_S,
    Allowance,
    Broadcast,
    Outbox,
    encoded,
)
from sww_ros.web.serving import ServingThread

Reply = Callable[[bool, str], None]
Act = Callable[[int, str, str, Reply], None]
"""(tab, what, text, reply): does what a browser asks for, without waiting; `reply` tells it."""

FILES = {'/': ('index.html', 'text/html'), '/page.css': ('page.css', 'text/css'),
         '/page.js': ('page.js', 'text/javascript')}
HEADERS = {
    # Nothing from elsewhere, no script but the page's own, and in no frame of another page.
    'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; "
                               "img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
                               "form-action 'none'; frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-cache'}
ACTS = ('ask', 'pause', 'prompt', 'reset')
MAX_MESSAGE = 32 * 1024
"""Longest message of a browser [bytes]; a prompt may have 4,000 characters."""
HEARTBEAT_S = 10.0
"""A browser that does not answer for so long is gone."""
BATCH_S = 0.015
"""Least time between two messages to a browser: what comes meanwhile goes together."""
END_S = 2.0


class PageServer(ServingThread):
    """Serves the page in a thread of its own, from `start` to `close`; `url` is where."""

    def __init__(self, feed: Broadcast, act: Act, *, host: str = '127.0.0.1', port: int = 0,
                 token: str = '', max_browsers: int = 16) -> None:
        """
        Prepare the server.

        :param port: 0: any that is free
        :param token: what a browser has to know; empty: nothing where `host` is local, elsewhere
            one is made up
        """
        super().__init__('the page', END_S, host, port)
        self._feed, self._act = feed, act
        self.token = token or ('' if is_local(host) else secrets.token_urlsafe(16))
        self._max_browsers = max_browsers
        self._sockets: set[web.WebSocketResponse] = set()

    @property
    def url(self) -> str:
        """The address of the page; the token is behind its #, which no browser sends."""
        host = self._host
        if host in ('0.0.0.0', '::'):
            host = socket.gethostname()
        host = f'[{host}]' if ':' in host else host
        return f'http://{host}:{self.port}/' + (f'#{self.token}' if self.token else '')

    def start(self) -> None:
        """Begin to listen, and to be fed; errors as of `ServingThread.start`."""
        super().start()
        self._feed.on_news = self._wake
        self._wake()

    def _wake(self) -> None:
        self._later(self._feed.deliver)

    async def _open(self) -> None:
        pages = web.Application(middlewares=[self._guard])
        for path, (name, kind) in FILES.items():
            pages.router.add_get(path, self._page(name, kind))
        pages.router.add_get('/feed', self._serve_feed)
        self._runner = web.AppRunner(pages, access_log=None, shutdown_timeout=END_S)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self.port).start()
        self.port = self._runner.addresses[0][1]

    async def _shut(self) -> None:
        leaving = [asyncio.wait_for(one.close(code=1001), END_S / 2) for one in self._sockets]
        await asyncio.gather(*leaving, return_exceptions=True)
        await super()._shut()

    def _page(self, name: str, kind: str) -> Callable:
        body = files('sww_ros.web').joinpath(name).read_bytes()

        async def serve(_: web.Request) -> web.Response:
            return web.Response(body=body, content_type=kind, charset='utf-8', headers=HEADERS)
        return serve

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable) -> web.StreamResponse:
        """
        Refuse who comes by another name than this machine's.

        Otherwise a page of elsewhere, whose name its owner lets point here, would be let in.
        """
        name = urlsplit(f'//{request.host}').hostname
        if not (self.token or name == self._host or is_local(name or '')):
            raise web.HTTPForbidden(text=f'{name} is not the name of this machine\n')
        return await handler(request)

    async def _serve_feed(self, request: web.Request) -> web.StreamResponse:
        if urlsplit(request.headers.get('Origin', '')).netloc != request.host:
            raise web.HTTPForbidden(text='only the page itself may come here\n')
        browser = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=MAX_MESSAGE,
                                       compress=False)
        await browser.prepare(request)
        shown = request.query.get('token', '').encode()
        if not hmac.compare_digest(shown, self.token.encode()):
            await asyncio.sleep(WRONG_TOKEN_S)
            await browser.close(code=WRONG_TOKEN)
        elif len(self._sockets) >= self._max_browsers:
            await browser.close(code=CROWDED)
        else:
            await self._attend(browser)
        return browser

    async def _attend(self, browser: web.WebSocketResponse) -> None:
        """Listen to a browser, and have it told what there is, until it goes."""
        outbox = self._feed.join()
        self._sockets.add(browser)
        writing = asyncio.create_task(self._write(browser, outbox))
        messages, acts = Allowance(100, 200), Allowance(3, 10)
        try:
            async for message in browser:
                if not messages.take() or message.type != WSMsgType.TEXT:
                    await browser.close(code=1008)
                elif not self._hear(outbox, message.data, acts):
                    await browser.close(code=1007)
        finally:
            writing.cancel()
            self._sockets.discard(browser)
            self._feed.leave(outbox)

    async def _write(self, browser: web.WebSocketResponse, outbox: Outbox) -> None:
        # A browser that does not read stops this task alone; what it misses, its outbox drops.
        with suppress(ConnectionError):
            while True:
                await outbox.news.wait()
                texts, frame = outbox.take()
                if texts:
                    await browser.send_str(texts)
                if frame:
                    await browser.send_bytes(frame)
                await asyncio.sleep(BATCH_S)

    def _hear(self, outbox: Outbox, data: str, acts: Allowance) -> bool:
        """Do what a browser says; return whether it can be understood."""
        try:
            said = json.loads(data)
            do, tab = str(said['do']), int(said.get('tab', 0))
            text, number = str(said.get('text', '')), int(said.get('number', 0))
            text.encode()
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return False
        if do == 'shown':
            outbox.shown()
        elif do == 'watch':
            self._feed.watch(outbox, tab)
        elif do in ACTS and 0 <= tab < len(self._feed.tabs):
            self._begin(outbox, acts, (tab, do, text), number)
        else:
            return False
        return True

    def _begin(self, outbox: Outbox, acts: Allowance, what: tuple[int, str, str],
               number: int) -> None:
        def reply(done: bool, words: str) -> None:
            self._later(outbox.put, encoded('reply', number=number, done=done, words=words))

        if acts.take():
            self._act(*what, reply)
        else:
            reply(False, 'too much at once: wait a moment')
