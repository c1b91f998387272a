"""What must hold of frames, steps and videos, and of what a token may see of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from sww_ros.evaluation.simulation.reading import Moment, Reading
from sww_ros.streaming import jobs
from sww_ros.streaming.events import FirstSight, FramesDropped, Restarted, StepPerceived, TextDelta

_DROPS = {
    jobs.Fed: {'overrun', 'paused'}, jobs.Paused: {'paused'}, jobs.Prompted: {'reset'},
    jobs.Reset: {'reset'}, jobs.Failed: {'bad', 'reset', 'closed'}, jobs.Closed: {'closed'}}


def every_frame_is_accounted_for(reading: Reading) -> Iterator[str]:
    """Perceived or dropped by a reason, once; at the end none is left."""
    for moment in reading.told:
        if moment.frames_after < 0:
            yield f'{-moment.frames_after} frames too many are told of at {moment.what}'
            return
        if moment.frames_after and (type(moment.given) is jobs.Closed or moment.closed):
            yield f'{moment.frames_after} frames are not told of at the end'
            return


def frames_are_dropped_by_their_cause(reading: Reading) -> Iterator[str]:
    for moment, event in reading.events_of(FramesDropped):
        given = moment.given
        if event.reason not in _DROPS.get(type(given), ()) or event.count < 1:
            yield f'{event} at {moment.what}'
        if type(given) is jobs.Paused and not given.paused:
            yield f'{event} when a pause ends'
        if type(given) is jobs.Fed and (event.reason == 'paused') != moment.paused:
            yield f'{event} while {"" if moment.paused else "not "}paused'


def a_pause_lets_nothing_in(reading: Reading) -> Iterator[str]:
    for moment in reading.taken:
        if moment.paused and moment.of(jobs.Perceive):
            yield 'a step is taken during a pause'
    for moment in reading.inputs(jobs.Fed):
        if moment.paused and not moment.of(FramesDropped):
            yield 'a frame fed during a pause is kept'


def steps_are_numbered_in_order(reading: Reading) -> Iterator[str]:
    for moment, event in reading.events_of(StepPerceived):
        given = moment.given
        if (event.index, event.video) != (moment.steps, moment.video):
            yield f'step {event.index} of video {event.video} is told of as ' \
                  f'{moment.steps} of {moment.video}'
        if type(given) is not jobs.Perceived or given.job.video.number != event.video:
            yield f'step {event.index} of video {event.video} is told of at {moment.what}'
        if event.index - moment.base >= reading.settings.max_steps:
            yield f'step {event.index} is more than a video holds'


def what_is_perceived_is_told(reading: Reading) -> Iterator[str]:
    for moment in reading.inputs(jobs.Perceived):
        number = moment.given.job.video.number
        if bool(moment.of(StepPerceived)) != (number == moment.video):
            yield f'a step of video {number} is told of in {moment.video}'


def a_video_is_of_one_clip(reading: Reading) -> Iterator[str]:
    """The end of a clip parts two videos, even where its frames are dropped, and nothing else."""
    clips: dict[int, int] = {}
    steps: Counter[int] = Counter()
    reasons = {event.video: event.reason for _, event in reading.events_of(Restarted)
               if event.reason != 'relay'}
    for moment, event in reading.events_of(StepPerceived):
        if type(moment.given) is jobs.Perceived:
            found = {reading.clips[frame.stamp_ns] for frame in moment.given.job.frames}
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
        for job in moment.of(jobs.Perceive):
            if job.frames[0].stamp_ns <= forgotten:
                yield f'frame {job.frames[0].stamp_ns} is perceived, though forgotten'
        if type(moment.given) is jobs.Fed:
            newest = moment.given.frame.stamp_ns
        if moment.restarts('reset', 'prompt', 'error'):
            forgotten = newest


def frames_that_wait_are_bounded(reading: Reading) -> Iterator[str]:
    """Frames give way to a newer one if no more may wait, and only then."""
    settings = reading.settings
    limit = max(settings.max_pending_frames, settings.frames_per_step)
    for moment in reading.inputs(jobs.Fed):
        if not moment.paused:
            waiting = moment.frames - sum(
                len(job.frames) for job in moment.out
                if isinstance(job, jobs.Perceive) and job.video.number == moment.video)
            overrun = bool(moment.of(FramesDropped))
            if overrun != (waiting >= limit):
                yield f'{waiting} frames wait, and a newer one ' \
                      f'{"takes a place" if overrun else "comes"}'


def overlap_is_the_time_of_both(reading: Reading) -> Iterator[str]:
    """How long decode steps ran too, those that ride in the same pass left out."""
    spans: list[tuple[int, int]] = []
    begun: dict[object, int] = {}
    for moment in reading.moments:
        begun |= {job: moment.entry.now for job in moment.of(jobs.Decode) if job.riding is None}
        if type(moment.given) is jobs.Decoded and moment.given.job in begun:
            spans.append((begun[moment.given.job], moment.entry.now))
        for event in moment.of(StepPerceived):
            start, stop = event.started_ns, event.perceived_ns
            out = [(begun[job], stop) for job in moment.out if job in begun]
            due = sum(max(0, min(stop, end) - max(start, begin)) for begin, end in (*spans, *out))
            if event.overlap_ns != due:
                yield f'step {event.index} overlaps {event.overlap_ns} ns, not {due}'


def a_video_begins_with_a_step(reading: Reading) -> Iterator[str]:
    """Where nobody asks for another one: the last one is not left before."""
    for moment in reading.told:
        if moment.restarts('ended', 'capacity') and not moment.frames_after:
            yield f'a video begins after {moment.video}, and there are no frames'


def only_what_counts_is_decoded(reading: Reading) -> Iterator[str]:
    opened = {moment.given.job.video for moment in reading.told
              if type(moment.given) is jobs.Opened}
    for moment in reading.taken:
        for job in moment.jobs:
            about = job.turns if isinstance(job, jobs.Decode) else [job]
            if not isinstance(job, jobs.Open) and any(each.video not in opened for each in about):
                yield f'{moment.what} is about a video that was never opened'
        if not all(moment.live):
            yield f'{moment.what} is for someone who is not speaking'
        if moment.paused and any(turn.question is None for turn, _ in _turns(moment)):
            yield 'the narration goes on during a pause'


def _turns(moment: Moment) -> Iterator[tuple[jobs.Turn, int]]:
    """Turns that are taken, each with how many steps there are to be seen."""
    job = moment.jobs[-1]
    return zip(job.turns if isinstance(job, jobs.Decode) else (), moment.cached)


def no_token_sees_more_than_is_there(reading: Reading) -> Iterator[str]:
    """An answer sees all there is; one with interleaved positions what there was at its start."""
    at_start: dict[object, int] = {}
    for moment in reading.taken:
        for turn, cached in _turns(moment):
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
        for turn, cached in _turns(moment):
            if turn.question is None:
                if turn.sees != (turn.owner if waits else cached):
                    yield f'a token of step {turn.owner} sees {turn.sees} of {cached} steps'
                if not 1 <= turn.owner <= cached:
                    yield f'a token belongs to step {turn.owner} of {cached}'


def each_step_is_sighted_once(reading: Reading) -> Iterator[str]:
    """In order, by the first decode step that could see it; which its text says too."""
    sighted: dict[int, int] = defaultdict(int)
    for moment in reading.told:
        turns = moment.given.job.turns if type(moment.given) is jobs.Decoded else ()
        before = dict(sighted) if turns else sighted
        # Steps that nobody saw before a stream was relieved are not seen after it.
        bases = [turn.video.base for turn in turns]
        for event in moment.events:
            if isinstance(event, FirstSight):
                if not turns or event.index != sighted[event.video] and not (
                        event.index > sighted[event.video] and event.index in bases):
                    yield f'{event} after {sighted[event.video]} steps'
                sighted[event.video] = event.index + 1
            elif isinstance(event, TextDelta) and event.first_sight != (
                    bool(turns) and event.steps_seen > before.get(event.video, 0)
                    and event.finish_reason in ('', 'stop', 'length')):
                yield f'{event} has the wrong first_sight'
        if not moment.closed:
            for turn, live in zip(turns, moment.live):
                if live and sighted[turn.video.number] < turn.video.base + turn.sees:
                    yield f'{turn.sees} steps of video {turn.video.number} are seen unsaid'


def what_is_seen_is_told_as_it_was(reading: Reading) -> Iterator[str]:
    """With the stamp of the newest step seen, and the frames up to it."""
    for _, event in reading.events:
        if isinstance(event, TextDelta):
            number = event.steps_seen
            if event.step != number - 1:
                yield f'{event} counts steps in two ways'
        elif isinstance(event, (FirstSight, StepPerceived)):
            number = event.index + 1
        else:
            continue
        steps = reading.steps_of[event.video]
        frames, stamp_ns = ((0, 0), *steps)[number] if number <= len(steps) else (0, 0)
        if event.stamp_ns != stamp_ns or getattr(event, 'frames_seen', frames) != frames:
            yield f'{event} is of {frames} frames, the last at {stamp_ns}'
