"""A small model on this machine, which speaks while there is no way to the engine far away."""

from __future__ import annotations

from collections.abc import Callable
import logging
import threading

from sww_ros.engine.client import ENGINE, Standby
from sww_ros.engine.process import EngineHost, EngineProcess, HostedSession, Launcher
from sww_ros.streaming.config import OF_ENGINE, SessionConfig

LOG = logging.getLogger(__name__)
PROBE_S = 2.0
"""How often it is tried whether the way is free again [s]."""
OF_HERE = (*OF_ENGINE, 'profile')
"""The settings that are those of the engine here, whatever a session asks for."""


class Fallback:
    """
    Has sessions be those of a link, and while there is none, of a model that waits here.

    The client of a session sees one engine after the other, as when one dies: what holds then holds
    here. Of the model here, `info['fallback']` says why it is that which speaks.

    :param link: to the engine far away
    :param model: a checkpoint for this machine; it is loaded at once, so that no time is lost
    :param config: what holds for it
    :param session: as of `EngineClient`
    """

    loss = 'link'

    def __init__(self, link: Launcher, model: str, config: SessionConfig,
                 session: str = ENGINE) -> None:
        self.link, self._model, self._session = link, model, session
        self._own = {name: getattr(config, name) for name in OF_HERE}
        self._host = EngineHost()
        self._standby = Standby(self._host, model, config, session)
        self._lock = threading.Lock()
        self._back: list[EngineProcess] = []
        self._standby.load_later()

    def session(self, on_line: Callable[[str], None]) -> EngineProcess:
        """Return a new session, there or else here; errors as of `EngineHost.session`."""
        with self._lock:
            if self._back:
                return self._back.pop()
        try:
            return self.link.session(on_line)
        except OSError as error:
            why = f'{error}; meanwhile {self._model} speaks here'
        LOG.warning(why)
        return Meanwhile(self, self._host.session(on_line), why)

    def opened(self, request: dict) -> dict:
        """Return the request of a session for the model here."""
        return request | dict(session=self._session, model=self._model,
                              config=request['config'] | self._own)

    def is_back(self, on_line: Callable[[str], None]) -> bool:
        """Return whether there is a way again; the session that came by it is the next one."""
        try:
            process = self.link.session(on_line)
        except OSError:
            return False
        with self._lock:
            self._back.append(process)
        return True

    def close(self) -> None:
        """Have the model here end with its last session."""
        self._standby.close()
        for process in self._back:
            process.end()


class Meanwhile:
    """A session here, which ends as soon as there is a way again."""

    def __init__(self, fallback: Fallback, here: HostedSession, why: str) -> None:
        self._fallback, self._here, self._why = fallback, here, why
        self.pid, self.channel = here.pid, _Channel(fallback, here, why)
        self._over, self._is_back = threading.Event(), False
        threading.Thread(target=self._probe, name='probe', daemon=True).start()

    def end(self) -> None:
        """End the session."""
        self._over.set()
        self._here.end()

    def kill(self) -> None:
        """Kill the engine here."""
        self._here.kill()

    def report(self) -> str:
        """Return, after the end, how it ended."""
        return 'the link is back' if self._is_back else self._here.report()

    def _probe(self) -> None:
        while not self._over.wait(PROBE_S):
            if self._fallback.is_back(lambda line: None):
                self._is_back = True
                self._here.channel.close()
                return


class _Channel:
    """The channel of a session here, to a client that means another engine."""

    def __init__(self, fallback: Fallback, here: HostedSession, why: str) -> None:
        self._fallback, self._channel, self._why = fallback, here.channel, why

    def send(self, header: dict, payload: bytes | memoryview = b'') -> None:
        """As `Channel.send`."""
        if header.get('command') == 'open':
            header = self._fallback.opened(header)
        self._channel.send(header, payload)

    def receive(self) -> tuple[dict, bytearray] | None:
        """As `Channel.receive`."""
        message = self._channel.receive()
        if message is not None and message[0].get('type') == 'ready':
            message[0]['info']['fallback'] = self._why
        return message

    def close(self) -> None:
        """As `Channel.close`."""
        self._channel.close()
