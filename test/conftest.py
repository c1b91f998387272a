"""Fixtures that all tests share: a ROS domain of its own for each test."""

from collections.abc import Iterator
import os
from pathlib import Path

import pytest

from sww_ros.demo.domain import DOMAINS, lock_domain

ROOT = Path(__file__).resolve().parents[1]


def claim_domain() -> tuple[int, int]:
    """Return a domain id that no other test run on this machine holds, and the lock to close."""
    found = lock_domain(DOMAINS)
    if found is None:
        raise RuntimeError(f'all {len(DOMAINS)} ROS domains are in use by tests')
    return found


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
