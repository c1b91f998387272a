"""What must hold of what a token may see: what is there, as its schedule says, and told once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from sww_ros.evaluation.simulation.reading import Moment, Reading
from sww_ros.streaming.events import FirstSight, StepPerceived, TextDelta
from sww_ros.streaming.jobs import Decode, Decoded, Open, Opened, Turn


def only_what_counts_is_decoded(reading: Reading) -> Iterator[str]:
    opened = {moment.entry.given.job.video for moment in reading.told
              if type(moment.entry.given) is Opened}
    for moment in reading.taken:
        for job in moment.entry.jobs:
            if isinstance(job, Open):
                continue
            videos = [turn.video for turn in job.turns] if isinstance(job, Decode) else [job.video]
            if any(video not in opened for video in videos):
                yield f'{moment.what} is about a video that was never opened'
        if moment.live and not all(moment.live):
            yield f'{moment.what} is for someone who is not speaking'
        if moment.paused and any(turn.question is None for turn in _turns(moment)):
            yield 'the narration goes on during a pause'


def _turns(moment: Moment) -> tuple[Turn, ...]:
    job = moment.entry.jobs[-1]
    return job.turns if isinstance(job, Decode) else ()


def no_token_sees_more_than_is_there(reading: Reading) -> Iterator[str]:
    """An answer sees all there is; one with interleaved positions what there was at its start."""
    at_start: dict[object, int] = {}
    for moment in reading.taken:
        for turn, cached in zip(_turns(moment), moment.cached):
            if not 1 <= turn.sees <= cached:
                yield f'{turn.sees} steps are seen of {cached}'
            if turn.question is not None:
                due = cached
                if reading.settings.serial:
                    due = at_start.setdefault(turn.question, cached)
                if turn.sees != due or turn.owner != 1:
                    yield f'an answer sees {turn.sees} steps, not {due}, as of step {turn.owner}'


def narration_sees_what_its_schedule_says(reading: Reading) -> Iterator[str]:
    settings = reading.settings
    waits = settings.schedule in ('wait_k', 'random_wait_k') and not settings.serial
    for moment in reading.taken:
        for turn, cached in zip(_turns(moment), moment.cached):
            if turn.question is not None:
                continue
            due = turn.owner if waits else cached
            if turn.sees != due:
                yield f'a token of step {turn.owner} sees {turn.sees} of {cached} steps'
            if not 1 <= turn.owner <= cached:
                yield f'a token belongs to step {turn.owner} of {cached}'


def each_step_is_sighted_once(reading: Reading) -> Iterator[str]:
    """In order, by the first decode step that could see it; which its text says too."""
    sighted: dict[int, int] = defaultdict(int)
    for moment in reading.told:
        given = moment.entry.given
        before = dict(sighted) if type(given) is Decoded else sighted
        # Steps that nobody saw before a stream was relieved are not seen after it.
        bases = [turn.video.base for turn in given.job.turns] if type(given) is Decoded else []
        for event in moment.entry.events:
            if isinstance(event, FirstSight):
                if event.index != sighted[event.video] and not (
                        event.index > sighted[event.video] and event.index in bases
                        ) or type(given) is not Decoded:
                    yield f'{event} after {sighted[event.video]} steps'
                sighted[event.video] = event.index + 1
            elif isinstance(event, TextDelta) and event.first_sight != (
                    type(given) is Decoded and event.steps_seen > before.get(event.video, 0)
                    and event.finish_reason in ('', 'stop', 'length')):
                yield f'{event} has the wrong first_sight'
        if type(given) is Decoded and not moment.closed:
            for turn, live in zip(given.job.turns, moment.live):
                if live and sighted[turn.video.number] < turn.video.base + turn.sees:
                    yield f'{turn.sees} steps of video {turn.video.number} are seen unsaid'


def what_is_seen_is_told_as_it_was(reading: Reading) -> Iterator[str]:
    """With the stamp of the newest step seen, and the frames up to it."""
    for _, event in reading.events:
        if isinstance(event, TextDelta):
            told, number = (event.frames_seen, event.stamp_ns), event.steps_seen
            if event.step != event.steps_seen - 1:
                yield f'{event} counts steps in two ways'
        elif isinstance(event, (FirstSight, StepPerceived)):
            told, number = (None, event.stamp_ns), event.index + 1
        else:
            continue
        steps = reading.steps_of[event.video]
        step = ((0, 0), *steps)[number] if number <= len(steps) else (0, 0)
        if told != (step if told[0] is not None else (None, step[1])):
            yield f'{event} is of {step}'


SEEING = (
    only_what_counts_is_decoded, no_token_sees_more_than_is_there,
    narration_sees_what_its_schedule_says, each_step_is_sighted_once,
    what_is_seen_is_told_as_it_was)
