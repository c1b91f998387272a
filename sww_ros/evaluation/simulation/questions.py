"""What must hold of questions: each ends once, by its cause, and is let in by the policy."""

from __future__ import annotations

from collections.abc import Iterator

from sww_ros.evaluation.simulation.reading import Moment, Reading
from sww_ros.evaluation.simulation.world import Rest, Taken, Told
from sww_ros.streaming.events import (
    NARRATION,
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
    Perceive,
    Reset,
    Ticked,
)

_ENDS = {Decoded: {'stop', 'length'}, Cancelled: {'cancelled'}, Closed: {'cancelled'},
         Reset: {'reset'}, Failed: {'error'}, Ticked: {'no_video'}, Asked: {'interrupted'}}


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
            yield f'{moment.what} was {"" if moment.entry.refused else "not "}refused'


def questions_end_by_their_cause(reading: Reading) -> Iterator[str]:
    """A reset ends with `reset`, a prompt or a pause ends nothing that is asked, and so on."""
    for moment, event in reading.events:
        if isinstance(event, TextDelta) and event.final and event.stream_id != NARRATION:
            given = moment.entry.given
            if event.finish_reason not in _ENDS.get(type(given), ()):
                yield f'{event.stream_id!r} ends with {event.finish_reason!r} at {moment.what}'
            if type(given) is Cancelled and given.question_id != event.stream_id:
                yield f'{event.stream_id!r} is cancelled at {moment.what}'


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
            yield f'{sorted(left)} are open after {moment.what}'


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


def waiting_is_told(reading: Reading) -> Iterator[str]:
    """A question that finds no place, or nothing to see, is told to be queued."""
    for moment in reading.told:
        entry = moment.entry
        if type(entry.given) is Asked and not entry.refused and not moment.closed:
            name, left = entry.given.question_id, moment.open_after
            due = name in left and (len(left) > reading.settings.max_answers or not moment.steps)
            told = any(isinstance(event, QuestionState) and event.state == 'queued'
                       and event.question_id == name for event in entry.events)
            if told != due:
                yield f'{name!r} is {"" if told else "not "}told to be queued'


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


def a_step_lets_questions_in(reading: Reading) -> Iterator[str]:
    """Those that wait for it and find a place, even where it is the last of its video."""
    for moment in reading.told:
        events = moment.entry.events
        if moment.open and any(isinstance(event, StepPerceived) for event in events):
            waiting = sum(asking.video is None for asking in moment.open.values())
            free = reading.settings.max_answers - (len(moment.open) - waiting)
            answered = sum(isinstance(event, QuestionState) and event.state == 'answering'
                           for event in events)
            if answered != min(waiting, free):
                yield f'{answered} of {waiting} that wait are answered, with {free} places'


def waiting_for_a_video_has_an_end(reading: Reading) -> Iterator[str]:
    """After the timeout without anything to see, and not before; waiting for a place has none."""
    timeout_ns = round(reading.settings.question_timeout_s * 1e9)
    blind_since, sees, perceiving = 0, False, False
    for moment in reading.moments:
        entry = moment.entry
        if not isinstance(entry, Told):
            late = [asking.question_id for asking in moment.open.values() if asking.video is None
                    and entry.now - max(asking.asked_ns, blind_since) >= timeout_ns]
            if timeout_ns and late and not sees and isinstance(entry, Rest):
                yield f'{late} still wait at {entry.now}'
            if isinstance(entry, Taken):
                perceiving |= any(isinstance(job, Perceive) for job in entry.jobs)
            continue
        for event in entry.events:
            if isinstance(event, StepPerceived):
                sees, perceiving = True, False
            elif isinstance(event, Restarted) and event.reason != 'relay':
                blind_since, sees = entry.now if sees else blind_since, False
                perceiving = False
            elif isinstance(event, TextDelta) and event.finish_reason == 'no_video':
                asking = moment.open.get(event.stream_id)
                waited = entry.now - max(asking.asked_ns, blind_since) if asking else 0
                if not timeout_ns or sees or perceiving or waited < timeout_ns:
                    yield f'{event.stream_id!r} timed out after {waited} ns without a video'


QUESTIONS = (
    what_is_asked_ends_once, ids_are_refused_when_in_use, questions_end_by_their_cause,
    what_ends_all_leaves_nothing_open, failed_answers_end, questions_are_let_in_by_the_policy,
    waiting_is_told, no_more_is_answered_than_may_be, questions_are_answered_in_order,
    a_step_lets_questions_in, waiting_for_a_video_has_an_end)
