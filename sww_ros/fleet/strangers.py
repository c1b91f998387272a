"""
Whoever connects to a gateway, until it is known who that is: so many, for so long.

One too many, or too slow, is told so by HTTP, as there is no WebSocket yet, and is given a moment
to read it. Over TLS it is told once the handshake is done; what never does that is cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
import ssl

from aiohttp.web_protocol import RequestHandler

STRANGER_S = 10.0
"""How long whoever connects may take until its token is known [s]."""
STRANGERS = 256
"""So many may be connected whose token is not known yet: of more, the first is sent away."""
REFUSED = 128
"""So many may be told at a time that their token is that of nobody: more are sent away."""
LEAVING = 128
"""So many that are sent away may still be reading why: of more, the first is cut off."""
LINGER_S = 2.0
"""How long one that is sent away may take to read why [s]."""
LEFTOVER = 1 << 16
"""How much of what it goes on to say is read, by nobody, until it is cut off [bytes]."""
MANY = 'too many are connected: try again\n'
LATE = 'you did not say in time who you are\n'


def told_to_leave(why: str) -> bytes:
    """Return what one is told that has to leave."""
    return ('HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\n'
            f'Content-Length: {len(why)}\r\nConnection: close\r\n\r\n{why}').encode()


class Strangers:
    """
    Those of whom it is not known who they are.

    :param handler_of: returns what talks to one of them
    :param tls: how each has to speak TLS; None: not at all
    :param count: is called for each that is sent away
    """

    def __init__(self, handler_of: Callable[[], RequestHandler], tls: ssl.SSLContext | None,
                 count: Callable[[], object]) -> None:
        self._handler_of, self.tls, self._count = handler_of, tls, count
        self._new: dict[RequestHandler, _Stranger] = {}
        self._refused: dict[RequestHandler, _Stranger] = {}
        self._leaving: dict[RequestHandler, _Stranger] = {}

    def admit(self) -> asyncio.Protocol:
        """Return the protocol of one that connects."""
        return _Stranger(self, self._handler_of())

    def enter(self, stranger: _Stranger) -> None:
        """Give one that has connected its time to say who it is."""
        if len(self._new) >= STRANGERS:
            self._send_away(next(iter(self._new.values())), MANY)
        self._move(stranger, self._new, STRANGER_S, lambda: self._send_away(stranger, LATE))

    def let_in(self, handler: RequestHandler, known: bool) -> bool:
        """
        Return whether one may have a WebSocket, if only to be refused on it; else it leaves.

        :param known: its token is that of a robot, which is a stranger no longer
        """
        if (stranger := self._new.get(handler)) is None:
            pass
        elif known:
            self.forget(stranger)
            stranger.hand_over()
        elif len(self._refused) < REFUSED:
            self._move(stranger, self._refused, STRANGER_S, stranger.cut_off)
        else:
            self._send_away(stranger, MANY)
        return handler.transport is not None and handler not in self._leaving

    def forget(self, stranger: _Stranger) -> None:
        """Count one no more."""
        for those in self._all():
            those.pop(stranger.handler, None)
        if stranger.timer is not None:
            stranger.timer.cancel()

    def close(self) -> None:
        """Cut all of them off."""
        for stranger in [each for those in self._all() for each in those.values()]:
            stranger.cut_off()

    def _send_away(self, stranger: _Stranger, why: str) -> None:
        """Have one leave that has no WebSocket yet."""
        if len(self._leaving) >= LEAVING:
            next(iter(self._leaving.values())).cut_off()
        self._move(stranger, self._leaving, LINGER_S, stranger.cut_off)
        self._count()
        stranger.leave(why)

    def _move(self, stranger: _Stranger, to: dict[RequestHandler, _Stranger], limit_s: float,
              then: Callable[[], None]) -> None:
        self.forget(stranger)
        to[stranger.handler] = stranger
        stranger.timer = asyncio.get_running_loop().call_later(limit_s, then)

    def _all(self) -> tuple[dict[RequestHandler, _Stranger], ...]:
        return self._new, self._refused, self._leaving


class _Stranger(asyncio.Protocol):
    """Stands between a connection and what talks to it."""

    def __init__(self, strangers: Strangers, handler: RequestHandler) -> None:
        self._strangers, self.handler = strangers, handler
        self.timer: asyncio.TimerHandle | None = None
        self._connection: asyncio.Transport | None = None
        self._transport: asyncio.Transport | None = None  # The same, or TLS over it.
        self._agreeing: asyncio.Task | None = None
        self._early = b''
        self._why = ''
        self._leftover = LEFTOVER

    def hand_over(self) -> None:
        """Stand between them no longer."""
        assert self._transport is not None
        self._transport.set_protocol(self.handler)

    def leave(self, why: str) -> None:
        """Have it hear nothing but why it has to go; it may take a moment to."""
        self._why = why
        if self._transport is not None:
            self._transport.resume_reading()
            self._transport.write(told_to_leave(why))
            # In its turn: aiohttp's task fails where it has begun, or been woken, and its
            # connection is lost before it runs.
            asyncio.get_running_loop().call_soon(self._part)

    def cut_off(self) -> None:
        """End the connection at once."""
        self._strangers.forget(self)
        assert self._connection is not None
        self._connection.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._connection = transport
        self._strangers.enter(self)
        if (tls := self._strangers.tls) is None:
            self._talk(transport)
        else:
            self._agreeing = asyncio.ensure_future(self._agree(transport, tls))

    def data_received(self, data: bytes) -> None:
        if self._why:
            self._leftover -= len(data)
            if self._leftover < 0:
                self.cut_off()
        elif self._transport is None:  # Came with the end of the handshake.
            self._early += data
        else:
            self.handler.data_received(data)

    def pause_writing(self) -> None:
        if not self._why:
            self.handler.pause_writing()

    def resume_writing(self) -> None:
        if not self._why:
            self.handler.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._strangers.forget(self)
        if self._transport is not None and not self._why:
            self.handler.connection_lost(error)

    async def _agree(self, connection: asyncio.Transport, tls: ssl.SSLContext) -> None:
        """Talk once the other end has agreed on TLS; forget it if it does not."""
        transport = None
        with suppress(OSError):
            transport = await asyncio.get_running_loop().start_tls(
                connection, self, tls, server_side=True)
        if transport is None:
            self._strangers.forget(self)
        else:
            self._talk(transport)

    def _part(self) -> None:
        """Have the handler lose its connection."""
        self.handler.transport = None  # Which it would close.
        self.handler.connection_lost(None)

    def _talk(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        if self._why:
            transport.write(told_to_leave(self._why))
            return
        self.handler.connection_made(transport)
        if self._early:
            self.handler.data_received(self._early)
