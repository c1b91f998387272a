"""The façade: one lock around the core, an executor that does its jobs, a queue of events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
import itertools
import math
import os
import threading
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import (
    MAX_PROMPT_TOKENS,
    MAX_QUESTION_TOKENS,
    SessionConfig,
    check_prompt,
    check_question,
)
from sww_ros.streaming.core import Core
from sww_ros.streaming.events import Event, SessionClosed, Trouble
from sww_ros.streaming.executors import Scheduler, Seat
from sww_ros.streaming.jobs import (
    Asked,
    Cancelled,
    Closed,
    Fed,
    Frame,
    Input,
    Paused,
    Prompted,
    Reset,
)
from sww_ros.streaming.mailbox import Mailbox
from sww_ros.streaming.pace import Pace, advice, measure, mismatch, working_size
from sww_ros.streaming.perception import check_frame
from sww_ros.streaming.positions import SCHEMES, Scheme, make_scheme
from sww_ros.streaming.processes import ForkingRunner
from sww_ros.streaming.recall import telling_words
from sww_ros.streaming.relay import Relay
from sww_ros.streaming.rules import AHEAD, PRIORITIES
from sww_ros.streaming.runner import ModelRunner, lane_bytes
from sww_ros.streaming.trace import Trace


class Loaded(NamedTuple):
    """A checkpoint in memory, `config` with the executor to take, and what was measured of both."""

    checkpoint: Checkpoint
    config: SessionConfig
    pace: Pace | None = None
    why: str = ''


class Session:
    """
    Watches a video and speaks about it at the same time.

    All methods may be called from any thread, and none waits for the model but `wait_idle` and
    `close`. Once the session is closed, or has given up after a fatal trouble, `feed`, `ask`,
    `set_prompt`, `reset` and `pause` raise SessionClosed; what was told before can still be read.

        with Session.open('builtin') as session:
            for frame in camera:
                session.feed(frame)
                for event in session.drain(): ...
    """

    def __init__(self, checkpoint: Checkpoint, config: SessionConfig | None = None,
                 scheduler: Scheduler | None = None) -> None:
        """
        Start watching with a loaded checkpoint.

        :param scheduler: of the executor that it shares with others; without, it has its own
        :raises ValueError: for an unknown position scheme, one side of a frame size without the
            other, or a prompt of too many tokens
        """
        self.config = config = config or SessionConfig()
        checkpoint.check_tokens('prompt', config.prompt, MAX_PROMPT_TOKENS)
        self._settings = settings = config.resolved(checkpoint)
        self._mismatch = mismatch(checkpoint, settings)
        self._checkpoint = checkpoint = checkpoint.at(settings.frame_rate)
        scheme = _scheme_of(checkpoint, settings)
        # Where the video's positions depend on the text, there is nothing to overlap. One pass
        # for both suits every machine; `open` tries whether another way is better on this one.
        overlap = 'fused' if config.overlap == 'auto' else config.overlap
        alone = scheduler is None
        self._overlap, self._why = ('serial' if scheme.serial and alone else overlap), ''
        self._pace: Pace | None = None
        self.scheme = scheme
        self._core = Core(
            settings, prompt=settings.prompt, wait_k=settings.wait_k, max_steps=settings.max_steps,
            frames_per_step=checkpoint.frames_per_step,
            steps_per_turn=checkpoint.turns.steps_per_turn or 1,
            first_turn=checkpoint.turns.first_turn,
            carries_text=checkpoint.carries_text,
            serial=scheme.serial, perceptions=AHEAD.get(self._overlap, 1),
            relay=Relay.plan(settings.max_steps, settings.capacity, settings.memory,
                             settings.previous_sentences))
        self._scheduler = scheduler or Scheduler(
            self._overlap, partial(take_threads, checkpoint, config))
        self._changed = self._scheduler.changed
        # Who waits for rest is not woken with each token: it would take the interpreter from those
        # who wait for a job.
        self._rested = threading.Condition(self._scheduler.lock)
        self._events = Mailbox()
        self._numbers, self._gave_up = itertools.count(1), ''
        self._runner = self._make_runner(checkpoint, settings, scheme)
        self._seat = Seat(self._core, self._runner, self._tell)
        self._scheduler.join(self._seat)

    def _make_runner(self, *arguments: Any) -> ModelRunner:
        return (ForkingRunner if self._overlap == 'processes' else ModelRunner)(*arguments)

    @classmethod
    def open(cls, model: str | os.PathLike = 'builtin',
             config: SessionConfig | None = None) -> Session:
        """
        Load a checkpoint ('builtin', a folder, a hub id), warm it up, and start watching.

        :raises ValueError: in words, for a checkpoint or a setting that cannot be used
        """
        loaded = load_for(os.fspath(model), config or SessionConfig())
        return cls(loaded.checkpoint, loaded.config).begun(loaded)

    def begun(self, loaded: Loaded) -> Session:
        """
        Warm up, and say in `info` what was measured at load.

        :raises ValueError: when the model cannot run
        """
        self._pace, self._why = loaded.pace, loaded.why
        self._warm_up()
        return self

    @property
    def info(self) -> dict:
        """
        What is running, as plain data.

        `step_seconds` and `token_seconds` are what `open` has measured, 0 where nothing has;
        `warning` says what to expect of a checkpoint that was not trained to stream, or is too
        slow here.
        """
        checkpoint, pace = self._checkpoint, self._pace
        seconds = checkpoint.defaults.seconds_per_step
        reserved = self.lane_bytes
        return dict(
            model=checkpoint.name, parameters=checkpoint.parameters, profile=checkpoint.asked,
            dtype=checkpoint.decoder.precision,
            device=str(checkpoint.decoder.device), position_encoding=self.scheme.name,
            wait_k=self._core.wait_k, max_steps=self._core.max_steps,
            capacity=self._settings.capacity, memory=self._settings.memory,
            relay=_relay_in_words(checkpoint, self._settings, reserved), lane_bytes=reserved,
            repetition_penalty=self._settings.repetition_penalty,
            temperature=self._settings.temperature,
            schedule=self.config.schedule, speak=self.config.speak, overlap=self._overlap,
            threads=max(1, self.config.threads),
            overlap_why=self._why, prompt=self._core.prompt,
            default_prompt=checkpoint.defaults.prompt,
            mismatch=self._mismatch,
            warning=advice(checkpoint, self._core.wait_k, pace),
            step_seconds=pace.step_seconds if pace else 0.0,
            token_seconds=pace.token_seconds if pace else 0.0,
            frames_per_step=checkpoint.frames_per_step, seconds_per_step=seconds,
            frame_rate=checkpoint.frame_rate, pixels=self._pixels())

    def _pixels(self) -> list[int]:
        """
        Return how frames are scaled: what `fitted_size` takes, or height and width.

        Who is far away makes them as small before they are sent.
        """
        settings, config = self._checkpoint.perception.settings, self.config
        if config.frame_width:
            return [*working_size(self._checkpoint, config)]
        return [settings.unit, settings.min_pixels, settings.max_pixels]

    @property
    def lane_bytes(self) -> int:
        """What keys and values of the video take at most, which a relay has reserved."""
        return lane_bytes(self._checkpoint, self._settings)

    @property
    def decode_steps(self) -> int:
        """How many decode steps have been run."""
        return self._runner.decode_steps

    @property
    def work(self) -> tuple[str, int] | None:
        """The oldest pass in progress: its jobs, in words, and since when [monotonic ns]."""
        return self._scheduler.work

    def feed(self, frame: np.ndarray, stamp_ns: int = 0, received_ns: int = 0,
             last: bool = False) -> None:
        """
        Take the next frame, (H, W, 3) uint8 RGB, at the rate `info['frame_rate']`.

        :param stamp_ns: the frame's own stamp, repeated in events
        :param received_ns: `time.monotonic_ns()` when it arrived; now if 0
        :param last: whether the video ends with it; what is left to say is said then, and the
            next frame begins another video
        :raises ValueError: for a frame that cannot be perceived
        :raises SessionClosed: once the session is closed, as all that follows
        """
        check_frame(frame)
        now = time.monotonic_ns()
        self._ask_core(Fed(Frame(frame, stamp_ns, received_ns or now, now, last)))

    def ask(self, question: str, question_id: str | None = None) -> str:
        """
        Ask about what has been seen; the answer streams as events under the returned id.

        :raises ValueError: for a question that is no text, empty or too long
        """
        checkpoint = self._checkpoint
        question = checkpoint.check_tokens('question', check_question(question),
                                           MAX_QUESTION_TOKENS)
        head = checkpoint.encode(*checkpoint.turns.question(question))
        question_id = question_id or f'q{next(self._numbers)}'
        about = telling_words(question) if self._settings.recall_steps else []
        self._ask_core(Asked(question_id, head, tuple(
            token for word in about for token in checkpoint.encode('', f' {word}'))))
        return question_id

    def cancel(self, question_id: str) -> None:
        """End an answer within one token; an unknown or finished question is left alone."""
        self._tell(Cancelled(question_id))

    def set_prompt(self, prompt: str) -> None:
        """
        Change the standing question; the stream begins anew, answers in progress go on.

        :raises ValueError: for a prompt that is no text, empty or too long
        """
        prompt = self._checkpoint.check_tokens('prompt', check_prompt(prompt), MAX_PROMPT_TOKENS)
        self._ask_core(Prompted(prompt))

    def reset(self) -> None:
        """Forget what has been seen and said; answers in progress end."""
        self._ask_core(Reset())

    def pause(self, paused: bool) -> None:
        """Stop or resume watching and narrating; questions are still answered."""
        self._ask_core(Paused(paused))

    def poll(self, timeout_s: float | None = None) -> Event | None:
        """Return the next event, or None after `timeout_s` seconds or once closed."""
        return self._events.poll(timeout_s)

    def events(self) -> Iterator[Event]:
        """Yield events until the session is closed, which a fatal trouble does."""
        while (event := self.poll()) is not None:
            yield event
            if isinstance(event, Trouble) and event.fatal:
                self.close()

    def drain(self) -> list[Event]:
        """Return all events that wait, without waiting."""
        return self._events.drain()

    def wait_idle(self, timeout_s: float = 60.0) -> bool:
        """Wait until all frames are perceived and all is said; False after `timeout_s`."""
        with self._rested:
            return self._rested.wait_for(lambda: self._core.at_rest, timeout_s)

    def trace(self) -> Trace:
        """
        Return the record of the current stream, to be replayed; call it when idle.

        :raises ValueError: when the session does not record (`record_trace`)
        """
        return self.traces()[-1]

    def traces(self) -> list[Trace]:
        """
        Return the records of all streams of the current video, each of which relieved the last.

        Before each stand those that were made for answers beside it.

        :raises ValueError: when the session does not record (`record_trace`)
        """
        if not self.config.record_trace:
            raise ValueError('this session records no trace: set record_trace')
        found, stream = [], self._core.video.work
        while stream is not None:
            found += [Trace.of(each, each.records, self._settings.sampling,
                               self._checkpoint.vocabulary.silence)
                      for each in (stream, *stream.recalled) if each.patches]
            stream = stream.before
        return found[::-1]

    def close(self) -> None:
        """End all questions and `events()`; what is computed just now is finished first."""
        self._tell(Closed())
        self._scheduler.leave(self._seat)
        self._runner.close()
        self._events.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask_core(self, given: Input) -> None:
        with self._changed:
            if self._core.closed:
                raise SessionClosed(f'the session is closed{self._gave_up}: open another one')
            self._tell(given)

    def _tell(self, given: Input) -> None:
        """Have the core take an input, and pass on what it tells."""
        with self._changed:
            for event in self._core.handle(given, time.monotonic_ns()):
                self._events.put(event)
                if isinstance(event, Trouble) and event.fatal:
                    self._gave_up = f', after {event.message}'
            self._changed.notify_all()
            if self._core.at_rest:
                self._rested.notify_all()

    def _warm_up(self) -> None:
        """
        Run both sides once, so that the first frame is not the slowest.

        :raises ValueError: when the model cannot run
        """
        settings = self._checkpoint.perception.settings
        blank = np.zeros((settings.unit * 2, settings.unit * 2, 3), np.uint8)
        for left in reversed(range(self._checkpoint.frames_per_step)):
            # Offline nothing is decoded before the video has ended.
            self.feed(blank, last=not left and self.config.schedule == 'offline')
        self.wait_idle(300.0)
        if not self._core.closed:
            self.reset()
            self.wait_idle(300.0)
        for event in self.drain():
            if isinstance(event, Trouble):
                self.close()
                raise ValueError(f'the model cannot run: {event.message}')


def load_for(model: str, config: SessionConfig, shared: bool = False) -> Loaded:
    """
    Load a checkpoint, and choose the executor that suits it here best.

    :param shared: whether several sessions are to share that
    :raises ValueError: in words, for a checkpoint or a setting that cannot be used
    """
    from sww_ros.models.loading import load
    checkpoint = load(model, device=config.device, dtype=config.dtype,
                      allow_download=config.allow_download, quantize=config.quantize,
                      profile=config.profile, session=config)
    try:
        pace = measure(checkpoint, config)
    except RuntimeError as error:
        raise ValueError(f'the model cannot run at its full size: {error}') from error
    if config.overlap != 'auto' or _scheme_of(checkpoint, config.resolved(checkpoint)).serial:
        return Loaded(checkpoint, config, pace)
    from sww_ros.streaming.choosing import choose_overlap
    choice = choose_overlap(checkpoint, config, pace, shared)
    return Loaded(checkpoint, replace(config, overlap=choice.overlap, threads=choice.threads),
                  pace, choice.why)


def take_threads(checkpoint: Checkpoint, config: SessionConfig, name: str) -> None:
    """
    Have this thread compute with as many threads as are set; a new one has PyTorch's default.

    On a GPU each of two sides has a stream of its own, so that neither waits behind the other, and
    the kernels of generation go first: a token is short, and is waited for.
    """
    device = checkpoint.decoder.device
    if device.type == 'cpu':
        torch.set_num_threads(max(1, config.threads))
    elif device.type == 'cuda':
        torch.cuda.set_device(device)
        if name in PRIORITIES:
            torch.cuda.set_stream(torch.cuda.Stream(device, PRIORITIES[name]))


def _relay_in_words(checkpoint: Checkpoint, settings: SessionConfig, reserved: int) -> str:
    """What happens to a stream that is full; `settings` as `resolved` returns them."""
    room = f'{reserved / 1e6:.1f} MB'
    if settings.memory:
        return (f'a stream of {settings.capacity} steps is relieved by one that begins with the '
                f'last {settings.memory}; {room} are reserved for both'
                f'{_recall_in_words(checkpoint, settings)}')
    why = (', as its positions depend on the text'
           if SCHEMES[settings.position_encoding].serial else '')
    told = ', is told what was said before' if checkpoint.carries_text else ''
    return f'the video begins anew after {settings.max_steps} steps{why}{told}, with {room} at most'


def _recall_in_words(checkpoint: Checkpoint, settings: SessionConfig) -> str:
    """What is remembered for questions about the past, and what that takes."""
    if not settings.recall_steps:
        return ''
    decoder, size = checkpoint.decoder, working_size(checkpoint, settings)
    row = decoder.embed([0])
    rows = settings.recall_steps * math.prod(checkpoint.perception.grid(*size))
    rows *= 1 + checkpoint.perception.deep_layers
    return (f'; questions are answered from the last {settings.recall_steps} steps, which are '
            f'remembered in up to {rows * row.numel() * row.element_size() / 1e6:.1f} MB')


def _scheme_of(checkpoint: Checkpoint, config: SessionConfig) -> Scheme:
    return make_scheme(config.position_encoding, checkpoint.defaults.clock, config.position_gap)
