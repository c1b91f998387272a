"""A ROS domain that nobody else on this machine uses."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
import tempfile

DOMAINS = range(1, 102)
"""Above 101 the ports of DDS run into Linux's ephemeral ones."""


def claim_domain() -> int | None:
    """
    Set ROS_DOMAIN_ID, unless it is set, and keep discovery on this machine.

    :return: the lock that holds the domain: keep it open; None where no lock was needed
    """
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    if os.environ.get('ROS_DOMAIN_ID'):
        return None
    for domain in reversed(DOMAINS):
        path = Path(tempfile.gettempdir(), f'ros_domain_{domain}_{os.getuid()}.lock')
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        os.environ['ROS_DOMAIN_ID'] = str(domain)
        return lock
    return None
