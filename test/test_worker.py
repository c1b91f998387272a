"""The engine's process told what nobody should tell it: it says so and goes on, or ends."""

from collections.abc import Iterator
import os
from pathlib import Path

from engine_harness import Listener, listening
from fake_session import SESSION
import pytest
from waiting import PATIENCE_S

from sww_ros.engine.process import WorkerProcess
from sww_ros.engine.worker import in_words, open_request
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import Trouble
from sww_ros.wire import MAX_HEADER_BYTES, PREFIX, Channel


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    worker = WorkerProcess(lambda line: None)
    try:
        worker.channel.send(open_request(SESSION, 'fake', SessionConfig()))
        assert next_message(worker)['type'] == 'ready'
        yield worker
    finally:
        worker.end()


def next_message(worker: WorkerProcess) -> dict | None:
    """Return what the worker says next; None once it has ended."""
    assert worker.channel.wait_readable(PATIENCE_S), 'the worker says nothing'
    message = worker.channel.receive()
    if message and message[0]['type'] == 'alive':
        return next_message(worker)
    return message and message[0]


def send_raw(worker: WorkerProcess, header: bytes) -> None:
    worker.channel._socket.sendall(PREFIX.pack(len(header), 0) + header)


def last_text(worker: WorkerProcess, question_id: str) -> dict:
    while (message := next_message(worker)) is not None:
        if message.get('stream_id') == question_id and message['final']:
            return message
    pytest.fail('the worker has ended')


@pytest.mark.parametrize('header, words', [
    (b'[1, 2]', 'no object'),
    (b'"open"', 'no object'),
    (b'\xff\xfe', 'is not JSON'),
    (b'{"command": ', 'is not JSON'),
    (b'[' * 100_000 + b']' * 100_000, 'nested too deep'),
    (b'{}', 'unknown command None'),
    (b'{"command": ["feed"]}', "unknown command ['feed']"),
    (b'{"command": "open"}', 'open'),
    (b'{"command": "feed"}', 'feed: empty compressed image'),
    (b'{"command": "feed", "shape": "wide"}', 'feed: TypeError'),
    (b'{"command": "pause"}', 'pause: TypeError'),
    (b'{"command": "ask", "question": "what?"}', 'ask: '),
    (b'{"command": "reset", "harder": true}', 'reset: TypeError'),
], ids=lambda value: value[:20] if isinstance(value, str) else '')
def test_a_message_that_is_no_command_is_told_and_the_next_one_is_obeyed(
        worker: WorkerProcess, header: bytes, words: str):
    send_raw(worker, header)
    while (told := next_message(worker))['type'] != 'trouble':
        assert told['type'] == 'dropped', told
    assert words in told['message'] and not told['fatal'], told
    worker.channel.send({'command': 'ask', 'question': 'still there?', 'question_id': 'q1'})
    assert last_text(worker, 'q1')['finish_reason'] == 'stop'


def test_a_question_that_lacks_its_words_is_rejected(worker: WorkerProcess):
    worker.channel.send({'command': 'ask', 'question_id': 'q1'})
    told = next_message(worker)
    assert (told['type'], told['question_id'], told['state']) == ('question', 'q1', 'rejected')
    assert 'TypeError' in told['reason']


def test_what_is_no_message_at_all_is_told_and_ends_the_worker(worker: WorkerProcess):
    worker.channel._socket.sendall(PREFIX.pack(MAX_HEADER_BYTES + 1, 0))
    told = next_message(worker)
    assert told['type'] == 'trouble' and told['fatal'] and 'too large' in told['message']
    assert next_message(worker) is None
    assert worker.end() == 1


@pytest.mark.parametrize('changes, words', [
    ({'config': 3}, 'TypeError'), ({'config': {'max_anwsers': 3}}, 'max_anwsers'),
    ({'session': 'fake_session:Nobody'}, 'Nobody'), ({'session': 'nothing:Nobody'}, 'nothing'),
    ({'model': None}, 'TypeError')])
def test_a_session_that_cannot_be_opened_is_refused_in_words(changes: dict, words: str):
    worker = WorkerProcess(lambda line: None)
    worker.channel.send(open_request(SESSION, 'fake', SessionConfig()) | changes)
    told = next_message(worker)
    worker.end()
    assert told['type'] == 'failed'
    assert words in told['message']


@pytest.mark.parametrize('message', [
    {}, {'type': 'step'}, {'type': 'song'}, {'type': 'trouble', 'fatal': True, 'why': 'x'}])
def test_an_engine_that_says_what_nobody_understands_is_replaced(
        monkeypatch: pytest.MonkeyPatch, message: dict):
    receive, strange = Channel.receive, iter([message])

    def sometimes_strange(channel: Channel) -> tuple[dict, bytearray] | None:
        received = receive(channel)
        if received and received[0]['type'] != 'ready' and (odd := next(strange, None)) is not None:
            return odd, bytearray()
        return received

    with listening() as listener:
        monkeypatch.setattr(Channel, 'receive', sometimes_strange)
        listener.client.ask('what?')
        listener.wait(lambda: len(listener.ready) == 2)
        assert told_by(listener)
        assert listener.wait_final(listener.client.ask('back again')).finish_reason == 'stop'


def told_by(listener: Listener) -> list[Trouble]:
    return [trouble for trouble in listener.of(Trouble)
            if trouble.fatal and 'does not speak our language' in trouble.message]


def test_an_engine_that_finds_no_memory_for_its_libraries_ends_in_one_line(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / 'numpy.py').write_text(
        "raise ImportError('libblas.so: failed to map segment from shared object')\n")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=os.pathsep)
    worker = WorkerProcess(lambda line: None)
    assert not worker.channel.receive()
    assert worker.end() == 1
    assert worker.report().splitlines()[1:] == [
        'the engine cannot be imported: libblas.so: failed to map segment from shared object']


@pytest.mark.parametrize('error', [
    MemoryError(), ImportError('libtorch_cpu.so: failed to map segment from shared object'),
    OSError(12, 'Cannot allocate memory'), RuntimeError("can't start new thread"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\n#0")])
def test_a_want_of_memory_is_told_in_one_line(error: Exception):
    words = in_words(error)
    assert words.startswith('not enough memory is left') and len(words.splitlines()) == 1
