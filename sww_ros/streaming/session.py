"""The façade: feed frames, ask questions, read events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import itertools
import queue
import threading
import time

import numpy as np
import torch

from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig, check_prompt, check_question
from sww_ros.streaming.events import (
    NARRATION,
    Event,
    FramesDropped,
    StepPerceived,
    TextDelta,
    Trouble,
)
from sww_ros.streaming.lanes import repetition_penalty
from sww_ros.streaming.overlap import BusyLog, Turns, make_executor
from sww_ros.streaming.pace import Pace, advice, measure
from sww_ros.streaming.perception import check_frame
from sww_ros.streaming.positions import VideoClock, make_scheme
from sww_ros.streaming.speaking import Speaker
from sww_ros.streaming.stream import Frame
from sww_ros.streaming.trace import Trace
from sww_ros.streaming.watching import Watcher

MAX_FAILURES = 3
"""Errors without a step perceived between them that are survived; one more is fatal."""


class Session:
    """
    Watches a video and speaks about it at the same time.

    All methods may be called from any thread, and none waits for the model but `wait_idle` and
    `close`.

        session = Session.open('builtin')
        session.feed(frame)
        session.ask('What colour is the square?')
        for event in session.events(): ...
    """

    def __init__(self, checkpoint: Checkpoint, config: SessionConfig | None = None) -> None:
        """
        Start watching with a loaded checkpoint.

        :raises ValueError: for an unknown position scheme, or one side of a frame size without
            the other
        """
        self.config = config = config or SessionConfig()
        if bool(config.frame_width) != bool(config.frame_height):
            raise ValueError('frame_width and frame_height must be given together, not '
                             f'{config.frame_width} and {config.frame_height}')
        self._checkpoint, defaults = checkpoint, checkpoint.defaults
        scheme = make_scheme(config.position_encoding or defaults.position_encoding,
                             VideoClock(defaults.tokens_per_second, defaults.seconds_per_step),
                             config.position_gap or defaults.position_gap)
        # Where the video's positions depend on the text, there is nothing to overlap.
        self._overlap = 'serial' if scheme.serial else config.overlap
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._progress = threading.Condition()
        self._numbers = itertools.count(1)
        self._closed = self._ended = False
        self._entering = threading.Lock()
        decoding = BusyLog()
        self._perceiving, self._generating = Turns(), Turns()
        self._failures = 0
        self._pace: Pace | None = None
        self._watcher = Watcher(checkpoint, config, scheme, self._emit, decoding,
                                lambda stream: self._speaker.spoken(stream))
        self._speaker = Speaker(
            checkpoint, config, scheme, lambda: self._watcher.stream,
            lambda: self._watcher.restarting, self._emit, decoding)
        self._executor = make_executor(self._overlap, self._perceive, self._generate,
                                       self._take_threads)
        self.scheme = scheme
        self._executor.start()

    @classmethod
    def open(cls, model: str = 'builtin', config: SessionConfig | None = None) -> Session:
        """
        Load a checkpoint ('builtin', a folder, a hub id), warm it up, and start watching.

        :raises ValueError: in words, for a checkpoint or a setting that cannot be used
        """
        from sww_ros.models.loading import load
        config = config or SessionConfig()
        checkpoint = load(model, device=config.device, dtype=config.dtype,
                          allow_download=config.allow_download)
        session = cls(checkpoint, config)
        session._warm_up()
        try:
            session._pace = measure(checkpoint, config)
        except RuntimeError as error:
            session.close()
            raise ValueError(f'the model cannot run at its full size: {error}') from error
        return session

    @property
    def info(self) -> dict:
        """
        What is running, as plain data.

        `step_seconds` and `token_seconds` are what `open` has measured, 0 where nothing has;
        `warning` says what to expect of a checkpoint that was not trained to stream, or is too
        slow here.
        """
        checkpoint, settings = self._checkpoint, self._checkpoint.perception.settings
        seconds, pace = checkpoint.defaults.seconds_per_step, self._pace
        return dict(
            model=checkpoint.name, parameters=checkpoint.parameters,
            dtype=str(checkpoint.decoder.dtype).removeprefix('torch.'),
            device=str(checkpoint.decoder.device), position_encoding=self.scheme.name,
            wait_k=self._watcher.wait_k, max_steps=self._watcher.max_steps,
            repetition_penalty=repetition_penalty(checkpoint, self.config),
            schedule=self.config.schedule, overlap=self._overlap, prompt=self._watcher.prompt,
            default_prompt=checkpoint.defaults.prompt, mismatch=self._mismatch(),
            warning=advice(checkpoint, self._watcher.wait_k, pace),
            step_seconds=pace.step_seconds if pace else 0.0,
            token_seconds=pace.token_seconds if pace else 0.0,
            frames_per_step=settings.temporal_patch_size, seconds_per_step=seconds,
            frame_rate=settings.temporal_patch_size / seconds)

    def _mismatch(self) -> str:
        """In words, how this session differs from what the checkpoint was trained for."""
        trained, found = self._checkpoint.defaults, []
        if not self._checkpoint.trained:
            return ''
        if self.scheme.name != trained.position_encoding:
            found.append(f'position_encoding {self.scheme.name!r} but was trained with '
                         f'{trained.position_encoding!r}')
        if self.scheme.name == 'gipe' and self.scheme.gap != trained.position_gap:
            found.append(f'position_gap {self.scheme.gap} but was trained with '
                         f'{trained.position_gap}')
        if (self.config.schedule == 'offline') != (trained.schedule == 'offline'):
            found.append(f'schedule {self.config.schedule!r} but was trained with '
                         f'{trained.schedule!r}')
        streams = self.scheme.name == 'offline' and self.config.schedule != 'offline'
        if streams and self._watcher.max_steps != trained.max_steps:
            found.append(f'max_steps {self._watcher.max_steps}, after which offline positions '
                         f'begin their text, but was trained with {trained.max_steps}')
        if not found:
            return ''
        return (f'{self._checkpoint.name!r} runs with {" and with ".join(found)}: expect worse '
                'text, or set what it was trained with')

    @property
    def decode_steps(self) -> int:
        """How many decode steps have been run."""
        return self._speaker.decode_steps

    def feed(self, frame: np.ndarray, stamp_ns: int = 0, received_ns: int = 0,
             last: bool = False) -> None:
        """
        Take the next frame, (H, W, 3) uint8 RGB, at the rate `info['frame_rate']`.

        :param stamp_ns: the frame's own stamp, repeated in events
        :param received_ns: `time.monotonic_ns()` when it arrived; now if 0
        :param last: whether the video ends with it; what is left to say is said then, and the
            next frame begins another video
        :raises ValueError: for a frame that cannot be perceived
        """
        check_frame(frame)
        now, frames = time.monotonic_ns(), self._watcher.frames
        with self._entering:
            paused, dropped = self._speaker.paused, 1
            if not paused:
                dropped = frames.put(Frame(frame, stamp_ns, received_ns or now, now, last))
            elif last:
                frames.cut()
        if dropped:
            self._emit(FramesDropped('paused' if paused else 'overrun', dropped))
        self._executor.wake()

    def ask(self, question: str, question_id: str | None = None) -> str:
        """
        Ask about what has been seen; the answer streams as events under the returned id.

        :raises ValueError: for a question that is empty or too long
        """
        question = check_question(question)
        with self._entering:
            if self._closed:
                raise ValueError('the session is closed: open another one')
            question_id = question_id or f'q{next(self._numbers)}'
            self._speaker.ask(question_id, question)
        self._executor.wake()
        return question_id

    def cancel(self, question_id: str) -> None:
        """End an answer within one token; an unknown or finished question is left alone."""
        self._speaker.cancel(question_id)
        self._executor.wake()

    def set_prompt(self, prompt: str) -> None:
        """
        Change the standing question; the stream begins anew, answers in progress go on.

        :raises ValueError: for a prompt that is empty or too long
        """
        prompt = check_prompt(prompt)
        self._restart('prompt', prompt)

    def reset(self) -> None:
        """Forget what has been seen and said; answers in progress end."""
        self._speaker.end_all('reset')
        self._restart('reset')

    def pause(self, paused: bool) -> None:
        """Stop or resume watching and narrating; questions are still answered."""
        with self._entering:
            self._speaker.paused = paused
            count = self._watcher.frames.clear() if paused else 0
        if count:
            self._emit(FramesDropped('paused', count))
        self._executor.wake()

    def poll(self, timeout_s: float | None = None) -> Event | None:
        """Return the next event, or None after `timeout_s` seconds or once closed."""
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if event is None:
            self._events.put(None)  # For whoever else listens, and for the next call.
        return event

    def events(self) -> Iterator[Event]:
        """Yield events until the session is closed, which a fatal trouble does."""
        while (event := self.poll()) is not None:
            yield event
            if isinstance(event, Trouble) and event.fatal:
                self.close()

    def drain(self) -> list[Event]:
        """Return all events that wait, without waiting."""
        found = []
        while (event := self.poll(0)) is not None:
            found.append(event)
        return found

    def wait_idle(self, timeout_s: float = 60.0) -> bool:
        """Wait until all frames are perceived and all is said; False after `timeout_s`."""
        with self._progress:
            return self._progress.wait_for(self._at_rest, timeout_s)

    def trace(self) -> Trace:
        """
        Return the record of the current stream, to be replayed; call it when idle.

        :raises ValueError: when the session does not record (`record_trace`)
        """
        if not self.config.record_trace:
            raise ValueError('this session records no trace: set record_trace')
        return Trace.of(self._watcher.stream, self._speaker.records)

    def close(self) -> None:
        """Stop both sides, end all questions and `events()`; what runs is finished first."""
        with self._entering:
            if self._ended:
                return
            reason = 'error' if self._closed else 'cancelled'
            self._closed = self._ended = True
        self._executor.stop()
        self._speaker.close(reason)
        self._events.put(None)
        with self._progress:
            self._progress.notify_all()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_threads(self) -> None:
        # A new thread starts with PyTorch's default, whatever was set on another one.
        if self._checkpoint.decoder.device.type == 'cpu':
            torch.set_num_threads(self.config.threads)

    def _restart(self, reason: str, prompt: str | None = None) -> None:
        self._watcher.restart(reason, prompt)
        self._executor.wake()

    def _emit(self, event: Event) -> None:
        if isinstance(event, StepPerceived):
            self._failures = 0
        self._events.put(event)
        if isinstance(event, TextDelta) and event.final and event.stream_id == NARRATION:
            # Whatever is known of frames now: the next video may be waiting for this.
            self._executor.wake()

    def _at_rest(self) -> bool:
        def watched() -> bool:
            return self._perceiving.between(lambda: self._watcher.idle)

        # Watched twice: an error in speaking asks for a new stream.
        return self._closed or (
            watched() and self._generating.between(lambda: self._speaker.idle) and watched())

    def _perceive(self) -> bool:
        worked = self._work(self._perceiving, self._watcher.work)
        if worked:
            self._executor.wake()
        return worked

    def _generate(self) -> bool:
        return self._work(self._generating, self._speaker.work)

    def _work(self, turns: Turns, work: Callable[[], bool]) -> bool:
        """Do one piece of work; an error is told, and all that was live is given up."""
        with turns:
            try:
                worked = work()
            except Exception as error:  # noqa: BLE001 - whatever it is, the session goes on
                self._failed(error)
                worked = True
        with self._progress:
            self._progress.notify_all()
        return worked and not self._closed

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        fatal = self._failures > MAX_FAILURES
        self._emit(Trouble(f'{type(error).__name__}: {error}', '', fatal))
        if fatal:
            self._closed = True
            self._executor.halt()
            return
        self._speaker.failed()
        self._restart('reset')

    def _warm_up(self) -> None:
        """
        Run both sides once, so that the first frame is not the slowest.

        :raises ValueError: when the model cannot run
        """
        settings = self._checkpoint.perception.settings
        blank = np.zeros((settings.unit * 2, settings.unit * 2, 3), np.uint8)
        for left in reversed(range(settings.temporal_patch_size)):
            # Offline nothing is decoded before the video has ended.
            self.feed(blank, last=not left and self.config.schedule == 'offline')
        self.wait_idle(300.0)
        self.reset()
        self.wait_idle(300.0)
        for event in self.drain():
            if isinstance(event, Trouble):
                self.close()
                raise ValueError(f'the model cannot run: {event.message}')
