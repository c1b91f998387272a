"""
What must hold of what a listener is told.

Of text: numbering, ends, words, its video, and how much of it is said. Of frames, steps and videos:
what is perceived or dropped, and what a token may see of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from sww_ros.evaluation.simulation.reading import Moment, Reading
from sww_ros.streaming import jobs
from sww_ros.streaming.core import CAP_STEPS
from sww_ros.streaming.events import (
    NARRATION,
    FirstSight,
    FramesDropped,
    Restarted,
    StepPerceived,
    TextDelta,
)
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
    rests = reading.settings.speak != 'trained'
    for moment, event in reading.events_of(TextDelta):
        if event.stream_id == NARRATION and event.finish_reason in ('stop', 'length'):
            if type(moment.given) is not Decoded and not (rests and _ends(moment)):
                yield f'the narration ends with {event.finish_reason!r} at {moment.what}'
            if not moment.ended and not (rests and _ends(moment)) and not (
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
        if not (moment.events or moment.counted):
            continue
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
    for moment in reading.inputs(Decoded):
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
        if not (moment.events or moment.counted):
            continue
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
            if account.since < settings.wait_k and not account.rested and moment.awake:
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
        for job in moment.jobs:
            if type(job) is jobs.Perceive and job.frames[0].stamp_ns <= forgotten:
                yield f'frame {job.frames[0].stamp_ns} is perceived, though forgotten'
        if type(moment.given) is jobs.Fed:
            newest = moment.given.frame.stamp_ns
        if moment.events and moment.restarts('reset', 'prompt', 'error'):
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
        for job in moment.jobs:
            if type(job) is jobs.Decode and job.riding is None:
                begun[job] = moment.entry.now
        if type(moment.given) is jobs.Decoded and moment.given.job in begun:
            spans.append((begun[moment.given.job], moment.entry.now))
        for event in moment.of(StepPerceived) if moment.events else ():
            start, stop = event.started_ns, event.perceived_ns
            out = [(begun[job], stop) for job in moment.out if job in begun]
            due = sum(max(0, min(stop, end) - max(start, begin)) for begin, end in (*spans, *out))
            if event.overlap_ns != due:
                yield f'step {event.index} overlaps {event.overlap_ns} ns, not {due}'


def a_video_begins_with_a_step(reading: Reading) -> Iterator[str]:
    """Where nobody asks for another one: the last one is not left before."""
    for moment, event in reading.events_of(Restarted):
        if event.reason in ('ended', 'capacity') and not moment.frames_after:
            yield f'a video begins after {moment.video}, and there are no frames'


def a_narration_that_rests_says_nothing(reading: Reading) -> Iterator[str]:
    for moment in reading.taken:
        if not moment.awake and any(turn.question is None for turn, _ in _turns(moment)):
            yield 'the narration goes on without news'


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
        if not (turns or moment.events or moment.rests):
            continue
        speak = {turn.question.question_id if turn.question else NARRATION for turn in turns}
        before = dict(sighted) if turns else sighted
        # Steps that nobody saw before a stream was relieved are not seen after it.
        bases = [turn.video.base for turn in turns]
        for event in moment.events:
            if isinstance(event, StepPerceived) and moment.rests:
                sighted[event.video] = event.index + 1  # Nobody is to see it.
            elif isinstance(event, FirstSight):
                if not turns or event.index != sighted[event.video] and not (
                        event.index > sighted[event.video] and event.index in bases):
                    yield f'{event} after {sighted[event.video]} steps'
                sighted[event.video] = event.index + 1
            elif isinstance(event, TextDelta) and event.first_sight != (
                    event.stream_id in speak and event.steps_seen > before.get(event.video, 0)
                    and event.finish_reason in ('', 'stop', 'length')):
                yield f'{event} has the wrong first_sight'
        if moment.rests:
            sighted[moment.video] = max(sighted[moment.video], moment.steps)
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
