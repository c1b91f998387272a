"""
What must hold of every schedule, whatever happens: each a small function.

Every public function of this file and of telling.py that returns `Iterator[str]` is an invariant,
of a reading, or of each of its moments `Before`. Those of questions, of the life of the core and of
its relay stand here: each question ends once, by its cause; rest, failure, what runs at once, the
end; and where one stream relieves another, nothing is lost, doubled or cut.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from sww_ros.evaluation.simulation import telling
from sww_ros.evaluation.simulation.reading import Moment, Reading
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
from sww_ros.streaming.events import Restarted, StepPerceived, TextDelta

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
        if not moment.open_after:
            continue
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
    for moment, _ in reading.events_of(events.StepPerceived):
        if moment.open:
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
        if moment.jobs:
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
        concerns = any(moment.live) or moment.weighed or any(
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
    for kind, reason in ((jobs.Prompted, 'prompt'), (jobs.Reset, 'reset')):
        for moment in reading.inputs(kind):
            if not moment.restarts(reason):
                yield f'{moment.what} begins nothing anew'
    for moment in reading.taken:
        for job in moment.of(jobs.Open):
            if job.video.prompt != moment.prompt:
                yield f'a video has the prompt {job.video.prompt!r}, not {moment.prompt!r}'


class _Streams:
    """
    The streams of the current video, as the jobs about them tell.

    `current` is the one spoken of, `coming` the one prepared beside it. `steps` are those in the
    cache of each, `given` the words in its narration's; `spoken` are those of the video's
    narration, counted from its first step, `given_up` the steps whose turn it has ended.
    """

    def __init__(self) -> None:
        self.current: jobs.Video | None = None
        self.coming: jobs.Video | None = None
        self.steps: Counter[jobs.Video] = Counter()
        self.given: dict[jobs.Video, list[jobs.Word]] = defaultdict(list)
        self.spoken: list[jobs.Word] = []
        self.given_up: set[int] = set()
        self.unfinished = self.is_alone = False
        self.told = self.pieces = 0

    def due(self, stream: jobs.Video) -> list[jobs.Word]:
        """What a stream's narration has to have said, counted from the stream's first step."""
        base = stream.base
        return [jobs.Word(word.token, word.owner - base, word.sees - base)
                for word in self.spoken if word.owner > base]

    def take(self, job: jobs.Job) -> None:
        if isinstance(job, jobs.Open):
            if job.source is None:
                self.current = job.video
            elif not job.video.recalled:
                self.coming = job.video
        if isinstance(job, jobs.Perceive):
            self.pieces = 0
        elif is_piece(job):
            self.pieces += 1

    def tell(self, moment: Moment) -> None:
        given = moment.given
        kind = type(given)
        if kind is jobs.Perceived:
            self.steps.update(each for each in (given.job.video, given.job.also) if each)
        elif kind is jobs.Carried:
            self.steps[given.job.video] += 1
            self.given[given.job.video] += given.job.words
        elif kind is jobs.Decoded:
            self._decoded(moment)
        elif kind is jobs.Failed:
            # What fails of a video that was forgotten meanwhile changes nothing.
            self.is_alone |= any(is_piece(job) and job.video is self.coming for job in given.jobs)

    def _decoded(self, moment: Moment) -> None:
        if words := moment.given.job.words:
            self.given[words.video] += words.words
        for turn, spoken in moment.counted:
            if turn.question is None:
                stream = turn.video
                self.given[stream].append(jobs.Word(spoken.token, turn.owner, turn.sees))
                self.spoken.append(jobs.Word(spoken.token, turn.owner + stream.base,
                                        turn.sees + stream.base))
                self.unfinished = bool(spoken.unfinished)
                if spoken.kind == 'stop':
                    self.given_up.add(turn.owner + stream.base)

    def follow(self, event: object) -> None:
        """Take over, or begin with another video."""
        if isinstance(event, StepPerceived):
            self.told += 1
        if isinstance(event, Restarted):
            if event.reason == 'relay':
                self.current, self.coming = self.coming, None
            else:
                self.current = self.coming = None
                self.spoken, self.given_up, self.told = [], set(), 0
                self.unfinished = self.is_alone = False


def is_piece(job: jobs.Job) -> bool:
    """Whether a job prepares a stream that is to relieve another one."""
    return isinstance(job, jobs.Carry) or isinstance(job, jobs.Open) and job.source is not None


class Before(NamedTuple):
    """A job before it is taken, or a restart before it takes place; the streams as they are."""

    reading: Reading
    moment: Moment
    streams: _Streams
    what: jobs.Job | Restarted

    @property
    def hands_over(self) -> bool:
        return isinstance(self.what, Restarted) and self.what.reason == 'relay'


def _followed(reading: Reading) -> Iterator[Before]:
    streams = _Streams()
    for moment in reading.moments:
        for job in moment.jobs:
            yield Before(reading, moment, streams, job)
            streams.take(job)
        if moment.given is not None:
            streams.tell(moment)
        for event in moment.events:
            if isinstance(event, Restarted):
                yield Before(reading, moment, streams, event)
            streams.follow(event)


def no_sentence_is_cut_by_a_hand_over(before: Before) -> Iterator[str]:
    """But where a step waits and there is no room for it."""
    if before.hands_over:
        reading, moment, streams, _ = before
        is_full = streams.steps[streams.current] >= reading.settings.max_steps
        if streams.unfinished and not moment.spoken and not (is_full and moment.frames_after):
            yield f'a sentence is cut with {streams.steps[streams.current]} steps'


def no_step_is_skipped_by_a_hand_over(before: Before) -> Iterator[str]:
    """What its schedule grants a step that is left behind has been said; but for lack of room."""
    reading, moment, streams, _ = before
    settings = reading.settings
    if (not before.hands_over or moment.spoken or not settings.narrate
            or settings.schedule not in ('wait_k', 'random_wait_k')
            or settings.single_turn and streams.given_up
            or streams.steps[streams.current] >= settings.max_steps):
        return
    said = Counter(word.owner for word in streams.spoken)
    for step in range(1 + streams.current.base, 1 + streams.coming.base):
        due = reading.granted(step)
        if said[step] < due and step not in streams.given_up:
            yield f'{said[step]} of {due} tokens were spoken about step {step}'


def a_hand_over_changes_nothing_for_a_listener(reading: Reading) -> Iterator[str]:
    """The same video goes on, no text ends with it."""
    for moment, event in reading.events:
        if isinstance(event, Restarted) and event.reason == 'relay' and (
                event.video != moment.video):
            yield f'{event} in video {moment.video}'
        if isinstance(event, TextDelta) and event.finish_reason == 'relay':
            yield f'{event.stream_id!r} ends with a hand-over'


def what_is_perceived_is_in_the_stream_that_speaks_next(before: Before) -> Iterator[str]:
    if before.hands_over:
        streams = before.streams
        coming = streams.coming
        if coming is None:
            yield 'nobody was prepared to take over'
        elif (there := coming.base + streams.steps[coming]) != streams.told:
            yield f'{there} of {streams.told} steps are there at a hand-over'


def a_hand_over_waits_for_the_token_that_is_computed(before: Before) -> Iterator[str]:
    if before.hands_over and any(
            turn.question is None and turn.video is before.streams.current
            for job in before.moment.out if isinstance(job, jobs.Decode) for turn in job.turns):
        yield 'the narration is handed over while a token of it is computed'


def every_word_is_given_once_and_in_order(before: Before) -> Iterator[str]:
    """To the lane that goes on with the narration; each sees steps that are there."""
    _, _, streams, job = before
    due: list[tuple[jobs.Video, tuple[jobs.Word, ...], bool]] = []
    if isinstance(job, jobs.Carry) and not job.video.recalled:
        due.append((job.video, job.words, False))
    elif isinstance(job, jobs.Decode):
        speaks = any(turn.question is None for turn in job.turns)
        if speaks:
            words = job.words if job.words and job.words.video is streams.current else None
            due.append((streams.current, words.words if words else (), True))
        if job.words and job.words.video is not streams.current:
            due.append((job.words.video, job.words.words, False))
    for stream, words, all_of_them in due:
        given, spoken = [*streams.given[stream], *words], streams.due(stream)
        if given != (spoken if all_of_them else spoken[:len(given)]):
            yield f'{given} is given of {spoken}'
        if any(word.sees > streams.steps[stream] for word in words):
            yield f'{words} see more than {streams.steps[stream]} steps'


def a_narration_has_one_writer(reading: Reading) -> Iterator[str]:
    """A stream that is prepared is not spoken of, and not given words from both sides at once."""
    for moment in reading.taken:
        together = [*moment.out, *moment.jobs]
        written = [job.video for job in together if isinstance(job, jobs.Carry)]
        for job in together if written else ():
            if isinstance(job, jobs.Decode) and (
                    job.words and job.words.video in written
                    or any(turn.video in written for turn in job.turns)):
                yield 'both sides write the narration of a stream'


def a_step_waits_for_a_few_pieces_only(before: Before) -> Iterator[str]:
    """But for those without which there is no room for it."""
    reading, moment, streams, job = before
    settings = reading.settings
    if (not isinstance(job, Restarted) and is_piece(job)
            and moment.frames >= settings.frames_per_step
            and streams.steps[streams.current] < settings.max_steps
            and streams.pieces >= settings.make_relay().pieces):
        yield f'a step waits for {streams.pieces + 1} pieces'


def a_stream_is_relieved_once_it_nears_its_capacity(before: Before) -> Iterator[str]:
    """By one that has so many of its steps as is said; and begins anew for lack of room no more."""
    reading, _, streams, what = before
    if isinstance(what, Restarted):
        if (what.reason == 'capacity' and not streams.is_alone
                and reading.settings.make_relay() is not None):
            yield 'it begins anew for lack of room'
    elif isinstance(what, jobs.Open) and what.source is not None and not what.video.recalled:
        relay, steps = reading.settings.make_relay(), streams.steps[what.source]
        carried = what.source.base + steps - what.video.base
        if relay is None or not (relay.memory <= carried
                                 <= relay.memory + steps - relay.capacity):
            yield f'{carried} of {steps} steps are carried over'
        if streams.coming is not None and not streams.is_alone:
            yield 'two streams are prepared'
        if streams.is_alone:
            yield 'another one is prepared after the first has failed'


def an_answer_recalls_what_has_left(before: Before) -> Iterator[str]:
    """And begins when all of that is there."""
    _, _, streams, job = before
    if isinstance(job, jobs.Open) and job.video.recalled:
        end = job.video.base + len(job.video.recalled)
        if not streams.current or end > streams.current.base:
            yield f'the steps up to {end} are recalled, which are in the stream'
    for turn in job.turns if isinstance(job, jobs.Decode) else ():
        if turn.video.recalled and turn.sees != len(turn.video.recalled):
            yield f'{turn.sees} of {len(turn.video.recalled)} recalled steps are seen'


def streams_are_short(before: Before) -> Iterator[str]:
    reading, _, streams, job = before
    if isinstance(job, (jobs.Perceive, jobs.Carry)):
        most = reading.settings.max_steps
        for stream in (job.video, getattr(job, 'also', None)):
            if stream and streams.steps[stream] >= most:
                yield f'a stream gets more than {most} steps'


Invariant = Callable[[Any], Iterator[str]]
"""Yields in words what breaks it."""


def _invariants(of: str) -> tuple[Invariant, ...]:
    """Return all of this file and of telling.py that take so called a parameter."""
    return tuple(each for room in (globals(), vars(telling)) for name, each in room.items()
                 if not name.startswith('_') and of in getattr(each, '__annotations__', ())
                 and each.__annotations__.get('return') == 'Iterator[str]')


INVARIANTS, OF_STREAMS = _invariants('reading'), _invariants('before')


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
    found = [f'{invariant.__name__}: {words}' for invariant in INVARIANTS
             for words in invariant(reading)]
    for before in _followed(reading):
        found += [f'{invariant.__name__}: {words}' for invariant in OF_STREAMS
                  for words in invariant(before)]
    return found
