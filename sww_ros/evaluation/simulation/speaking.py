"""What must hold of text: numbering, ends, words, its video, and how much of it is said."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from sww_ros.evaluation.simulation.reading import Moment, Reading
from sww_ros.streaming.core import CAP_STEPS
from sww_ros.streaming.events import NARRATION, FirstSight, Restarted, StepPerceived, TextDelta
from sww_ros.streaming.jobs import Decoded, Perceived, Spoken


def texts_are_numbered_without_gaps(reading: Reading) -> Iterator[str]:
    """From 0; the narration over all its ends, an answer from its question on."""
    seq: dict[str, int] = defaultdict(int)
    for _, event in reading.events_of(TextDelta):
        if event.seq != seq[event.stream_id]:
            yield f'{event.stream_id!r} goes from {seq[event.stream_id] - 1} to {event.seq}'
        seq[event.stream_id] = event.seq + 1
        if event.final and event.stream_id != NARRATION:
            del seq[event.stream_id]


def narration_ends_once_a_video(reading: Reading) -> Iterator[str]:
    """And where it is cut, by what its end says: the reason of the restart that follows."""
    ended = cut = ''
    for moment, event in reading.events:
        if cut and not (isinstance(event, Restarted) and event.reason == cut):
            yield f'the narration is cut by {cut!r}, and {event} follows'
        cut = ''
        if isinstance(event, TextDelta) and event.stream_id == NARRATION:
            if ended:
                yield f'the narration ended with {ended!r}, and goes on'
            if event.final:
                ended = event.finish_reason
                cut = '' if ended in ('stop', 'length') else ended
                if not ended:
                    yield 'the narration ends without a reason'
        elif isinstance(event, Restarted) and event.reason != 'relay':
            if bool(ended) != reading.settings.narrate:
                yield f'video {event.video - 1} is left, its narration ended with {ended!r}'
            if event.reason == 'ended' == ended and (moment.ended or _ends(moment)):
                yield f'the narration of video {event.video - 1} is cut, which had all its frames'
            if event.reason == 'capacity' == ended and reading.settings.schedule == 'offline':
                yield f'nothing is said of video {event.video - 1}, which is full'
            ended = ''
    if cut:
        yield f'the narration is cut by {cut!r}, and nothing follows'


def _ends(moment: Moment) -> bool:
    """Whether a moment is the end of its video."""
    given = moment.given
    return type(given) is Perceived and given.job.last and given.job.video.number == moment.video


def narration_ends_by_itself_at_the_end_alone(reading: Reading) -> Iterator[str]:
    """With stop or length where its video has ended, or with its one turn."""
    for moment, event in reading.events_of(TextDelta):
        if event.stream_id == NARRATION and event.finish_reason in ('stop', 'length'):
            if type(moment.given) is not Decoded:
                yield f'the narration ends with {event.finish_reason!r} at {moment.what}'
            if not moment.ended and not (
                    reading.settings.single_turn and event.finish_reason == 'stop'):
                yield f'the narration of video {event.video} ends before the video'


def what_is_forgotten_is_not_spoken_of(reading: Reading) -> Iterator[str]:
    """Once another video began, answers that go on and what they see are told of the last one."""
    for moment, event in reading.events:
        video = getattr(event, 'video', None)
        if video is None or video == moment.video:
            continue
        begun = [other.video for other in moment.of(Restarted) if other.reason != 'relay']
        if isinstance(event, Restarted):
            # Two in one go are one after the other.
            if begun != [*range(moment.video + 1, moment.video + 1 + len(begun))]:
                yield f'videos {begun} follow {moment.video}'
        elif isinstance(event, TextDelta):
            asking = moment.open.get(event.stream_id)
            if (asking is None or asking.video != video) and video not in begun:
                yield f'{event.stream_id!r} speaks of video {video} in video {moment.video}'
        elif isinstance(event, FirstSight):
            if not any(asking.video == video for asking in moment.open.values()):
                yield f'video {video} is seen in video {moment.video}'
        else:
            yield f'{event} in video {moment.video}'


def answers_keep_to_their_video(reading: Reading) -> Iterator[str]:
    for moment, event in reading.events_of(TextDelta):
        asking = moment.open.get(event.stream_id)
        if asking and asking.video is not None and event.video != asking.video:
            yield f'{event.stream_id!r} goes on about video {event.video}, not {asking.video}'


def what_counts_is_told(reading: Reading) -> Iterator[str]:
    """Word for word, of the step that it saw; and nothing of what came back too late."""
    for moment in reading.told:
        told = [(event.stream_id, event.delta, event.steps_seen, event.video)
                for event in moment.of(TextDelta) if event.delta]
        due = [(turn.question.question_id if turn.question else NARRATION, spoken.delta,
                turn.video.base + turn.sees, turn.video.number)
               for turn, spoken in moment.counted if spoken.delta]
        if told != due:
            yield f'{told} is told of {due} at {moment.what}'


def nothing_empty_is_told(reading: Reading) -> Iterator[str]:
    """Neither silence nor half a character reaches a listener, but an end does."""
    for _, event in reading.events_of(TextDelta):
        if not (event.delta or event.sentence or event.final):
            yield f'{event} says nothing'


def sentences_hold_all_that_was_said(reading: Reading) -> Iterator[str]:
    """Wherever a text ends by itself, its sentences are its words."""
    said: dict[str, str] = defaultdict(str)
    sentences: dict[str, str] = defaultdict(str)
    for _, event in reading.events_of(TextDelta):
        name = event.stream_id
        said[name] += event.delta
        sentences[name] += event.sentence
        if event.final:
            if event.finish_reason in ('stop', 'length') and said[name] != sentences[name]:
                yield f'{name!r} said {said[name]!r} in sentences {sentences[name]!r}'
            del said[name], sentences[name]


def answers_have_a_length(reading: Reading) -> Iterator[str]:
    most = reading.settings.max_answer_tokens
    counts: Counter[object] = Counter()
    for moment in reading.told:
        ends = {event.stream_id: event.finish_reason for event in moment.of(TextDelta)
                if event.final}
        for turn, spoken in moment.counted:
            if question := turn.question:
                counts[question] += 1
                due = ('stop' if spoken.kind == 'stop' else
                       'length' if counts[question] >= most else None)
                if ends.get(question.question_id) != due:
                    yield f'{question.question_id!r} ends with ' \
                          f'{ends.get(question.question_id)!r} after {counts[question]} tokens'


class _Account:
    """How many tokens the narration of one video has spoken: by step, and since the last one."""

    def __init__(self) -> None:
        self.steps = self.since = self.total = self.since_end = 0
        self.ended = self.rested = False
        self.by_step: dict[int, int] = defaultdict(int)
        self.given_up: set[int] = set()

    def perceived(self, last: bool) -> None:
        self.steps, self.since, self.rested = self.steps + 1, 0, False
        self.ended |= last

    def spoke(self, owner: int, stop: bool) -> None:
        self.since, self.total = self.since + 1, self.total + 1
        self.by_step[owner] += 1
        self.since_end += self.ended
        if stop:
            self.rested = True
            self.given_up.add(owner)


def _accounts(reading: Reading) -> Iterator[tuple[Moment, _Account, int, Spoken | None]]:
    """Yield a video's account before each token, with its owner, and after each step (None)."""
    account, video = _Account(), 0
    for moment in reading.told:
        if moment.video != video:
            account, video = _Account(), moment.video
        for turn, spoken in moment.counted:
            if turn.question is None:
                owner = turn.video.base + turn.owner
                yield moment, account, owner, spoken
                account.spoke(owner, spoken.kind == 'stop')
        if moment.of(StepPerceived) and type(moment.given) is Perceived:
            account.perceived(moment.given.job.last)
            yield moment, account, 0, None


def narration_keeps_to_its_budget(reading: Reading) -> Iterator[str]:
    """Of K tokens a step, as drawn at random, or none; at the end of a video of the rest more."""
    settings = reading.settings
    live = settings.schedule == 'live'
    newest = video = 0
    for moment, account, owner, spoken in _accounts(reading):
        if spoken is None:
            continue
        steps = account.steps
        rest = settings.max_rest_tokens if account.ended else 0
        if account.total >= reading.schedule.granted(steps) + rest:
            yield f'{account.total + 1} tokens for {steps} steps'
        if live and account.since >= CAP_STEPS * settings.wait_k + rest:
            yield f'{account.since + 1} tokens since the last step'
        if not live and settings.schedule != 'offline':
            due = reading.granted(owner)
            if account.by_step[owner] >= due + rest * (owner == steps):
                yield f'{account.by_step[owner] + 1} tokens about step {owner}'
            if owner in account.given_up and not (account.ended and owner == steps):
                yield f'step {owner} goes on after its turn has ended'
        elif account.rested:
            yield 'a turn goes on after it has ended, with nothing new to see'
        if moment.video == video and owner < newest:
            yield f'a token of step {owner} after one of step {newest}'
        newest, video = owner, moment.video


def what_may_be_said_is_said(reading: Reading) -> Iterator[str]:
    """At rest nothing is left of what a schedule grants, and a video that has ended is told so."""
    settings = reading.settings
    if not settings.narrate:
        return
    accounts = {moment.video: account for moment, account, _, _ in _accounts(reading)}
    for moment in [moment for moment in reading.rests if not moment.entry.busy][:1]:
        account = accounts.get(moment.video)
        if moment.closed or moment.paused or moment.spoken or account is None:
            continue
        if account.ended:
            yield f'video {moment.video} has ended, and its narration has not'
        elif settings.schedule == 'live':
            if account.since < settings.wait_k and not account.rested:
                yield f'{account.since} tokens since the last step'
        elif settings.schedule != 'offline':
            for step in range(1 + moment.base, account.steps + 1):
                due = reading.granted(step)
                if account.by_step[step] < due and step not in account.given_up:
                    yield f'{account.by_step[step]} tokens about step {step}'


def the_rest_ends_as_it_should(reading: Reading) -> Iterator[str]:
    """What is left after the last step's own tokens ends with silence, or at its length."""
    settings = reading.settings
    rest: Counter[int] = Counter()
    for moment, account, owner, spoken in _accounts(reading):
        if spoken is None:
            continue
        steps = account.steps
        in_rest = account.ended and settings.schedule != 'live' and (
            account.by_step[steps] >= reading.granted(steps)
            or steps in account.given_up)
        rest[moment.video] += in_rest
        ends = [event.finish_reason for event in moment.of(TextDelta)
                if event.stream_id == NARRATION and event.final]
        over = spoken.kind == 'stop' and (
            settings.single_turn or account.ended and owner == steps)
        if (in_rest and spoken.kind == 'silence') or over:
            due = ['stop']
        elif not account.ended:
            due = []
        elif settings.schedule == 'live':
            continue  # How much was left of its steps is not to be known from outside.
        else:
            due = ['length'][:rest[moment.video] >= settings.max_rest_tokens]
        if ends[:1] != due and not (due == [] and ends[:1] not in (['stop'], ['length'])):
            yield f'the narration of video {moment.video} ends with {ends}, not {due}'
