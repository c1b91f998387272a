"""An aiohttp server on a thread of its own, beside whatever else a process does."""

from __future__ import annotations

from abc import ABC, abstractmethod
import asyncio
from collections.abc import Callable
from concurrent.futures import TimeoutError as Late
from contextlib import suppress
import threading

from aiohttp import web

START_S = 10.0


class ServingThread(ABC):
    """
    Serves from `start` to `close`; whoever inherits says in `_open` what.

    :param what: in words, what cannot be served where `start` fails
    :param end_s: how long those who are served are given at the end [s]
    :param port: 0: any that is free, which `port` is once it has begun
    """

    def __init__(self, what: str, end_s: float, host: str, port: int) -> None:
        self._what, self._end_s = what, end_s
        self._host, self.port = host, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name='web', daemon=True)
        self._runner: web.AppRunner | None = None

    def start(self) -> None:
        """
        Begin to listen.

        :raises ValueError: where it cannot, in words
        """
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(START_S)
        except OSError as error:
            self.close()
            raise ValueError(f'{self._what} cannot be served at {self._host}, port {self.port}: '
                             f'{error.strerror or error}') from None

    def close(self) -> None:
        """Send whoever is served away, and end."""
        with suppress(Late):
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(2 * self._end_s)
        self._later(self._loop.stop)
        self._thread.join(self._end_s)

    @abstractmethod
    async def _open(self) -> None:
        """Set `_runner` up, and listen; errors as of `socket.bind`."""

    async def _shut(self) -> None:
        """Send whoever is served away."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _later(self, do: Callable, *arguments: object) -> None:
        """Have the server's thread do something; any thread may call this."""
        with suppress(RuntimeError):  # The server has ended meanwhile.
            self._loop.call_soon_threadsafe(do, *arguments)

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()
