"""
The supervision of engines: the one place where the client decides anything, and does nothing.

A pure state machine, as the core of a session is one (streaming/core.py): no thread, lock, clock
or socket. Inputs are its methods; `now_ns` is set before each. What is to be done follows from the
state: `next_launch`, `next_send`, `next_notice` and `next_kill` hand out what to launch, send, tell
and kill, in order. One engine runs at a time, and what it was given and has not accounted for ends
with it. Which text streams are open is noted in one register (`OpenAnswers`), so that each one ends
exactly once, over restarts of the engine.

Calls need one lock around each of them; what is handed out is done outside of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
import math
from typing import Any

from sww_ros.frames import CameraFrame
from sww_ros.streaming.config import SessionConfig, check_prompt, check_question
from sww_ros.streaming.events import (
    NARRATION,
    Event,
    FirstSight,
    FramesDropped,
    QuestionState,
    Restarted,
    StepPerceived,
    TextDelta,
    Trouble,
    event_from_dict,
)


@dataclass
class _Stream:
    """How far a stream is, what was asked, and why it ends where it was taken back (`reason`)."""

    last: TextDelta | None = None
    next_seq: int = 0
    reason: str = ''
    question: str = ''


class OpenAnswers:
    """
    Follows the events of a session: admits questions, and ends what the session leaves open.

    The one register of open questions, and the one place where text and videos are numbered for
    the listener. Whether there is room for a question is decided here, where it is asked, because
    the busy engine would answer too late. `seen` says whether anything has been perceived of the
    current video.
    """

    def __init__(self, config: SessionConfig) -> None:
        room = {'queue': config.max_queued, 'reject': 0, 'interrupt': math.inf}
        self._limit = config.max_answers + room[config.question_policy]
        self._streams = {NARRATION: _Stream()}
        self._first_video = self._newest_video = 0
        self.seen = self._begins_anew = False

    @property
    def questions(self) -> list[str]:
        """Ids of the questions that are not answered yet, oldest first."""
        return [stream for stream in self._streams if stream != NARRATION]

    def admit(self, question_id: str, question: str = '') -> bool:
        """
        Open a question's stream, if there is room for it.

        :param question: its words, for an engine that is asked again
        :raises ValueError: for an id that is in use
        """
        if question_id in self._streams:
            raise ValueError(f'the id {question_id!r} is in use: give each question its own')
        if len(self.questions) >= self._limit:
            return False
        self._streams[question_id] = _Stream(question=question)
        return True

    def name_end(self, question_id: str, reason: str) -> bool:
        """Have a question that is taken back end with this reason; False if it is not open."""
        if question_id not in self.questions:
            return False
        self._streams[question_id].reason = reason
        return True

    def begin_anew(self) -> None:
        """Note that the session was told to begin another video: it has seen nothing of that."""
        self.seen, self._begins_anew = False, True

    def follow(self, event: Event, now_ns: int) -> list[Event]:
        """Return what to tell the listener in place of the event."""
        if isinstance(event, (StepPerceived, TextDelta, FirstSight, Restarted)):
            # An engine that restarts counts from 0; for the listener it is one more video.
            event = replace(event, video=self._first_video + event.video)
            self._newest_video = max(self._newest_video, event.video)
        if isinstance(event, StepPerceived) and not self._begins_anew:
            self.seen = True
        if isinstance(event, Restarted) and event.reason != 'relay':
            self.seen = self._begins_anew = False
        if isinstance(event, QuestionState) and event.state == 'rejected':
            return [event, *self.end([event.question_id], now_ns)]
        if not isinstance(event, TextDelta):
            return [event]
        if (stream := self._streams.get(event.stream_id)) is None:
            return []  # Ended already: nothing may follow its last piece.
        cancelled = event.finish_reason == 'cancelled'
        reason = cancelled and stream.reason or event.finish_reason
        return [self._number(replace(event, finish_reason=reason))]

    def end(self, streams: Iterable[str], now_ns: int, reason: str = 'error') -> list[Event]:
        """Return the last events of those of the streams that are open, which ends them."""
        ended: list[Event] = []
        for stream_id in streams:
            stream = self._streams.get(stream_id)
            # Between its ends, the narration is not open.
            if not stream or stream_id == NARRATION and (not stream.last or stream.last.final):
                continue
            last = stream.last or TextDelta(
                stream_id, 0, '', '', False, '', -1, 0, 0, 0, now_ns, now_ns, False)
            ended.append(self._number(replace(
                last, delta='', sentence='', final=True, finish_reason=reason,
                started_ns=now_ns, emitted_ns=now_ns, first_sight=False)))
        return ended

    @property
    def unanswered(self) -> dict[str, str]:
        """The open questions of which nothing has been said, by their ids; not those taken back."""
        return {stream_id: self._streams[stream_id].question for stream_id in self.questions
                if not self._streams[stream_id].last and not self._streams[stream_id].reason}

    def end_all(self, now_ns: int, but: Container[str] = ()) -> list[Event]:
        """Return the last events of all open streams, whose session is gone, but for some."""
        self._first_video = self._newest_video + 1
        self.seen = self._begins_anew = False
        return self.end([*(each for each in self.questions if each not in but), NARRATION], now_ns)

    def _number(self, event: TextDelta) -> TextDelta:
        """Number a piece of text anew, so that an engine that restarts leaves no gap."""
        stream = self._streams[event.stream_id]
        event = replace(event, seq=stream.next_seq)
        stream.last, stream.next_seq = event, stream.next_seq + 1
        if event.final and event.stream_id != NARRATION:  # Which goes on over its ends.
            del self._streams[event.stream_id]
        return event


WAITING_FRAMES = 2
LONG_LIFE_NS = 30_000_000_000
"""An engine that lived this long has its next restart without the earlier ones' delay."""


DOUBT_NS = 1_000_000_000
"""
How long an engine beyond its limits is looked at again before it is killed.

Where this process was stopped too, signs of life wait to be read, and work goes on.
"""
NOTED_NS = 2_000_000_000
"""Silence and work are spoken of once they last this long."""

SLOW = 10
"""No piece of work is too long below so many times what a step took when the model was loaded."""


@dataclass(frozen=True)
class Limits:
    """
    How long an engine may take [s]; beyond it hangs, and is killed. 0: as long as it likes.

    :param load: to load the model
    :param silence: without a sign of life, once the model is loaded: it tells each half second
    :param work: for one piece of work, a step perceived or a token decoded; or `SLOW` times what a
        step took at load, if that is longer
    """

    load: float = 0.0
    silence: float = 0.0
    work: float = 0.0


NO_LIMITS = Limits()


class EngineError(RuntimeError):
    """The engine cannot do what is asked; the message says why."""


class Supervision:
    """
    Runs one engine after the other, and keeps what outlives them: questions, prompt, pause.

    :param config: the session's settings; the prompt may change
    :param backoff_s: how long to wait before the first, second, … restart in a row [s], the last
        one also before all that follow; empty: an engine that dies is not started again
    :param limits: when it is killed
    :param loss: the reason with which frames are dropped while there is no engine
    :param ask_again: whether the next engine is asked what was not begun to be answered
    """

    def __init__(self, config: SessionConfig, backoff_s: Sequence[float],
                 limits: Limits = NO_LIMITS, loss: str = 'engine',
                 ask_again: bool = False) -> None:
        self.now_ns, self.limits = 0, limits
        self._loss, self._ask_again = loss, ask_again and bool(backoff_s)
        self.engine: Any = None
        self.info: dict = {}
        self.lives, self.failure = 0, ''
        self.ready = self.closed = self._paused = False
        self._config, self._prompt = config, config.prompt
        self._backoff_ns = [round(delay * 1e9) for delay in backoff_s]
        self.answers = OpenAnswers(config)
        self._commands: deque[dict] = deque()
        self._frames: deque[CameraFrame] = deque(maxlen=WAITING_FRAMES)
        self._notices: deque[tuple[str, Event | dict | str]] = deque()
        self._owed_frames = self._attempt = 0
        self._launch_ns: int | None = 0
        self._ready_ns: int | None = None
        self._heard_ns: int | None = None  # None: nothing is expected to be heard.
        self._work: tuple[str, int] | None = None
        self._doubted_ns, self._hang = 0, ''

    # What is to be done, derived from the state.

    def next_launch(self) -> SessionConfig | None:
        """Return with which settings to launch an engine, if it is time to."""
        if self.closed or self._launch_ns is None or self._launch_ns > self.now_ns:
            return None
        self._launch_ns, self._config = None, replace(self._config, prompt=self._prompt)
        return self._as_before(self._config)

    def _as_before(self, config: SessionConfig) -> SessionConfig:
        """
        Return the settings with the executor that the engine before chose: to try all takes long.

        Where that one died young, what it chose may be why; the next one chooses for itself.
        """
        if config.overlap != 'auto' or not self.info.get('overlap_why') or self._attempt > 1:
            return config
        return replace(config, overlap=self.info['overlap'], threads=self.info['threads'])

    def next_send(self) -> tuple[Any, dict | CameraFrame] | None:
        """Return an engine and what it is to be given, if anything: commands before frames."""
        if self._commands:
            return self.engine, self._commands.popleft()
        if self._frames:
            self._owed_frames += 1
            return self.engine, self._frames.popleft()
        return None

    def next_notice(self) -> tuple[str, Event | dict | str] | None:
        """Return what is told next, if anything: 'event' an event, 'lost' why, 'ready' the info."""
        return self._notices.popleft() if self._notices else None

    def next_kill(self) -> Any | None:
        """Return an engine that hangs, once; `ended` says of it why it was killed."""
        hang = self._hanging()
        if not hang or hang[0] > self.now_ns:
            self._doubted_ns = 0
        elif not self._doubted_ns:
            self._doubted_ns = self.now_ns
        elif self._doubted_ns + DOUBT_NS <= self.now_ns:
            self._hang = hang[1]
            return self.engine
        return None

    def _hanging(self) -> tuple[int, str] | None:
        """Return when the engine will hang, as things are [ns], and in words, how."""
        limits, heard_ns = self.limits, self._heard_ns
        if heard_ns is None or self._hang:
            return None
        found = [(heard_ns, limits.silence, 'it gave no sign of life for')]
        if not self.ready:
            found = [(heard_ns, limits.load, 'the model was not loaded within')]
        elif self._work and limits.work:
            longest = max(limits.work, SLOW * self.info.get('step_seconds', 0.0))
            found.append((self._work[1], longest, f'the job {self._work[0]} took longer than'))
        return min(((since_ns + round(limit * 1e9), f'{words} {limit:g} s')
                    for since_ns, limit, words in found if limit), default=None)

    @property
    def doing(self) -> str:
        """What is going on with the engine where it takes its time, in words; else empty."""
        def lasts(what: str, since_ns: int) -> str:
            return f'{what} for {(self.now_ns - since_ns) / 1e9:.0f} s'

        if self._launch_ns is not None and self.lives:
            return f'starts again in {max(0, self._launch_ns - self.now_ns) / 1e9:.0f} s'
        if self._heard_ns is None:
            return ''
        if not self.ready:
            return lasts('loading the model', self._heard_ns)
        if self.now_ns - self._heard_ns > NOTED_NS:
            return lasts('no sign of life', self._heard_ns)
        if self._work and self.now_ns - self._work[1] > NOTED_NS:
            return lasts(f'the job {self._work[0]}', self._work[1])
        return ''

    @property
    def wait_s(self) -> float | None:
        """How long until something is to be done [s]; None: nothing without another input."""
        due = [self._launch_ns] if self._launch_ns is not None else []
        if hang := self._hanging():
            due.append(self._doubted_ns + DOUBT_NS if self._doubted_ns else hang[0])
        coming = [at_ns for at_ns in due if at_ns > self.now_ns]
        return None if self.closed or not coming else (min(coming) - self.now_ns) / 1e9

    # What is asked of the client.

    def feed(self, frame: CameraFrame) -> None:
        """Hand over a frame; one that is pushed out by a newer one is dropped as 'overrun'."""
        if not self.ready:
            self._drop(self._loss, 1)
            return
        self._drop('overrun', len(self._frames) == WAITING_FRAMES)
        self._frames.append(frame)

    def ask(self, question: str, question_id: str) -> None:
        """
        Take a question; its answer comes as events.

        :raises ValueError: for a question that is empty or too long, or an id that is in use
        :raises EngineError: when the engine does not run, or too many questions wait already
        """
        question = check_question(question)
        self._check_ready()
        if not self.answers.admit(question_id, question):
            raise EngineError(f'{len(self.answers.questions)} questions are being answered or '
                              'wait, no more are taken: ask again later')
        self._command('ask', question=question, question_id=question_id)

    def cancel(self, question_id: str, reason: str = 'cancelled') -> bool:
        """
        Take a question back; False if it is not open.

        :param reason: the finish_reason with which its answer is to end
        """
        if not self.answers.name_end(question_id, reason):
            return False
        self._command('cancel', question_id=question_id)
        return True

    def cancel_all(self, reason: str = 'cancelled') -> None:
        """Take back every open question; see `cancel`."""
        for question_id in self.answers.questions:
            self.cancel(question_id, reason)

    def abandon(self, question_ids: Sequence[str], reason: str) -> None:
        """End open questions at once, whether the engine does or hangs; their ends are told."""
        self._notify(*self.answers.end(question_ids, self.now_ns, reason))

    def set_prompt(self, text: str) -> None:
        """
        Change what the model is told to do; kept when the engine restarts.

        :raises ValueError: for a prompt that is empty or too long
        :raises EngineError: when the engine does not run
        """
        text = check_prompt(text)
        self._check_ready()
        self._prompt = text
        self._command_prompt()

    def keep_prompt(self, text: str) -> None:
        """
        Change what the model is told to do; an engine that does not run is told when it does.

        The stream goes on if it is told the same already.

        :param text: empty for what the checkpoint says
        :raises ValueError: for a prompt that is too long
        """
        text = check_prompt(text) if text.strip() else ''
        before, default = self._prompt, self.info.get('default_prompt', '')
        self._prompt = text
        if (text or default) != (before or default):
            self._command_prompt()

    def reset(self) -> None:
        """Begin the stream anew; frames that wait are dropped."""
        self._drop('reset', len(self._frames))
        self._frames.clear()
        self._command('reset')

    def pause(self, paused: bool) -> None:
        """Stop or resume perceiving and speaking; kept when the engine restarts."""
        self._paused = paused
        self._command('pause', paused=paused)

    def close(self) -> None:
        """Have all end, and nothing be told of what comes later."""
        self.failure = self.failure or 'the engine was closed'
        self.lost()
        self._notify(*self.answers.end_all(self.now_ns))
        self.closed = True

    # What becomes of a launch, in this order.

    def started(self, engine: object) -> None:
        """There is a process; what stands for it is compared, and never looked into."""
        self.engine, self._heard_ns = engine, self.now_ns

    def became_ready(self, info: dict) -> None:
        """The session is open."""
        if self.closed:
            return
        if why := self.info.get('overlap_why'):  # An engine that was told does not say why.
            info = info | dict(overlap_why=info.get('overlap_why') or why)
        self.info, self.ready, self._ready_ns = info, True, self.now_ns
        self._heard_ns = self.now_ns
        self.lives += 1
        self._notices.append(('ready', info))
        # No frame waits yet, and commands go first.
        if self._prompt != self._config.prompt:
            self._command_prompt()
        if self._paused:
            self._command('pause', paused=True)
        for question_id, question in self.answers.unanswered.items():
            self._command('ask', question=question, question_id=question_id)

    def received(self, message: dict) -> None:
        """
        The engine says something: an event, that it is alive, or that it keeps its prompt.

        :raises ValueError: for what is none of it; TypeError or AttributeError where a field is
            wrong
        """
        if self.ready:
            self._heard_ns = self.now_ns
        if message.get('type') == 'alive':
            work = message.get('work')
            self._work = (str(work[0]), int(work[1])) if work else None
            return
        if message.get('type') == 'refused':
            if self._prompt == message.get('prompt'):  # No engine must begin with it anew.
                self._prompt = str(message.get('kept', ''))
            return
        event = event_from_dict(message)
        accounted = (event.frames if isinstance(event, StepPerceived)
                     else event.count if isinstance(event, FramesDropped) else 0)
        if type(accounted) is not int:  # JSON has an infinity, which could not be told as a count.
            raise TypeError(f'{accounted!r} is no number of frames')
        self._owed_frames = max(0, self._owed_frames - accounted)
        self._notify(*self.answers.follow(event, self.now_ns))

    def not_understood(self, error: Exception) -> None:
        """What the engine says is no message: it is given up."""
        self._notify(Trouble(f'the engine does not speak our language: {error}', '', True))

    def frame_failed(self, engine: object, message: str) -> None:
        """A frame that an engine was to be given could not be converted or sent."""
        if self.ready and engine is self.engine:  # Or it was dropped with the engine.
            self._owed_frames -= 1
            self._drop('bad', 1)
        self._notify(Trouble(message, '', False))

    def lost(self) -> None:
        """Nothing can be given to the engine any more, and nothing comes from it."""
        began_ns = self._ready_ns
        if self.ready and began_ns is not None and self.now_ns - began_ns > LONG_LIFE_NS:
            self._attempt = 0
        self.ready, self._heard_ns = False, None
        self._drop(self._loss, len(self._frames) + self._owed_frames)
        self._commands.clear()
        self._frames.clear()
        self._owed_frames = 0

    def ended(self, report: str) -> None:
        """The process is gone, or none could be started; in words, why."""
        has_run, self.engine, self._ready_ns = self._ready_ns is not None, None, None
        if self._hang:
            report = f'the engine hung and was killed: {self._hang}\n{report}'
        self._hang, self._work, self._doubted_ns = '', None, 0
        if not self.lives:
            self.failure = self.failure or report
        elif not self.closed:
            self._notices.append(('lost', report if has_run else (
                f'the engine could not be restarted: {report}')))
            again = self.answers.unanswered if self._ask_again else ()
            self._notify(*self.answers.end_all(self.now_ns, again))
            if self._backoff_ns:
                attempt = min(self._attempt, len(self._backoff_ns) - 1)
                self._launch_ns = self.now_ns + self._backoff_ns[attempt]
                self._attempt += 1

    # What follows from them.

    def _check_ready(self) -> None:
        if not self.ready:
            raise EngineError('the engine is not running: it is being restarted, or closed')

    def _command(self, command: str, **arguments: object) -> None:
        """Have the engine do something; one that is not ready is told how things are once it is."""
        if self.ready:
            if command in ('reset', 'set_prompt'):
                self.answers.begin_anew()
            self._commands.append({'command': command, **arguments})

    def _command_prompt(self) -> None:
        if self.ready:  # Only then is it known what the checkpoint says.
            self._command('set_prompt', prompt=self._prompt or self.info['default_prompt'])

    def _drop(self, reason: str, count: int) -> None:
        if count:
            self._notify(FramesDropped(reason, int(count)))

    def _notify(self, *events: Event) -> None:
        if not self.closed:
            self._notices.extend(('event', event) for event in events)
