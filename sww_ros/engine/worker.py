"""The engine's process: runs one session, told what to do over a socket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
import importlib
import os
import queue
import signal
import socket
import sys
import threading

import numpy as np

from sww_ros.engine.memory import available_bytes, check_memory
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import (
    Event,
    FramesDropped,
    QuestionState,
    SessionClosed,
    Trouble,
    event_to_dict,
)
from sww_ros.wire import Channel

POLL_S = 0.2
LAST_STEP_S = 3.0
"""How long a session may take to end before the process ends without it."""


class Worker:
    """Passes commands to a session, and its events back, until the other end is gone."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._session = None
        self._opening: queue.SimpleQueue[dict] = queue.SimpleQueue()
        self._stop = threading.Event()

    def run(self) -> int:
        """Serve one session and return the process's exit code."""
        threading.Thread(target=self._read, name='commands', daemon=True).start()
        try:
            self._session = open_session(self._opening.get())
        except (ValueError, OSError, MemoryError, ImportError) as error:
            self._channel.send({'type': 'failed', 'message': str(error) or repr(error)})
            return 1
        self._channel.send({'type': 'ready', 'info': self._session.info})
        try:
            return self._pass_events()
        finally:
            self._exit_later()
            self._session.close()

    def _pass_events(self) -> int:
        while not self._stop.is_set():
            event = self._session.poll(POLL_S)
            if event is None:
                continue
            try:
                self._tell(event)
            except OSError:
                break
            if isinstance(event, Trouble) and event.fatal:
                return 1
        return 0

    def _read(self) -> None:
        try:
            while (message := self._channel.receive()) is not None:
                header, payload = message
                if header['command'] == 'open':
                    self._opening.put(header)
                elif self._session is not None:
                    self._obey(header, payload)
        except OSError:
            pass  # Gone while we answered.
        if self._session is None:
            os._exit(0)  # Whoever wanted the model is gone, and loading cannot be interrupted.
        self._stop.set()
        self._exit_later()

    def _obey(self, header: dict, payload: bytearray) -> None:
        command = header.pop('command')
        try:
            if command == 'feed':
                shape = header.pop('shape')
                self._session.feed(np.frombuffer(payload, np.uint8).reshape(shape), **header)
            elif command in ('ask', 'cancel', 'set_prompt', 'reset', 'pause'):
                getattr(self._session, command)(**header)
            else:
                raise ValueError(f'unknown command {command!r}')
        except SessionClosed as error:
            if command == 'ask':  # Of all else nothing needs to be said: the process is ending.
                self._tell(QuestionState(header['question_id'], 'rejected', str(error)))
        except ValueError as error:
            if command == 'feed':
                self._tell(FramesDropped('bad', 1))
            if command == 'set_prompt':
                self._channel.send({'type': 'refused', 'prompt': header['prompt'],
                                    'kept': self._session.info['prompt']})
            if command == 'ask':
                self._tell(QuestionState(header['question_id'], 'rejected', str(error)))
            else:
                self._tell(Trouble(f'{command}: {error}', '', False))

    def _tell(self, event: Event) -> None:
        self._channel.send(event_to_dict(event))

    def _exit_later(self) -> None:
        timer = threading.Timer(LAST_STEP_S, os._exit, [0])
        timer.daemon = True
        timer.start()


def open_session(request: dict):
    """
    Open the session that a request asks for.

    :param request: `session` ('module:callable'), `model` and `config`, plain data
    :raises ValueError: for a bad model or setting, or too little memory
    """
    # Nobody sees a bar grow here: each of its states would be a line of the log. Read at import.
    os.environ.setdefault('TQDM_DISABLE', '1')
    config = SessionConfig(**request['config'])
    check_memory(request['model'], available_bytes())
    return find_callable(request['session'])(request['model'], config)


def open_request(session: str, model: str, config: SessionConfig) -> dict:
    """Return the first message to a worker."""
    return {'command': 'open', 'session': session, 'model': model, 'config': asdict(config)}


def find_callable(name: str) -> Callable:
    """Return what 'package.module:attribute.attribute' names."""
    module, _, path = name.partition(':')
    found = importlib.import_module(module)
    for attribute in path.split('.'):
        found = getattr(found, attribute)
    return found


def main() -> None:
    # Ctrl-C reaches the whole process group; the parent says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(Worker(Channel(socket.socket(fileno=int(sys.argv[1])))).run())


if __name__ == '__main__':
    main()
