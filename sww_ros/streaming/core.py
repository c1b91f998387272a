"""
The core of a session: the one place where anything is decided, and where nothing is computed.

A pure state machine in the way of h11: no thread, lock, clock, randomness or tensor. All that
affects its state is in this file and in what it owns (frames.py, relay.py, the budget of
schedule.py). `handle(input)` is the only transition, and returns what to tell the listener.
`next_perception`, `next_piece` and `next_decode` hand out jobs that are derived from the state, so
there is no wake-up to lose: whoever runs jobs asks again after every input. At most one decode
step and one other job are out at a time; or as many steps as the executor takes ahead, which come
back in the order in which they were handed out.
What comes back about a video or a question that has been forgotten meanwhile changes nothing.

Calls need one lock around each of them; jobs run outside of it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
import copy
from dataclasses import dataclass
from math import inf
from typing import Any, cast

from sww_ros.streaming.config import SessionConfig
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
)
from sww_ros.streaming.gate import gate_of
from sww_ros.streaming.jobs import (
    Again,
    Asked,
    Cancelled,
    Carried,
    Carry,
    Closed,
    Decode,
    Decoded,
    Failed,
    Fed,
    Frame,
    Input,
    Job,
    Open,
    Opened,
    Paused,
    PendingFrames,
    Perceive,
    Perceived,
    Prompted,
    Question,
    Reset,
    Spoken,
    Ticked,
    Turn,
    Video,
    Word,
    Words,
)
from sww_ros.streaming.recall import Past, StepInfo
from sww_ros.streaming.relay import Relay, is_abreast, next_piece, next_recalled, owed, take_over
from sww_ros.streaming.schedule import NarrationBudget, make_schedule

MAX_FAILURES = 3
"""Failures in a row of one side that are survived; one more is fatal."""
CARRIED_CHARACTERS = 2000
"""Of what was said, so much of its beginning and of its end is carried: about 512 tokens each."""
CAP_STEPS = 4
"""How many steps' worth of live narration may be owed before the oldest is forfeited."""


@dataclass(frozen=True)
class _Moment:
    """What a piece of text could see of a video, and when its decode step began."""

    video: Video
    steps: int
    started_ns: int
    first_sight: bool = False


class Core:
    """
    Watches one video after the other, narrates the newest, and answers questions about them.

    :param config: the session's settings, of which those of the model and the machine are not read
    :param serial: whether the video's positions depend on the text, so that a step can only be
        perceived once all that may be said has been said
    :param perceptions: how many steps may be handed out before the first of them comes back
    :param steps_per_turn: how many steps come before they are spoken about
    :param first_turn: so many they are at the beginning of a stream; 0: as many
    :param carries_text: whether a stream that begins anew as it was full is told what was said
    :param relay: when streams are relieved; without, the video begins anew when one is full
    """

    def __init__(self, config: SessionConfig, *, prompt: str, wait_k: int, max_steps: int,
                 frames_per_step: int, serial: bool = False, perceptions: int = 1,
                 relay: Relay | None = None, steps_per_turn: int = 1,
                 first_turn: int = 0, carries_text: bool = False) -> None:
        self.prompt, self.wait_k, self.max_steps, self.serial = prompt, wait_k, max_steps, serial
        self.paused = self.closed = False
        self._config, self._perceptions = config, perceptions
        self._per_turn, self._carries_text = (steps_per_turn, first_turn), carries_text
        self._frames = PendingFrames(frames_per_step, config.max_pending_frames)
        self._relay, self._streams, self._pieces = relay, 0, 0
        self.video = self._make_video(0)
        self._answers: dict[str, Question] = {}
        self._queue: deque[Question] = deque()
        self._perceiving: list[Open | Perceive | Carry] = []
        self._decoding: Decode | None = None
        self._decoded: deque[tuple[int, int]] = deque(maxlen=4096)
        self._decodes_first = 0
        self._failures: Counter[str] = Counter()
        self._seq: dict[str, int] = {}
        self._events: list[Event] = []
        self._now = self._blind_ns = 0
        self._step_tokens = 0

    # What is asked of it.

    def handle(self, given: Input, now_ns: int) -> list[Event]:
        """
        Take an input that came at `now_ns`; return what to tell the listener, in order.

        :raises ValueError: for a question whose id is in use; nothing has changed then
        """
        self._now = now_ns
        if isinstance(given, (Opened, Perceived, Carried)):
            self._perceiving.remove(given.job)
        elif isinstance(given, Decoded):
            self._decoding = None
        elif isinstance(given, Failed):
            self._perceiving = [job for job in self._perceiving if job not in given.jobs]
            self._decoding = None if self._decoding in given.jobs else self._decoding
        if not self.closed:
            _HANDLERS[type(given)](self, given)
            self._admit()  # Before the video is left of which a step was waited for.
            self._relieve()  # Before it is left for lack of room.
            self._begin_next_video()
        events, self._events = self._events, []
        return events

    def next_perception(self, shared: bool = False) -> Open | Perceive | Carry | None:
        """
        Hand out what is to be perceived now, if anything; it is out until it comes back.

        A piece of a successor goes before a step that waits where it can wait no longer.

        :param shared: whether others wait for the pass too: a successor then has the step by a
            piece, once nobody waits
        """
        if not self._may_perceive:
            return None
        video = self.video
        if self._is_piece_first:
            return self.next_piece()
        if not video.opened:
            return self._hand_out(Open(video))
        if self._is_full:
            return None
        frames, self._pieces = self._frames.take(), 0
        # A stream that is only spoken of at its end has to end once it is full.
        full = (self._config.schedule == 'offline'
                and len(video.steps) + len(self._perceiving) + 1 >= self.max_steps)
        beside = is_abreast(video) and not shared
        return self._hand_out(Perceive(video, frames, frames[-1].last or full,
                                       video.successor if beside else None))

    def next_piece(self) -> Open | Carry | None:
        """
        Hand out a piece of the preparation of a successor, which frames go before.

        Or, once that is abreast, of a stream that is made for an answer.
        """
        if not self.piece_tokens:
            return None
        piece = next_piece(self.video) or next_recalled(self._recalling[0], self.video)
        self._pieces += 1
        self._hand_out(piece)
        return piece

    def _hand_out(self, job: Open | Perceive | Carry) -> Open | Perceive | Carry:
        self._perceiving.append(job)
        return job

    def next_decode(self, now_ns: int, riding: Perceive | None = None) -> Decode | None:
        """
        Hand out the next decode step, if there is anything to say; it is out until it comes back.

        :param riding: the step in whose pass it goes, which its turns may see already
        """
        if self.closed or self._decoding is not None or (self.serial and self._perceiving):
            return None
        turns, again = self._turns(riding), self._again_due if riding is None else None
        if turns or again:
            self._decoding = Decode(tuple(turns), now_ns, riding, self._words_due(turns), again)
            return self._decoding
        return None

    @property
    def prefers_perception(self) -> bool:
        """
        Whether one thread that could do either should perceive.

        A step is perceived between two tokens of a sentence; but where the next step waited
        already when the last one was perceived, that one gets its tokens first, if there are any:
        those of others that share the executor are not waited for.
        """
        return not (self._decodes_first and self._turns())

    @property
    def tokens_due(self) -> float:
        """
        How many visual tokens the step has that is perceived next; 0 if nothing is.

        Those of a piece, where that goes first. Infinite: what goes into a pass of its own, a
        prefix, or a step of unknown size.
        """
        if not self._may_perceive:
            return 0
        if self._is_piece_first:
            return self.piece_tokens
        if not self.video.opened:
            return inf
        return 0 if self._is_full else self._step_tokens or inf

    @property
    def piece_tokens(self) -> float:
        """How many visual tokens the next piece has, as `tokens_due` has it; 0 if none is due."""
        stream = self._piece_stream
        if stream is None or self.closed or self._perceiving or self._is_piece_held:
            return 0
        return self._step_tokens or inf if stream.opened else inf

    @property
    def frames_due(self) -> tuple[Frame, ...]:
        """
        The frames of the step that is perceived next, where those before had a size.

        None of a step that the next frame may have dropped: it would be looked at for nothing.
        """
        if self._is_piece_first or self._frames.full or not 0 < self.tokens_due < inf:
            return ()
        return self._frames.first

    @property
    def at_rest(self) -> bool:
        """Whether nothing goes on, nothing would without another input, and no question waits."""
        return self.closed or not (
            self._perceiving or self._decoding or self._queue or self._perception_due
            or self._piece_due or self._turns() or self._again_due)

    @property
    def deadline_ns(self) -> int | None:
        """When to send `Ticked`: a question then has waited too long for something to see."""
        timeout_ns = round(self._config.question_timeout_s * 1e9)
        if self.closed or not timeout_ns or not self._queue:
            return None
        sees_soon = self.video.steps or self._frames.complete or any(
            isinstance(job, Perceive) and self._concerns(job) for job in self._perceiving)
        return None if sees_soon else max(self._queue[0].asked_ns, self._blind_ns) + timeout_ns

    @property
    def open_questions(self) -> list[str]:
        """Ids of the questions that are not answered yet, oldest first."""
        return [*self._answers, *(question.question_id for question in self._queue)]

    # What may be done now, derived from the state.

    @property
    def _perception_due(self) -> bool:
        video = self.video
        if self.closed or (self.serial and self._decoding):
            return False
        if not video.opened:
            return True
        if not self._frames.complete or (video.ended and self._is_owed(video)):
            return False
        return not (self.serial and self._turns())

    @property
    def _may_perceive(self) -> bool:
        return self._perception_due and (not self._perceiving or self._may_look_ahead)

    @property
    def _may_look_ahead(self) -> bool:
        """Whether the next step follows those that are out, whatever they will come back with."""
        video, out = self.video, self._perceiving
        room = self._relay.capacity if self._relay else self.max_steps
        return (len(out) < self._perceptions and not self.serial and not self._frames.cut
                and video.successor is None and len(video.steps) + len(out) < room
                and all(isinstance(job, Perceive) and job.video is video and not job.last
                        for job in out))

    @property
    def _piece_stream(self) -> Video | None:
        """The stream of which a piece is missing, if there is one."""
        successor = self.video.successor
        if successor is not None and not is_abreast(self.video):
            return successor
        return next(iter(self._recalling), None)

    @property
    def _piece_due(self) -> bool:
        return not self.closed and self._piece_stream is not None

    @property
    def _is_piece_first(self) -> bool:
        """Whether a piece goes before a step that waits."""
        relay = self._relay
        return bool(relay and self._piece_due and not self._is_piece_held
                    and (self._is_full or self._pieces < relay.pieces))

    @property
    def _is_piece_held(self) -> bool:
        """Whether a successor's words are being written, which a piece would write again."""
        words = self._decoding and self._decoding.words
        return bool(words and words.video is self.video.successor)

    @property
    def _recalling(self) -> list[Video]:
        """The streams that are made for answers, and are not ready."""
        videos = (cast(Video, question.video) for question in self._answers.values())
        return [video for video in videos if not video.is_ready]

    @property
    def _is_full(self) -> bool:
        return len(self.video.steps) >= self.max_steps

    def _concerns(self, job: Open | Perceive | Carry) -> bool:
        """Whether a job is about the stream that is spoken of now."""
        return self.video is job.video or (
            isinstance(job, Perceive) and self.video is job.also)

    def _words_due(self, turns: list[Turn]) -> Words | None:
        """What to put into a narration lane beside the narration's turn, or before it."""
        video = self.video
        if all(turn.question for turn in turns):
            return None
        if video.fed < len(video.words):
            return Words(video, tuple(video.words[video.fed:]))
        if is_abreast(video) and (words := owed(video)).words:
            return words
        return None

    def _is_owed(self, video: Video) -> bool:
        """Whether something is left to say of a video that has ended."""
        return self._config.narrate and not video.spoken

    @property
    def _again_due(self) -> Again | None:
        """What has been said, where its weight says whether the newest step is news."""
        video = self.video
        if self.paused or video.spoken or video.gate.weighs is None or not video.steps:
            return None
        return Again(video, video.gate.weighs, len(video.steps))

    def _turns(self, riding: Perceive | None = None) -> list[Turn]:
        """Who speaks in the next decode step; one video's speakers side by side."""
        narration = self._narration_turn(riding)
        turns = [narration] if narration else []
        for question in self._answers.values():
            video = cast(Video, question.video)  # It has one while it is answered.
            if not video.is_ready:
                continue
            ahead = riding is not None and riding.video is video
            turns.append(Turn(video, question, len(video.steps) + ahead, owner=1))
        return sorted(turns, key=lambda turn: turn.video.number)

    def _narration_turn(self, riding: Perceive | None) -> Turn | None:
        """The narrator's turn, if it may speak: the schedule says what its token sees."""
        video = self.video
        if not self._config.narrate or self.paused or not video.gate.awake:
            return None
        budget = video.budget
        if riding is not None and riding.video is video:
            budget = copy.copy(budget)
            budget.perceived(len(video.steps) + 1, riding.last)
        if budget.left <= 0:
            return None
        return Turn(video, None, budget.steps if self.serial else budget.sees, budget.owner)

    # Inputs.

    def _fed(self, given: Fed) -> None:
        if self.paused:
            self._frames.cut |= given.frame.last
            self._drop('paused', 1)
        else:
            self._drop('overrun', self._frames.put(given.frame))

    def _asked(self, given: Asked) -> None:
        question_id = given.question_id
        if question_id == NARRATION or question_id in self.open_questions:
            raise ValueError(f'the id {question_id!r} is in use: give each question its own')
        config = self._config
        taken = len(self._answers) + len(self._queue)
        if taken >= config.max_answers:
            if config.question_policy == 'interrupt':
                self._end(self.open_questions[0], 'interrupted')
            elif (config.question_policy == 'reject'
                  or taken >= config.max_answers + config.max_queued):
                self._tell(QuestionState(
                    question_id, 'rejected',
                    f'{len(self._answers)} questions are being answered and '
                    f'{len(self._queue)} wait: ask again later'))
                return
        self._queue.append(Question(question_id, given.head, self._now, given.about))
        if reason := self._why_queued():
            self._tell(QuestionState(question_id, 'queued', reason))

    def _why_queued(self) -> str:
        """In words, why the last question waits; empty if it does not."""
        if not self.video.steps:
            timeout_s = self._config.question_timeout_s
            return ('nothing has been seen yet: the answer begins with the first step of video'
                    + (f', or the question ends after {timeout_s:g} s' if timeout_s else ''))
        if len(self.open_questions) > self._config.max_answers:
            return f'{len(self._answers)} questions are being answered: it waits for its turn'
        return ''

    def _cancelled(self, given: Cancelled) -> None:
        self._end(given.question_id, 'cancelled')

    def _prompted(self, given: Prompted) -> None:
        self.prompt = given.prompt
        self._drop('reset', self._frames.clear())
        self._switch('prompt')

    def _reset(self, given: Reset) -> None:
        self._forget('reset')

    def _paused(self, given: Paused) -> None:
        self.paused = given.paused
        if self.paused:
            self._drop('paused', self._frames.clear())

    def _ticked(self, given: Ticked) -> None:
        while self.deadline_ns is not None and self.deadline_ns <= self._now:
            self._end(self._queue[0].question_id, 'no_video')

    def _closed(self, given: Closed) -> None:
        self._close('cancelled')

    # Jobs that come back.

    def _opened(self, given: Opened) -> None:
        given.job.video.opened = True

    def _perceived(self, given: Perceived) -> None:
        job, video, frames = given.job, given.job.video, given.job.frames
        self._failures['perception'] = 0
        is_current, index = self._concerns(job), len(video.steps)
        if is_current or (self._decoding and self._decoding.riding is job):
            before = video.steps[-1].frames_total if video.steps else 0
            for stream in (video, job.also) if job.also else (video,):
                stream.steps.append(StepInfo(frames[-1].stamp_ns, before + len(frames)))
            video.past.perceived(video.steps[-1])
        if not is_current:
            return  # Its frames were dropped when it was forgotten; answers in its pass saw it.
        current, self._step_tokens = self.video, given.tokens
        self._decodes_first = self.wait_k if self._frames.complete else 0
        current.ended = job.last
        if job.last:
            current.successor = None
        current.budget.perceived(len(current.steps), current.ended)
        current.gate.stepped(given.changed)
        self._tell(StepPerceived(
            index=video.base + index, stamp_ns=frames[-1].stamp_ns, frames=len(frames),
            received_ns=frames[-1].received_ns, fed_ns=frames[-1].fed_ns,
            started_ns=given.started_ns, preprocessed_ns=given.preprocessed_ns,
            vision_ns=given.vision_ns, perceived_ns=given.perceived_ns,
            overlap_ns=self._overlap_ns(given), video=video.number, tokens=given.tokens))
        self._rest()

    def _rest(self) -> None:
        """Have nothing said about steps that are no news."""
        video = self.video
        if video.gate.awake or video.gate.weighs is not None:
            return
        video.budget.rest()
        # Nobody is to see them: the first word about a later one has not been late.
        video.sights.count = max(video.sights.count, video.base + len(video.steps))
        if video.ended and not video.spoken:
            video.spoken = True
            self._tell_text(NARRATION, self._moment_of(video), reason='stop')

    def _carried(self, given: Carried) -> None:
        job = given.job
        if job.video is self.video.successor:
            job.video.steps.append(job.source.steps[job.index])
            job.video.fed += len(job.words)
        elif job.video.beside:
            job.video.steps.append(job.video.recalled[job.index])
            job.video.beside = None if job.video.is_ready else job.video.beside

    def _overlap_ns(self, given: Perceived) -> int:
        """How long decoding ran too while a step was perceived by a thread of its own."""
        start, stop = given.started_ns, given.perceived_ns
        found = 0
        if self._decoding and self._decoding.riding is not given.job:
            found = max(0, stop - max(self._decoding.started_ns, start))
        for begin, end in reversed(self._decoded):
            if end <= start:
                break  # As have those before it.
            found += max(0, min(end, stop) - max(begin, start))
        return found

    def _was_decoded(self, given: Decoded) -> None:
        job = given.job
        self._failures['decoding'] = 0
        self._decodes_first = max(0, self._decodes_first - 1)
        self._decoded.append((job.started_ns, given.decoded_ns))
        live = [(turn, spoken) for turn, spoken in zip(job.turns, given.spoken, strict=True)
                if self._is_live(turn)]
        if job.words:
            job.words.video.fed += len(job.words.words)
        sighted = {turn.video.sights: turn.video.sights.count for turn, _ in live}
        for turn, _ in live:
            self._sight(turn, job.started_ns, given.decoded_ns)
        for turn, spoken in live:
            if spoken is not None:
                video = turn.video
                moment = _Moment(video, turn.sees, job.started_ns,
                                 video.base + turn.sees > sighted[video.sights])
                if turn.question is None:
                    self._narrate(turn, spoken, moment)
                else:
                    self._answer(turn.question, spoken, moment)
        if job.again and self._is_weighed(job.again):
            self.video.gate.weighed(job.again.said, given.surprise)
            self._rest()

    def _is_weighed(self, again: Again) -> bool:
        """Whether the weight of tokens still matters, to this stream or the one before it."""
        gate = self.video.gate
        return again.video.gate is gate and gate.weighs is not None

    def _is_live(self, turn: Turn) -> bool:
        if turn.question is None:
            return turn.video is self.video and not turn.video.spoken
        return self._answers.get(turn.question.question_id) is turn.question

    def _sight(self, turn: Turn, started_ns: int, decoded_ns: int) -> None:
        """Tell of the steps that this decode step was the first to see."""
        video, sights = turn.video, turn.video.sights
        end = video.base + turn.sees
        for index in range(max(sights.count, video.base), end):
            stamp_ns = video.steps[index - video.base].stamp_ns
            self._tell(FirstSight(index, stamp_ns, started_ns, decoded_ns, video.number))
        sights.count = max(sights.count, end)

    def _narrate(self, turn: Turn, spoken: Spoken, moment: _Moment) -> None:
        video, budget = turn.video, turn.video.budget
        video.words.append(Word(spoken.token, turn.owner, turn.sees))
        video.fed += 1
        video.unfinished = bool(spoken.unfinished)
        video.said += spoken.delta if self._carries_text else ''
        if spoken.sentence and self._relay and self._relay.sentences:
            video.told.append((video.base + turn.owner, spoken.sentence))
        if spoken.unfinished or spoken.sentence:
            video.past.spoken(spoken.token, video.base + turn.owner, video.unfinished)
        resting, reason = budget.in_rest, 'length'
        budget.spend()
        delta, sentence = video.gate.said(spoken)
        if spoken.kind == 'silence' and resting:
            budget.rest()
            reason = 'stop'
        elif spoken.kind == 'stop':
            # A checkpoint without a silence token ends its turn: the next step opens a new one.
            reason = 'stop'
            if self._config.single_turn:
                budget.close()
            else:
                budget.rest()
        if not video.gate.awake and video.gate.weighs is None:
            budget.rest()
            reason = 'stop'
        if budget.ended and budget.left <= 0:
            video.spoken = True
            self._tell_text(NARRATION, moment, delta or video.gate.let_go(),
                            sentence or spoken.unfinished, reason)
        elif delta or sentence:
            self._tell_text(NARRATION, moment, delta, sentence)

    def _answer(self, question: Question, spoken: Spoken, moment: _Moment) -> None:
        question.spoken += 1
        reason = 'stop' if spoken.kind == 'stop' else ''
        if not reason and question.spoken >= self._config.max_answer_tokens:
            reason = 'length'
        if reason:
            del self._answers[question.question_id]
            self._tell_text(question.question_id, moment, spoken.delta,
                            spoken.sentence or spoken.unfinished, reason)
        elif spoken.delta:
            self._tell_text(question.question_id, moment, spoken.delta, spoken.sentence)

    def _failed(self, given: Failed) -> None:
        """Tell of it; all that is live is given up, so that nothing is tried for ever."""
        side = 'decoding' if isinstance(given.jobs[0], Decode) else 'perception'
        self._failures[side] += 1
        fatal = given.fatal or self._failures[side] > MAX_FAILURES
        relevant = fatal
        for job in given.jobs:
            if isinstance(job, Decode):
                relevant |= any(map(self._is_live, job.turns)) or bool(
                    job.again and self._is_weighed(job.again))
            elif self._concerns(job):
                relevant = True
                self._drop('bad', _count(job))
            elif job.video is self.video.successor:
                # The stream goes on as it is, and is not relieved.
                self.video.successor, self.video.alone = None, True
            elif job.video.beside:
                self._recall_no_more(job.video)
        self._tell(Trouble(given.message, '', fatal))
        if fatal:
            self._close('error')
        elif relevant:
            self._forget('error')

    # What follows from them.

    def _relieve(self) -> None:
        """Have a stream that nears its capacity relieved, once that cuts nothing."""
        if self._relay is None or self.video.ended:
            return
        if is_abreast(self.video) and self._may_hand_over():
            self.video = take_over(self.video)
            self._tell(Restarted('relay', self.video.number))
        video = self.video
        if (video.successor is None and not video.alone
                and len(video.steps) >= self._relay.capacity):
            self._streams += 1
            video.successor = self._relay.successor(video, self._streams)

    def _may_hand_over(self) -> bool:
        """Between two sentences; within one only where a step waits and there is no room."""
        video = self.video
        if self._decoding and any(turn.question is None for turn in self._decoding.turns):
            return False  # Its token goes on from the lane that is to be left.
        if any(isinstance(job, Perceive) and job.video is video and job.also is None
               for job in self._perceiving):
            return False  # The step would be in the lane that is to be left alone.
        if not self._config.narrate or video.spoken or self._is_full and self._frames.complete:
            return True
        # What is said next has to be about a step that the successor has.
        successor = video.successor
        return (successor is not None and not video.unfinished
                and video.budget.owner > successor.first)

    def _begin_next_video(self) -> None:
        """Turn to another video, once its first step is there and the last one is told of."""
        video = self.video
        if self._perceiving or not self._perception_due:
            return
        if video.ended or (self._frames.cut and video.steps):
            self._switch('ended')
        elif self._is_full and video.successor is None:
            self._switch('capacity')

    def _admit(self) -> None:
        """Begin to answer questions that wait, once there is something to see."""
        if not self.video.steps or (self.serial and self._perceiving):
            return
        while self._queue and len(self._answers) < self._config.max_answers:
            question = self._queue.popleft()
            question.video = self._stream_for(question)
            self._answers[question.question_id] = question
            self._tell(QuestionState(question.question_id, 'answering', ''))

    def _stream_for(self, question: Question) -> Video:
        """The stream that there is, or one that is to be made of what has left it."""
        if self._relay is None or not self.video.past.limit:
            return self.video
        self._streams += 1
        return self._relay.recalling(self.video, self._streams, question.about) or self.video

    def _recall_no_more(self, *videos: Video) -> None:
        """Have what was to be answered from the past answered from what was there beside it."""
        for question in self._answers.values():
            if question.video in videos:
                question.video = cast(Video, question.video).beside

    def _forget(self, reason: str) -> None:
        """End all that is asked, and begin anew."""
        self._end_all(reason)
        self._drop('reset', self._frames.clear())
        self._switch(reason)

    def _switch(self, reason: str) -> None:
        """Begin another video; a narration that is not over is cut."""
        old = self.video
        if old.steps:
            self._blind_ns = self._now
        old.successor = None
        self._recall_no_more(*self._recalling)  # What they are made of goes with the video.
        self._drop('reset', self._looked_at)
        if self._config.narrate and not old.spoken:
            self._tell_text(NARRATION, self._moment_of(old), reason=reason)
        self.video, self._step_tokens = self._make_video(old.number + 1), 0
        if self._carries_text and reason == 'capacity':
            said = old.said_before + old.said
            self.video.said_before = (said if len(said) <= 2 * CARRIED_CHARACTERS else
                                      said[:CARRIED_CHARACTERS] + said[-CARRIED_CHARACTERS:])
            self.video.elapsed = old.elapsed + len(old.steps)
        self._tell(Restarted(reason, self.video.number))

    def _close(self, reason: str) -> None:
        self._end_all(reason)
        self._drop('closed', self._frames.clear() + self._looked_at)
        self.closed = True

    @property
    def _looked_at(self) -> int:
        """How many frames of the current video are being perceived."""
        return sum(_count(job) for job in self._perceiving if self._concerns(job))

    def _end_all(self, reason: str) -> None:
        for question_id in self.open_questions:
            self._end(question_id, reason)

    def _end(self, question_id: str, reason: str) -> None:
        """End an answer, or a question that still waits, before its time."""
        answer = self._answers.pop(question_id, None)
        waiting = [question for question in self._queue if question.question_id == question_id]
        for question in waiting:
            self._queue.remove(question)
        if answer or waiting:
            video = answer.video if answer and answer.video else self.video
            self._tell_text(question_id, self._moment_of(video), reason=reason)

    def _make_video(self, number: int) -> Video:
        config = self._config
        schedule = make_schedule(config.schedule, self.wait_k, config.schedule_seed,
                                 *self._per_turn)
        cap = CAP_STEPS * self.wait_k if config.schedule == 'live' else None
        self._streams += 1
        relay = self._relay
        return Video(number, self.prompt, NarrationBudget(schedule, cap, config.max_rest_tokens),
                     self._streams, past=Past(config.recall_steps, relay.memory if relay else 0),
                     gate=gate_of(config))

    def _moment_of(self, video: Video) -> _Moment:
        sighted = min(video.sights.count - video.base, len(video.steps))
        return _Moment(video, max(0, sighted), self._now)

    # What is told.

    def _tell(self, event: Event) -> None:
        self._events.append(event)

    def _drop(self, reason: str, count: int) -> None:
        if count:
            self._tell(FramesDropped(reason, count))

    def _tell_text(self, stream_id: str, moment: _Moment, delta: str = '', sentence: str = '',
                   reason: str = '') -> None:
        """Tell a piece of text, which is the last of its stream if there is a `reason`."""
        seq = self._seq.pop(stream_id, 0)
        if not reason or stream_id == NARRATION:  # Which goes on being numbered over its ends.
            self._seq[stream_id] = seq + 1
        video, steps = moment.video, moment.steps
        info = video.steps[steps - 1] if steps else StepInfo(0, 0)
        steps += video.base if steps else 0
        self._tell(TextDelta(
            stream_id=stream_id, seq=seq, delta=delta, sentence=sentence, final=bool(reason),
            finish_reason=reason, step=steps - 1, steps_seen=steps,
            frames_seen=info.frames_total, stamp_ns=info.stamp_ns,
            started_ns=moment.started_ns, emitted_ns=self._now,
            first_sight=moment.first_sight, video=video.number))


def _count(job: Job) -> int:
    """How many frames a job holds."""
    return len(job.frames) if isinstance(job, Perceive) else 0


_HANDLERS: dict[type, Callable[[Core, Any], None]] = {
    Fed: Core._fed, Asked: Core._asked, Cancelled: Core._cancelled, Prompted: Core._prompted,
    Reset: Core._reset, Paused: Core._paused, Ticked: Core._ticked, Closed: Core._closed,
    Opened: Core._opened, Perceived: Core._perceived, Carried: Core._carried,
    Decoded: Core._was_decoded, Failed: Core._failed}
