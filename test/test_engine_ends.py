"""The engine's process ends with the node and not before, whatever becomes of either."""

from collections.abc import Iterator
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading

from engine_harness import START_S, Listener, listening
from fake_session import SESSION
from narrator_harness import is_gone
import pytest
from waiting import wait_until

from sww_ros.engine import client as client_module

PARENT = f"""
from sww_ros.engine.client import EngineClient
from sww_ros.streaming.config import SessionConfig
import time

client = EngineClient('fake', SessionConfig(), session={SESSION!r}, on_event=lambda event: None,
                      on_ready=lambda info: print(client.pid, flush=True))
client.start({START_S})
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, 'BACKOFF_S', (0.05,))


@pytest.fixture
def parent() -> Iterator[subprocess.Popen]:
    with subprocess.Popen([sys.executable, '-c', PARENT], stdout=subprocess.PIPE,
                          text=True) as process:
        yield process
        process.kill()


@pytest.mark.parametrize('restarts', [0, 1])
def test_a_stopped_engine_does_not_outlive_its_killed_parent(
        parent: subprocess.Popen, restarts: int):
    engine = int(parent.stdout.readline())
    for _ in range(restarts):
        os.kill(engine, signal.SIGKILL)
        engine = int(parent.stdout.readline())
    os.kill(engine, signal.SIGSTOP)
    try:
        wait_until(lambda: state_of(engine) == 'T')
        parent.kill()
        wait_until(lambda: is_gone(engine))
    finally:
        if not is_gone(engine):
            os.kill(engine, signal.SIGKILL)


def test_a_worker_whose_parent_is_another_by_now_ends_at_once():
    """As one whose parent died before it could ask to die with it."""
    ended = subprocess.run(
        [sys.executable, '-m', 'sww_ros.engine.process', str(os.getppid()), '0'],
        capture_output=True, text=True, timeout=START_S)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, '', '')


def test_the_engine_outlives_the_thread_that_started_it():
    listener = Listener('fake')
    started_on: list[int] = []

    def start() -> None:
        started_on.append(threading.get_native_id())
        listener.client.start(START_S)

    starter = threading.Thread(target=start)
    starter.start()
    starter.join()
    wait_until(lambda: not Path(f'/proc/self/task/{started_on[0]}').exists())
    try:
        question = listener.client.ask('are you there?')
        assert listener.wait_final(question).finish_reason == 'stop'
        assert not listener.lost
    finally:
        listener.client.close()


def test_an_engine_that_is_closed_has_time_to_end_by_itself():
    with listening('tidy') as listener:
        pass
    listener.wait(lambda: listener.lines[-1] == 'all is put away')


def state_of(pid: int) -> str:
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]

