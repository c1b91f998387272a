"""The engine's process: runs one session, or several on one model, each over its own socket."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
import gc
import importlib
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from types import SimpleNamespace
from typing import Any

import numpy as np

from sww_ros.images import compressed_to_rgb
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import (
    Event,
    FramesDropped,
    QuestionState,
    SessionClosed,
    Trouble,
    event_to_dict,
)
from sww_ros.wire import Channel, LostChannel

POLL_S = 0.2
BEAT_S = 0.5
"""How often a sign of life is given, with the piece of work in progress."""
LAST_STEP_S = 3.0
"""How long a session may take to end before the process ends without it."""

COMMANDS = ('ask', 'cancel', 'set_prompt', 'reset', 'pause')
FORESEEN = (ValueError, OSError, MemoryError, ImportError)
"""What says in its own words what is wrong; anything else is a mistake, or the machine's limits."""

NO_MEMORY = ('failed to map segment', 'annot allocate memory', "can't allocate memory",
             "can't start new thread")
"""How the loader, the system, PyTorch and Python say that memory is short."""

MAX_WORDS = 2000


class Worker:
    """
    Passes commands to a session, and its events back, until the other end is gone.

    :param opener: opens the session of a request; `open_session` says what may go wrong
    :param leave: ends the process with an exit code, where it would wait for nobody else
    """

    def __init__(self, channel: Channel, opener: Callable[[dict], Any] | None = None,
                 leave: Callable[[int], Any] = os._exit) -> None:
        self._channel, self._opener, self._leave = channel, opener or open_session, leave
        self._session: Any = None  # A Session, or whatever is opened in place of one.
        self._opening: queue.SimpleQueue[dict] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._exit_code = 0

    def run(self) -> int:
        """Serve one session and return the process's exit code."""
        try:
            threading.Thread(target=self._read, name='commands', daemon=True).start()
            self._session = self._opener(self._opening.get())
        except Exception as error:  # Whatever it is, whoever waits for the model is told.
            if not isinstance(error, FORESEEN):
                traceback.print_exc()
            self._channel.send({'type': 'failed', 'message': in_words(error)})
            return 1
        try:
            self._channel.send({'type': 'ready', 'info': self._session.info})
            return self._pass_events()
        finally:
            self._exit_later()
            self._session.close()

    def _pass_events(self) -> int:
        beat_s = 0.0
        while not self._stop.is_set():
            event = self._session.poll(POLL_S)
            try:
                if event is not None:
                    self._send_event(event)
                if (now_s := time.monotonic()) >= beat_s:
                    beat_s = now_s + BEAT_S
                    self._channel.send({'type': 'alive', 'work': self._session.work})
            except OSError:
                break
            if isinstance(event, Trouble) and event.fatal:
                return 1
        return self._exit_code

    def _read(self) -> None:
        """Obey until there is nobody to obey; then, come what may, the process ends."""
        self._exit_code = 1
        try:
            self._exit_code = self._obey_all()
        except OSError:
            self._exit_code = 0  # Gone while we answered.
        finally:
            self._stop.set()
            if self._session is None:  # Loading cannot be interrupted.
                self._leave(self._exit_code)
                self._opening.put({})  # It may not have begun.
            self._exit_later()

    def _obey_all(self) -> int:
        """Return the exit code once the other end is gone, or what comes cannot be read."""
        while True:
            try:
                message = self._channel.receive()
            except ValueError as error:
                lost = isinstance(error, LostChannel)
                self._send_event(
                    Trouble(f'the engine was told what it cannot read: {error}', '', lost))
                if lost:
                    return 1
                continue
            if message is None:
                return 0
            if self._session is not None:
                self._obey(*message)
            elif message[0].get('command') == 'open':
                self._opening.put(message[0])

    def _obey(self, header: dict, payload: bytearray) -> None:
        command = header.pop('command', None)
        question_id = str(header.get('question_id', ''))
        try:
            if command == 'feed':
                shape = header.pop('shape', None)
                self._session.feed(
                    np.frombuffer(payload, np.uint8).reshape(shape) if shape is not None else
                    compressed_to_rgb(SimpleNamespace(format='jpeg', data=payload)), **header)
            elif command == 'ask' and not question_id:
                raise ValueError('a question needs a question_id')
            elif command in COMMANDS:
                getattr(self._session, command)(**header)
            else:
                raise ValueError(f'unknown command {command!r:.80}')
        except OSError:
            raise  # Nobody is there to be told.
        except SessionClosed as error:
            if command == 'ask':  # Of all else nothing needs to be said: the process is ending.
                self._send_event(QuestionState(question_id, 'rejected', str(error)))
        except Exception as error:  # Whatever it is, the next command is for another thing.
            words = in_words(error)
            if command == 'feed':
                self._send_event(FramesDropped('bad', 1))
            if command == 'set_prompt':
                self._channel.send({'type': 'refused', 'prompt': header.get('prompt'),
                                    'kept': self._session.info['prompt']})
            if command == 'ask' and question_id:
                self._send_event(QuestionState(question_id, 'rejected', words))
            else:
                self._send_event(Trouble(f'{command}: {words}', '', False))

    def _send_event(self, event: Event) -> None:
        self._channel.send(event_to_dict(event))

    def _exit_later(self) -> None:
        timer = threading.Timer(LAST_STEP_S, lambda: self._leave(self._exit_code))
        timer.daemon = True
        timer.start()


class Host:
    """
    Runs a worker for each session whose socket it is sent, on one engine, until nobody can send.

    The first of them has the engine opened: by its request's `session` ('module:callable'), which
    returns what has the methods `session(config)` and `close()`.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._engine: Any = None
        self._model = ''
        self._lock = threading.Lock()

    def run(self) -> int:
        """Serve all sessions and return the process's exit code."""
        threads = []
        while descriptors := socket.recv_fds(self._control, 1, 1)[1]:
            channel = Channel(socket.socket(fileno=descriptors[0]))
            threads.append(threading.Thread(target=self._serve, args=[channel], daemon=True))
            threads[-1].start()
        end_s = time.monotonic() + LAST_STEP_S
        for thread in threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            os._exit(0)  # It loads, or computes, and cannot be interrupted.
        if self._engine is not None:
            self._engine.close()
        return 0

    def _serve(self, channel: Channel) -> None:
        with suppress(OSError):  # Whoever it was for is gone.
            Worker(channel, self._open, lambda code: None).run()
        channel.close()

    def _open(self, request: dict) -> Any:
        """Open a session on the engine; errors as of `open_session`."""
        model, config = _asked(request)
        with self._lock:
            if self._engine is None:
                self._engine, self._model = find_callable(request['session'])(model, config), model
                gc.freeze()  # As in `open_session`.
        if model != self._model:
            raise ValueError(f'this engine runs the model {self._model!r}, not {model!r}: give '
                             'each model an engine of its own')
        return self._engine.session(config)


def in_words(error: Exception) -> str:
    """Return an error in one line that whoever uses the engine can read."""
    words = str(error).partition('\n')[0][:MAX_WORDS]
    if isinstance(error, MemoryError) or any(sign in words for sign in NO_MEMORY):
        return f'not enough memory is left, close other programs: {words or repr(error)}'
    if isinstance(error, FORESEEN) and words:
        return words
    return f'{type(error).__name__}: {words}'


def open_session(request: dict):
    """
    Open the session that a request asks for.

    :param request: `session` ('module:callable'), `model` and `config`, plain data
    :raises ValueError: for a bad model or setting, or too little memory
    """
    model, config = _asked(request)
    session = find_callable(request['session'])(model, config)
    # What is there now stays. To go through all of it takes Python a tenth of a second, in which
    # nothing is seen and nothing said.
    gc.freeze()
    return session


def _asked(request: dict) -> tuple[str, SessionConfig]:
    """Return which model a request asks for, and with which settings."""
    # Nobody sees a bar grow here: each of its states would be a line of the log. Read at import.
    os.environ.setdefault('TQDM_DISABLE', '1')
    config = SessionConfig(**request['config'])
    if not isinstance(request['model'], str):
        raise TypeError(f'the model must be a text, not {request["model"]!r:.80}')
    return request['model'], config


def open_request(session: str, model: str, config: SessionConfig) -> dict:
    """Return the first message to a worker."""
    return {'command': 'open', 'session': session, 'model': model, 'config': asdict(config)}


def find_callable(name: str) -> Callable:
    """Return what 'package.module:attribute.attribute' names."""
    module, _, path = name.partition(':')
    found: Any = importlib.import_module(module)
    for attribute in path.split('.'):
        found = getattr(found, attribute)
    return found


def serve(descriptor: int, shared: bool) -> None:
    """
    Run a worker on a socket, given by its file descriptor, and exit.

    :param shared: whether more sockets come over it, each for a session, in place of commands
    """
    # Ctrl-C reaches the whole process group; the parent says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=descriptor)
    sys.exit(Host(sock).run() if shared else Worker(Channel(sock)).run())
