"""The engine's process: runs one session, told what to do over a socket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
import importlib
import os
from pathlib import Path
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any

import numpy as np

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

MEMINFO = Path('/proc/meminfo')
CGROUP = Path('/sys/fs/cgroup')
WEIGHTS = ('*.safetensors', '*.bin')
GIB = 1 << 30


class Worker:
    """Passes commands to a session, and its events back, until the other end is gone."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._session: Any = None  # A Session, or whatever is opened in place of one.
        self._opening: queue.SimpleQueue[dict] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._exit_code = 0

    def run(self) -> int:
        """Serve one session and return the process's exit code."""
        try:
            threading.Thread(target=self._read, name='commands', daemon=True).start()
            self._session = open_session(self._opening.get())
        except Exception as error:  # Whatever it is, whoever waits for the model is told.
            if not isinstance(error, FORESEEN):
                traceback.print_exc()
            self._channel.send({'type': 'failed', 'message': in_words(error)})
            return 1
        self._channel.send({'type': 'ready', 'info': self._session.info})
        try:
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
            if self._session is None:  # Loading cannot be interrupted.
                os._exit(self._exit_code)
            self._stop.set()
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
                shape = header.pop('shape')
                self._session.feed(np.frombuffer(payload, np.uint8).reshape(shape), **header)
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
        timer = threading.Timer(LAST_STEP_S, lambda: os._exit(self._exit_code))
        timer.daemon = True
        timer.start()


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
    # Nobody sees a bar grow here: each of its states would be a line of the log. Read at import.
    os.environ.setdefault('TQDM_DISABLE', '1')
    config = SessionConfig(**request['config'])
    check_memory(request['model'], available_bytes())
    session = find_callable(request['session'])(request['model'], config)
    try:
        check_lanes(session.info, available_bytes())
    except ValueError:
        session.close()
        raise
    return session


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


def available_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Return the memory that a new process can have [bytes]; None where Linux does not say."""
    try:
        fields = dict(line.split(':', 1) for line in meminfo.read_text().splitlines())
        available = int(fields['MemAvailable'].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:  # A container may be allowed less than the machine has.
        limit = int((cgroup / 'memory.max').read_text())
        used = int((cgroup / 'memory.current').read_text())
        stat = dict(line.split() for line in (cgroup / 'memory.stat').read_text().splitlines())
        available = min(available, limit - used + int(stat['inactive_file']))
    except (OSError, KeyError, ValueError):
        pass  # No limit ('max'), or no such control group.
    return max(available, 0)


def checkpoint_bytes(model: str) -> int:
    """Return the size of the weights in a checkpoint directory [bytes]; 0 where unknown."""
    folder = Path(model).expanduser()
    for pattern in WEIGHTS:
        if files := [path for path in folder.glob(pattern) if path.is_file()]:
            return sum(path.stat().st_size for path in files)
    return 0


def check_memory(model: str, available: int | None) -> None:
    """
    Refuse a checkpoint that cannot fit, before it makes the machine hang.

    :param available: free memory [bytes], None if unknown
    :raises ValueError: when the weights alone are larger than that
    """
    needed = checkpoint_bytes(model)
    if available is not None and needed > available:
        raise ValueError(
            f'the checkpoint {model} needs more memory than is left: its weights are '
            f'{needed / GIB:.1f} GiB, {available / GIB:.1f} GiB are available; close other '
            'programs or take a smaller checkpoint')


def check_lanes(info: dict, available: int | None) -> None:
    """
    Refuse a relay of streams that would not fit, before it runs for a while and dies.

    :param info: of a session; on a GPU its lanes are there already, or it had not opened
    :param available: free memory [bytes], None if unknown
    :raises ValueError: when what is reserved for its streams is larger than that
    """
    needed = info['lane_bytes'] if info.get('memory') and info['device'] == 'cpu' else 0
    if available is not None and needed > available:
        raise ValueError(
            f'two streams of {info["max_steps"]} steps need {needed / GIB:.1f} GiB, '
            f'{available / GIB:.1f} GiB are available: take a smaller max_steps with its capacity, '
            'or smaller frames (frame_width, frame_height)')


def serve(descriptor: int) -> None:
    """Run a worker on a socket, given by its file descriptor, and exit."""
    # Ctrl-C reaches the whole process group; the parent says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(Worker(Channel(socket.socket(fileno=descriptor))).run())
