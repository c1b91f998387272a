"""Fixtures that all tests share: a ROS domain of its own for each test."""

from collections.abc import Iterator
import fcntl
import os
from pathlib import Path
import tempfile

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOMAINS = range(1, 102)  # Above 101 the ports of DDS run into Linux's ephemeral ones.


def claim_domain() -> tuple[int, int]:
    """Return a domain id that no other test run on this machine holds, and the lock to close."""
    for domain in DOMAINS:
        path = Path(tempfile.gettempdir(), f'ros_domain_{domain}_{os.getuid()}.lock')
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return domain, lock
    raise RuntimeError(f'all {len(DOMAINS)} ROS domains are in use by tests')


@pytest.fixture
def ros_domain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """
    Give the test, and the processes it starts, a ROS domain that nobody else uses.

    Discovery stays on this machine, logs go to the test's temporary folder, and the transport
    has room for camera frames.
    """
    domain, lock = claim_domain()
    monkeypatch.setenv('ROS_DOMAIN_ID', str(domain))
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'ros_log'))
    monkeypatch.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', str(ROOT / 'config/fastdds_shm.xml'))
    yield domain
    os.close(lock)
