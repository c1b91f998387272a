"""
What must hold of every schedule, whatever happens: each a small function over a reading.

Those of questions, frames and the life of the core are here, those of what is said and seen in
`speech.py`. An invariant yields in words what breaks it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from sww_ros.evaluation.simulation.reading import Moment, Reading
from sww_ros.evaluation.simulation.script import Script
from sww_ros.evaluation.simulation.speech import SPEECH
from sww_ros.evaluation.simulation.world import MOST_JOBS, World
from sww_ros.streaming.core import MAX_FAILURES
from sww_ros.streaming.events import (
    NARRATION,
    FramesDropped,
    QuestionState,
    Restarted,
    StepPerceived,
    TextDelta,
    Trouble,
)
from sww_ros.streaming.jobs import (
    Asked,
    Cancelled,
    Closed,
    Decode,
    Decoded,
    Failed,
    Fed,
    Open,
    Paused,
    Perceive,
    Perceived,
    Prompted,
    Reset,
    Ticked,
)

Invariant = Callable[[Reading], Iterator[str]]

_ENDS = {Decoded: {'stop', 'length'}, Cancelled: {'cancelled'}, Closed: {'cancelled'},
         Reset: {'reset'}, Failed: {'error'}, Ticked: {'no_video'}, Asked: {'interrupted'}}
_DROPS = {Fed: {'overrun', 'paused'}, Paused: {'paused'}, Prompted: {'reset'}, Reset: {'reset'},
          Failed: {'bad', 'reset', 'closed'}, Closed: {'closed'}}


# Questions.

def what_is_asked_ends_once(reading: Reading) -> Iterator[str]:
    """With one final piece of text that gives a reason, or told to be rejected; nothing after."""
    open_ids: set[str] = set()
    asked = None
    for moment, event in _with_asks(reading):
        if event is None:
            asked = moment.entry.given.question_id
            if asked in open_ids:
                yield f'{asked!r} was let in twice'
            open_ids.add(asked)
        elif isinstance(event, QuestionState):
            if event.question_id not in open_ids:
                yield f'{event.question_id!r} is {event.state}, and is not open'
            if event.state == 'rejected':
                open_ids.discard(event.question_id)
                if moment.entry.given != Asked(event.question_id, moment.entry.given.head):
                    yield f'{event.question_id!r} was rejected later than asked'
        elif isinstance(event, TextDelta) and event.stream_id != NARRATION:
            if event.stream_id not in open_ids:
                yield f'text for {event.stream_id!r}, which is not open'
            if event.final != bool(event.finish_reason):
                yield f'the end of {event.stream_id!r} has the reason {event.finish_reason!r}'
            if event.final:
                open_ids.discard(event.stream_id)
    if open_ids:
        yield f'never ended: {sorted(open_ids)}'


def _with_asks(reading: Reading) -> Iterator[tuple[Moment, object]]:
    """All events in order, None for each question that is let in."""
    for moment in reading.told:
        entry = moment.entry
        if type(entry.given) is Asked and not entry.refused:
            yield moment, None
        for event in entry.events:
            yield moment, event


def ids_are_refused_when_in_use(reading: Reading) -> Iterator[str]:
    for moment in reading.told:
        given = moment.entry.given
        in_use = type(given) is Asked and (
            given.question_id == NARRATION or given.question_id in moment.open)
        if moment.entry.refused != in_use:
            yield f'{given} was {"" if moment.entry.refused else "not "}refused'


def questions_end_by_their_cause(reading: Reading) -> Iterator[str]:
    """A reset ends with `reset`, a prompt or a pause ends nothing that is asked, and so on."""
    for moment, event in reading.events:
        if isinstance(event, TextDelta) and event.final and event.stream_id != NARRATION:
            given = moment.entry.given
            if event.finish_reason not in _ENDS.get(type(given), ()):
                yield f'{event.stream_id!r} ends with {event.finish_reason!r} at {given}'
            if type(given) is Cancelled and given.question_id != event.stream_id:
                yield f'{event.stream_id!r} is cancelled at {given}'


def what_ends_all_leaves_nothing_open(reading: Reading) -> Iterator[str]:
    for moment in reading.told:
        given, left = moment.entry.given, moment.open_after
        if type(given) is Cancelled and not moment.closed:
            left = left.keys() & {given.question_id}
        elif not (type(given) in (Reset, Closed) or any(
                isinstance(event, Trouble) and event.fatal
                or isinstance(event, Restarted) and event.reason in ('reset', 'error')
                for event in moment.entry.events)):
            continue
        if left:
            yield f'{sorted(left)} are open after {given}'


def failed_answers_end(reading: Reading) -> Iterator[str]:
    for moment in reading.told:
        given = moment.entry.given
        if type(given) is Failed and any(moment.live) and not moment.closed:
            turns = [turn for job in given.jobs if isinstance(job, Decode) for turn in job.turns]
            for turn, live in zip(turns, moment.live, strict=True):
                question = turn.question
                if live and question and question.question_id in moment.open_after:
                    yield f'{question.question_id!r} goes on after {given.message}'


def questions_are_let_in_by_the_policy(reading: Reading) -> Iterator[str]:
    settings = reading.settings
    most = settings.max_answers
    for moment in reading.told:
        entry = moment.entry
        if type(entry.given) is not Asked or entry.refused or moment.closed:
            continue
        taken, name = len(moment.open), entry.given.question_id
        rejected = any(isinstance(event, QuestionState) and event.state == 'rejected'
                       for event in entry.events)
        limit = most + (settings.max_queued if settings.question_policy == 'queue' else 0)
        if rejected != (settings.question_policy != 'interrupt' and taken >= limit):
            yield f'{name!r} was {"" if rejected else "not "}rejected with {taken} open'
        ended = [event.stream_id for event in entry.events
                 if isinstance(event, TextDelta) and event.finish_reason == 'interrupted']
        oldest = [*moment.open][:1]
        due = oldest if settings.question_policy == 'interrupt' and taken >= most else []
        if ended != due:
            yield f'{name!r} interrupts {ended}, not {due}'


def no_more_is_answered_than_may_be(reading: Reading) -> Iterator[str]:
    settings = reading.settings
    waiting = settings.max_queued if settings.question_policy == 'queue' else 0
    for moment in reading.told:
        after = moment.open_after
        if len(after) > settings.max_answers:
            answered = sum(asking.video is not None for asking in after.values())
            if answered > settings.max_answers:
                yield f'{answered} questions are answered at once'
            if len(after) > settings.max_answers + waiting:
                yield f'{len(after)} questions are open'


def questions_are_answered_in_order(reading: Reading) -> Iterator[str]:
    """And with the newest video, once a step of it is perceived."""
    for moment in reading.told:
        if moment.open_after:
            waits = False
            for asking in moment.open_after.values():
                if asking.video is not None and waits:
                    yield f'{asking.question_id!r} is answered before an older question'
                waits |= asking.video is None


def waiting_for_a_video_has_an_end(reading: Reading) -> Iterator[str]:
    """After the timeout a question that waits for something to see ends, and not before."""
    timeout_ns = round(reading.settings.question_timeout_s * 1e9)
    for moment, event in reading.events:
        if isinstance(event, TextDelta) and event.finish_reason == 'no_video':
            asking = moment.open.get(event.stream_id)
            if not timeout_ns or not asking or moment.steps or (
                    moment.entry.now - asking.asked_ns < timeout_ns):
                yield f'{event.stream_id!r} timed out at {moment.entry.now}: {asking}'
    for moment in reading.taken + reading.rests if timeout_ns else ():
        late = [asking.question_id for asking in moment.open.values() if asking.video is None
                and moment.entry.now - asking.asked_ns >= timeout_ns]
        if late and not moment.steps:
            yield f'{late} still wait at {moment.entry.now}'


# Frames and steps.

def every_frame_is_accounted_for(reading: Reading) -> Iterator[str]:
    """Perceived or dropped by a reason, once; at the end none is left."""
    for moment in reading.told:
        if moment.frames_after < 0:
            yield f'{-moment.frames_after} frames too many are told of at {moment.entry.given}'
            return
        if moment.frames_after and (type(moment.entry.given) is Closed or moment.closed):
            yield f'{moment.frames_after} frames are not told of at the end'
            return


def frames_are_dropped_by_their_cause(reading: Reading) -> Iterator[str]:
    for moment, event in reading.events:
        if isinstance(event, FramesDropped):
            given = moment.entry.given
            if event.reason not in _DROPS.get(type(given), ()) or event.count < 1:
                yield f'{event} at {given}'
            if type(given) is Fed and (event.reason == 'paused') != moment.paused:
                yield f'{event} while {"" if moment.paused else "not "}paused'


def a_pause_lets_nothing_in(reading: Reading) -> Iterator[str]:
    for moment in reading.taken:
        if moment.paused and any(isinstance(job, Perceive) for job in moment.entry.jobs):
            yield 'a step is taken during a pause'
    for moment in reading.told:
        if moment.paused and type(moment.entry.given) is Fed and not moment.closed and not any(
                isinstance(event, FramesDropped) for event in moment.entry.events):
            yield 'a frame fed during a pause is kept'


def steps_are_numbered_in_order(reading: Reading) -> Iterator[str]:
    for moment, event in reading.events:
        if isinstance(event, StepPerceived):
            given = moment.entry.given
            if (event.index, event.video) != (moment.steps, moment.video):
                yield f'step {event.index} of video {event.video} is told of as ' \
                      f'{moment.steps} of {moment.video}'
            if type(given) is not Perceived or given.job.video.number != event.video:
                yield f'step {event.index} of video {event.video} is told of at {given}'
            if not 0 <= event.overlap_ns <= event.perceived_ns - event.started_ns:
                yield f'step {event.index} overlaps {event.overlap_ns} ns'
            if event.index >= reading.settings.max_steps:
                yield f'step {event.index} is more than a video holds'


def what_is_perceived_is_told(reading: Reading) -> Iterator[str]:
    for moment in reading.told:
        given = moment.entry.given
        if type(given) is Perceived and not moment.closed:
            told = any(isinstance(event, StepPerceived) for event in moment.entry.events)
            if told != (given.job.video.number == moment.video):
                yield f'a step of video {given.job.video.number} is told of in {moment.video}'


def a_video_is_of_one_clip(reading: Reading) -> Iterator[str]:
    """The end of a clip parts two videos, even where its frames are dropped, and nothing else."""
    clips: dict[int, int] = {}
    reasons: dict[int, str] = {}
    steps: Counter[int] = Counter()
    for moment in reading.told:
        given = moment.entry.given
        for event in moment.entry.events:
            if isinstance(event, Restarted):
                reasons[event.video] = event.reason
            elif isinstance(event, StepPerceived) and type(given) is Perceived:
                found = {reading.clips[frame.stamp_ns] for frame in given.job.frames}
                steps[event.video] += 1
                clip = clips.setdefault(event.video, min(found))
                if found != {clip}:
                    yield f'video {event.video} is of the clips {sorted({clip, *found})}'
    for video, clip in clips.items():
        before, reason = clips.get(video - 1), reasons.get(video)
        full = steps[video - 1] >= reading.settings.max_steps
        if before == clip and reason == 'ended' and not (
                reading.settings.schedule == 'offline' and full):
            yield f'clip {clip} was parted as if it had ended'
        if reason == 'capacity' and not full:
            yield f'video {video} began for lack of room, which there was'


# The life of the core.

def it_comes_to_rest(reading: Reading) -> Iterator[str]:
    """When nothing comes in any more: all that can be perceived is, no question is left."""
    per_step = reading.settings.frames_per_step
    for moment in reading.rests:
        rest = moment.entry
        if rest.passes >= MOST_JOBS:
            yield 'it never comes to rest'
        elif rest.at_rest == bool(moment.open):
            yield f'nothing is left to do, {len(moment.open)} questions wait: {rest}'
        elif not moment.closed:
            if moment.frames >= per_step:
                yield f'{moment.frames} frames wait for ever'
            stuck = [asking.question_id for asking in moment.open.values()
                     if moment.steps or asking.video is not None]
            if stuck:
                yield f'{stuck} wait for ever'


def repeated_failure_is_fatal(reading: Reading) -> Iterator[str]:
    """One more of one side than are survived, without a success of that side between."""
    counts = {'perception': 0, 'decoding': 0}
    for moment in reading.told:
        given = moment.entry.given
        if moment.closed:
            break
        if type(given) is Perceived:
            counts['perception'] = 0
        elif type(given) is Decoded:
            counts['decoding'] = 0
        troubles = [event for event in moment.entry.events if isinstance(event, Trouble)]
        if type(given) is Failed:
            side = 'decoding' if isinstance(given.jobs[0], Decode) else 'perception'
            counts[side] += 1
            fatal = counts[side] > MAX_FAILURES
            if [event.fatal for event in troubles] != [fatal]:
                yield f'failure {counts[side]} in a row of {side} is told as {troubles}'
        elif troubles:
            yield f'{troubles} at {given}'


def a_failure_begins_anew_what_it_concerns(reading: Reading) -> Iterator[str]:
    """What failed is not tried again for ever; what was forgotten already changes nothing."""
    for moment in reading.told:
        given = moment.entry.given
        if type(given) is Failed and not moment.closed:
            again = [event.reason for event in moment.entry.events
                     if isinstance(event, Restarted)]
            fatal = any(isinstance(event, Trouble) and event.fatal
                        for event in moment.entry.events)
            concerns = any(moment.live) or any(
                not isinstance(job, Decode) and job.video.number == moment.video
                for job in given.jobs)
            if again[:1] != ['error'][:concerns and not fatal]:
                yield f'{given.message} restarts {again}'


def one_job_of_each_kind_is_out(reading: Reading) -> Iterator[str]:
    out: list[object] = []
    for moment in sorted(reading.told + reading.taken, key=lambda moment: moment.number):
        entry = moment.entry
        given = getattr(entry, 'given', None)
        if given is None:
            out += entry.jobs
            decodes = sum(isinstance(job, Decode) for job in out)
            if decodes > 1 or len(out) - decodes > 1 or (reading.settings.serial and len(out) > 1):
                yield f'{len(out)} jobs are out, {decodes} of them decode'
        elif type(given) is Failed:
            out = [job for job in out if job not in given.jobs]
        elif (job := getattr(given, 'job', None)) is not None:
            out.remove(job)


def after_the_end_there_is_nothing(reading: Reading) -> Iterator[str]:
    for moment in reading.told:
        if moment.closed and moment.entry.events:
            yield f'{moment.entry.events[0]} after the end'
    for moment in reading.taken:
        if moment.closed:
            yield f'{moment.entry.jobs[0]} after the end'


def prompts_and_resets_begin_anew(reading: Reading) -> Iterator[str]:
    """At once; and a video has the newest prompt."""
    for moment in reading.told:
        reason = {Prompted: 'prompt', Reset: 'reset'}.get(type(moment.entry.given))
        if reason and not moment.closed and not any(
                isinstance(event, Restarted) and event.reason == reason
                for event in moment.entry.events):
            yield f'{moment.entry.given} begins nothing anew'
    for moment in reading.taken:
        for job in moment.entry.jobs:
            if isinstance(job, Open) and job.video.prompt != moment.prompt:
                yield f'a video has the prompt {job.video.prompt!r}, not {moment.prompt!r}'


INVARIANTS: tuple[Invariant, ...] = (
    what_is_asked_ends_once, ids_are_refused_when_in_use, questions_end_by_their_cause,
    what_ends_all_leaves_nothing_open, failed_answers_end, questions_are_let_in_by_the_policy,
    no_more_is_answered_than_may_be, questions_are_answered_in_order,
    waiting_for_a_video_has_an_end, every_frame_is_accounted_for,
    frames_are_dropped_by_their_cause, a_pause_lets_nothing_in, steps_are_numbered_in_order,
    what_is_perceived_is_told, a_video_is_of_one_clip, it_comes_to_rest,
    repeated_failure_is_fatal, a_failure_begins_anew_what_it_concerns,
    one_job_of_each_kind_is_out, after_the_end_there_is_nothing, prompts_and_resets_begin_anew,
    *SPEECH)


def violations(script: Script) -> list[str]:
    """Play a script; return what does not hold, each as `invariant: what happened`."""
    world = World(script)
    try:
        world.play()
    except Exception as error:  # noqa: BLE001 - whatever the core raises, it must not
        return [f'nothing_is_raised: {type(error).__name__}: {error}']
    return broken(Reading(script, world.log))


def broken(reading: Reading) -> list[str]:
    """Return what does not hold of a reading."""
    return [f'{invariant.__name__}: {words}' for invariant in INVARIANTS
            for words in invariant(reading)]
