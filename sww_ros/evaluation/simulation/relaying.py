"""What must hold of a relay: nothing is lost, doubled or cut where one stream relieves another."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from sww_ros.evaluation.simulation.reading import Moment, Reading
from sww_ros.streaming import jobs
from sww_ros.streaming.events import Restarted, StepPerceived, TextDelta


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
        if isinstance(given, jobs.Perceived):
            self.steps.update(each for each in (given.job.video, given.job.also) if each)
        elif isinstance(given, jobs.Carried):
            self.steps[given.job.video] += 1
            self.given[given.job.video] += given.job.words
        elif isinstance(given, jobs.Decoded):
            self._decoded(moment)
        elif isinstance(given, jobs.Failed):
            self.is_alone |= any(is_piece(job) and not job.video.recalled for job in given.jobs)

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


def _followed(reading: Reading) -> Iterator[tuple[Moment, _Streams, jobs.Job | Restarted]]:
    """Yield each job before it is taken, and each restart before it takes place."""
    streams = _Streams()
    for moment in reading.moments:
        for job in moment.jobs:
            yield moment, streams, job
            streams.take(job)
        streams.tell(moment)
        for event in moment.events:
            if isinstance(event, Restarted):
                yield moment, streams, event
            streams.follow(event)


def _hand_overs(reading: Reading) -> Iterator[tuple[Moment, _Streams]]:
    for moment, streams, what in _followed(reading):
        if isinstance(what, Restarted) and what.reason == 'relay':
            yield moment, streams


def no_sentence_is_cut_by_a_hand_over(reading: Reading) -> Iterator[str]:
    """But where a step waits and there is no room for it."""
    settings = reading.settings
    for moment, streams in _hand_overs(reading):
        is_full = streams.steps[streams.current] >= settings.max_steps
        if streams.unfinished and not moment.spoken and not (is_full and moment.frames_after):
            yield f'a sentence is cut with {streams.steps[streams.current]} steps'


def no_step_is_skipped_by_a_hand_over(reading: Reading) -> Iterator[str]:
    """What its schedule grants a step that is left behind has been said; but for lack of room."""
    settings = reading.settings
    if settings.schedule not in ('wait_k', 'random_wait_k') or not settings.narrate:
        return
    for moment, streams in _hand_overs(reading):
        said = Counter(word.owner for word in streams.spoken)
        for step in range(1 + streams.current.base, 1 + streams.coming.base):
            due = reading.granted(step)
            over = settings.single_turn and streams.given_up
            if (said[step] < due and not over and step not in streams.given_up and not moment.spoken
                    and streams.steps[streams.current] < settings.max_steps):
                yield f'{said[step]} of {due} tokens were spoken about step {step}'


def a_hand_over_changes_nothing_for_a_listener(reading: Reading) -> Iterator[str]:
    """The same video goes on, no text ends with it."""
    for moment, event in reading.events:
        if isinstance(event, Restarted) and event.reason == 'relay' and (
                event.video != moment.video):
            yield f'{event} in video {moment.video}'
        if isinstance(event, TextDelta) and event.finish_reason == 'relay':
            yield f'{event.stream_id!r} ends with a hand-over'


def what_is_perceived_is_in_the_stream_that_speaks_next(reading: Reading) -> Iterator[str]:
    for _, streams in _hand_overs(reading):
        coming = streams.coming
        if coming is None:
            yield 'nobody was prepared to take over'
        elif (there := coming.base + streams.steps[coming]) != streams.told:
            yield f'{there} of {streams.told} steps are there at a hand-over'


def a_hand_over_waits_for_the_token_that_is_computed(reading: Reading) -> Iterator[str]:
    for moment, streams in _hand_overs(reading):
        if any(turn.question is None and turn.video is streams.current for job in moment.out
               if isinstance(job, jobs.Decode) for turn in job.turns):
            yield 'the narration is handed over while a token of it is computed'


def every_word_is_given_once_and_in_order(reading: Reading) -> Iterator[str]:
    """To the lane that goes on with the narration; each sees steps that are there."""
    for _, streams, job in _followed(reading):
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
        for job in together:
            if isinstance(job, jobs.Decode) and (
                    job.words and job.words.video in written
                    or any(turn.video in written for turn in job.turns)):
                yield 'both sides write the narration of a stream'


def a_step_waits_for_a_few_pieces_only(reading: Reading) -> Iterator[str]:
    """But for those without which there is no room for it."""
    settings = reading.settings
    for moment, streams, job in _followed(reading):
        if (not isinstance(job, Restarted) and is_piece(job)
                and moment.frames >= settings.frames_per_step
                and streams.steps[streams.current] < settings.max_steps
                and streams.pieces >= settings.make_relay().pieces):
            yield f'a step waits for {streams.pieces + 1} pieces'


def a_stream_is_relieved_once_it_nears_its_capacity(reading: Reading) -> Iterator[str]:
    """By one that has so many of its steps as is said; and begins anew for lack of room no more."""
    relay = reading.settings.make_relay()
    for _, streams, what in _followed(reading):
        if isinstance(what, Restarted):
            if what.reason == 'capacity' and relay and not streams.is_alone:
                yield 'it begins anew for lack of room'
        elif isinstance(what, jobs.Open) and what.source is not None and not what.video.recalled:
            steps = streams.steps[what.source]
            carried = what.source.base + steps - what.video.base
            if relay is None or not (relay.memory <= carried
                                     <= relay.memory + steps - relay.capacity):
                yield f'{carried} of {steps} steps are carried over'
            if streams.coming is not None and not streams.is_alone:
                yield 'two streams are prepared'
            if streams.is_alone:
                yield 'another one is prepared after the first has failed'


def an_answer_recalls_what_has_left(reading: Reading) -> Iterator[str]:
    """And begins when all of that is there."""
    for _, streams, job in _followed(reading):
        if isinstance(job, jobs.Open) and job.video.recalled:
            end = job.video.base + len(job.video.recalled)
            if not streams.current or end > streams.current.base:
                yield f'the steps up to {end} are recalled, which are in the stream'
        for turn in job.turns if isinstance(job, jobs.Decode) else ():
            if turn.video.recalled and turn.sees != len(turn.video.recalled):
                yield f'{turn.sees} of {len(turn.video.recalled)} recalled steps are seen'


def streams_are_short(reading: Reading) -> Iterator[str]:
    most = reading.settings.max_steps
    for _, streams, job in _followed(reading):
        if isinstance(job, (jobs.Perceive, jobs.Carry)):
            for stream in (job.video, getattr(job, 'also', None)):
                if stream and streams.steps[stream] >= most:
                    yield f'a stream gets more than {most} steps'
