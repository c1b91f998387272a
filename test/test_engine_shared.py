"""Who finds a shared engine by its name, who may, who starts it, and what ends it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
import os
from pathlib import Path
import select
import signal
import socket
import subprocess
import sys

from engine_harness import DOMAIN, NAMES, START_S, Listener, numbers, speak
from fake_session import ENGINE
import pytest
from waiting import PATIENCE_S, wait_until

from sww_ros.demo.processes import is_gone
from sww_ros.engine import shared
from sww_ros.engine.client import EngineError
from sww_ros.engine.keeper import Keeper
from sww_ros.engine.shared import SharedHost, check_name, locked, own_folder, user_of

LINES = 20_000
"""More than a socket holds."""
CONNECT_AS_NOBODY = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
ours, theirs = socket.socketpair()
try:
    socket.send_fds(sock, [b'.'], [theirs.fileno()])
    print(sock.recv(1) == b'')
except (BrokenPipeError, ConnectionResetError):  # It may be closed at once.
    print(True)
"""


@pytest.fixture
def name() -> str:
    return next(NAMES)


@pytest.fixture
def path(name: str) -> Iterator[Path]:
    """Give where an engine of this name is found."""
    path = own_folder() / f'{DOMAIN}-{name}'
    yield path
    path.unlink(missing_ok=True)


def listener_of(name: str, domain: int = DOMAIN, **options) -> Listener:
    return Listener('fake', session=ENGINE, host=SharedHost(name, domain), **options)


@pytest.fixture
def both(name: str) -> Iterator[tuple[Listener, Listener]]:
    """Give two sessions that began at the same moment."""
    listeners = listener_of(name), listener_of(name)
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda listener: listener.client.start(START_S), listeners))
        yield listeners
    finally:
        for listener in listeners:
            listener.client.close()


def parent(pid: int) -> int:
    return int(Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[1])


def test_of_two_that_come_at_once_one_starts_the_engine(
        both: tuple[Listener, Listener], path: Path):
    first, second = both
    assert first.client.pid == second.client.pid
    keeper = parent(first.client.pid)
    # Whoever takes in orphans may be this process: other tests have it do so.
    assert keeper != os.getpid() and os.getsid(keeper) != os.getsid(0), 'it is on its own'
    for listener in both:
        speak(listener)
        listener.client.close()
    wait_until(lambda: is_gone(keeper))
    assert not path.exists(), 'nothing is left'


def test_a_name_holds_in_its_domain(name: str):
    here, there = listener_of(name), listener_of(name, DOMAIN + 1)
    try:
        for listener in (here, there):
            listener.client.start(START_S)
        assert here.client.pid != there.client.pid
    finally:
        for listener in (here, there):
            listener.client.close()


def test_when_its_keeper_is_killed_it_comes_back_for_all(both: tuple[Listener, Listener]):
    for listener in both:
        speak(listener)
    pid = both[0].client.pid
    os.kill(parent(pid), signal.SIGKILL)
    for listener in both:
        listener.wait(lambda listener=listener: len(listener.ready) == 2)
        assert listener.lost == [f'the engine (process {pid}) is gone with the process that keeps '
                                 'it for all who share it']
        speak(listener)
        assert numbers(listener) == list(range(7)), 'the end that was cut is one of them'
    wait_until(lambda: is_gone(pid))
    assert len({listener.client.pid for listener in both}) == 1


def test_what_a_dead_one_has_left_is_not_in_the_way(name: str, path: Path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = listener_of(name)
    try:
        listener.client.start(START_S)
        speak(listener)
    finally:
        listener.client.close()
    wait_until(lambda: not path.exists())


def test_one_that_cannot_be_started_is_told_in_words(
        name: str, path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shared, 'KEEPER', 'sww_ros.engine.nobody')
    with pytest.raises(EngineError, match=f"shared engine '{name}' did not start: .*engine.nobody"):
        listener_of(name).client.start(START_S)


def test_one_that_does_not_answer_is_not_waited_for(
        name: str, path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shared, 'PATIENCE_S', 0.2)
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(path))
        stopped.listen()
        with pytest.raises(EngineError, match='does not answer'):
            listener_of(name).client.start(START_S)
        with locked(path.parent), pytest.raises(EngineError, match='is locked by'):
            listener_of(name).client.start(START_S)


def test_a_folder_that_others_can_write_to_is_not_used(
        name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shared, 'FOLDER', str(tmp_path / 'shared-{user}'))
    folder = own_folder()
    assert folder.name == f'shared-{os.geteuid()}'
    folder.chmod(0o777)
    with pytest.raises(EngineError, match='must be a folder that is open to this user alone'):
        listener_of(name).client.start(START_S)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(PermissionError, match='this user alone'):
        own_folder()


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can be another user')
def test_another_user_is_not_answered():
    """Where the folder lets others in all the same."""
    folder = Path(f'/tmp/sww_ros_{os.getpid()}')
    folder.mkdir(mode=0o755)
    path = folder / 'open'
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            path.chmod(0o666)
            listener.listen()
            other = subprocess.Popen(
                [sys.executable, '-c', CONNECT_AS_NOBODY, str(path)], stdout=subprocess.PIPE)
            assert select.select([listener], [], [], PATIENCE_S)[0]
            Keeper(listener, path).run()
            assert other.communicate(timeout=PATIENCE_S)[0] == b'True\n'
    finally:
        path.unlink(missing_ok=True)
        folder.rmdir()


def test_the_user_at_the_other_end_is_known():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert user_of(ours) == os.geteuid()


def test_one_that_reads_nothing_does_not_hold_up_the_engine(tmp_path: Path):
    """As a node that was stopped: what is written for it is lost, and nobody waits."""
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_UNIX) as listener:
        keeper = Keeper(listener, tmp_path / 'none')
        keeper._connected[ours] = shared.Channel(ours)
        for number in range(LINES):
            keeper._tell_line(f'line {number}')
        assert shared.Channel(theirs).receive()[0] == {'line': 'line 0'}


@pytest.mark.parametrize('bad', ['2nd', 'a b', '../a', 'a' * 51])
def test_names_that_cannot_be_are_refused(bad: str):
    with pytest.raises(ValueError, match='cannot be the name of an engine'):
        check_name(bad)
    assert check_name('shared_2') == 'shared_2'
