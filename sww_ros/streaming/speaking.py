"""The generating side of a session: narration and answers, decoded together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
import time

from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.decoder import Chunk
from sww_ros.streaming.events import (
    NARRATION,
    Event,
    FirstSight,
    QuestionState,
    TextDelta,
)
from sww_ros.streaming.generation import LaneRecord, TextLane
from sww_ros.streaming.kv import LaneView
from sww_ros.streaming.lanes import open_lane
from sww_ros.streaming.overlap import BusyLog
from sww_ros.streaming.positions import Scheme
from sww_ros.streaming.prompt import NEXT_TURN
from sww_ros.streaming.stream import Stream

_HEAD_ROWS = 64
"""How much of questions, all together, is prefilled in one decode step: narration waits for it."""
_LOOK_AGAIN_S = 0.05
"""How often it is seen whether a step that was coming has come to nothing."""


@dataclass
class _Answer:
    """
    A question on its way: its lane, and the video it is asked about.

    With interleaved positions an answer is a fork of the running lane: it sees, and is told to
    have seen, what was there when it was admitted (`fork`).
    """

    lane: TextLane
    stream: Stream
    fork: tuple[LaneView, int] | None = None


@dataclass
class _Waiting:
    """A question that waits, as the tokens of its head; `since` it has waited for video [s]."""

    question_id: str
    head: list[int]
    since: float


@dataclass(frozen=True)
class _Turn:
    """
    A lane's part in a decode step: what it sees of which stream, as rows and as steps.

    No more than `rows` of what it has to feed are fed, if that is given.
    """

    lane: TextLane
    stream: Stream
    context: LaneView | None
    steps: int
    owner: int
    rows: int | None = None

    def chunk(self) -> Chunk:
        rows = self.stream.scheme.serial and self.context
        return self.lane.chunk(self.context, rows.length if rows else self.steps, self.owner,
                               self.rows)


@dataclass(frozen=True)
class _Moment:
    """One decode step: what it could see of a stream, and when it ran."""

    stream: Stream
    steps: int
    started_ns: int
    first_sight: bool


class Speaker:
    """
    Speaks about the current stream, one token of every live lane per decode step.

    Only its thread touches text lanes; other threads reach it through `ask` and `cancel`.
    """

    def __init__(self, checkpoint: Checkpoint, config: SessionConfig, scheme: Scheme,
                 current: Callable[[], Stream], restarting: Callable[[], bool],
                 step_comes: Callable[[], bool],
                 emit: Callable[[Event], None], decoding: BusyLog) -> None:
        self._checkpoint, self._config, self._scheme = checkpoint, config, scheme
        self._current, self._restarting, self._step_comes = current, restarting, step_comes
        self._emit, self._decoding = emit, decoding
        self._silence = checkpoint.vocabulary.silence
        self._next_turn = checkpoint.encode(NEXT_TURN)
        self._inbox: deque[Callable[[], None]] = deque()
        self._stream = current()
        self._answers: dict[str, _Answer] = {}
        self._queue: deque[_Waiting] = deque()
        self._seq: dict[str, int] = {}
        self._open: set[str] = set()
        self._halted: Stream | None = None
        self.paused = False
        self.decode_steps = 0
        self.records: list[LaneRecord] = []
        self._keep(self._stream.narration)

    # Called from any thread.

    def ask(self, question_id: str, head: list[int]) -> None:
        """
        Take a question, as the tokens that its text group begins with.

        :raises ValueError: for an id that another open stream has
        """
        if question_id == NARRATION or question_id in self._open:
            raise ValueError(f'the id {question_id!r} is in use: give each question its own')
        self._open.add(question_id)
        self._inbox.append(lambda: self._enqueue(question_id, head))

    def cancel(self, question_id: str) -> None:
        self._inbox.append(lambda: self._end(question_id, 'cancelled'))

    def end_all(self, reason: str) -> None:
        """End all that has been asked before, in turn with later questions."""
        self._inbox.append(lambda: self._end_all(reason))

    def failed(self) -> None:
        """After an error: end all that is live, so that nothing is tried for ever."""
        # The stream of now: by the time this is read, the next one may have begun.
        stream = self._current()
        self._inbox.append(lambda: self._give_up(stream))

    def close(self, reason: str) -> None:
        """End all that has been asked, once no thread works any more."""
        self.end_all(reason)
        self._take_in()

    @property
    def idle(self) -> bool:
        """Whether nothing is left to say; to be asked between two pieces of work."""
        stream = self._current()
        steps = stream.visible()[1]
        owed = self._config.narrate and not self.paused and stream is not self._halted and (
            stream.budget.steps < steps or stream.budget.left > 0)
        return not (stream is not self._stream or self._inbox or self._answers or self._queue
                    or owed)

    # The generating thread.

    def work(self) -> bool:
        """Run one decode step over all lanes that have something to say."""
        self._take_in()
        self._follow()
        self._admit()
        self._give_up_waiting()
        return self._decode()

    def patience(self) -> float | None:
        """How long nothing will have to be done unless something comes [s]; None: for ever."""
        timeout_s = self._config.question_timeout_s
        if not timeout_s or not self._queue or self._stream.visible()[1]:
            return None
        due = min(waiting.since for waiting in self._queue) + timeout_s
        return max(due - time.monotonic(), _LOOK_AGAIN_S)

    def _take_in(self) -> None:
        """Do what other threads have asked for, in turn."""
        while self._inbox:
            self._inbox.popleft()()

    def _give_up(self, stream: Stream) -> None:
        self._halted = stream
        self._end_all('error')

    def _give_up_waiting(self) -> None:
        """End questions that have found nothing to see for too long, unless a step is coming."""
        timeout_s = self._config.question_timeout_s
        # In this order: a step that came before the first check shows in the second.
        if not timeout_s or not self._queue or self._step_comes() or self._stream.visible()[1]:
            return
        now = time.monotonic()
        for waiting in [*self._queue]:
            if now - waiting.since >= timeout_s:
                self._end(waiting.question_id, 'no_video')

    def _end_all(self, reason: str) -> None:
        for question_id in [*self._answers, *(waiting.question_id for waiting in self._queue)]:
            self._end(question_id, reason)

    def _follow(self) -> None:
        """Turn to a new stream; answers go on about the old one."""
        stream = self._current()
        if stream is self._stream:
            return
        old, self._stream = self._stream, stream
        if not old.spoken:
            # What was being said is no sentence.
            self._tell(NARRATION, '', '', self._moment_of(old), final=True, reason=old.cut_by)
        for waiting in self._queue:
            waiting.since = time.monotonic()
        self.records = []
        self._keep(stream.narration)

    def _keep(self, lane: TextLane) -> None:
        if lane.record:
            self.records.append(lane.record)

    def _enqueue(self, question_id: str, head: list[int]) -> None:
        config = self._config
        taken = len(self._answers) + len(self._queue)
        if taken >= config.max_answers:
            if config.question_policy == 'interrupt':
                oldest = next(iter(self._answers), None) or self._queue[0].question_id
                self._end(oldest, 'interrupted')
            elif (config.question_policy == 'reject'
                  or taken >= config.max_answers + config.max_queued):
                self._open.discard(question_id)
                self._emit(QuestionState(
                    question_id, 'rejected',
                    f'{len(self._answers)} questions are being answered and '
                    f'{len(self._queue)} wait: ask again later'))
                return
        self._queue.append(_Waiting(question_id, head, time.monotonic()))
        if reason := self._why_queued():
            self._emit(QuestionState(question_id, 'queued', reason))

    def _why_queued(self) -> str:
        """In words, why the last question waits; empty if it does not."""
        if not self._stream.visible()[1]:
            timeout_s = self._config.question_timeout_s
            return ('nothing has been seen yet: the answer begins with the first step of video'
                    + (f', or the question ends after {timeout_s:g} s' if timeout_s else ''))
        if len(self._answers) + len(self._queue) > self._config.max_answers:
            return f'{len(self._answers)} questions are being answered: it waits for its turn'
        return ''

    def _admit(self) -> None:
        """Open lanes for questions that wait, once there is something to see."""
        # In this order: a switch that has ended by the first check shows in the second.
        if (self._restarting() or self._current() is not self._stream
                or not self._stream.visible()[1]):
            return
        while self._queue and len(self._answers) < self._config.max_answers:
            question_id, seen = self._queue[0].question_id, self._stream.visible()
            lane = open_lane(self._checkpoint, self._config, question_id, self._queue[0].head,
                             self._stream.timeline.answer(seen[1]), self._stream.prefix)
            self._answers[question_id] = _Answer(lane, self._stream,
                                                 seen if self._scheme.serial else None)
            self._queue.popleft()
            self._keep(lane)
            self._emit(QuestionState(question_id, 'answering', ''))

    def _decode(self) -> bool:
        answers = list(self._answers.values())
        streams = {id(a.stream): a.stream for a in answers} | {id(self._stream): self._stream}
        seen = {key: stream.visible() for key, stream in streams.items()}
        turns = [_Turn(a.lane, a.stream, *(a.fork or seen[id(a.stream)]), owner=1, rows=rows)
                 for a, rows in zip(answers, _shares([a.lane.pending for a in answers])) if rows]
        # Neighbours share their context's attention, so lanes are kept together by stream.
        turns.sort(key=lambda turn: id(turn.stream))
        narration = self._narration_turn(*seen[id(self._stream)])
        if narration is not None:
            at = next((i for i, turn in enumerate(turns) if turn.stream is self._stream), 0)
            turns.insert(at, narration)
        if not turns:
            return False
        started = time.monotonic_ns()
        with self._decoding:
            # Where the prefill of a step has given the narration's logits, no row is due.
            due = [turn for turn in turns if turn.lane.ready is None]
            logits = iter(self._checkpoint.decoder.step([turn.chunk() for turn in due])
                          if due else ())
            tokens = []
            for turn in turns:
                row = next(logits) if turn.lane.ready is None else turn.lane.ready
                tokens.append(None if row is None else turn.lane.choose(row, self._silence))
        self.decode_steps += 1
        # Who has only fed a part of its question has spoken no token yet.
        spoken = [(turn, token) for turn, token in zip(turns, tokens) if token is not None]
        sighted = {key: stream.sighted for key, stream in streams.items()}
        for turn, _ in spoken:
            self._sight(turn.stream, turn.steps, started)
        for turn, token in spoken:
            stream = turn.stream
            speak = self._narrate if turn.lane is stream.narration else self._answer
            speak(turn.lane, token,
                  _Moment(stream, turn.steps, started, turn.steps > sighted[id(stream)]))
        return True

    def _narration_turn(self, view: LaneView, steps: int) -> _Turn | None:
        """The narrator's turn, if it may speak: the schedule says what its token sees."""
        stream = self._stream
        if not self._config.narrate or self.paused or stream is self._halted:
            return None
        budget = stream.budget
        budget.perceived(steps, stream.over(steps))
        if budget.left <= 0:
            return None
        if stream.scheme.serial:
            return _Turn(stream.narration, stream, None, steps, budget.owner)
        sees = budget.sees
        return _Turn(stream.narration, stream, stream.first(view, sees), sees, budget.owner)

    def _sight(self, stream: Stream, steps: int, started_ns: int) -> None:
        """Tell of the steps that this decode step was the first to see."""
        now = time.monotonic_ns()
        for index in range(stream.sighted, steps):
            self._emit(FirstSight(index, stream.infos[index].stamp_ns, started_ns, now,
                                  stream.number))
        stream.sighted = max(stream.sighted, steps)

    def _narrate(self, lane: TextLane, token: int, moment: _Moment) -> None:
        budget = moment.stream.budget
        resting, reason = budget.in_rest, 'length'
        budget.spend()
        delta = sentence = ''
        if token == self._silence:
            if resting:
                budget.rest()
                reason = 'stop'
        elif token in self._checkpoint.vocabulary.stop:
            # A checkpoint without a silence token ends its turn: the next step opens a new one.
            lane.replace(self._next_turn)
            sentence, reason = lane.text.flush(), 'stop'
            if self._config.single_turn:
                budget.close()
            else:
                budget.rest()
        else:
            delta, sentence = lane.text.add(token)
        final = budget.ended and budget.left <= 0
        if final:
            self._finish(moment, delta, sentence or lane.text.flush(), reason)
        elif delta or sentence:
            self._tell(NARRATION, delta, sentence, moment)

    def _finish(self, moment: _Moment, delta: str, sentence: str, reason: str) -> None:
        """End the narration of a stream: all is said of its video, or no more may be."""
        moment.stream.spoken = True
        self._tell(NARRATION, delta, sentence, moment, final=True, reason=reason)

    def spoken(self, stream: Stream) -> bool:
        """Whether nothing will be said of a stream any more; from any thread."""
        return (not self._config.narrate or self.paused or stream is self._halted
                or stream.spoken)

    def _answer(self, lane: TextLane, token: int, moment: _Moment) -> None:
        reason = ''
        if token in self._checkpoint.vocabulary.stop:
            reason = 'stop'
        elif lane.spoken >= self._config.max_answer_tokens:
            reason = 'length'
        delta, sentence = '', ''
        if token != self._silence and reason != 'stop':
            delta, sentence = lane.text.add(token)
        if reason:
            del self._answers[lane.stream_id]
            self._tell(lane.stream_id, delta, sentence or lane.text.flush(), moment,
                       final=True, reason=reason)
        elif delta:
            self._tell(lane.stream_id, delta, sentence, moment)

    def _end(self, question_id: str, reason: str) -> None:
        """End an answer, or a question that still waits, before its time."""
        answer = self._answers.pop(question_id, None)
        if answer is not None:
            self._tell(question_id, '', '', self._moment_of(answer.stream), final=True,
                       reason=reason)
            return
        waiting = [entry for entry in self._queue if entry.question_id == question_id]
        for entry in waiting:
            self._queue.remove(entry)
            self._tell(question_id, '', '', self._moment_of(self._stream), final=True,
                       reason=reason)

    def _moment_of(self, stream: Stream) -> _Moment:
        return _Moment(stream, stream.sighted, time.monotonic_ns(), False)

    def _tell(self, stream_id: str, delta: str, sentence: str, moment: _Moment,
              final: bool = False, reason: str = '') -> None:
        seq = self._seq.get(stream_id, 0)
        if final and stream_id != NARRATION:
            self._seq.pop(stream_id, None)
            self._open.discard(stream_id)
        else:
            self._seq[stream_id] = seq + 1
        info = moment.stream.infos[moment.steps - 1] if moment.steps else None
        self._emit(TextDelta(
            stream_id=stream_id, seq=seq, delta=delta, sentence=sentence, final=final,
            finish_reason=reason, step=moment.steps - 1, steps_seen=moment.steps,
            frames_seen=info.frames_total if info else 0,
            stamp_ns=info.stamp_ns if info else 0, started_ns=moment.started_ns,
            emitted_ns=time.monotonic_ns(), first_sight=moment.first_sight,
            video=moment.stream.number))


def _shares(pending: list[int]) -> list[int]:
    """How many rows each of the answers may feed now: one each, or what is left for heads."""
    left, shares = _HEAD_ROWS, []
    for rows in pending:
        if rows > 1:
            rows = min(rows, left)
            left -= rows
        shares.append(rows)
    return shares
