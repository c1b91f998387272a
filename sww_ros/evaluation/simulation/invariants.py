"""
What must hold of every schedule, whatever happens: each a small function over a reading.

Every public function of these four files that returns `Iterator[str]` is an invariant.
Those of questions and of the life of the core stand here: each question ends once, by its cause;
rest, failure, what runs at once, the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

from sww_ros.evaluation.simulation import relaying, speaking, watching
from sww_ros.evaluation.simulation.reading import Moment, Reading
from sww_ros.evaluation.simulation.relaying import is_piece
from sww_ros.evaluation.simulation.world import (
    MOST_JOBS,
    Rest,
    Script,
    Settings,
    World,
    ahead_of,
    side_of,
)
from sww_ros.streaming import events, jobs
from sww_ros.streaming.core import MAX_FAILURES

_ENDS = {
    jobs.Decoded: {'stop', 'length'}, jobs.Cancelled: {'cancelled'}, jobs.Closed: {'cancelled'},
    jobs.Reset: {'reset'}, jobs.Failed: {'error'}, jobs.Ticked: {'no_video'},
    jobs.Asked: {'interrupted'}}


def what_is_asked_ends_once(reading: Reading) -> Iterator[str]:
    """With one final piece of text that gives a reason, or told to be rejected; nothing after."""
    open_ids: set[str] = set()
    for moment in reading.told:
        asked = moment.given.question_id if type(moment.given) is jobs.Asked else None
        if asked is not None and not moment.entry.refused:
            if asked in open_ids:
                yield f'{asked!r} was let in twice'
            open_ids.add(asked)
        for event in moment.events:
            name = getattr(event, 'question_id', None) or getattr(event, 'stream_id', '')
            if name in ('', events.NARRATION):
                continue
            if name not in open_ids:
                yield f'{event}, and {name!r} is not open'
            if isinstance(event, events.TextDelta):
                ends = event.final
                if ends != bool(event.finish_reason):
                    yield f'the end of {name!r} has the reason {event.finish_reason!r}'
            else:
                ends = event.state == 'rejected'
                if ends and name != asked:
                    yield f'{name!r} was rejected later than asked'
            if ends:
                open_ids.discard(name)
    if open_ids:
        yield f'never ended: {sorted(open_ids)}'


def ids_are_refused_when_in_use(reading: Reading) -> Iterator[str]:
    for moment in reading.told:
        given = moment.given
        in_use = type(given) is jobs.Asked and (
            given.question_id == events.NARRATION or given.question_id in moment.open)
        if moment.entry.refused != in_use:
            yield f'{moment.what} was {"" if moment.entry.refused else "not "}refused'


def questions_end_by_their_cause(reading: Reading) -> Iterator[str]:
    """A reset ends with `reset`, a prompt or a pause ends nothing that is asked, and so on."""
    for moment, event in reading.events_of(events.TextDelta):
        if event.final and event.stream_id != events.NARRATION:
            given = moment.given
            if event.finish_reason not in _ENDS.get(type(given), ()):
                yield f'{event.stream_id!r} ends with {event.finish_reason!r} at {moment.what}'
            if type(given) is jobs.Cancelled and given.question_id != event.stream_id:
                yield f'{event.stream_id!r} is cancelled at {moment.what}'


def what_ends_all_leaves_nothing_open(reading: Reading) -> Iterator[str]:
    for moment in reading.told:
        given, left = moment.given, {*moment.open_after}
        if type(given) is jobs.Cancelled and not moment.closed:
            left &= {given.question_id}
        elif not (type(given) in (jobs.Reset, jobs.Closed) or moment.restarts('reset', 'error')
                  or any(event.fatal for event in moment.of(events.Trouble))):
            continue
        if left:
            yield f'{sorted(left)} are open after {moment.what}'


def failed_answers_end(reading: Reading) -> Iterator[str]:
    for moment in reading.inputs(jobs.Failed):
        turns = [turn for job in moment.given.jobs if isinstance(job, jobs.Decode)
                 for turn in job.turns]
        for turn, live in zip(turns, moment.live, strict=True):
            question = turn.question
            if live and question and question.question_id in moment.open_after:
                yield f'{question.question_id!r} goes on after {moment.given.message}'


def _let_in(reading: Reading) -> list[Moment]:
    """When a question came whose id was not in use."""
    return [moment for moment in reading.inputs(jobs.Asked) if not moment.entry.refused]


def _most_open(settings: Settings) -> int:
    """How many questions may be open, those that wait among them."""
    return settings.max_answers + (
        settings.max_queued if settings.question_policy == 'queue' else 0)


def questions_are_let_in_by_the_policy(reading: Reading) -> Iterator[str]:
    settings = reading.settings
    interrupts = settings.question_policy == 'interrupt'
    for moment in _let_in(reading):
        taken, name = len(moment.open), moment.given.question_id
        rejected = any(event.state == 'rejected' for event in moment.of(events.QuestionState))
        if rejected != (not interrupts and taken >= _most_open(settings)):
            yield f'{name!r} was {"" if rejected else "not "}rejected with {taken} open'
        ended = [event.stream_id for event in moment.of(events.TextDelta)
                 if event.finish_reason == 'interrupted']
        due = [*moment.open][:1] if interrupts and taken >= settings.max_answers else []
        if ended != due:
            yield f'{name!r} interrupts {ended}, not {due}'


def waiting_is_told(reading: Reading) -> Iterator[str]:
    """A question that finds no place, or nothing to see, is told to be queued."""
    for moment in _let_in(reading):
        name, left = moment.given.question_id, moment.open_after
        due = name in left and (len(left) > reading.settings.max_answers or not moment.steps)
        told = any(event.state == 'queued' and event.question_id == name
                   for event in moment.of(events.QuestionState))
        if told != due:
            yield f'{name!r} is {"" if told else "not "}told to be queued'


def no_more_is_answered_than_may_be(reading: Reading) -> Iterator[str]:
    settings = reading.settings
    for moment in reading.told:
        after = moment.open_after
        if len(after) > settings.max_answers:
            answered = sum(asking.video is not None for asking in after.values())
            if answered > settings.max_answers:
                yield f'{answered} questions are answered at once'
            if len(after) > _most_open(settings):
                yield f'{len(after)} questions are open'


def questions_are_answered_in_order(reading: Reading) -> Iterator[str]:
    """And with the newest video, once a step of it is perceived."""
    for moment in reading.told:
        waits = False
        for asking in moment.open_after.values():
            if asking.video is not None and waits:
                yield f'{asking.question_id!r} is answered before an older question'
            waits |= asking.video is None


def a_step_lets_questions_in(reading: Reading) -> Iterator[str]:
    """Those that wait for it and find a place, even where it is the last of its video."""
    for moment in reading.told:
        if moment.open and moment.of(events.StepPerceived):
            waiting = sum(asking.video is None for asking in moment.open.values())
            free = reading.settings.max_answers - (len(moment.open) - waiting)
            answered = sum(event.state == 'answering' for event in moment.of(events.QuestionState))
            if answered != min(waiting, free):
                yield f'{answered} of {waiting} that wait are answered, with {free} places'


def waiting_for_a_video_has_an_end(reading: Reading) -> Iterator[str]:
    """After the timeout without anything to see, and not before; waiting for a place has none."""
    timeout_ns = round(reading.settings.question_timeout_s * 1e9)
    blind_since, sees, perceiving = 0, False, False
    for moment in reading.moments:
        now = moment.entry.now
        if isinstance(moment.entry, Rest):
            late = [asking.question_id for asking in moment.open.values() if asking.video is None
                    and now - max(asking.asked_ns, blind_since) >= timeout_ns]
            if timeout_ns and late and not sees:
                yield f'{late} still wait at {now}'
        perceiving |= any(isinstance(job, jobs.Perceive) for job in moment.jobs)
        for event in moment.events:
            if isinstance(event, events.StepPerceived):
                sees, perceiving = True, False
            elif isinstance(event, events.Restarted) and event.reason != 'relay':
                blind_since, sees = now if sees else blind_since, False
                perceiving = False
            elif isinstance(event, events.TextDelta) and event.finish_reason == 'no_video':
                asking = moment.open.get(event.stream_id)
                waited = now - max(asking.asked_ns, blind_since) if asking else 0
                if not timeout_ns or sees or perceiving or waited < timeout_ns:
                    yield f'{event.stream_id!r} timed out after {waited} ns without a video'


def it_comes_to_rest(reading: Reading) -> Iterator[str]:
    """When nothing comes in any more: all that can be perceived is, no question is left."""
    for moment in reading.taken:
        if moment.entry.at_rest:
            yield f'{moment.what} is taken at rest'
    for moment in reading.rests:
        rest = moment.entry
        if rest.busy:
            yield 'it says that it is at rest while a job is out'
        elif rest.passes >= MOST_JOBS:
            yield 'it never comes to rest'
        elif rest.at_rest == bool(moment.open):
            yield f'nothing is left to do, {len(moment.open)} questions wait: {rest}'
        elif not moment.closed:
            if not rest.opened:
                yield f'the prefix of video {moment.video} is not prepared'
            if moment.frames >= reading.settings.frames_per_step:
                yield f'{moment.frames} frames wait for ever'
            stuck = [asking.question_id for asking in moment.open.values()
                     if moment.steps or asking.video is not None]
            if stuck:
                yield f'{stuck} wait for ever'


def repeated_failure_is_fatal(reading: Reading) -> Iterator[str]:
    """One more of one side than are survived, without a success of that side between."""
    counts: Counter[str] = Counter()
    for moment in reading.told:
        given, troubles = moment.given, moment.of(events.Trouble)
        if moment.closed:
            break
        if type(given) in (jobs.Perceived, jobs.Decoded):
            counts[side_of(given.job)] = 0
        if type(given) is jobs.Failed:
            side = side_of(given.jobs[0])
            counts[side] += 1
            fatal = given.fatal or counts[side] > MAX_FAILURES
            if [event.fatal for event in troubles] != [fatal]:
                yield f'failure {counts[side]} in a row of {side} is told as {troubles}'
        elif troubles:
            yield f'{troubles} at {moment.what}'


def a_failure_begins_anew_what_it_concerns(reading: Reading) -> Iterator[str]:
    """What failed is not tried again for ever; what was forgotten already changes nothing."""
    for moment in reading.inputs(jobs.Failed):
        fatal = any(event.fatal for event in moment.of(events.Trouble))
        concerns = any(moment.live) or any(
            not isinstance(job, jobs.Decode) and not is_piece(job)
            and job.video.number == moment.video for job in moment.given.jobs)
        if bool(moment.restarts('error')) != (concerns and not fatal):
            yield f'{moment.given.message} restarts {moment.of(events.Restarted)}'


def jobs_that_are_out_are_few(reading: Reading) -> Iterator[str]:
    """One of a kind; or so many steps as are taken ahead, of one video, which goes on."""
    for moment in reading.taken:
        out = [*moment.out, *moment.jobs]
        looks = [job for job in out if not isinstance(job, jobs.Decode)]
        decodes = len(out) - len(looks)
        if (decodes > 1 or len(looks) > ahead_of(reading.settings.overlap)
                or (reading.settings.serial and len(out) > 1)):
            yield f'{len(out)} jobs are out, {decodes} of them decode'
        if any(isinstance(look, jobs.Open) or look.last or look.video is not later.video
               for look, later in pairwise(looks)):
            yield 'a step is taken before it is known which video it belongs to'


def after_the_end_there_is_nothing(reading: Reading) -> Iterator[str]:
    for moment in reading.moments:
        if moment.closed and (moment.events or moment.jobs):
            yield f'{[*moment.events, *moment.jobs]} after the end'


def prompts_and_resets_begin_anew(reading: Reading) -> Iterator[str]:
    """At once; and a video has the newest prompt."""
    for moment in reading.inputs(jobs.Prompted, jobs.Reset):
        if not moment.restarts('prompt' if type(moment.given) is jobs.Prompted else 'reset'):
            yield f'{moment.what} begins nothing anew'
    for moment in reading.taken:
        for job in moment.of(jobs.Open):
            if job.video.prompt != moment.prompt:
                yield f'a video has the prompt {job.video.prompt!r}, not {moment.prompt!r}'


Invariant = Callable[[Reading], Iterator[str]]
"""Yields in words what breaks it."""

INVARIANTS: tuple[Invariant, ...] = tuple(
    each for room in (globals(), vars(watching), vars(speaking), vars(relaying))
    for name, each in room.items() if not name.startswith('_')
    and getattr(each, '__annotations__', {}).get('return') == 'Iterator[str]')


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
