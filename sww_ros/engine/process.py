"""
The engine's process: started here, its last words kept, and always ended.

`python -m sww_ros.engine.process` is what is started: it imports the worker only once the kernel
has promised to kill it when its parent ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import IO, cast

from sww_ros.wire import Channel

WORKER = 'sww_ros.engine.process'
GRACE_S = 5.0
LAST_LINES = 20
PR_SET_PDEATHSIG = 1


class WorkerProcess:
    """
    A worker with a channel to it.

    It is killed when the thread that made it ends, if not before: make it from one that ends it.
    What it writes to its standard streams goes to `on_line`, line by line, on a thread of its
    own; the last lines are kept for the report of its end.

    :raises OSError: when no process can be started
    :raises RuntimeError: when no thread can be started
    """

    def __init__(self, on_line: Callable[[str], None]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # A session of its own: Ctrl-C in the terminal is for the node to handle.
            try:
                self._process = subprocess.Popen(
                    [sys.executable, '-m', WORKER, str(os.getpid()), str(theirs.fileno())],
                    pass_fds=[theirs.fileno()], start_new_session=True, stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
            except OSError:
                ours.close()
                raise
        self.channel = Channel(ours)
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

    def kill(self) -> None:
        """Kill the worker, and what it has forked, by a signal that reaches stopped ones too."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def report(self) -> str:
        """Return, after the end, how it ended and its last words."""
        code = self._process.returncode
        if code is not None and code < 0:
            how = f'was killed by {signal.Signals(-code).name}'
        else:
            how = f'ended with exit code {code}'
        return '\n'.join([f'the engine (process {self.pid}) {how}', *self._lines])

    def _read_lines(self) -> None:
        with cast(IO[str], self._process.stdout) as stream:
            for line in stream:
                self._lines.append(line.rstrip())
                self._on_line(line.rstrip())


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
    """Run the worker: `python -m sww_ros.engine.process PARENT_PID SOCKET_FD`."""
    parent, descriptor = map(int, sys.argv[1:])
    tie_to(parent)
    # What the worker needs takes long to import, and may not fit into the memory that is left.
    try:
        from sww_ros.engine.worker import serve
    except (ImportError, MemoryError, OSError) as error:
        sys.exit(f'the engine cannot be imported: {error or "not enough memory is left"}')
    serve(descriptor)


if __name__ == '__main__':
    main()
