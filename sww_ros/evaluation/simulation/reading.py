"""
A log read from outside: what was asked, which video it is, how many frames are unaccounted for.

It goes by inputs and by what was told alone, and knows nothing of how the core keeps its state.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from sww_ros.evaluation.simulation.world import Entry, Script, Taken, Told
from sww_ros.streaming import events, jobs
from sww_ros.streaming.gate import gate_of
from sww_ros.streaming.schedule import Schedule, make_schedule


class Asking(NamedTuple):
    """A question that is open; `video` is the one it is answered about, None while it waits."""

    question_id: str
    asked_ns: int
    video: int | None = None


@dataclass(slots=True)
class Moment:
    """
    An entry of the log with the state before it, and some of that after it.

    Of an entry, `given` is the input that came, if one did, with the `events` that were told, or
    `jobs` those that were taken. `open` are questions by id, oldest first; `steps` are those told
    of the current `video`; `spoken` says that its narration is over. Of a decode step's turns,
    `live` says whether they count, `counted` is what was said in those, and `cached` how many
    steps of their stream there are to be seen: those told, and one that came back late with a
    token of an answer in its pass. `base` counts the steps of the video before its current stream,
    `awake` says whether its narration may speak by its gate; `out` are the jobs that are computed
    beside those of the entry. `weighed` says that what was said last was weighed, and that it
    counts; `rests` that the narration has nothing to say of the steps so far.
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
    awake: bool
    open: dict[str, Asking]
    frames: int
    open_after: dict[str, Asking] = field(default_factory=dict)
    frames_after: int = 0
    rests: bool = False
    weighed: bool = False
    cached: tuple[int, ...] = ()
    live: tuple[bool, ...] = ()
    given: jobs.Input | None = None
    counted: Sequence[tuple[jobs.Turn, jobs.Spoken]] = ()
    events: Sequence[events.Event] = ()
    jobs: Sequence[jobs.Job] = ()
    out: Sequence[jobs.Job] = ()

    @property
    def what(self) -> str:
        """The entry in a word or two, the same in every run."""
        if self.given is not None:
            return type(self.given).__name__
        return ' + '.join(type(job).__name__ for job in self.jobs) or 'rest'

    def of(self, kind: type) -> list:
        """Return the events of a kind, or the jobs."""
        found = self.events or self.jobs
        return [one for one in found if type(one) is kind] if found else []

    def restarts(self, *reasons: str) -> list[events.Restarted]:
        """Return what began anew for one of some reasons."""
        return [event for event in self.of(events.Restarted) if event.reason in reasons]


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
        self.events: list[tuple[Moment, events.Event]] = []
        self._events: dict[type, list[tuple[Moment, Any]]] = defaultdict(list)
        self._inputs: dict[type, list[Moment]] = defaultdict(list)
        self.clips: dict[int, int] = {}
        self.steps_of: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._video = self._steps = self._frames = self._clip = 0
        self._spoken = self._ended = self._paused = self._closed = False
        self._prompt = 'p0'
        self._open: dict[str, Asking] = {}
        self._ridden: set[jobs.Job | None] = set()
        self._out: list[jobs.Job] = []
        self._stream: jobs.Video | None = None
        self._coming: jobs.Video | None = None
        self._cached: Counter[jobs.Video] = Counter()
        self._gate = gate_of(self.settings)
        self.read(log)

    def read(self, log: Sequence[Entry]) -> None:
        """Go on with more of the log."""
        for entry in log:
            moment = Moment(entry, self._video, self._steps, self._spoken, self._ended,
                            self._paused, self._closed, self._prompt,
                            self._stream.base if self._stream else 0, self._gate.awake,
                            self._open, self._frames)
            if type(entry) is Told:
                moment.given, moment.events = entry.given, entry.events
                done = getattr(entry.given, 'jobs', None) or [getattr(entry.given, 'job', None)]
                self._out = moment.out = [job for job in self._out if job not in done]
                self._read(moment, entry)
                self.told.append(moment)
            elif type(entry) is Taken:
                moment.jobs, moment.out = entry.jobs, self._out
                self._out = [*self._out, *entry.jobs]
                self._see(moment)
                self.taken.append(moment)
            else:
                self.rests.append(moment)
            self.moments.append(moment)
            moment.open_after, moment.frames_after = self._open, self._frames

    @cached_property
    def schedule(self) -> Schedule:
        """How much may be said of each step, by the settings."""
        settings = self.settings
        return make_schedule(settings.schedule, settings.wait_k, settings.schedule_seed)

    def granted(self, step: int) -> int:
        """Return how many tokens of narration the schedule grants a step, counted from 1."""
        return self.schedule.granted(step) - self.schedule.granted(step - 1)

    def inputs(self, kind: type) -> list[Moment]:
        """Return the moments at which an input of a kind came, before the end."""
        return self._inputs[kind]

    def events_of(self, kind: type) -> list[tuple[Moment, Any]]:
        """Return all events of a kind, each with when it was told."""
        return self._events[kind]

    def summary(self) -> tuple:
        """What is open, unaccounted for and over at the end of the log."""
        waiting = tuple((name, asking.video is None) for name, asking in self._open.items())
        return waiting, self._frames, self._spoken, self._ended, self._paused, self._closed

    def _see(self, moment: Moment) -> None:
        job = moment.jobs[-1]
        if type(job) is jobs.Open:
            if job.source is None:
                self._stream = job.video
            elif not job.video.recalled:
                self._coming = job.video
        elif type(job) is jobs.Decode:
            self._ridden.add(job.riding)
            moment.live = tuple(map(self._is_live, job.turns))
            moment.cached = tuple(
                self._cached[turn.video]
                + (job.riding is not None and job.riding.video is turn.video)
                for turn in job.turns)

    def _is_live(self, turn: jobs.Turn) -> bool:
        """Whether a turn is the current narrator's, or an open question's."""
        if turn.question is None:
            return turn.video is self._stream and not self._spoken
        asking = self._open.get(turn.question.question_id)
        return (asking is not None and asking.video is not None
                and asking.asked_ns == turn.question.asked_ns)

    def _read(self, moment: Moment, entry: Told) -> None:
        given = entry.given
        kind = type(given)
        if not self._closed:
            self._inputs[kind].append(moment)
        if kind is jobs.Decoded:
            moment.live = tuple(map(self._is_live, given.job.turns))
            if not self._closed:
                moment.counted = [
                    (turn, spoken) for turn, live, spoken
                    in zip(given.job.turns, moment.live, given.spoken)
                    if live and spoken is not None]
        elif kind is jobs.Failed:
            moment.live = tuple(self._is_live(turn) for job in given.jobs
                                if hasattr(job, 'turns') for turn in job.turns)
        elif kind is jobs.Perceived and (given.job.video.number == self._video
                                    or given.job in self._ridden):
            self._cached.update(each for each in (given.job.video, given.job.also) if each)
            steps, frames = self.steps_of[given.job.video.number], given.job.frames
            steps.append(((steps[-1][0] if steps else 0) + len(frames), frames[-1].stamp_ns))
        elif kind is jobs.Carried:
            self._cached[given.job.video] += 1
        if moment.of(events.StepPerceived) and kind is jobs.Perceived:
            self._gate.stepped(given.changed)
            moment.rests = not self._gate.awake and self._gate.weighs is None
        if not self._closed:
            self._take_in(entry)
            for turn, spoken in moment.counted:
                if turn.question is None:
                    self._gate.said(spoken)
            moment.weighed = (not self._spoken and self._gate.weighs is not None and any(
                again.video.number == self._video for again in _again(given)))
            if moment.weighed and kind is jobs.Decoded:
                self._gate.weighed(given.job.again.said, given.surprise)
                moment.rests = not self._gate.awake and self._gate.weighs is None
        for event in entry.events:
            self.events.append((moment, event))
            self._events[type(event)].append((moment, event))
            self._hear(event)
        if kind is jobs.Closed:
            self._closed = True
        elif kind is jobs.Perceived and moment.video == self._video == given.job.video.number:
            self._ended |= given.job.last

    def _take_in(self, entry: Told) -> None:
        match entry.given:
            case jobs.Fed(frame):
                self.clips[frame.stamp_ns] = self._clip
                self._clip += frame.last
                self._frames += 1
            case jobs.Asked(name) if not entry.refused:
                self._open = {**self._open, name: Asking(name, entry.now)}
            case jobs.Paused(paused):
                self._paused = paused
            case jobs.Prompted(prompt):
                self._prompt = prompt

    def _hear(self, event: events.Event) -> None:
        match event:
            case events.Restarted(reason='relay'):
                self._stream, self._coming = self._coming, None
            case events.Restarted():
                self._video, self._steps, self._spoken, self._ended = event.video, 0, False, False
                self._stream = self._coming = None
                self._gate = gate_of(self.settings)
            case events.StepPerceived():
                self._steps += 1
                self._frames -= event.frames
            case events.FramesDropped():
                self._frames -= event.count
            case events.TextDelta(final=True, stream_id=name):
                self._spoken |= name == events.NARRATION
                self._end(name)
            case events.QuestionState(question_id=name, state='rejected'):
                self._end(name)
            case events.QuestionState(question_id=name, state='answering') if name in self._open:
                self._open = {**self._open, name: self._open[name]._replace(video=self._video)}
            case events.Trouble():
                self._closed |= event.fatal

    def _end(self, question_id: str) -> None:
        if question_id in self._open:
            self._open = {key: value for key, value in self._open.items() if key != question_id}


def _again(given: jobs.Input) -> list[jobs.Again]:
    """What was weighed, or was to be, in the jobs that came back."""
    done = getattr(given, 'jobs', None) or [getattr(given, 'job', None)]
    return [job.again for job in done if isinstance(job, jobs.Decode) and job.again]
