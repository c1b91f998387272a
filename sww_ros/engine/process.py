"""
The engine's process, of one session or of several: started here, its last words kept, and ended.

`python -m sww_ros.engine.process` is what is started: it imports the worker only once the kernel
has promised to kill it when its parent ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from typing import IO, Protocol, cast

from sww_ros.wire import Channel

WORKER = 'sww_ros.engine.process'
GRACE_S = 5.0
LAST_LINES = 20
LAST_WORDS_S = 1.0
"""How long a session that was ended waits for the end of its process, if that is why [s]."""
PR_SET_PDEATHSIG = 1


class EngineChannel(Protocol):
    """What a session is told, and heard, by: a `Channel`, or what does as one."""

    def send(self, header: dict, payload: bytes | memoryview = b'') -> None:
        """As `Channel.send`."""

    def receive(self) -> tuple[dict, bytearray] | None:
        """As `Channel.receive`."""

    def close(self) -> None:
        """As `Channel.close`."""


class EngineProcess(Protocol):
    """What runs one session, as the client of that session sees it."""

    pid: int

    @property
    def channel(self) -> EngineChannel:
        """To that session."""

    def end(self) -> object:
        """End the session, and its process where that is for no other."""

    def kill(self) -> None:
        """Kill the process."""

    def report(self) -> str:
        """Return, after the end, how it ended."""


class Launcher(Protocol):
    """
    What sessions share: it starts a process, or finds the one that there is.

    `loss` is the reason with which frames are dropped while there is none: engine, or link.
    """

    loss: str

    def session(self, on_line: Callable[[str], None]) -> EngineProcess:
        """Return a new session, whose process tells `on_line` each line that it writes."""


class WorkerProcess:
    """
    A worker with a channel to it.

    It is killed when the thread that made it ends, if not before: make it from one that ends it.
    What it writes to its standard streams goes to `on_line`, line by line, on a thread of its
    own; the last lines are kept for the report of its end.

    :param shared: whether it is for several sessions, each over a socket that it is sent
    :raises OSError: when no process can be started
    :raises RuntimeError: when no thread can be started
    """

    def __init__(self, on_line: Callable[[str], None], shared: bool = False) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # A session of its own: Ctrl-C in the terminal is for the node to handle.
            try:
                self._process = subprocess.Popen(
                    [sys.executable, '-m', WORKER, str(os.getpid()), str(theirs.fileno()),
                     *['shared'] * shared],
                    pass_fds=[theirs.fileno()], start_new_session=True, stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
            except OSError:
                ours.close()
                raise
        self.channel, self._socket = Channel(ours), ours
        self.pid = self._process.pid
        self._on_line = on_line
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._reader = threading.Thread(target=self._read_lines, name='engine log', daemon=True)
        try:
            self._reader.start()
        except RuntimeError:  # No thread is left: nor may the process be.
            self._process.kill()
            self._process.wait()
            self.channel.close()
            raise

    def end(self, grace_s: float = GRACE_S) -> int:
        """
        Close the channel, which ends the worker, and insist: SIGTERM, then SIGKILL.

        Any thread may call this, more than once.

        :param grace_s: how long to wait before each of the two signals [s]
        :return: the exit code, negative for a signal
        """
        self.channel.close()
        for insist in (self._process.terminate, self._process.kill):
            try:
                self._process.wait(grace_s)
                break
            except subprocess.TimeoutExpired:
                insist()
        code = self._process.wait()
        self.kill()  # What it has forked may be stopped, and would stay.
        self._reader.join(1.0)
        return code

    def add(self, theirs: socket.socket) -> None:
        """
        Send one that is shared the socket of one more session.

        :raises OSError: when it is gone
        """
        socket.send_fds(self._socket, [b'.'], [theirs.fileno()])

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end; False after a time [s]."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.returncode is not None

    def kill(self) -> None:
        """Kill the worker, and what it has forked, by a signal that reaches stopped ones too."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def report(self) -> str:
        """Return, after the end, how it ended and its last words."""
        code = self._process.returncode
        if code is None:
            how = 'has ended the session, and goes on with others'
        elif code < 0:
            how = f'was killed by {signal.Signals(-code).name}'
        else:
            how = f'ended with exit code {code}'
        return '\n'.join([f'the engine (process {self.pid}) {how}', *self._lines])

    def _read_lines(self) -> None:
        with cast(IO[str], self._process.stdout) as stream:
            for line in stream:
                self._lines.append(line.rstrip())
                self._on_line(line.rstrip())


class Place:
    """What one session has of a process that several use."""

    def __init__(self, host: EngineHost, process: WorkerProcess) -> None:
        self._host, self.process = host, process

    def leave(self, wanted: bool) -> None:
        """
        Give it up, which ends the process with the last one.

        :param wanted: whether the session was ended from here: if not, the process may be what has
            ended, and is given a moment to say how
        """
        self._host.leave(self)
        if not wanted:
            self.process.wait(LAST_WORDS_S)


class HostedSession:
    """What stands for the process of one session among several, to the client of that one."""

    def __init__(self, place: Place, channel: Channel) -> None:
        self._place, self.channel, self.pid = place, channel, place.process.pid

    def end(self) -> None:
        """End the session, and the process with the last one."""
        wanted = self.channel.closed
        self.channel.close()
        self._place.leave(wanted)

    def kill(self) -> None:
        """Kill the process, for all."""
        self._place.process.kill()

    def report(self) -> str:
        """Return, after the end, how it ended and the last words of the process."""
        return self._place.process.report()


class EngineHost:
    """
    Has sessions share one worker process: it is started by the first, and ended with the last.

    When it has died, whoever comes first starts the next one. Any thread may use it.
    """

    loss = 'engine'

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: list[Place] = []
        self._process: WorkerProcess | None = None
        self._on_line: Callable[[str], None] = lambda line: None

    def session(self, on_line: Callable[[str], None]) -> HostedSession:
        """
        Return a new session; errors as of `WorkerProcess`.

        :param on_line: takes what the process says from now on, until another one comes
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                return HostedSession(self.join(theirs, on_line), Channel(ours))
            except BaseException:
                ours.close()
                raise

    def join(self, theirs: socket.socket, on_line: Callable[[str], None]) -> Place:
        """Have the process serve a session on this socket; the rest is as of `session`."""
        with self._lock:
            self._on_line = on_line
            process = self._process = self._joined(theirs) or self._started(theirs)
            self._places.append(Place(self, process))
            return self._places[-1]

    def leave(self, place: Place) -> None:
        """Forget a session; with the last one of a process that is ended."""
        with self._lock:  # Also until that has ended: two would not fit into memory.
            if place in self._places:
                self._places.remove(place)
            if not any(each.process is place.process for each in self._places):
                place.process.end()

    def _joined(self, theirs: socket.socket) -> WorkerProcess | None:
        """Give a socket to the process that there is, if it lives."""
        process = self._process
        if process is None or process.wait(0.0):
            return None
        try:
            process.add(theirs)
        except OSError:
            return None  # It has just ended.
        return process

    def _started(self, theirs: socket.socket) -> WorkerProcess:
        """Start a process, on a thread that lives as long: it is killed when that ends."""
        made: queue.SimpleQueue[WorkerProcess | Exception] = queue.SimpleQueue()

        def live() -> None:
            try:
                process = WorkerProcess(lambda line: self._on_line(line), shared=True)
            except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
                made.put(error)
                return
            made.put(process)
            process.wait()

        threading.Thread(target=live, name='engine host', daemon=True).start()
        process = made.get()
        if isinstance(process, Exception):
            raise process
        process.add(theirs)
        return process


def tie_to(parent: int) -> None:
    """
    Have the kernel kill this process when its parent ends, which reaches a stopped one too.

    The kernel watches the thread that started this process, not the whole of its parent: that
    thread must live as long as this process may. (Linux only; elsewhere the end of the socket is
    all that ends a worker.)

    :param parent: process id of the parent; this process ends here if it has another by now
    """
    if sys.platform == 'linux':
        prctl = ctypes.CDLL(None).prctl
        prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:  # It ended before the promise.
        os._exit(1)


def main() -> None:
    """Run the worker: `python -m sww_ros.engine.process PARENT_PID SOCKET_FD [shared]`."""
    parent, descriptor = map(int, sys.argv[1:3])
    tie_to(parent)
    # What the worker needs takes long to import, and may not fit into the memory that is left.
    try:
        from sww_ros.engine.worker import serve
    except (ImportError, MemoryError, OSError) as error:
        sys.exit(f'the engine cannot be imported: {error or "not enough memory is left"}')
    serve(descriptor, shared=sys.argv[3:] == ['shared'])


if __name__ == '__main__':
    main()
