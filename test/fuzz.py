"""
Feeds what no program means to send: images, messages, questions, checkpoints, settings.

`python test/fuzz.py --target NAME --minutes 10` makes up cases until the time is over, and ends
with exit code 1 at the first that breaks what has to hold: success, or an error of our own kind
(ValueError), in bounded time and memory. test/test_fuzz.py plays some of a fixed seed.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
import faulthandler
from functools import cache
import json
from pathlib import Path
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from types import SimpleNamespace
from unittest.mock import patch

import cv2
from fleet_kit import UPGRADE
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
import numpy as np
from rclpy.parameter import Parameter

from sww_ros import nodes
from sww_ros.engine.supervision import EngineError, Supervision
from sww_ros.engine.worker import Worker
from sww_ros.evaluation.random_model import SMALL, save_random
from sww_ros.fleet.gateway import Gateway
from sww_ros.fleet.meters import LocalMeter
from sww_ros.fleet.robots import Robots
from sww_ros.fleet.server import GatewayServer
from sww_ros.images import ENCODINGS, compressed_to_rgb, image_to_rgb
from sww_ros.models.loading import CheckpointError, load
from sww_ros.nodes.reporting import _duration, _time
from sww_ros.streaming.config import SETTINGS, SessionConfig
from sww_ros.streaming.events import Event, QuestionState, TextDelta, Trouble, event_to_dict
from sww_ros.streaming.session import Session
from sww_ros.wire import Channel, LostChannel, packed, unpacked

LONGEST_S = 300
LARGEST = 1 << 30
"""How long a case may take on a busy machine [s], by how much the process may grow [bytes]."""
IDLE_S = 200.0

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([0, -1, 1, 2 ** 31, 2 ** 32 - 1, 2 ** 63, 10 ** 12, 'x', '']),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.text(max_size=8), inner, max_size=4), max_leaves=6)
WORDS = (st.text(max_size=60)
         | st.text(st.characters(), max_size=12).map(lambda text: text * 300)
         | st.sampled_from(['<|im_end|>', '\ud800', '\x00', '<|vision_start|>' * 40, ' ',
                            '🦊' * 600, 'narration', 'What colour is the square?']))
UINT32 = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 12, 16, 24, 2 ** 31, 2 ** 32 - 1]) | st.integers(
    0, 2 ** 32 - 1)
STAMPS = st.integers(-2 ** 63, 2 ** 63 - 1) | st.integers() | st.sampled_from([0, -1, 10 ** 9])


class Broken(AssertionError):
    """What has to hold does not."""


class Hang(BaseException):
    """A case takes too long; of no kind that anybody catches."""


@contextmanager
def bounded() -> Iterator[None]:
    """Make sure that what is done within takes neither too long nor too much memory."""
    def end(*_: object) -> None:
        raise Hang(f'not done after {LONGEST_S} s')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, end)
    signal.alarm(LONGEST_S)
    faulthandler.dump_traceback_later(2 * LONGEST_S, exit=True)  # Native code hears no signal.
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if grown > LARGEST:
        raise Broken(f'the process grew by {grown >> 20} MiB')


@cache
def folder() -> Path:
    """Return the folder of a small random checkpoint."""
    path = Path(tempfile.mkdtemp(prefix='fuzz-'))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    save_random(path, SMALL, 1)
    return path


@cache
def session() -> Session:
    """Return a session that always has something to say, and waits for nothing."""
    return Session(load(str(folder())), SessionConfig(
        overlap='fused', max_answer_tokens=3, question_timeout_s=0.01, max_steps=8))


@contextmanager
def fails(*kinds: type[Exception]) -> Iterator[None]:
    """Allow for errors of these kinds, whose words are text."""
    try:
        yield
    except kinds as error:
        str(error).encode()  # Whoever logs it must not fail in turn.


# The targets: each draws one case and plays it.

def play_images(data: st.DataObject) -> None:
    """What a camera driver may publish, as sensor_msgs/Image, CompressedImage and stamps."""
    encoding = data.draw(st.sampled_from([*ENCODINGS, '', '32FC1', 'x']) | st.text(max_size=8))
    height, width, step = data.draw(st.tuples(UINT32, UINT32, UINT32))
    size = data.draw(st.sampled_from([0, 1, height * step, height * step - 1, height * width * 3]))
    content = data.draw(st.binary(max_size=64)) * (min(size, 1 << 16) // 8 + 1)
    message = SimpleNamespace(encoding=encoding, height=height, width=width, step=step,
                              is_bigendian=data.draw(st.integers(0, 255)),
                              data=content[:min(size, 1 << 16)])
    with fails(ValueError):
        check_pixels(image_to_rgb(message), (height, width))
    suffix = data.draw(st.sampled_from(['.jpg', '.png', '.bmp', '.tiff']))
    picture = bytearray(cv2.imencode(suffix, np.full((9, 16, 3), 77, np.uint8))[1].tobytes())
    message = SimpleNamespace(format=data.draw(st.text(max_size=9) | st.just('jpeg')),
                              data=mutated(data, picture))
    with fails(ValueError):
        check_pixels(compressed_to_rgb(message), None)
    stamp_ns = data.draw(st.integers(-2 ** 31, 2 ** 31 - 1)) * 10 ** 9 + data.draw(UINT32)
    _time(stamp_ns)
    _duration(time.time_ns() - stamp_ns)


def check_pixels(pixels: np.ndarray, size: tuple[int, int] | None) -> None:
    """Check what a conversion returns."""
    if (pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3
            or size and pixels.shape[:2] != size or not pixels.flags.c_contiguous):
        raise Broken(f'{pixels.shape} {pixels.dtype}')


def mutated(data: st.DataObject, content: bytearray, within: int = 1 << 20) -> bytes:
    """Return bytes of which some are others, or are missing, or come twice."""
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, min(within, max(0, len(content) - 1))))
        how = data.draw(st.sampled_from(['set', 'word', 'cut', 'insert']))
        if how == 'cut':
            del content[at:at + data.draw(st.integers(1, 64))]
        elif how == 'insert':
            content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            new = data.draw(st.binary(min_size=1, max_size=1) if how == 'set'
                            else st.sampled_from([b'\xff\xff', b'\x7f\xff\xff\xff', b'\0\0\0\0']))
            content[at:at + len(new)] = new
    return bytes(content)


def play_wire(data: st.DataObject) -> None:
    """Bytes on the socket, commands to the engine, events from it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        header = json.dumps(data.draw(ANY)).encode()
        message = bytearray(len(header).to_bytes(4, 'big') + (3).to_bytes(4, 'big') + header
                            + b'abc')
        ours.sendall(mutated(data, message) + data.draw(st.binary(max_size=40)))
        ours.shutdown(socket.SHUT_WR)
        receive_all(Channel(theirs))
    header = data.draw(st.fixed_dictionaries({}, optional=dict(
        command=st.sampled_from(['feed', 'ask', 'cancel', 'set_prompt', 'reset', 'pause', 'open'])
        | ANY, question=ANY | WORDS, question_id=ANY | WORDS, prompt=ANY | WORDS, paused=ANY,
        shape=ANY | st.lists(st.integers(-1, 60), min_size=3, max_size=3), stamp_ns=ANY | STAMPS,
        received_ns=ANY, last=ANY)))
    obey(header, bytearray(data.draw(st.binary(max_size=64)) * 99))
    supervision = Supervision(SessionConfig(), [0.1])
    supervision.started('engine')
    supervision.became_ready({'default_prompt': 'x'})
    supervision.ask('what?', 'q1')
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(Event.__args__))
        event = {field.name: data.draw(ANY | st.integers(0, 9) | st.just('q1'))
                 for field in fields(kind)} | dict(type=kind.type)
        event = data.draw(st.just(event) | st.dictionaries(st.sampled_from([
            'type', 'prompt', 'kept']), ANY | st.just('refused')))
        with fails(ValueError, TypeError, AttributeError):  # For which the client gives it up.
            supervision.received(event)
    supervision.lost()
    supervision.ended('gone')
    if supervision.answers.questions:
        raise Broken('a question is left open')


class Words:
    """A WebSocket on which so many things are said, by whoever knows no more."""

    def __init__(self, said: list[bytes | str]) -> None:
        self._said, self.answers, self.code = [*said], [], 0

    async def receive(self) -> bytes | str | None:
        await asyncio.sleep(0)
        return self._said.pop(0) if self._said else None

    async def send(self, data: bytes) -> None:
        self.answers.append(unpacked(data)[0])

    async def close(self, code: int) -> None:
        self.code = code


class Here:
    """Has a gateway's sessions be that of this process; what the engine is told is kept."""

    loss = 'engine'

    def __init__(self) -> None:
        self.told: list[dict] = []
        self._threads: list[threading.Thread] = []

    def session(self, on_line: Callable[[str], None]) -> Here:
        ours, theirs = socket.socketpair()
        self.channel, self._worker = Channel(ours), Worker(Channel(theirs))
        self._threads.append(threading.Thread(target=self._obey, args=[Channel(theirs)]))
        self._threads[-1].start()
        return self

    def _obey(self, channel: Channel) -> None:
        """Obey as the engine's process does, the session being one that is there."""
        self._worker._session = session()
        while (message := channel.receive()) is not None:
            self.told.append({**message[0]})
            if message[0].get('command') != 'open':
                with suppress(OSError):  # Whoever said it has gone.
                    self._worker._obey(*message)
        channel.close()

    def end(self) -> None:
        self.channel.close()
        for thread in self._threads:
            thread.join()

    def report(self) -> str:
        return 'gone'


def play_fleet(data: st.DataObject) -> None:
    """What may be said at a gateway, by robots and by whoever is none."""
    picture = cv2.imencode('.jpg', np.full((9, 16, 3), 77, np.uint8))[1].tobytes()
    header = st.fixed_dictionaries({}, optional=dict(
        command=st.sampled_from(['open', 'open', 'feed', 'feed', 'clock', 'ask', 'cancel', 'reset'])
        | ANY, config=st.dictionaries(st.sampled_from([of.name for of in SETTINGS]), ANY) | ANY,
        question=ANY | WORDS, question_id=ANY | WORDS, stamp_ns=ANY | STAMPS, received_ns=ANY,
        last=ANY, shape=ANY, session=ANY, model=ANY, sent_ns=ANY))
    said = [packed(dict(command='open', config={}))] * data.draw(st.integers(0, 1))
    for _ in range(data.draw(st.integers(0, 6))):
        message = bytearray(packed(data.draw(header), data.draw(st.just(picture) | st.binary())))
        said.append(data.draw(st.text(max_size=9)) if not data.draw(st.integers(0, 9)) else
                    mutated(data, message))
    token = data.draw(st.just(FUZZ_TOKEN) | WORDS)
    here, socket_ = Here(), Words(said)
    gateway = Gateway(here, 'builtin', robots(), LocalMeter(), session='of:us')
    with patch('sww_ros.fleet.gateway.WRONG_TOKEN_S', 0.0):
        asyncio.run(gateway.attend(socket_, token))
    opened = [each for each in here.told if each.get('command') == 'open']
    if any((each['session'], each['model']) != ('of:us', 'builtin') for each in opened[:1]):
        raise Broken('whoever came has said what is to run')
    if socket_.code and socket_.answers[-1].get('type') != 'failed':
        raise Broken('sent away without a word')
    if gateway.visits or gateway._here.total():
        raise Broken('it is still there')
    for event in socket_.answers:
        json.dumps(event).encode()
    session().pause(False)
    session().wait_idle(IDLE_S)
    session().drain()


def play_door(data: st.DataObject) -> None:
    """What may come to a gateway's port, from whoever finds it: HTTP, WebSocket, neither."""
    token = data.draw(st.sampled_from([FUZZ_TOKEN, 'wrong']))
    head = UPGRADE.replace(b'wrong', token.encode())
    said = mutated(data, bytearray(head)) if data.draw(st.integers(0, 2)) else head
    for _ in range(data.draw(st.integers(0, 3))):
        message, noise = packed(dict(command='ask')), data.draw(st.binary(max_size=9))
        kind = bytes([data.draw(st.sampled_from(FRAMES))])
        # Masked with zeros, which change nothing.
        frame = kind + bytes([0x80 | len(message)]) + bytes(4) + message
        said += data.draw(st.sampled_from([frame, kind + noise, noise]))
    heard = b''
    with (patch.multiple('sww_ros.fleet.gateway', WRONG_TOKEN_S=0.0, LAST_WORDS_S=0.1),
          patch('sww_ros.fleet.strangers.STRANGERS', data.draw(st.integers(1, 2))),
          socket.create_connection(('127.0.0.1', door().port), IDLE_S) as stranger,
          socket.create_connection(('127.0.0.1', door().port), IDLE_S)):
        cut = data.draw(st.integers(0, len(said)))
        with suppress(ConnectionError):
            stranger.sendall(said[:cut])
            stranger.sendall(said[cut:])
        with suppress(OSError):
            stranger.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while more := stranger.recv(1 << 16):
                heard += more
    end_s = time.monotonic() + IDLE_S
    while any(door()._strangers._all()) or door()._gateway.visits:
        if time.monotonic() > end_s:
            raise Broken('it is still there')
        time.sleep(0.001)
    if (heard and not heard.startswith(b'HTTP/')) or b' 500 ' in heard[:20]:
        raise Broken(f'{heard!r:.200}')
    if uncaught:
        raise Broken(str(uncaught))


FRAMES = (0x82, 0x81, 0x88, 0x89, 0x8a, 0x02, 0x80, 0x83, 0xc2, 0xff)
FUZZ_TOKEN = 'a-token-of-this-robot'
uncaught: list[dict] = []
"""What nobody caught in the server's thread."""


@cache
def door() -> GatewayServer:
    """Return a gateway that is served on this machine."""
    server = GatewayServer(Gateway(Here(), 'builtin', robots(), LocalMeter()), None)
    server._loop.set_exception_handler(lambda _, context: uncaught.append(context))
    server.start()
    atexit.register(server.close)
    return server


@cache
def robots() -> Robots:
    """Return the one robot that is known."""
    file = folder().parent / f'{folder().name}-robots'
    file.write_text(f'front {FUZZ_TOKEN}\n')
    atexit.register(file.unlink)
    return Robots(file)


def receive_all(channel: Channel) -> None:
    """Read until the end, or what is no message."""
    while True:
        try:
            if channel.receive() is None:
                return
        except LostChannel:
            return
        except ValueError:
            pass


def obey(header: dict, payload: bytearray) -> None:
    """Have the engine's process obey, and its session come to rest."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(Channel(ours))
        worker._session = session()
        worker._obey(header, payload)
        ours.shutdown(socket.SHUT_WR)
        receive_all(Channel(theirs))
    check_rest(set())


def check_rest(asked: set[str]) -> None:
    """Check that all is said, can be sent, and that each question has ended."""
    if not session().wait_idle(IDLE_S):
        raise Broken('it does not come to rest')
    events = session().drain()
    for event in events:
        json.dumps(event_to_dict(event)).encode()
        if isinstance(event, Trouble):
            raise Broken(event.message)
    ended = {event.stream_id for event in events if isinstance(event, TextDelta) and event.final}
    ended |= {event.question_id for event in events
              if isinstance(event, QuestionState) and event.state == 'rejected'}
    if left := asked - ended:
        raise Broken(f'{left} did not end')


def play_questions(data: st.DataObject) -> None:
    """What people ask, at any moment, with any id, about frames of any stamp."""
    watching, asked = session(), set()
    # Drawn before anything is done: what is drawn must not depend on what became of it.
    acts = data.draw(st.lists(st.one_of(
        st.tuples(st.just('ask'), WORDS, WORDS | st.none()),
        st.tuples(st.just('cancel'), WORDS), st.tuples(st.just('set_prompt'), WORDS),
        st.tuples(st.just('pause'), st.booleans()), st.tuples(st.just('reset')),
        st.tuples(st.just('feed'), st.builds(
            np.zeros, st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 4)),
            st.sampled_from(['uint8', 'uint8', 'float32'])), STAMPS, STAMPS, st.booleans())),
        min_size=1, max_size=6))
    question, question_id = data.draw(st.tuples(WORDS | ANY, WORDS))
    for name, *arguments in acts:
        with fails(ValueError):
            found = getattr(watching, name)(*arguments)
            if name == 'ask':
                asked.add(found)
    watching.pause(False)
    check_rest(asked)
    supervision = Supervision(SessionConfig(), [])
    with fails(ValueError, EngineError):
        supervision.ask(question, question_id)


def play_checkpoints(data: st.DataObject) -> None:
    """Files of a checkpoint, of which one is changed."""
    with tempfile.TemporaryDirectory(prefix='fuzz-') as name:
        copy = shutil.copytree(folder(), Path(name, 'model'))
        file = copy / data.draw(st.sampled_from(sorted(path.name for path in copy.iterdir())))
        content = bytearray(file.read_bytes())
        if file.suffix == '.safetensors':
            length = int.from_bytes(content[:8], 'little')
            header = json.loads(content[8:8 + length])
            how = data.draw(st.sampled_from(['header', 'bytes']))
            if how == 'header':
                changed = json.dumps(change(data, header)).encode()
                content = bytearray(len(changed).to_bytes(8, 'little') + changed
                                    + content[8 + length:])
            file.write_bytes(content if how == 'header' else mutated(data, content, 4096))
        elif file.suffix == '.json' and data.draw(st.integers(0, 3)):
            file.write_text(json.dumps(change(data, json.loads(content))))
        else:
            file.write_bytes(mutated(data, content))
        with fails(CheckpointError):
            load(str(copy))


def change(data: st.DataObject, content: object) -> object:
    """Return plain data in which something, at any depth, is something else, or is missing."""
    if not isinstance(content, dict | list) or not content or not data.draw(st.integers(0, 5)):
        return data.draw(ANY)
    key = data.draw(st.sampled_from([*content] if isinstance(content, dict)
                                    else range(min(len(content), 9))))
    copy = content.copy()
    if data.draw(st.integers(0, 5)):
        copy[key] = change(data, content[key])
    else:
        del copy[key]
    return copy


def play_settings(data: st.DataObject) -> None:
    """Settings of any type and size, of the library and of the node; a session with what passes."""
    names = data.draw(st.lists(st.sampled_from(SETTINGS), max_size=4, unique=True))
    values = {of.name: data.draw(
        ANY | st.integers(of.low - 1, of.high + 1) if of.kind == 'integer'
        else ANY | st.floats() if of.kind == 'double'
        else ANY | st.sampled_from([*of.allowed, 'cpu', 'float32', 'float16'])) for of in names}
    for of in names:
        with fails(ValueError):
            of.check(values[of.name])
        with fails(ValueError):
            of.parse(str(values[of.name]))
    check_parameters(values)
    with fails(ValueError):
        config = SessionConfig(**values)
        if (config.frame_width * config.frame_height > 1 << 16 or config.device != 'cpu'
                or config.overlap in ('auto', 'processes')
                or max(config.max_rest_tokens, config.max_answer_tokens) > 1000):
            return  # Slow for a good reason, or tried elsewhere.
        with Session(session()._checkpoint, config) as opened:
            for last in (False, False, False, True):
                opened.feed(np.zeros((56, 56, 3), np.uint8), last=last)
            with fails(ValueError):
                opened.ask('what?')
            if not opened.wait_idle(IDLE_S):
                raise Broken('it does not come to rest')
            if troubles := [event for event in opened.drain() if isinstance(event, Trouble)]:
                raise Broken(troubles[0].message)


def check_parameters(values: dict) -> None:
    """Check that the node takes or refuses them in words."""
    present = {of.name: of.default for of in nodes.SETTINGS}
    changes = []
    for name, value in values.items():
        try:
            changes.append(Parameter(name, value=value))
        except TypeError:  # Of no type that a parameter can have.
            pass
    result = nodes.check(changes, present, False)
    if not result.successful and not result.reason:
        raise Broken('refused without a word')


TARGETS: dict[str, Callable[[st.DataObject], None]] = dict(
    images=play_images, wire=play_wire, questions=play_questions, checkpoints=play_checkpoints,
    settings=play_settings, fleet=play_fleet, door=play_door)


def fuzz(target: str, examples: int, number: int) -> None:
    """
    Play so many cases of a target.

    :param number: which cases: the same again for the same number
    """
    def play(data: st.DataObject) -> None:
        with bounded():
            TARGETS[target](data)
    checks = settings(max_examples=examples, database=None, deadline=None,
                      suppress_health_check=list(HealthCheck), print_blob=True,
                      phases=[Phase.generate, Phase.shrink])
    seed(number)(checks(given(st.data())(play)))()


def main() -> int:
    """Play until the time is over; return 1 if something broke."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--target', choices=TARGETS, required=True)
    parser.add_argument('--minutes', type=float, default=10.0)
    parser.add_argument('--json', type=Path, help='file to which the figures are added')
    arguments = parser.parse_args()
    begun_s, number, examples, figures = time.monotonic(), 0, 100, {}
    while time.monotonic() - begun_s < 60 * arguments.minutes:
        number += 1
        fuzz(arguments.target, examples, number)
        figures = dict(minutes=round((time.monotonic() - begun_s) / 60, 1),
                       cases=number * examples, broken=0)
        if arguments.json:  # A run that is ended has done what it has done.
            known = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
            arguments.json.write_text(
                json.dumps(known | {arguments.target: figures}, indent=1) + '\n')
    print(arguments.target, figures)
    return 0


if __name__ == '__main__':
    sys.exit(main())
