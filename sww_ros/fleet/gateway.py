"""
What robots meet: sessions of an engine over WebSockets, by the engine's own protocol, bounded.

A WebSocket is a session. Each binary message on it is one message of `wire.py`; a robot's first one
opens the session, with its settings, and what the engine says goes back as it is. Three things are
the gateway's own: which model runs, and where, is not for robots to say; frames come as JPEG; and
`clock` is answered, so that times can be told in the robot's own clock. What is refused is said in
a `failed` message, and the WebSocket is closed. It knows neither a server nor Ray.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
import logging
import time
from typing import Any, Protocol

from sww_ros.engine.client import ENGINE
from sww_ros.engine.worker import open_request
from sww_ros.fleet.meters import Meter, SessionMeter
from sww_ros.fleet.robots import Robots
from sww_ros.images import check_compressed
from sww_ros.streaming.config import OF_ENGINE, SessionConfig
from sww_ros.streaming.events import Event, FramesDropped, Trouble, event_to_dict
from sww_ros.web import CROWDED, WRONG_TOKEN, WRONG_TOKEN_S, Allowance
from sww_ros.wire import Channel, next_packed, packed, unpacked

LOG = logging.getLogger(__name__)
MAX_HEADER_BYTES = 64 * 1024
OPEN_S = 15.0
"""How long a robot may take until it opens its session [s]."""
LAST_WORDS_S = 2.0
UNREAD = 4096
"""So many messages to a robot may wait for it to read."""
WRONG, TOO_LARGE, TOO_FAST, UNREAD_CODE, ENDED, GOING = 1002, 1009, 1008, 4408, 1011, 1001
"""Codes with which a WebSocket is closed, beside those of who is not let in."""
POOLS = (*OF_ENGINE, 'record_trace', 'profile')
"""The settings that the pool alone has a say in."""


@dataclass(frozen=True)
class Bounds:
    """
    What is allowed: sessions of all and of one robot, sizes of a frame, what may come in a second.

    `steps` is for what a session remembers, `number` for any other count among its settings, and
    `side` for its frames [pixels].
    """

    sessions: int = 64
    of_one: int = 8
    frame_bytes: int = 1 << 20
    frame_pixels: int = 1 << 22
    messages: int = 100
    bytes: int = 8 << 20
    steps: int = 1000
    number: int = 1024
    side: int = 1920

    @property
    def message_bytes(self) -> int:
        """The largest message of a robot [bytes]."""
        return self.frame_bytes + MAX_HEADER_BYTES + 8


STEPS = ('max_steps', 'capacity', 'memory', 'recall_steps', 'reserved_steps')
NUMBERS = ('max_queued', 'max_answer_tokens', 'max_rest_tokens', 'max_pending_frames')
SIDES = ('frame_width', 'frame_height')


class Refused(Exception):
    """What a robot asks for is not done; in words, and with the code of the WebSocket's end."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


class Socket(Protocol):
    """A WebSocket to a robot."""

    async def receive(self) -> bytes | str | None:
        """Return the next message; None when nobody is there any more."""

    async def send(self, data: bytes) -> None:
        """Send a binary message; raises OSError or RuntimeError when nobody is there any more."""

    async def close(self, code: int) -> None:
        """Close it."""


class RobotSession(Protocol):
    """What runs a robot's session, as an `EngineProcess` does."""

    @property
    def channel(self) -> Channel:
        """To that session."""

    def end(self) -> object:
        """End it."""

    def report(self) -> str:
        """Return, after the end, how it ended."""


class SessionHost(Protocol):
    """Starts sessions; any thread may use it."""

    def session(self, on_line: Callable[[str], None]) -> RobotSession:
        """As of `Launcher`."""


def bounded_config(given: object, bounds: Bounds) -> SessionConfig:
    """
    Return the settings of a session as a robot wants them, but for those that are the pool's.

    :raises ValueError: for what is none, or more than is allowed
    """
    if not isinstance(given, dict):
        raise ValueError(f'the settings are no object: {given!r:.80}')
    own = {name: value for name, value in given.items() if name not in POOLS}
    if unknown := set(own) - {each.name for each in fields(SessionConfig)}:
        raise ValueError(f'there is no setting {unknown.pop()!r:.80}')
    try:
        config = SessionConfig(**own)
    except TypeError as error:
        raise ValueError(str(error)) from None
    for names, most in ((STEPS, bounds.steps), (NUMBERS, bounds.number), (SIDES, bounds.side)):
        for name in names:
            if getattr(config, name) > most:
                raise ValueError(f'{name} may be at most {most} here, not '
                                 f'{getattr(config, name)!r:.20}')
    return config


def frame_of(header: dict, jpeg: bytes, bounds: Bounds) -> dict:
    """
    Return the header with which a robot's frame is fed to the engine, which decodes it.

    :raises ValueError: for what is no JPEG, or too large
    """
    if not jpeg.startswith(b'\xff\xd8'):
        raise ValueError('a frame must be a JPEG')
    check_compressed(jpeg, bounds.frame_pixels)
    return {name: header[name] for name in ('command', 'stamp_ns', 'received_ns', 'last')
            if name in header}


class Gateway:
    """
    Lets robots in, and passes on what each says to its session, and back.

    :param host: starts sessions, on the engine that all share
    :param model: what that runs, and `session` what opens it, as of `EngineClient`
    :param meter_of: returns what measures a session; None: `meter` does
    """

    def __init__(self, host: SessionHost, model: str, robots: Robots, meter: Meter,
                 bounds: Bounds | None = None, session: str = ENGINE,
                 meter_of: Callable[[Any], Meter] | None = None) -> None:
        self.bounds = bounds or Bounds()
        self._host, self._model, self._session = host, model, session
        self._robots, self.meter = robots, meter
        self.meter_of = meter_of or (lambda session: meter)
        self._here: Counter[str] = Counter()
        self.visits: set[_Visit] = set()

    async def attend(self, socket: Socket, shown: str) -> None:
        """
        Serve a robot until it goes, or is sent away.

        :param shown: its token, as it was given
        """
        robot = ''
        try:
            robot = await self._let_in(shown)
            await _Visit(self, socket, robot).run()
        except Refused as error:
            self.meter.count('refused', str(error.code))
            LOG.warning('%s is refused: %s', robot or 'somebody', error)
            with suppress(OSError, RuntimeError, asyncio.TimeoutError):  # It may not read.
                await asyncio.wait_for(
                    socket.send(packed(dict(type='failed', message=str(error)))), LAST_WORDS_S)
                await asyncio.wait_for(socket.close(error.code), LAST_WORDS_S)
        finally:
            if robot:
                self._here[robot] -= 1

    def knows(self, shown: str) -> bool:
        """Return whether a token is that of a robot."""
        return bool(self._robots.known(shown))

    def measure(self) -> None:
        """Have the meter know how many are here, and how much of theirs waits."""
        self.meter.gauge('sessions', self._here.total())
        self.meter.gauge('waiting', sum(visit.waiting for visit in [*self.visits]))

    async def send_away(self) -> None:
        """Have all who are here leave, as this ends."""
        await asyncio.gather(*(asyncio.wait_for(visit.socket.close(GOING), LAST_WORDS_S)
                               for visit in self.visits), return_exceptions=True)

    async def _let_in(self, shown: str) -> str:
        """Return the name of the robot whose token is shown, which is counted from now on."""
        robot = self._robots.known(shown)
        if not robot:
            await asyncio.sleep(WRONG_TOKEN_S)
            raise Refused(WRONG_TOKEN, 'this token is not known here' if shown else
                          'a token is needed, as the header "Authorization: Bearer TOKEN"')
        for count, most, whose in ((self._here[robot], self.bounds.of_one, 'this robot has'),
                                   (self._here.total(), self.bounds.sessions, 'there are')):
            if count >= most:
                raise Refused(CROWDED, f'{whose} {count} sessions already, and no more are taken')
        self._here[robot] += 1
        return robot

    def request_of(self, asked: dict) -> dict:
        """
        Return the request that opens the session that a robot asks for.

        :raises ValueError: for settings that cannot be
        """
        return open_request(self._session, self._model,
                            bounded_config(asked.get('config', {}), self.bounds))

    def start(self) -> RobotSession:
        """
        Return a session that is not open yet; waits while a process is started.

        :raises OSError: when none can be
        """
        return self._host.session(lambda line: None)


class _Visit:
    """One WebSocket, and the socket of the session that was opened by it."""

    def __init__(self, gateway: Gateway, socket: Socket, robot: str) -> None:
        self._gateway, self.socket, self._robot = gateway, socket, robot
        self._bounds = bounds = gateway.bounds
        self._messages = Allowance(bounds.messages, 2 * bounds.messages)
        self._bytes = Allowance(bounds.bytes, 2 * bounds.bytes + bounds.message_bytes)
        self._to_robot: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._session: RobotSession | None = None
        self._to_engine: asyncio.StreamWriter | None = None
        self._over = False

    @property
    def waiting(self) -> int:
        """How many messages wait for the robot."""
        return self._to_robot.qsize()

    async def run(self) -> None:
        """
        Serve it to its end.

        :raises Refused: where it is ended from here
        """
        self._gateway.visits.add(self)
        tells = asyncio.create_task(self._tell())
        tasks = [asyncio.create_task(self._hear()), tells]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._gateway.visits.discard(self)
            goes_on = not tells.done()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._over = True  # A session that is being started just now is ended where it is.
            if self._to_engine is not None:
                self._to_engine.transport.abort()
            if (session := self._session) is not None:
                await asyncio.to_thread(_end, session, goes_on)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        if not goes_on and session is not None and tells.result():
            raise Refused(ENDED, session.report())

    async def _hear(self) -> None:
        """Have the engine obey a robot, which opens a session first, until it is gone."""
        try:
            opening = await asyncio.wait_for(self._next(), OPEN_S)
        except asyncio.TimeoutError:
            raise Refused(WRONG, f'no session was opened within {OPEN_S:g} s') from None
        if opening is None:
            return
        if opening[0].get('command') != 'open':
            raise Refused(WRONG, 'the first command must be open, not '
                          f'{opening[0].get("command")!r:.80}')
        try:
            request = self._gateway.request_of(opening[0])
            channel = await asyncio.shield(asyncio.to_thread(self._begin, request))
            reader, self._to_engine = await asyncio.open_connection(sock=channel.socket())
        except (ValueError, OSError) as error:
            raise Refused(WRONG, str(error)) from None
        listens = asyncio.create_task(self._listen(reader))
        try:
            while (message := await self._next()) is not None:
                self._hand_over(self._to_engine, *message)
        finally:
            listens.cancel()

    def _begin(self, request: dict) -> Channel:
        """Start the session; on a thread, as that may take a while."""
        self._session = session = self._gateway.start()
        if self._over:
            session.end()
        session.channel.send(request)
        return session.channel

    async def _next(self) -> tuple[dict, bytes] | None:
        """Return the robot's next message but for the clock's, which are answered."""
        while (data := await self.socket.receive()) is not None:
            header, payload = self._checked(data)
            if header.get('command') != 'clock':
                return header, payload
            self._put(packed(dict(type='clock', sent_ns=header.get('sent_ns'),
                                  here_ns=time.monotonic_ns())))
        return None

    def _checked(self, data: bytes | str) -> tuple[dict, bytes]:
        """Return header and payload of a message that is one, and not too much."""
        if isinstance(data, str):
            raise Refused(WRONG, 'messages are binary, not text')
        if len(data) > self._bounds.message_bytes:
            raise Refused(TOO_LARGE, f'a message of {len(data)} bytes is too large: at most '
                          f'{self._bounds.message_bytes} are taken')
        if not (self._messages.take() and self._bytes.take(len(data))):
            raise Refused(TOO_FAST, f'more than {self._bounds.messages} messages or '
                          f'{self._bounds.bytes} bytes a second')
        try:
            header, payload = unpacked(data)
        except ValueError as error:
            raise Refused(WRONG, str(error)) from None
        if len(data) - len(payload) > MAX_HEADER_BYTES:
            raise Refused(TOO_LARGE, f'a header of more than {MAX_HEADER_BYTES} bytes')
        return header, payload

    def _hand_over(self, engine: asyncio.StreamWriter, header: dict, payload: bytes) -> None:
        is_frame = header.get('command') == 'feed'
        try:
            if is_frame:
                header = frame_of(header, payload, self._bounds)
        except ValueError as error:  # It costs this frame.
            self._put_event(FramesDropped('bad', 1))
            self._put_event(Trouble(f'a frame: {error}', '', False))
            return
        if engine.transport.get_write_buffer_size() < self._bounds.frame_bytes:
            engine.write(packed(header, payload if is_frame else b''))
        elif is_frame:
            self._put_event(FramesDropped('overrun', 1))
        else:
            raise Refused(TOO_FAST, f'{self._bounds.frame_bytes} bytes wait for the engine')

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Have the robot be told what the engine says, to its end."""
        meter = SessionMeter(self._gateway.meter_of(self._session))
        with suppress(ValueError, OSError):
            while True:
                message = await next_packed(reader)
                meter.take(unpacked(message)[0])
                self._put(message)
        self._put(None)

    async def _tell(self) -> bool:
        """Tell the robot what there is; return whether it was the engine that ended it."""
        try:
            while (message := await self._to_robot.get()) is not None:
                await self.socket.send(message)
        except (OSError, RuntimeError):
            return False
        return True

    def _put_event(self, event: Event) -> None:
        self._put(packed(event_to_dict(event)))

    def _put(self, message: bytes | None) -> None:
        """Have the robot be told."""
        if self._to_robot.qsize() < UNREAD:
            self._to_robot.put_nowait(message)
        elif self._to_robot.qsize() == UNREAD:  # Not even that it ended would be read.
            LOG.warning('%s does not read what it is told', self._robot)
            asyncio.ensure_future(self.socket.close(UNREAD_CODE))
            self._to_robot.put_nowait(None)


def _end(session: RobotSession, wanted: bool) -> None:
    """End a session; wanted: it was not the first to end."""
    if wanted:
        session.channel.close()
    session.end()
