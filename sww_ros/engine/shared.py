"""
One engine for nodes in processes of their own, which find it by its name on this machine.

Whoever comes first starts a keeper (engine/keeper.py), which listens on a socket whose path follows
from the user, the domain and the name. What a session says goes over a socket of its own, the end
of which the keeper hands on to the engine's process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
import fcntl
import os
from pathlib import Path
import re
import socket
import stat
import struct
import subprocess
import sys
import threading
import time

from sww_ros.wire import Channel

KEEPER = 'sww_ros.engine.keeper'
NAME = re.compile('[A-Za-z][A-Za-z0-9_]{0,49}')
FOLDER = '/tmp/sww_ros-{user}'
"""Where the sockets are; as no environment variable says, so that all of a user look there."""
PATIENCE_S = 30.0
"""How long one of the others may take to answer, or to let go of the folder [s]."""
POLL_S = 0.02
BACKLOG = 128
MAX_WORDS = 2000
CREDENTIALS = struct.Struct('iII')


def check_name(name: str) -> str:
    """
    Return the name of a shared engine; it may be empty, where none is shared.

    :raises ValueError: for one that cannot be
    """
    if name and not NAME.fullmatch(name):
        raise ValueError(f'engine: {name!r} cannot be the name of an engine: use up to 50 letters, '
                         'digits and _, no digit first')
    return name


class SharedHost:
    """
    Has sessions of all processes of this user share one engine, as an `EngineHost` does in one.

    :param name: what those that share it call it
    :param domain: the ROS domain, in which alone it is found
    :raises ValueError: for a name that cannot be
    """

    loss = 'engine'

    def __init__(self, name: str, domain: int) -> None:
        self._name, self._file = name, f'{domain}-{check_name(name)}'

    def session(self, on_line: Callable[[str], None]) -> SharedSession:
        """
        Return a new session; the first has the engine's process started.

        :param on_line: takes what the process says
        :raises OSError: in words, when that cannot be, or another user is in the way
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                control = self._connect()
                try:
                    socket.send_fds(control, [b'.'], [theirs.fileno()])
                    pid = self._greeted(keeper := Channel(control), on_line)
                    control.settimeout(None)
                    return SharedSession(Channel(ours), keeper, pid, on_line)
                except BaseException:
                    control.close()
                    raise
            except BaseException:
                ours.close()
                raise

    def _greeted(self, keeper: Channel, on_line: Callable[[str], None]) -> int:
        """Return the process id of the engine, once the session is a part of it."""
        while (message := keeper.receive()) is not None:
            if 'pid' in message[0]:
                return int(message[0]['pid'])
            if 'failed' in message[0]:
                raise ConnectionError(str(message[0]['failed']))
            on_line(str(message[0].get('line', '')))
        raise ConnectionError(f'the shared engine {self._name!r} does not answer')

    def _connect(self) -> socket.socket:
        """Return a connection to the keeper, which is started if there is none."""
        path = own_folder() / self._file
        # One that nobody needs any more takes the same lock before it stops to listen: so there is
        # one that will answer, or none; and of those who come first, one starts it.
        with locked(path.parent):
            if control := _reach(path):
                return control
            with _listen(path) as listener:
                self._start_keeper(listener, path)
            if control := _reach(path):
                return control
        raise ConnectionError(f'the shared engine {self._name!r} ended at its start')

    def _start_keeper(self, listener: socket.socket, path: Path) -> None:
        command = [sys.executable, '-m', KEEPER, str(listener.fileno()), str(path)]
        try:
            begun = subprocess.run(
                command, pass_fds=[listener.fileno()], start_new_session=True, text=True,
                errors='replace', stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, timeout=PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f'the shared engine {self._name!r} does not start') from error
        if begun.returncode:
            raise ChildProcessError(f'the shared engine {self._name!r} did not start: '
                                    f'{begun.stderr.strip()[-MAX_WORDS:]}')


class SharedSession:
    """What stands for the engine's process to the client of one session, as its keeper tells."""

    def __init__(self, channel: Channel, keeper: Channel, pid: int,
                 on_line: Callable[[str], None]) -> None:
        self.channel, self.pid = channel, pid
        self._keeper, self._on_line = keeper, on_line
        self._report = (f'the engine (process {pid}) is gone with the process that keeps it for '
                        'all who share it')
        self._reader = threading.Thread(target=self._read, name='engine log', daemon=True)
        self._reader.start()

    def end(self) -> None:
        """End the session, and the engine's process with the last one."""
        wanted = self.channel.closed
        self.channel.close()
        with suppress(OSError):  # It is gone, and the engine with it.
            self._keeper.send(dict(command='leave', wanted=wanted))
        self._reader.join(PATIENCE_S)
        self._keeper.close()

    def kill(self) -> None:
        """Kill the engine's process, for all."""
        with suppress(OSError):
            self._keeper.send(dict(command='kill'))

    def report(self) -> str:
        """Return, after the end, how it ended and the last words of the process."""
        return self._report

    def _read(self) -> None:
        """Take what the keeper tells, until it has told how the session ended."""
        with suppress(ValueError):
            while (message := self._keeper.receive()) is not None:
                if 'report' in message[0]:
                    self._report = str(message[0]['report'])
                    return
                self._on_line(str(message[0].get('line', '')))


def own_folder() -> Path:
    """
    Return the folder of this user's sockets, which is made if need be.

    :raises OSError: where others may write there
    """
    folder = Path(FOLDER.format(user=os.geteuid()))
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if (not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid()
            or stat.S_IMODE(found.st_mode) & 0o077):
        raise PermissionError(f'{folder} must be a folder that is open to this user alone: remove '
                              'it, or `chmod 700` it')
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """
    Hold the one lock of whoever begins or ends to listen in this folder.

    :raises TimeoutError: where another one holds it for too long
    """
    descriptor, end_s = os.open(folder, os.O_RDONLY), time.monotonic() + PATIENCE_S
    try:
        while not _lock(descriptor):
            if time.monotonic() > end_s:
                raise TimeoutError(f'{folder} is locked by a process that does not go on')
            time.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def user_of(sock: socket.socket) -> int:
    """Return the user id of who is at the other end, as the kernel knows it."""
    return CREDENTIALS.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))[1]


def _reach(path: Path) -> socket.socket | None:
    """
    Return a connection to who listens there, if anybody does.

    :raises OSError: where that is another user, or cannot be told
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(path))
        if user_of(sock) != os.geteuid():
            raise PermissionError(f'another user listens at {path}')
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def _listen(path: Path) -> socket.socket:
    """Return a socket that listens there; nobody else may."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
