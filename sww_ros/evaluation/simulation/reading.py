"""
A log read from outside: what was asked, which video it is, how many frames are unaccounted for.

It goes by inputs and by what was told alone, and knows nothing of how the core keeps its state.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sww_ros.evaluation.simulation.script import Script
from sww_ros.evaluation.simulation.world import Entry, Taken, Told
from sww_ros.streaming.events import (
    NARRATION,
    Event,
    FramesDropped,
    QuestionState,
    Restarted,
    StepPerceived,
    TextDelta,
    Trouble,
)
from sww_ros.streaming.jobs import (
    Asked,
    Carried,
    Closed,
    Decode,
    Decoded,
    Failed,
    Fed,
    Job,
    Open,
    Paused,
    Perceived,
    Prompted,
    Turn,
    Video,
)


class Asking(NamedTuple):
    """A question that is open; `video` is the one it is answered about, None while it waits."""

    question_id: str
    asked_ns: int
    video: int | None = None


@dataclass(slots=True)
class Moment:
    """
    An entry of the log with the state before it, and some of that after it.

    `open` are questions by id, oldest first; `steps` are those told of the current `video`;
    `spoken` says that its narration is over. Of a decode step's turns, `live` says whether they
    count, and `cached` how many steps of their stream there are to be seen: those told, and one
    that came back late with a token of an answer in its pass. `base` counts the steps of the
    video before its current stream.
    """

    entry: Entry
    video: int
    steps: int
    spoken: bool
    ended: bool
    paused: bool
    closed: bool
    prompt: str
    base: int
    open: dict[str, Asking]
    frames: int
    open_after: dict[str, Asking] | None = None
    frames_after: int = 0
    cached: tuple[int, ...] = ()
    live: tuple[bool, ...] = ()

    @property
    def what(self) -> str:
        """The entry in a word or two, the same in every run."""
        if isinstance(self.entry, Told):
            return type(self.entry.given).__name__
        return ' + '.join(type(job).__name__ for job in getattr(self.entry, 'jobs', ())) or 'rest'


class Reading:
    """
    The moments of a log: all, `told` and `taken` and `rests` apart, and `events` one by one.

    `clips` gives the clip of each frame, by its stamp; `steps_of` the steps of each video, as
    (frames up to it, its stamp).
    """

    def __init__(self, script: Script, log: Sequence[Entry]) -> None:
        self.script, self.settings = script, script.settings
        self.moments: list[Moment] = []
        self.told: list[Moment] = []
        self.taken: list[Moment] = []
        self.rests: list[Moment] = []
        self.events: list[tuple[Moment, Event]] = []
        self.clips: dict[int, int] = {}
        self.steps_of: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._video = self._steps = self._frames = self._clip = 0
        self._spoken = self._ended = self._paused = self._closed = False
        self._prompt = 'p0'
        self._open: dict[str, Asking] = {}
        self._ridden: set[Job | None] = set()
        self._stream: Video | None = None
        self._coming: Video | None = None
        self._cached: Counter[Video] = Counter()
        for entry in log:
            moment = Moment(entry, self._video, self._steps, self._spoken, self._ended,
                            self._paused, self._closed, self._prompt,
                            self._stream.base if self._stream else 0, self._open, self._frames)
            if type(entry) is Told:
                self._read(moment, entry)
                self.told.append(moment)
            elif type(entry) is Taken:
                self._see(moment, entry.jobs)
                self.taken.append(moment)
            else:
                self.rests.append(moment)
            self.moments.append(moment)
            moment.open_after, moment.frames_after = self._open, self._frames

    def summary(self) -> tuple:
        """What is open, unaccounted for and over at the end of the log."""
        waiting = tuple((name, asking.video is None) for name, asking in self._open.items())
        return waiting, self._frames, self._spoken, self._ended, self._paused, self._closed

    def _see(self, moment: Moment, jobs: Sequence[Job]) -> None:
        job = jobs[-1]
        if type(job) is Open:
            if job.source is None:
                self._stream = job.video
            else:
                self._coming = job.video
        elif type(job) is Decode:
            self._ridden.add(job.riding)
            moment.live = tuple(map(self._is_live, job.turns))
            moment.cached = tuple(
                self._cached[turn.video]
                + (job.riding is not None and job.riding.video is turn.video)
                for turn in job.turns)

    def _is_live(self, turn: Turn) -> bool:
        """Whether a turn is the current narrator's, or an open question's."""
        if turn.question is None:
            return turn.video is self._stream and not self._spoken
        asking = self._open.get(turn.question.question_id)
        return (asking is not None and asking.video is not None
                and asking.asked_ns == turn.question.asked_ns)

    def _read(self, moment: Moment, entry: Told) -> None:
        given = entry.given
        kind = type(given)
        if kind is Decoded:
            moment.live = tuple(map(self._is_live, given.job.turns))
        elif kind is Failed:
            moment.live = tuple(self._is_live(turn) for job in given.jobs
                                if hasattr(job, 'turns') for turn in job.turns)
        elif kind is Perceived and (given.job.video.number == self._video
                                    or given.job in self._ridden):
            self._cached.update(each for each in (given.job.video, given.job.also) if each)
            steps, frames = self.steps_of[given.job.video.number], given.job.frames
            steps.append(((steps[-1][0] if steps else 0) + len(frames), frames[-1].stamp_ns))
        elif kind is Carried:
            self._cached[given.job.video] += 1
        if not self._closed:
            self._take_in(entry, given, kind)
        for event in entry.events:
            self.events.append((moment, event))
            if read := _READ.get(type(event)):
                read(self, event)
        if kind is Closed:
            self._closed = True
        elif kind is Perceived and moment.video == self._video == given.job.video.number:
            self._ended |= given.job.last

    def _take_in(self, entry: Told, given: object, kind: type) -> None:
        if kind is Fed:
            self.clips[given.frame.stamp_ns] = self._clip
            self._clip += given.frame.last
            self._frames += 1
        elif kind is Asked and not entry.refused:
            self._open = {**self._open,
                          given.question_id: Asking(given.question_id, entry.now)}
        elif kind is Paused:
            self._paused = given.paused
        elif kind is Prompted:
            self._prompt = given.prompt

    def _restarted(self, event: Restarted) -> None:
        if event.reason == 'relay':
            self._stream, self._coming = self._coming, None
        else:
            self._video, self._steps, self._spoken, self._ended = event.video, 0, False, False
            self._stream = self._coming = None

    def _step(self, event: StepPerceived) -> None:
        self._steps += 1
        self._frames -= event.frames

    def _dropped(self, event: FramesDropped) -> None:
        self._frames -= event.count

    def _text(self, event: TextDelta) -> None:
        if not event.final:
            return
        if event.stream_id == NARRATION:
            self._spoken = True
        else:
            self._end(event.stream_id)

    def _question(self, event: QuestionState) -> None:
        if event.state == 'rejected':
            self._end(event.question_id)
        elif event.state == 'answering' and event.question_id in self._open:
            self._open = {**self._open, event.question_id: self._open[event.question_id]._replace(
                video=self._video)}

    def _trouble(self, event: Trouble) -> None:
        self._closed |= event.fatal

    def _end(self, question_id: str) -> None:
        self._open = {key: value for key, value in self._open.items() if key != question_id}


_READ = {Restarted: Reading._restarted, StepPerceived: Reading._step,
         FramesDropped: Reading._dropped, TextDelta: Reading._text,
         QuestionState: Reading._question, Trouble: Reading._trouble}
