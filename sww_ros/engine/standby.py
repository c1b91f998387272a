"""An engine that is loaded, and stays so, whether or not anybody has a session on it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
import threading

from sww_ros.engine.client import ENGINE, EngineClient, EngineError
from sww_ros.engine.process import EngineHost
from sww_ros.engine.supervision import Limits
from sww_ros.streaming.config import SessionConfig

LOAD_S = 3600.0
LIMITS = Limits(silence=30.0, work=60.0)


class Standby:
    """
    Holds a session on a host that nothing is fed to, so that its process stays; it is supervised.

    :param model: what all sessions of the host are to ask for
    :param config: what holds for the engine; how much a session remembers is left out
    :param session: as of `EngineClient`
    :param on_line: takes each line that the engine writes
    """

    def __init__(self, host: EngineHost, model: str, config: SessionConfig,
                 session: str = ENGINE, on_line: Callable[[str], None] = lambda line: None,
                 ) -> None:
        small = replace(config, max_steps=8, capacity=0, memory=0, recall_steps=0,
                        reserved_steps=0)
        self.client = EngineClient(
            model, small, host=host, session=session, limits=LIMITS, on_line=on_line,
            on_event=lambda event: None)

    def load(self) -> dict:
        """Load the model, and return the session's info; raises as `EngineClient.start`."""
        return self.client.start(LOAD_S)

    def load_later(self) -> None:
        """Load the model, on a thread of its own; whether that succeeds, `ready` says."""
        def load() -> None:
            with suppress(EngineError):
                self.load()
        threading.Thread(target=load, name='standby', daemon=True).start()

    @property
    def ready(self) -> bool:
        """Whether the engine runs."""
        return self.client.ready

    def close(self) -> None:
        """Give it up; its process ends with the last session of the host."""
        self.client.close()
