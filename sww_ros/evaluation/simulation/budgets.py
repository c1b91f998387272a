"""What must hold of how much is said: no more than a schedule grants, and no less."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from sww_ros.evaluation.simulation.reading import Moment, Reading
from sww_ros.streaming.core import CAP_STEPS
from sww_ros.streaming.events import NARRATION, StepPerceived, TextDelta
from sww_ros.streaming.jobs import Decoded, Perceived, Spoken
from sww_ros.streaming.schedule import make_schedule


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


def _accounts(reading: Reading) -> Iterator[tuple[Moment, _Account, int | None]]:
    """Yield a video's account before each token, with its owner, and with each step (None)."""
    account, video = _Account(), 0
    for moment in reading.told:
        given = moment.entry.given
        if moment.video != video:
            account, video = _Account(), moment.video
        if type(given) is Decoded and not moment.closed:
            for turn, live, spoken in zip(given.job.turns, moment.live, given.spoken):
                if live and turn.question is None and spoken is not None:
                    owner = turn.video.base + turn.owner
                    yield moment, account, owner
                    account.spoke(owner, spoken.kind == 'stop')
        elif type(given) is Perceived and any(
                isinstance(event, StepPerceived) for event in moment.entry.events):
            account.perceived(given.job.last)
            yield moment, account, None


def narration_keeps_to_its_budget(reading: Reading) -> Iterator[str]:
    """Of K tokens a step, as drawn at random, or none; at the end of a video of the rest more."""
    settings = reading.settings
    schedule = make_schedule(settings.schedule, settings.wait_k, settings.schedule_seed)
    live = settings.schedule == 'live'
    newest = video = 0
    for moment, account, owner in _accounts(reading):
        if owner is None:
            continue
        steps = account.steps
        rest = settings.max_rest_tokens if account.ended else 0
        if account.total >= schedule.granted(steps) + rest:
            yield f'{account.total + 1} tokens for {steps} steps'
        if live and account.since >= CAP_STEPS * settings.wait_k + rest:
            yield f'{account.since + 1} tokens since the last step'
        if not live and settings.schedule != 'offline':
            due = schedule.granted(owner) - schedule.granted(owner - 1)
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
    accounts = {}
    for moment, account, _ in _accounts(reading):
        accounts[moment.video] = account
    schedule = make_schedule(settings.schedule, settings.wait_k, settings.schedule_seed)
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
                due = schedule.granted(step) - schedule.granted(step - 1)
                if account.by_step[step] < due and step not in account.given_up:
                    yield f'{account.by_step[step]} tokens about step {step}'


def the_rest_ends_as_it_should(reading: Reading) -> Iterator[str]:
    """What is left after the last step's own tokens ends with silence, or at its length."""
    settings = reading.settings
    schedule = make_schedule(settings.schedule, settings.wait_k, settings.schedule_seed)
    rest: Counter[int] = Counter()
    for moment, account, owner in _accounts(reading):
        if owner is None:
            continue
        steps, spoken = account.steps, _spoken(moment)
        in_rest = account.ended and settings.schedule != 'live' and (
            account.by_step[steps] >= schedule.granted(steps) - schedule.granted(steps - 1)
            or steps in account.given_up)
        rest[moment.video] += in_rest
        ends = [event.finish_reason for event in moment.entry.events
                if isinstance(event, TextDelta) and event.stream_id == NARRATION and event.final]
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


def _spoken(moment: Moment) -> Spoken:
    given = moment.entry.given
    return next(spoken for turn, spoken in zip(given.job.turns, given.spoken)
                if turn.question is None)


BUDGETS = (narration_keeps_to_its_budget, what_may_be_said_is_said, the_rest_ends_as_it_should)
