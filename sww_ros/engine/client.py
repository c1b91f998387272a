"""The node's side of the engine: never waits for the model, and survives its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
import logging
import queue
import threading
import time
import uuid

from sww_ros.engine.outbox import Frame, Outbox
from sww_ros.engine.process import WorkerProcess
from sww_ros.engine.streams import OpenStreams
from sww_ros.engine.worker import open_request
from sww_ros.streaming.config import SessionConfig, check_prompt, check_question
from sww_ros.streaming.events import Event, FramesDropped, Trouble, event_from_dict
from sww_ros.wire import Channel

SESSION = 'sww_ros.streaming.session:Session.open'
WAITING_FRAMES = 2
BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
LONG_LIFE_S = 60.0
"""An engine that lived this long has its next restart without the earlier ones' delay."""

LOG = logging.getLogger(__name__)


class EngineError(RuntimeError):
    """The engine cannot do what is asked; the message says why."""


class EngineClient:
    """
    Runs a session in a process of its own.

    Only `start` and `close` wait. Events reach `on_event` one at a time, on a thread of the
    client; so do the ends of questions that a dying engine leaves open (finish_reason error).
    A listener that raises is logged, and told the next thing all the same.

    :param on_event: takes each event; must not wait
    :param on_lost: told in words that the engine died or could not be restarted
    :param on_ready: told, with the session's `info`, that the engine runs (again)
    :param on_line: takes each line that the engine writes to its standard streams
    :param session: 'module:callable' that opens the session in the worker
    :param restart: whether to start the engine again when it dies, with growing delays
    """

    def __init__(
        self, model: str, config: SessionConfig, *, on_event: Callable[[Event], None],
        on_lost: Callable[[str], None] = lambda _: None,
        on_ready: Callable[[dict], None] = lambda _: None,
        on_line: Callable[[str], None] = lambda _: None,
        session: str = SESSION, restart: bool = True,
    ) -> None:
        self._model, self._config, self._session = model, config, session
        self._on_event, self._on_lost, self._on_ready = on_event, on_lost, on_ready
        self._on_line = on_line
        self._restart = restart
        self._outbox = Outbox(WAITING_FRAMES)
        self._streams = OpenStreams(config)
        self._lock = threading.Lock()
        # Whether an engine takes things, and what it was given to take, change under this one.
        self._taking = threading.RLock()
        self._event_lock = threading.RLock()
        self._process: WorkerProcess | None = None
        self._ready = False
        self._paused = False
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self.info: dict = {}
        self.restarts = 0

    @property
    def ready(self) -> bool:
        """Whether the engine runs and takes frames and questions."""
        return self._ready

    @property
    def seen(self) -> bool:
        """Whether anything has been perceived of the current video."""
        return self._streams.seen

    @property
    def question_timeout_s(self) -> float:
        """How long a question waits for something to be seen [s]."""
        return self._config.question_timeout_s

    @property
    def pid(self) -> int:
        """The engine's process id, 0 while there is none."""
        process = self._process
        return process.pid if process and not self._closed.is_set() else 0

    def start(self, timeout_s: float) -> dict:
        """
        Start the engine and wait until the model is loaded; return the session's `info`.

        :param timeout_s: how long loading may take [s]
        :raises EngineError: with the engine's own words, or when the time is over
        """
        launched: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        try:
            self._start_thread('engine sender', self._send)
            self._start_thread('engine', self._supervise, timeout_s, launched)
        except RuntimeError as error:  # No thread is left for it.
            self.close()
            raise EngineError(f'the engine could not be started: {error}') from error
        if (failure := launched.get()) is not None:
            self.close()
            raise failure
        return self.info

    def feed(self, frame: Frame) -> None:
        """Hand over a frame; one that is pushed out by a newer one is dropped as 'overrun'."""
        with self._taking:
            lost = ('overrun', self._outbox.put_frame(frame)) if self._ready else ('engine', 1)
        self._drop(*lost)

    def ask(self, question: str, question_id: str = '') -> str:
        """
        Ask, and return the question's id at once; its answer comes as events.

        :param question_id: an id that no other question has; made up if empty
        :raises ValueError: for a question that is empty or too long
        :raises EngineError: when the engine does not run, or too many questions wait already
        """
        question = check_question(question)
        question_id = question_id or f'q{uuid.uuid4().hex[:8]}'
        with self._taking:  # Or the engine's end, which ends all questions, might miss this one.
            self._check_ready()
            if not self._streams.admit(question_id):
                raise EngineError(f'{len(self._streams.questions)} questions are being answered '
                                  'or wait, no more are taken: ask again later')
            self._command('ask', question=question, question_id=question_id)
        return question_id

    def cancel(self, question_id: str, reason: str = 'cancelled') -> bool:
        """
        Take a question back; False if it is not open.

        :param reason: the finish_reason with which its answer is to end
        """
        if not self._streams.name_end(question_id, reason):
            return False
        self._command('cancel', question_id=question_id)
        return True

    def cancel_all(self, reason: str = 'cancelled') -> None:
        """Take back every open question; see `cancel`."""
        for question_id in self._streams.questions:
            self.cancel(question_id, reason)

    def abandon(self, question_ids: list[str], reason: str) -> None:
        """End questions now, whether the engine does or hangs; those not open are left alone."""
        with self._event_lock:
            for event in self._streams.end(question_ids, reason):
                _tell(self._on_event, event)

    def set_prompt(self, text: str) -> None:
        """
        Change what the model is told to do; kept when the engine restarts.

        :raises ValueError: for a prompt that is empty or too long
        :raises EngineError: when the engine does not run
        """
        text = check_prompt(text)
        with self._taking:
            self._check_ready()
            self._config = replace(self._config, prompt=text)
            self._command_prompt()

    def keep_prompt(self, text: str) -> None:
        """
        Change what the model is told to do; an engine that does not run is told when it does.

        The stream goes on if it is told the same already.

        :param text: empty for what the checkpoint says
        :raises ValueError: for a prompt that is too long
        """
        text = check_prompt(text) if text.strip() else ''
        with self._taking:
            told, default = self._config.prompt, self.info.get('default_prompt', '')
            self._config = replace(self._config, prompt=text)
            if (text or default) != (told or default):
                self._command_prompt()

    def reset(self) -> None:
        """Begin the stream anew; frames that wait are dropped."""
        self._drop('reset', self._outbox.clear_frames())
        self._command('reset')

    def pause(self, paused: bool) -> None:
        """Stop or resume perceiving and speaking; kept when the engine restarts."""
        with self._taking:
            self._paused = paused
            self._command('pause', paused=paused)

    def close(self) -> None:
        """End the engine's process for good, and the client's threads."""
        self._closed.set()
        with self._taking:
            self._ready = False
        self._outbox.close()
        with self._lock:
            process = self._process
        if process:
            process.end()
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()
        self._end_streams()

    def _start_thread(self, name: str, work: Callable, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _check_ready(self) -> None:
        if not self._ready:
            raise EngineError('the engine is not running: it is being restarted, or closed')

    def _command(self, command: str, **arguments: object) -> None:
        """Have the engine do something; `_launch` tells one that is not ready how things are."""
        with self._taking:
            if self._ready:
                if command in ('reset', 'set_prompt'):
                    self._streams.begin_anew()
                self._outbox.put_command({'command': command, **arguments})

    def _command_prompt(self) -> None:
        if self._ready:  # Only then is it known what the checkpoint says.
            self._command('set_prompt', prompt=self._config.prompt or self.info['default_prompt'])

    def _launch(self, timeout_s: float) -> None:
        with self._lock:
            if self._closed.is_set():
                raise EngineError('the engine was closed')
            try:
                self._process = process = WorkerProcess(partial(_tell, self._on_line))
            # No memory, file or thread is left for it.
            except (OSError, RuntimeError, MemoryError) as error:
                raise EngineError(f'the engine could not be started: {error}') from error
        try:
            config = self._config
            process.channel.send(open_request(self._session, self._model, config))
            if not process.channel.wait_readable(timeout_s):
                raise EngineError(f'the model {self._model} was not loaded within '
                                  f'{timeout_s:.0f} s')
            message = process.channel.receive()
        except (OSError, ValueError):
            message = None
        except EngineError:
            process.end(grace_s=0.5)
            raise
        if message is None:
            process.end()
            raise EngineError('the engine was closed' if self._closed.is_set()
                              else process.report())
        if message[0].get('type') != 'ready':
            process.end()
            raise EngineError(message[0].get('message', f'the engine said {message[0]!r:.200}'))
        if not self._take_up(message[0]['info'], config.prompt):
            process.end()
            raise EngineError('the engine was closed')

    def _take_up(self, info: dict, prompt: str) -> bool:
        """Begin to give things to an engine that was opened with the prompt; False once closed."""
        with self._taking:
            if self._closed.is_set():
                return False
            self.info, self._ready = info, True
            if self._config.prompt != prompt:
                self._command_prompt()
            if self._paused:  # No frame waits yet, and commands go first.
                self._command('pause', paused=True)
            return True

    def _supervise(self, timeout_s: float,
                   launched: queue.SimpleQueue[Exception | None]) -> None:
        """
        Start engines and read from them, until the client is closed.

        All of them are started by this one thread, and ended before it ends: an engine is killed
        with the thread that started it.
        """
        try:
            self._launch(timeout_s)
        except Exception as error:  # Whoever waits for the start must not wait for ever.
            launched.put(error)
            return
        launched.put(None)
        attempt = 0
        while True:
            began = time.monotonic()
            _tell(self._on_ready, self.info)
            self._pass_events()
            if time.monotonic() - began > LONG_LIFE_S:
                attempt = 0
            with self._taking:
                self._ready = False
                unsent = self._outbox.clear()
            self._process.end()
            if self._closed.is_set():
                return
            self._drop('engine', unsent)
            self._report_loss(self._process.report())
            while not self._try_again(attempt, timeout_s):
                if self._closed.is_set() or not self._restart:
                    return
                attempt += 1
            attempt += 1

    def _try_again(self, attempt: int, timeout_s: float) -> bool:
        if not self._restart or self._closed.wait(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)]):
            return False
        try:
            self._launch(timeout_s)
        except EngineError as error:
            if not self._closed.is_set():
                self._report_loss(f'the engine could not be restarted: {error}')
            return False
        self.restarts += 1
        return True

    def _pass_events(self) -> None:
        channel = self._process.channel
        try:
            while (message := channel.receive()) is not None:
                self._take(message[0])
        except (ValueError, TypeError, AttributeError) as error:  # Or an event lacks a field.
            self._emit(Trouble(f'the engine does not speak our language: {error}', '', True))

    def _take(self, message: dict) -> None:
        """Take an event, or that a prompt was refused: an engine must not begin with it anew."""
        if message.get('type') != 'refused':
            self._emit(event_from_dict(message))
            return
        with self._taking:
            if self._config.prompt == message.get('prompt'):
                self._config = replace(self._config, prompt=str(message.get('kept', '')))

    def _report_loss(self, report: str) -> None:
        _tell(self._on_lost, report)
        self._end_streams()

    def _end_streams(self) -> None:
        with self._event_lock:
            for event in self._streams.end_all():
                _tell(self._on_event, event)

    def _emit(self, event: Event) -> None:
        with self._event_lock:
            for told in self._streams.follow(event):
                _tell(self._on_event, told)

    def _drop(self, reason: str, count: int) -> None:
        if count:
            self._emit(FramesDropped(reason, count))

    def _send(self) -> None:
        while (item := self._outbox.take()) is not None:
            # What is for this engine is not for another one, started while a frame is converted.
            channel = self._process.channel
            try:
                if isinstance(item, Frame):
                    self._send_frame(channel, item)
                else:
                    channel.send(item)
            except OSError:
                pass  # The receiver sees the same end, and reports it.

    def _send_frame(self, channel: Channel, frame: Frame) -> None:
        try:
            pixels = frame.load()
            channel.send(
                {'command': 'feed', 'shape': pixels.shape, 'stamp_ns': frame.stamp_ns,
                 'received_ns': frame.received_ns}, pixels.data)
        except OSError:
            raise
        except Exception as error:  # Too large, no memory, OpenCV's own: it costs this frame only.
            self._drop('bad', 1)
            self._emit(Trouble(str(error) or repr(error), '', False))


def _tell(listener: Callable, what: Event | dict | str) -> None:
    """Tell a listener, whose mistakes must not end the thread that tells all."""
    try:
        listener(what)
    except Exception:
        LOG.exception('whoever listens to the engine failed when told %.200r', what)
