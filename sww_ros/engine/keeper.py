"""
What keeps an engine for nodes that share it by name (engine/shared.py), until the last has gone.

It is nobody's child, so that it outlives the node that came first. An `EngineHost` in it starts the
engine's process, as in a node of several cameras: that process is killed with it, and the next one
started by whoever comes back first. Over a connection go only who comes and leaves, what the engine
writes, and how it ended.
"""

from __future__ import annotations

from contextlib import suppress
import os
from pathlib import Path
import select
import socket
import sys
import threading

from sww_ros.engine.process import EngineHost, Place
from sww_ros.engine.shared import locked, user_of
from sww_ros.wire import Channel

MAX_LINE = 2000


class Keeper:
    """
    Keeps an engine for all who connect, until nobody is connected any more.

    :param listener: listens at `path`; whoever starts this holds the lock until connected
    """

    def __init__(self, listener: socket.socket, path: Path) -> None:
        self._listener, self._path = listener, path
        self._host = EngineHost()
        self._lock = threading.Lock()
        self._connected: dict[socket.socket, Channel] = {}
        self._wakes, self._woken = socket.socketpair()

    def run(self) -> None:
        """Keep it, to the end."""
        while self._is_wanted():
            ready = select.select([self._listener, self._woken], [], [])[0]
            if self._woken in ready:
                self._woken.recv(1)
            if self._listener in ready:
                self._admit(self._listener.accept()[0])

    def _is_wanted(self) -> bool:
        """Return whether anybody is connected, or about to be; if not, nobody can connect now."""
        with self._lock:
            if self._connected:
                return True
        with locked(self._path.parent):
            if select.select([self._listener], [], [], 0.0)[0]:
                return True
            self._path.unlink(missing_ok=True)
            return False

    def _admit(self, sock: socket.socket) -> None:
        with self._lock:
            self._connected[sock] = Channel(sock)
        try:
            threading.Thread(target=self._serve, args=[sock], daemon=True).start()
        except RuntimeError:  # No thread is left for it.
            self._forget(sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            # Whoever it was for may be gone, or tell what is no message.
            with suppress(OSError, ValueError):
                if user_of(sock) == os.geteuid():
                    self._keep(sock, self._connected[sock])
        finally:
            self._forget(sock)

    def _forget(self, sock: socket.socket) -> None:
        with self._lock:
            del self._connected[sock]
        sock.close()
        self._wakes.send(b'.')

    def _keep(self, sock: socket.socket, control: Channel) -> None:
        """Have a session be a part of the engine for as long as whoever it is for is there."""
        descriptors = socket.recv_fds(sock, 1, 1)[1]
        if not descriptors:
            return
        with socket.socket(fileno=descriptors[0]) as theirs:
            try:
                place = self._host.join(theirs, self._tell_line)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told in words
                control.send(dict(failed=f'the engine could not be started: {error}'))
                return
        wanted: bool | None = None
        try:
            control.send(dict(pid=place.process.pid))
            wanted = _obey(control, place)
        finally:
            place.leave(wanted is not False)
        control.send(dict(report=place.process.report()))

    def _tell_line(self, line: str) -> None:
        """Tell all; one that does not read, as it is stopped, must not hold up the engine."""
        with self._lock:
            connected = self._connected.copy()
        with suppress(OSError, ValueError):  # One was closed meanwhile.
            for sock in select.select([], connected, [], 0.0)[1]:
                connected[sock].send(dict(line=line[:MAX_LINE]))


def _obey(control: Channel, place: Place) -> bool | None:
    """Obey until a session ends; return whether that was wanted, None where nobody is there."""
    while (message := control.receive()) is not None:
        if message[0].get('command') == 'leave':
            return bool(message[0].get('wanted'))
        place.process.kill()
    return None


def main() -> None:
    """Keep an engine: `python -m sww_ros.engine.keeper SOCKET_FD PATH`."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    if os.fork():
        os._exit(0)  # Whoever started it waits for this, and may end before the engine does.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    Keeper(listener, Path(sys.argv[2])).run()


if __name__ == '__main__':
    main()
