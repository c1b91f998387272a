"""What all tests share: a ROS domain of its own for each, and how they share the cores."""

from collections.abc import Generator, Iterator
import os
from pathlib import Path

import pytest

from sww_ros.demo.processes import DOMAINS, lock_domain

ROOT = Path(__file__).resolve().parents[1]
LONGEST = (
    'hour_of_faults', 'training_run', 'simulation', 'demo', 'narrator_process', 'narrator_node',
    'narrator_traffic', 'endurance', 'fleet_collection', 'benchmark', 'proof', 'peers',
    'narrator_blind', 'replay',
    'library', 'engine_faults', 'page_browser', 'page_node',
    'evaluation', 'sources', 'layout', 'worker', 'builtin', 'engine_client', 'loading',
    'qwen3_vl', 'fuzz', 'session_text', 'pace', 'training_data', 'watching_files', 'profiles',
    'narrator_shared', 'engine_shared', 'engine_host', 'narrate', 'recall', 'relay', 'published',
    'sampling', 'qwen2_vl')
"""Files of tests that take more than five seconds, longest first."""

# Tests run in more processes than there are cores (scripts/test). With as many torch threads in
# each, which spin while they wait for the others, all would wait for each other.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
# Processes that tests start find what is beside the tests too, such as a session without a model.
os.environ['PYTHONPATH'] = os.pathsep.join(
    filter(None, (str(ROOT / 'test'), os.environ.get('PYTHONPATH'))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first: processes take whole files, and the last should be short."""
    rank = {f'test_{name}.py': number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makemodule(
        module_path: Path, parent: pytest.Collector) -> Generator[None, object, object]:
    """
    Let pytest itself skip a file that skips itself.

    launch_testing, which ROS 2 from apt brings, imports each file in this hook. A file that skips
    itself for want of a package, as those of Ray do, raised there, and with it all tests of the
    folder were skipped.
    """
    try:
        return (yield)
    except pytest.skip.Exception:
        return pytest.Module.from_parent(parent, path=module_path)


@pytest.fixture(scope='module')
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of a module's SHAPE, or a small one, as `save_pretrained` writes it."""
    from sww_ros.evaluation.random_model import SMALL, save_random

    found = tmp_path_factory.mktemp('checkpoint')
    save_random(found, getattr(request.module, 'SHAPE', SMALL), 1)
    return found


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
