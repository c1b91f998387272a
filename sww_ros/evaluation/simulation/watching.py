"""What must hold of frames, steps and videos, and of what a token may see of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from sww_ros.evaluation.simulation.reading import Moment, Reading
from sww_ros.evaluation.simulation.world import Taken, Told
from sww_ros.streaming.events import FirstSight, FramesDropped, Restarted, StepPerceived, TextDelta
from sww_ros.streaming.jobs import (
    Closed,
    Decode,
    Decoded,
    Failed,
    Fed,
    Open,
    Opened,
    Paused,
    Perceive,
    Perceived,
    Prompted,
    Reset,
    Turn,
)

_DROPS = {Fed: {'overrun', 'paused'}, Paused: {'paused'}, Prompted: {'reset'}, Reset: {'reset'},
          Failed: {'bad', 'reset', 'closed'}, Closed: {'closed'}}


def every_frame_is_accounted_for(reading: Reading) -> Iterator[str]:
    """Perceived or dropped by a reason, once; at the end none is left."""
    for moment in reading.told:
        if moment.frames_after < 0:
            yield f'{-moment.frames_after} frames too many are told of at {moment.what}'
            return
        if moment.frames_after and (type(moment.entry.given) is Closed or moment.closed):
            yield f'{moment.frames_after} frames are not told of at the end'
            return


def frames_are_dropped_by_their_cause(reading: Reading) -> Iterator[str]:
    for moment, event in reading.events:
        if isinstance(event, FramesDropped):
            given = moment.entry.given
            if event.reason not in _DROPS.get(type(given), ()) or event.count < 1:
                yield f'{event} at {moment.what}'
            if type(given) is Paused and not given.paused:
                yield f'{event} when a pause ends'
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
                yield f'step {event.index} of video {event.video} is told of at {moment.what}'
            if event.index - moment.base >= reading.settings.max_steps:
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
            if isinstance(event, Restarted) and event.reason != 'relay':
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


def what_is_forgotten_is_not_perceived(reading: Reading) -> Iterator[str]:
    """No frame fed before a reset, a prompt or an error is taken after it."""
    newest = forgotten = 0
    for moment in reading.moments:
        entry = moment.entry
        if type(entry) is Taken:
            for job in entry.jobs:
                if isinstance(job, Perceive) and job.frames[0].stamp_ns <= forgotten:
                    yield f'frame {job.frames[0].stamp_ns} is perceived, though forgotten'
        elif type(entry) is Told:
            if type(entry.given) is Fed:
                newest = entry.given.frame.stamp_ns
            if any(isinstance(event, Restarted) and event.reason in ('reset', 'prompt', 'error')
                   for event in entry.events):
                forgotten = newest


def frames_that_wait_are_bounded(reading: Reading) -> Iterator[str]:
    """Frames give way to a newer one if no more may wait, and only then."""
    settings = reading.settings
    limit = max(settings.max_pending_frames, settings.frames_per_step)
    taken: dict[object, int] = {}
    video = 0
    for moment in reading.moments:
        entry = moment.entry
        if moment.video != video:
            taken, video = {}, moment.video
        if type(entry) is Taken:
            taken |= {job: len(job.frames) for job in entry.jobs if isinstance(job, Perceive)}
        elif type(entry) is Told and not moment.closed:
            if type(entry.given) is Fed and not moment.paused:
                overrun = any(isinstance(event, FramesDropped) for event in entry.events)
                waiting = moment.frames - sum(taken.values())
                if overrun != (waiting >= limit):
                    yield f'{waiting} frames wait, and a newer one ' \
                          f'{"takes a place" if overrun else "comes"}'
            elif type(entry.given) is Perceived:
                taken.pop(entry.given.job, None)


def overlap_is_the_time_of_both(reading: Reading) -> Iterator[str]:
    """How long decode steps ran too, those that ride in the same pass left out."""
    spans: list[tuple[int, int]] = []
    out: dict[object, int] = {}
    for moment in reading.moments:
        entry = moment.entry
        if type(entry) is Taken:
            out.update((job, entry.now) for job in entry.jobs
                       if isinstance(job, Decode) and job.riding is None)
        elif type(entry) is Told:
            given = entry.given
            if type(given) is Decoded and given.job in out:
                spans.append((out.pop(given.job), entry.now))
            elif type(given) is Failed:
                for job in given.jobs:
                    out.pop(job, None)
            for event in entry.events:
                if isinstance(event, StepPerceived):
                    start, stop = event.started_ns, event.perceived_ns
                    due = sum(max(0, min(stop, end) - max(start, begin)) for begin, end in
                              (*spans, *((begun, stop) for begun in out.values())))
                    if event.overlap_ns != due:
                        yield f'step {event.index} overlaps {event.overlap_ns} ns, not {due}'


def a_video_begins_with_a_step(reading: Reading) -> Iterator[str]:
    """Where nobody asks for another one: the last one is not left before."""
    for moment, event in reading.events:
        if (isinstance(event, Restarted) and event.reason in ('ended', 'capacity')
                and not moment.frames_after):
            yield f'video {event.video} begins, and there are no frames'


WATCHING = (
    every_frame_is_accounted_for, frames_are_dropped_by_their_cause, a_pause_lets_nothing_in,
    steps_are_numbered_in_order, what_is_perceived_is_told, a_video_is_of_one_clip,
    what_is_forgotten_is_not_perceived, frames_that_wait_are_bounded,
    overlap_is_the_time_of_both, a_video_begins_with_a_step)


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
