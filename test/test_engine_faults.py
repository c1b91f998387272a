"""What goes wrong around the engine: nothing of it may silence the client."""

from collections.abc import Iterator
import os

from engine_harness import HERE, Listener, listening
import numpy as np
import pytest

from sww_ros.engine import client as client_module
from sww_ros.engine import wire
from sww_ros.engine.outbox import Frame
from sww_ros.streaming.events import FramesDropped, Trouble


@pytest.fixture(autouse=True)
def quick_and_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('PYTHONPATH', str(HERE), prepend=os.pathsep)
    monkeypatch.setattr(client_module, 'BACKOFF_S', (0.05,))


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as listener:
        yield listener


def no_memory() -> np.ndarray:
    raise MemoryError('Unable to allocate 9 GiB')


@pytest.mark.parametrize('load, words', [
    (lambda: np.zeros((48, 64, 3), np.uint8), 'too large'), (no_memory, 'Unable to allocate')])
def test_a_frame_that_cannot_be_sent_is_told_and_the_next_thing_is_sent(
        listener: Listener, monkeypatch: pytest.MonkeyPatch, load, words: str):
    monkeypatch.setattr(wire, 'MAX_PAYLOAD_BYTES', 1000)
    listener.client.feed(Frame(load, 1, 0))
    listener.wait(lambda: listener.of(Trouble), 5.0)
    assert words in listener.of(Trouble)[0].message
    assert FramesDropped('bad', 1) in listener.events
    assert listener.wait_final(listener.client.ask('are you there?')).finish_reason == 'stop'
