"""
A session's side of its engine: never waits for the model, and survives its end.

A `Standby` is a client that feeds nothing, so that an engine stays loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial, wraps
import logging
import threading
import time
from typing import Concatenate, ParamSpec, TypeVar
import uuid

from sww_ros.engine.process import EngineHost, EngineProcess, Launcher, WorkerProcess
from sww_ros.engine.supervision import NO_LIMITS, EngineError, Limits, Supervision
from sww_ros.engine.worker import open_request
from sww_ros.frames import CameraFrame
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import Event

SESSION = 'sww_ros.streaming.session:Session.open'
ENGINE = 'sww_ros.library:Engine.open'
BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
LINK_BACKOFF_S = (0.5, 1.0, 2.0, 3.0)
"""Before each attempt to start an engine again, or to have one over a link that was lost [s]."""
STANDBY_LOAD_S = 3600.0
STANDBY_LIMITS = Limits(silence=30.0, work=60.0)

LOG = logging.getLogger(__name__)
P = ParamSpec('P')
T = TypeVar('T')


def _passed_on(given: Callable[Concatenate[Supervision, P], T],
               ) -> Callable[Concatenate[EngineClient, P], T]:
    """Return a method of the client that has its machine take an input."""
    @wraps(given)
    def take(client: EngineClient, *arguments: P.args, **options: P.kwargs) -> T:
        return client._handle(given, *arguments, **options)
    return take


class EngineClient:
    """
    Runs a session in a process of its own, or in one that it shares with others.

    Only `start` and `close` wait. Whatever is told comes one at a time, on one thread of the
    client, which nothing else waits for; so do the ends of questions that a dying engine leaves
    open (finish_reason error). A listener that raises is logged, and told the next thing all the
    same. `question_timeout_s` is how long a question waits for something to be seen [s].

    :param on_event: takes each event
    :param on_lost: told in words that the engine died or could not be restarted
    :param on_ready: told, with the session's `info`, that the engine runs (again)
    :param on_line: takes each line that the engine writes to its standard streams, on a thread of
        its own
    :param session: 'module:callable' that opens the session in the worker; or, with a `host`, the
        engine of all its sessions
    :param host: has the session share a process, or come over a link
    :param ask_again: whether a question of which nothing has been said is asked again once the
        engine is back; if not, it ends
    :param restart: whether to start the engine again when it dies, with growing delays
    :param limits: when it hangs, which ends it as any other death does
    """

    def __init__(
        self, model: str, config: SessionConfig, *, on_event: Callable[[Event], None],
        on_lost: Callable[[str], None] = lambda _: None,
        on_ready: Callable[[dict], None] = lambda _: None,
        on_line: Callable[[str], None] = lambda _: None,
        session: str = '', restart: bool = True, limits: Limits = NO_LIMITS,
        host: Launcher | None = None, ask_again: bool = False,
    ) -> None:
        self._model, self._session = model, session or (ENGINE if host else SESSION)
        self._launch: Callable[[Callable[[str], None]], EngineProcess] = (
            host.session if host else WorkerProcess)
        self._listeners: dict[str, Callable] = {
            'event': on_event, 'lost': on_lost, 'ready': on_ready}
        self._on_line = on_line
        # The one lock: it guards the machine, and wakes whoever waits for what it hands out.
        self._changed = threading.Condition()
        loss = host.loss if host else 'engine'
        backoff_s = LINK_BACKOFF_S if loss == 'link' else BACKOFF_S
        self._machine = Supervision(config, backoff_s if restart else (), limits, loss, ask_again)
        self._threads: list[threading.Thread] = []
        self.question_timeout_s = config.question_timeout_s

    @property
    def info(self) -> dict:
        """What the newest session said of itself; empty before the first."""
        return self._machine.info

    @property
    def ready(self) -> bool:
        """Whether the engine runs and takes frames and questions."""
        return self._machine.ready

    @property
    def restarts(self) -> int:
        """How many engines took the place of one that died."""
        return max(0, self._machine.lives - 1)

    @property
    def seen(self) -> bool:
        """Whether anything has been perceived of the current video."""
        return self._machine.answers.seen

    @property
    def pid(self) -> int:
        """The engine's process id, 0 while there is none."""
        process = self._machine.engine
        return process.pid if process and not self._machine.closed else 0

    @property
    def doing(self) -> str:
        """What is going on with the engine where it takes its time, in words; else empty."""
        return self._handle(lambda machine: machine.doing)

    def start(self, timeout_s: float) -> dict:
        """
        Start the engine and wait until the model is loaded; return the session's `info`.

        :param timeout_s: how long loading may take [s], whenever an engine is started
        :raises EngineError: with the engine's own words, or when the time is over
        """
        machine = self._machine
        machine.limits = replace(machine.limits, load=timeout_s)
        try:
            for name, work in (('engine listener', self._notify_all), ('engine sender', self._send),
                               ('engine watch', self._watch), ('engine', self._run_engines)):
                self._threads.append(threading.Thread(target=work, name=name, daemon=True))
                self._threads[-1].start()
        except RuntimeError as error:  # No thread is left for it.
            self._handle(Supervision.ended, f'the engine could not be started: {error}')
        with self._changed:
            self._changed.wait_for(lambda: machine.lives or machine.failure)
        if not machine.lives:
            self.close()
            raise EngineError(machine.failure)
        return machine.info

    # What the machine takes, under the client's lock; none of it waits.
    feed = _passed_on(Supervision.feed)
    cancel = _passed_on(Supervision.cancel)
    cancel_all = _passed_on(Supervision.cancel_all)
    abandon = _passed_on(Supervision.abandon)
    set_prompt = _passed_on(Supervision.set_prompt)
    keep_prompt = _passed_on(Supervision.keep_prompt)
    reset = _passed_on(Supervision.reset)
    pause = _passed_on(Supervision.pause)

    def ask(self, question: str, question_id: str = '') -> str:
        """
        Ask, and return the question's id at once; raises what `Supervision.ask` does.

        :param question_id: an id that no other question has; made up if empty
        """
        question_id = question_id or f'q{uuid.uuid4().hex[:8]}'
        self._handle(Supervision.ask, question, question_id)
        return question_id

    def close(self) -> None:
        """End the engine's process for good, and the client's threads."""
        self._handle(Supervision.close)
        if process := self._machine.engine:
            process.channel.close()  # Which wakes the thread that reads from it, and ends it.
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()

    def _handle(self, given: Callable[Concatenate[Supervision, P], T], *arguments: P.args,
                **options: P.kwargs) -> T:
        """Have the machine take an input, and wake whoever waits for what follows from it."""
        with self._changed:
            self._machine.now_ns = time.monotonic_ns()
            self._changed.notify_all()  # They wake once the lock is free, with the input taken.
            return given(self._machine, *arguments, **options)

    def _all(self, following: Callable[[Supervision], T | None]) -> Iterator[T]:
        """Yield what the machine hands out, as there is anything, until it is closed."""
        machine = self._machine
        while True:
            with self._changed:
                machine.now_ns = time.monotonic_ns()
                if (found := following(machine)) is None:
                    if machine.closed:
                        return
                    self._changed.wait(machine.wait_s)
            if found is not None:
                yield found

    def _notify_all(self) -> None:
        for listener, what in self._all(Supervision.next_notice):
            _call(self._listeners[listener], what)

    # On the thread that launches engines and reads from them.

    def _run_engines(self) -> None:
        """
        Run one engine after the other.

        All of them are started by this one thread, and ended before it ends: an engine is killed
        with the thread that started it.
        """
        for config in self._all(Supervision.next_launch):
            try:
                process = self._launch(partial(_call, self._on_line))
            except Exception as error:  # No memory, file or thread is left for it.
                self._handle(Supervision.ended, f'the engine could not be started: {error}')
                continue
            self._handle(Supervision.started, process)
            if self._machine.closed:  # Before there was a channel to close.
                process.channel.close()
            try:
                why = self._run(process, config)
            except Exception as error:  # Or there would be no engine any more, and no word of it.
                why = f'the engine was given up: {error!r}'
            self._handle(Supervision.lost)
            process.end()
            self._handle(Supervision.ended, why or process.report())

    def _run(self, process: EngineProcess, config: SessionConfig) -> str:
        """Load the model and pass on what is told; return why not, unless the engine just ended."""
        try:
            process.channel.send(open_request(self._session, self._model, config))
            message = process.channel.receive()
        except (OSError, ValueError):
            message = None
        if message is None:
            return ''
        if message[0].get('type') != 'ready':
            return message[0].get('message', f'the engine said {message[0]!r:.200}')
        self._handle(Supervision.became_ready, message[0]['info'])
        try:
            while (message := process.channel.receive()) is not None:
                self._handle(Supervision.received, message[0])
        except (ValueError, TypeError, AttributeError) as error:  # Or an event lacks a field.
            self._handle(Supervision.not_understood, error)
        return ''

    # On the thread that ends what hangs, which would wait for none of the others.

    def _watch(self) -> None:
        for process in self._all(Supervision.next_kill):
            process.kill()

    # On the thread that sends.

    def _send(self) -> None:
        for process, item in self._all(Supervision.next_send):
            try:
                process.channel.send(*(item.message() if isinstance(item, CameraFrame) else [item]))
            except OSError:
                pass  # The receiver sees the same end, and reports it.
            except Exception as error:  # Too large, no memory, OpenCV's own: it costs this frame.
                self._handle(Supervision.frame_failed, process, str(error) or repr(error))


class Standby:
    """
    Holds a session on a host that nothing is fed to, so that its process stays; it is supervised.

    :param model: what all sessions of the host are to ask for
    :param config: what holds for the engine; how much a session remembers is left out
    :param session: as of `EngineClient`
    :param on_line: takes each line that the engine writes
    """

    def __init__(self, host: EngineHost, model: str, config: SessionConfig,
                 session: str = ENGINE, on_line: Callable[[str], None] = lambda line: None,
                 ) -> None:
        small = replace(config, max_steps=8, capacity=0, memory=0, recall_steps=0,
                        reserved_steps=0)
        self.client = EngineClient(
            model, small, host=host, session=session, limits=STANDBY_LIMITS, on_line=on_line,
            on_event=lambda event: None)

    def load(self) -> dict:
        """Load the model, and return the session's info; raises as `EngineClient.start`."""
        return self.client.start(STANDBY_LOAD_S)

    def load_later(self) -> None:
        """Load the model, on a thread of its own; whether that succeeds, `ready` says."""
        def load() -> None:
            with suppress(EngineError):
                self.load()
        threading.Thread(target=load, name='standby', daemon=True).start()

    @property
    def ready(self) -> bool:
        """Whether the engine runs."""
        return self.client.ready

    def close(self) -> None:
        """Give it up; its process ends with the last session of the host."""
        self.client.close()


def _call(listener: Callable, what: Event | dict | str) -> None:
    """Tell a listener, whose mistakes must not end the thread that tells all."""
    try:
        listener(what)
    except Exception:
        LOG.exception('whoever listens to the engine failed when told %.200r', what)
