"""A ROS domain that nobody else on this machine uses."""

from __future__ import annotations

from collections.abc import Iterable
import fcntl
import os
from pathlib import Path
import tempfile

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
