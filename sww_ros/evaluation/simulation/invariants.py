"""
What must hold of every schedule, whatever happens: each a small function over a reading.

Those of the life of the core stand here: rest, failure, what runs at once, the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from sww_ros.evaluation.simulation.questions import QUESTIONS
from sww_ros.evaluation.simulation.reading import Reading
from sww_ros.evaluation.simulation.relaying import RELAYING, is_piece
from sww_ros.evaluation.simulation.script import Script
from sww_ros.evaluation.simulation.speaking import BUDGETS, SPEAKING
from sww_ros.evaluation.simulation.watching import SEEING, WATCHING
from sww_ros.evaluation.simulation.world import MOST_JOBS, Taken, World, ahead_of
from sww_ros.streaming.core import MAX_FAILURES
from sww_ros.streaming.events import Restarted, Trouble
from sww_ros.streaming.jobs import Decode, Decoded, Failed, Open, Perceived, Prompted, Reset


def it_comes_to_rest(reading: Reading) -> Iterator[str]:
    """When nothing comes in any more: all that can be perceived is, no question is left."""
    per_step = reading.settings.frames_per_step
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
            fatal = given.fatal or counts[side] > MAX_FAILURES
            if [event.fatal for event in troubles] != [fatal]:
                yield f'failure {counts[side]} in a row of {side} is told as {troubles}'
        elif troubles:
            yield f'{troubles} at {moment.what}'


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
                not isinstance(job, Decode) and not is_piece(job)
                and job.video.number == moment.video for job in given.jobs)
            if ('error' in again) != (concerns and not fatal):
                yield f'{given.message} restarts {again}'


def jobs_that_are_out_are_few(reading: Reading) -> Iterator[str]:
    """One of a kind; or so many steps as are taken ahead, of one video, which goes on."""
    ahead = ahead_of(reading.settings.overlap)
    out: list[object] = []
    for moment in reading.moments:
        entry = moment.entry
        given = getattr(entry, 'given', None)
        if type(entry) is Taken:
            out += entry.jobs
            decodes = sum(isinstance(job, Decode) for job in out)
            looks = [job for job in out if not isinstance(job, Decode)]
            if decodes > 1 or len(looks) > ahead or (reading.settings.serial and len(out) > 1):
                yield f'{len(out)} jobs are out, {decodes} of them decode'
            if any(isinstance(look, Open) or look.last or look.video is not later.video
                   for look, later in pairwise(looks)):
                yield 'a step is taken before it is known which video it belongs to'
        elif type(given) is Failed:
            out = [job for job in out if job not in given.jobs]
        elif (job := getattr(given, 'job', None)) is not None:
            out = [other for other in out if other is not job]


def after_the_end_there_is_nothing(reading: Reading) -> Iterator[str]:
    for moment in reading.told:
        if moment.closed and moment.entry.events:
            yield f'{moment.entry.events[0]} after the end'
    for moment in reading.taken:
        if moment.closed:
            yield f'{moment.what} after the end'


def prompts_and_resets_begin_anew(reading: Reading) -> Iterator[str]:
    """At once; and a video has the newest prompt."""
    for moment in reading.told:
        reason = {Prompted: 'prompt', Reset: 'reset'}.get(type(moment.entry.given))
        if reason and not moment.closed and not any(
                isinstance(event, Restarted) and event.reason == reason
                for event in moment.entry.events):
            yield f'{moment.what} begins nothing anew'
    for moment in reading.taken:
        for job in moment.entry.jobs:
            if isinstance(job, Open) and job.video.prompt != moment.prompt:
                yield f'a video has the prompt {job.video.prompt!r}, not {moment.prompt!r}'


LIFE = (
    it_comes_to_rest, repeated_failure_is_fatal, a_failure_begins_anew_what_it_concerns,
    jobs_that_are_out_are_few, after_the_end_there_is_nothing, prompts_and_resets_begin_anew)


Invariant = Callable[[Reading], Iterator[str]]
"""Yields in words what breaks it."""

INVARIANTS: tuple[Invariant, ...] = (
    *QUESTIONS, *WATCHING, *LIFE, *SPEAKING, *SEEING, *BUDGETS, *RELAYING)


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
