"""Starts the worker, once the kernel has promised to kill it when its parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


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
    """Run the worker: `python -m sww_ros.engine.tether PARENT_PID SOCKET_FD`."""
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
