"""Starts the demo's processes, watches over them, and leaves none behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
import ctypes
import fcntl
import os
from pathlib import Path
import signal
import subprocess
import sys
import tempfile
import threading
import time

LAST_LINES = 12
GRACE_S = 3.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


class ChildDied(RuntimeError):
    """A process ended before its time; the message says which, how, and its last words."""


def command_of(executable: str) -> list[str]:
    """Return the command that `ros2 run sww_ros <executable>` would run."""
    try:
        from ament_index_python import PackageNotFoundError, get_package_prefix
        installed = Path(get_package_prefix('sww_ros'), 'lib/sww_ros', executable)
        if installed.exists():
            return [str(installed)]
    except (ImportError, PackageNotFoundError):
        pass  # Not built: the module runs as well.
    return [sys.executable, '-m', f'sww_ros.nodes.{executable}']


class Child:
    """One process; what it writes goes to `on_line`, and the last lines are kept."""

    def __init__(self, name: str, command: list[str], on_line: Callable[[str, str], None]) -> None:
        self.name, self._on_line = name, on_line
        # A session of its own: Ctrl-C in the terminal is for the demo to handle.
        self.process = subprocess.Popen(
            command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors='replace', preexec_fn=_die_with_parent,
            env=os.environ | {'PYTHONUNBUFFERED': '1', 'RCUTILS_COLORIZED_OUTPUT': '0'})
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def check(self) -> None:
        """
        Make sure that the process runs, or has ended well.

        :raises ChildDied: if it ended with an exit code other than 0
        """
        code = self.process.poll()
        if code:
            self._reader.join(1.0)
            how = (f'was killed by {signal.Signals(-code).name}' if code < 0
                   else f'ended with exit code {code}')
            raise ChildDied('\n'.join([f'{self.name} {how}', *(f'  {x}' for x in self._lines)]))

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def hush(self) -> None:
        """Pass on no more of what the process says: it is being ended."""
        self._on_line = lambda *_: None

    def _read(self) -> None:
        with self.process.stdout as stream:
            for line in stream:
                self._lines.append(line.rstrip())
                self._on_line(self.name, line.rstrip())


class Household:
    """
    All processes of the demo. Leaving the context ends them, and whatever they started.

    Orphans of the children become children of this process, so that none is missed.
    """

    def __init__(self, on_line: Callable[[str, str], None] = lambda *_: None) -> None:
        self._on_line = on_line
        self._children: list[Child] = []

    def __enter__(self) -> Household:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, command: list[str]) -> Child:
        """Start a process."""
        child = Child(name, command, self._on_line)
        self._children.append(child)
        return child

    def forget(self, child: Child) -> None:
        """Watch no more over a process that is about to end, or has."""
        self._children.remove(child)

    def check(self) -> None:
        """
        Make sure that nobody died.

        :raises ChildDied: with the words of the first one found
        """
        for child in self._children:
            child.check()

    def stop(self, grace_s: float = GRACE_S) -> None:
        """Ask all to end, wait for `grace_s` seconds, then end them and their own children."""
        for child in self._children:
            child.hush()
            if not child.ended:
                child.process.send_signal(signal.SIGINT)
        end = time.monotonic() + grace_s
        while time.monotonic() < end and not all(child.ended for child in self._children):
            time.sleep(0.02)
        for child in self._children:
            if not child.ended:
                child.process.kill()
            child.process.wait()
        self._end_orphans()

    def _end_orphans(self) -> None:
        end = time.monotonic() + 2.0
        while time.monotonic() < end and (orphans := children()):
            for pid in orphans:
                try:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                except (ChildProcessError, ProcessLookupError):
                    pass  # It was gone first.


def _die_with_parent() -> None:
    """Between fork and exec: end with the demo, even if that is killed."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def children(pid: int | str = 'self') -> list[int]:
    """Return the process ids of a process's children, those among them that have just ended."""
    found: list[int] = []
    for task in Path(f'/proc/{pid}/task').glob('*/children'):
        with suppress(OSError):  # The thread, or the process, has ended.
            found += map(int, task.read_text().split())
    return found


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, be it that nobody has waited for it yet."""
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except OSError:
        return True
    return state in 'ZX'


DOMAINS = range(1, 102)
"""Above 101 the ports of DDS run into Linux's ephemeral ones."""


def lock_domain(domains: Iterable[int]) -> tuple[int, int] | None:
    """
    Lock the first of `domains` that nobody holds.

    :return: its id and the lock that holds it while open; None where all are held
    """
    for domain in domains:
        path = Path(tempfile.gettempdir(), f'ros_domain_{domain}_{os.getuid()}.lock')
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return domain, lock
    return None


def claim_domain() -> int | None:
    """
    Set ROS_DOMAIN_ID, unless it is set, and keep discovery on this machine.

    :return: the lock that holds the domain: keep it open; None where no lock was needed
    """
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    if os.environ.get('ROS_DOMAIN_ID'):
        return None
    found = lock_domain(reversed(DOMAINS))
    if found is None:
        return None
    os.environ['ROS_DOMAIN_ID'] = str(found[0])
    return found[1]
