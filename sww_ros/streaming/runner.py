"""Does the core's jobs with a model: frames to cached steps, lanes to tokens, tokens to text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
import time
from typing import Any, NamedTuple, TypeVar, cast
import weakref

import torch

from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.decoder import Chunk, Decoder
from sww_ros.streaming.events import NARRATION
from sww_ros.streaming.family import Seen
from sww_ros.streaming.generation import TextLane
from sww_ros.streaming.jobs import (
    Again,
    Carried,
    Carry,
    Decode,
    Decoded,
    Failed,
    Frame,
    Input,
    Job,
    Open,
    Opened,
    Perceive,
    Perceived,
    Spoken,
    Turn,
    Video,
    Word,
)
from sww_ros.streaming.kv import Lane, LaneView
from sww_ros.streaming.pace import step_rows, video_rows, working_size
from sww_ros.streaming.perception import Perception, share_changed, without_still
from sww_ros.streaming.positions import SCHEMES, Scheme, Track
from sww_ros.streaming.relay import Relay
from sww_ros.streaming.sampling import check_finite
from sww_ros.streaming.schedule import make_schedule
from sww_ros.streaming.stream import KeptSteps, Stream

K = TypeVar('K')
T = TypeVar('T')

HEAD_ROWS = 64
"""How much of questions, all together, is prefilled in one decode step: narration waits for it."""

SIDE_ROWS = 2048
"""At most so many rows of narration lie beside the visual lane; a longer one lies by itself."""


class Pixels(NamedTuple):
    """
    A step as the vision tower takes it, of frames of a size (height, width); times [ns].

    `seen` is what the tower has made of it; None: it has yet to see it.
    """

    patches: torch.Tensor
    size: tuple[int, int]
    started_ns: int
    preprocessed_ns: int
    seen: Seen | None = None


class Prepared(NamedTuple):
    """Chunks to be computed in one step, and what makes results of the logits of each."""

    chunks: Sequence[Chunk]
    finish: Callable[[Sequence[torch.Tensor | None]], list[Input]]


Work = Generator[Sequence[Chunk], Any, T]
"""Yields chunks that have to be computed before it goes on; with those of others, where it can."""


class ModelRunner:
    """
    Computes; what to compute, and what follows from it, the core decides.

    Perception and decode jobs may run at the same time, but no two of the same kind. A job that
    raises has changed nothing that a later job of another video reads.
    """

    def __init__(self, checkpoint: Checkpoint, config: SessionConfig, scheme: Scheme) -> None:
        """
        Get ready to compute.

        :param config: as `SessionConfig.resolved` returns it
        """
        self._checkpoint, self._config, self._scheme = checkpoint, config, scheme
        self._relay = Relay.plan(config.max_steps, config.capacity, config.memory)
        # Without a relay max_steps says where a stream ends, not how long it is meant to be.
        self._rows = video_rows(checkpoint, config) if self._relay else 0
        self._free: list[Lane] = []
        self._silence = checkpoint.vocabulary.silence
        self._quiet = sorted({*checkpoint.vocabulary.stop, self._silence} - {-1})
        self._next_turn = checkpoint.encode(checkpoint.turns.next_turn)
        self._opening = len(checkpoint.encode(checkpoint.turns.question('')[0]))
        self._inside = checkpoint.encode(checkpoint.turns.inside)
        self.decode_steps = 0
        # Frames that are looked at before their step is taken.
        self.ahead: tuple[tuple[Frame, ...], Pixels | None] = (), None

    @property
    def decoder(self) -> Decoder:
        """What computes for it, and for others that share the checkpoint."""
        return self._checkpoint.decoder

    @property
    def perception(self) -> Perception:
        """What sees for it, and for others that share the checkpoint."""
        return self._checkpoint.perception

    def begin(self, jobs: Sequence[Job]) -> Callable[[], list[Input]]:
        """
        Begin with the jobs of one pass; what is returned finishes them, in the order of beginning.

        Here nothing is done before it is finished.
        """
        return partial(self.run, jobs)

    def run(self, jobs: Sequence[Job]) -> list[Input]:
        """Do one job, or a decode step in the pass of the step that it rides on."""
        job = jobs[0]
        if isinstance(job, Open):
            return [self._open(job)]
        if isinstance(job, Carry):
            return self._carry(job)
        if isinstance(job, Decode):
            return self._decode(job)
        return self._perceive(job, *[each for each in jobs[1:] if isinstance(each, Decode)])

    def cut_ahead(self, video: Video, frames: tuple[Frame, ...]) -> None:
        """Make the pixels of a step that may be taken; what is wrong with them is told then."""
        self.ahead = frames, None
        with suppress(Exception):
            self.ahead = frames, self._pixels_of(video.work, frames)

    def pixels(self, job: Perceive) -> Pixels:
        """Return the pixels of a step; those of its first fix the size of a stream's frames."""
        (frames, pixels), self.ahead = self.ahead, ((), None)
        return pixels if pixels and frames == job.frames else self._pixels_of(
            job.video.work, job.frames)

    def _pixels_of(self, stream: Stream, frames: Sequence[Frame]) -> Pixels:
        started = time.monotonic_ns()
        if not stream.size[0]:
            self._choose_size(stream, frames[0])
        patches = self.perception.patches([frame.pixels for frame in frames], *stream.size)
        return Pixels(patches, stream.size, started, time.monotonic_ns())

    def prepare(self, jobs: Sequence[Job], pixels: Pixels | None = None) -> Work[Prepared]:
        """
        Return what is to be computed for a piece, a decode step, or a step and what rides on it.

        :param pixels: those of the step, if there is one
        """
        job, decodes = jobs[0], [job for job in jobs if isinstance(job, Decode)]
        if isinstance(job, Perceive) and pixels:
            return self._looking(job, pixels, *decodes)
        return self._carrying(job) if isinstance(job, Carry) else self._speaking(*decodes)

    def close(self) -> None:
        """Free what it holds beside memory; no job runs any more."""

    def _open(self, job: Open) -> Opened:
        job.video.work = stream = self._begin(job.video, job.source)
        stream.prefill_prefix()
        self.decoder.settle()
        return Opened(job)

    def _begin(self, video: Video, source: Video | None) -> Stream:
        checkpoint, config = self._checkpoint, self._config
        turns = checkpoint.turns
        prefix = checkpoint.encode(*turns.prefix(checkpoint.defaults.system, video.standing,
                                                 video.said_before))
        head, tail = checkpoint.encode(turns.assistant), checkpoint.encode(turns.tail)
        schedule = (source.work.schedule.after(video.first) if source else
                    make_schedule(config.schedule, config.wait_k, config.schedule_seed,
                                  turns.steps_per_turn or 1, turns.first_turn))
        timeline = self._scheme.timeline(
            len(prefix), granted=schedule.granted, head_tokens=len(head),
            reserved_steps=0 if config.schedule == 'offline' else config.reserved_steps,
            tail_tokens=len(tail), joined=turns.joined)
        rows = len(prefix) + 256
        lane = (self._new_video_lane(rows) if video.recalled else
                self._video_lane(rows, relieves=source is not None))
        narration = self._open_lane(
            NARRATION, head, timeline.narration(), prefix,
            lane if self._scheme.serial else checkpoint.decoder.new_side_lane(len(head) + 64),
            self._next_turn, video.base + video.elapsed)
        stream = Stream(checkpoint.decoder, self._scheme, timeline, prefix,
                        partial(checkpoint.text_of_step, elapsed=video.elapsed,
                                prompt=video.standing), tail, lane, narration, schedule,
                        source.work.kept if source else self._new_kept_steps(),
                        (turns.first_turn or turns.steps_per_turn, turns.steps_per_turn))
        _keep_record(stream, narration)
        if not video.recalled:  # Whose lane goes with it.
            self._take_back(video, lane)
        if source:
            _go_on(stream, source.work, bool(video.recalled))
        return stream

    def _video_lane(self, rows: int, relieves: bool) -> Lane:
        """
        Return a lane that no stream is in any more, or a new one.

        There are two, in which streams take turns, and one more for each stream before them that
        is still answered about.
        """
        lane = (self._free.pop() if self._free else
                self._new_video_lane(max(rows, self._rows)))
        lane.clear()
        del self._free[0 if relieves or not self._relay else 1:]
        return lane

    def _new_kept_steps(self) -> KeptSteps:
        relay, recalled = self._relay, self._config.recall_steps
        # Some more may come between the question that asks for the oldest and its turn.
        kept = max(relay.kept, recalled + relay.max_steps if recalled else 0) if relay else 0
        return KeptSteps(max(kept, self._config.speak == 'changed'))

    def _new_video_lane(self, rows: int) -> Lane:
        return self._checkpoint.decoder.new_lane(rows, margin=self._margin)

    def _take_back(self, video: Video, lane: Lane) -> None:
        """Have the lane of a stream used again once nobody reads it: each job holds its video."""
        weakref.finalize(video, self._free.append, lane)

    @property
    def _margin(self) -> int:
        return margin_rows(self._config)

    def _open_lane(self, stream_id: str, head: Sequence[int], track: Track,
                   before: Sequence[int], cache: Lane | None = None,
                   next_turn: Sequence[int] = (), first: int = 0) -> TextLane:
        """
        Return a speaker that begins with `head`, placed on `track`.

        :param before: the prefix, which the repetition penalty counts as used
        :param cache: the lane it writes to; one of its own if not given
        :param next_turn: what is fed in place of a token that ends its turn
        :param first: steps of the video before the stream that it speaks about
        """
        checkpoint, config = self._checkpoint, self._config
        turns = checkpoint.turns
        if cache is None:
            cache = checkpoint.decoder.new_lane(len(head) + 64)
        return TextLane(stream_id, checkpoint.decoder, cache, track, head, checkpoint.assembler(),
                        config.sampling, before, config.record_trace, next_turn,
                        bool(next_turn) and turns.steps_per_turn > 0, turns.drops_cut, first)

    # Perception.

    def _perceive(self, job: Perceive, riding: Decode | None = None) -> list[Input]:
        """Perceive a step; a decode step rides in the same pass, where its turns see the step."""
        return self._computed(self._looking(job, self.pixels(job), riding))

    def _computed(self, work: Work[Prepared]) -> list[Input]:
        each = self._alone(work)
        return each.finish(self._checkpoint.decoder.step(each.chunks) if each.chunks else [])

    def _alone(self, work: Work[T]) -> T:
        """Compute what has to be computed first, and return what comes of it."""
        while True:
            try:
                chunks = next(work)
            except StopIteration as end:
                return end.value
            self._checkpoint.decoder.step(chunks)

    def _looking(self, job: Perceive, pixels: Pixels,
                 riding: Decode | None = None) -> Work[Prepared]:
        stream, patches = job.video.work, pixels.patches
        found = pixels.seen or self.perception.embed(patches, *pixels.size)
        streams = [stream, job.also.work] if job.also else [stream]
        changed = (share_changed(found, stream.kept.newest)
                   if self._config.speak == 'changed' else 1.0)
        if self._config.still:
            found, looks = without_still(found, stream.looks, self._config.still)
            for each in streams:
                each.looks = looks
        self.decoder.settle()
        vision_ns = time.monotonic_ns()
        chunk, *also = [each.step_chunk(found, job.last) for each in streams]
        beside = (yield from self._words_beside(riding)) if riding else []
        due, chunks = self._chunks(riding.turns if riding else (), (stream, chunk))

        def finish(logits: Sequence[torch.Tensor | None]) -> list[Input]:
            self.decoder.settle()  # Whoever speaks about it may do so on another stream.
            stream.perceived(chunk, logits[0])
            stream.kept.add(found, patches if self._config.record_trace else None)
            if self._config.record_trace:
                for each in streams:
                    each.patches.append(patches)
            tokens = len(found.rows if found.places is None else found.places)
            done: list[Input] = [
                Perceived(job, pixels.started_ns, pixels.preprocessed_ns, vision_ns,
                          time.monotonic_ns(), tokens, changed)]
            if riding:
                done.append(self._choose(riding, due, logits[1:1 + len(chunks)]))
            return done
        return Prepared([chunk, *chunks, *also, *beside], finish)

    def _carry(self, job: Carry) -> list[Input]:
        return self._computed(self._carrying(job))

    def _carrying(self, job: Carry) -> Work[Prepared]:
        stream, step = job.video.work, job.source.base + job.index
        words = yield from self._repeat(stream, job.words)
        stream.looks = job.source.work.looks

        def finish(_: Sequence[torch.Tensor | None]) -> list[Input]:
            stream.keep_patches(step)
            self.decoder.settle()
            return [Carried(job)]
        return Prepared([stream.kept_chunk(step), *words], finish)

    def _choose_size(self, stream: Stream, frame: Frame) -> None:
        """Fix the size of all frames of a stream: as configured, or fitted to the first one."""
        stream.size = working_size(self._checkpoint, self._config, frame.pixels.shape[:2])
        stream.grid = self._checkpoint.perception.grid(*stream.size)

    # Generation.

    def _decode(self, job: Decode) -> list[Input]:
        return self._computed(self._speaking(job))

    def _speaking(self, job: Decode) -> Work[Prepared]:
        beside = yield from self._words_beside(job)
        due, chunks = self._chunks(job.turns)
        again = [self._chunk_again(job.again)] if job.again else []

        def finish(logits: Sequence[torch.Tensor | None]) -> list[Input]:
            done = self._choose(job, due, logits[:len(chunks)])
            if job.again:
                done = replace(done, surprise=self._surprise(logits[len(chunks)]))
            return [done]
        return Prepared([*chunks, *again, *beside], finish)

    def _chunk_again(self, again: Again) -> Chunk:
        """Return the rows that say tokens anew, in a lane that is thrown away."""
        stream, decoder = again.video.work, self._checkpoint.decoder
        ids = [*self._checkpoint.encode(self._checkpoint.turns.assistant), *again.said.tokens]
        placed = stream.timeline.answer(again.sees).place(len(ids), 1)
        view = stream.lane.view()
        return Chunk(decoder.new_lane(len(ids)), decoder.embed(ids), torch.from_numpy(placed),
                     view if stream.scheme.serial else stream.first(view, again.sees),
                     predict=True)

    def _surprise(self, logits: torch.Tensor | None) -> float:
        """Return the negative log-probability that nothing follows, by (vocabulary,) logits."""
        likely = cast(torch.Tensor, logits).float().log_softmax(-1)
        surprise = -float(likely[self._quiet].logsumexp(-1))
        check_finite(surprise)
        return surprise

    def _words_beside(self, job: Decode) -> Work[list[Chunk]]:
        """Put words into a lane first where its turn comes now; else return what goes beside."""
        due = job.words
        narrated = next((turn.video for turn in job.turns if turn.question is None), None)
        if due and due.video is not narrated:
            return (yield from self._repeat(due.video.work, due.words))
        if narrated:
            yield from self._repeat(narrated.work, due.words if due else (), False)
        return []

    def _repeat(self, stream: Stream, words: Sequence[Word],
                beside: bool = True) -> Work[list[Chunk]]:
        """Put words into the narration's lane; what may go beside in another pass is returned."""
        words, stream.owed = [*stream.owed, *words], []
        passes = len({word.sees for word in words})
        for number, chunk in enumerate(stream.repeat(words, self._checkpoint.vocabulary), 1):
            if beside and number == passes:
                return [chunk]
            yield [chunk]
        return []

    def _chunks(self, turns: Sequence[Turn], riding: tuple[Stream, Chunk] | None = None,
                ) -> tuple[list[TextLane], list[Chunk]]:
        """
        Return the lanes that feed rows, and their chunks.

        Where the prefill of a step has given the narration's logits, no row is due.
        """
        due, chunks, left = [], [], HEAD_ROWS
        for turn in turns:
            lane = self._lane_of(turn)
            rows = min(lane.pending, max(left, 1)) if turn.question else lane.pending
            if lane.pending > 1:
                if turn.question and left <= 0:
                    continue  # Its turn comes when the heads before it are in the cache.
                left -= rows
            if lane.ready is None:
                stream = turn.video.work
                context = self._context(turn, stream, riding)
                # One running lane counts what is seen in rows, not in steps.
                sees = context.length if stream.scheme.serial and context else turn.sees
                due.append(lane)
                chunks.append(lane.chunk(context, sees, turn.owner, rows))
        return due, chunks

    def _lane_of(self, turn: Turn) -> TextLane:
        stream, question = turn.video.work, turn.question
        if question is None:
            return stream.narration
        if question.work is None:
            head = ([*self._inside, *question.head[self._opening:]] if stream.in_turn else
                    [*stream.narration.closing, *question.head])
            lane = self._open_lane(question.question_id, head,
                                   stream.timeline.answer(turn.sees), stream.prefix)
            _keep_record(stream, lane)
            # An answer beside one running lane sees it as it was when the answer began.
            question.work = lane, stream.lane.view() if self._scheme.serial else None
        return question.work[0]

    def _context(self, turn: Turn, stream: Stream,
                 riding: tuple[Stream, Chunk] | None) -> LaneView | None:
        if stream.scheme.serial:
            return turn.question.work[1] if turn.question else None
        if riding and riding[0] is stream:
            return stream.first(stream.lane.ahead(riding[1].rows), turn.sees)
        return stream.first(stream.lane.view(), turn.sees)

    def _choose(self, job: Decode, due: Sequence[TextLane],
                logits: Sequence[torch.Tensor | None]) -> Decoded:
        """Choose every turn's token; `logits` are those of the lanes that fed rows."""
        given = {id(lane): row for lane, row in zip(due, logits, strict=True)}
        spoken = []
        for turn in job.turns:
            lane = self._lane_of(turn)
            row = given.get(id(lane), lane.ready)
            spoken.append(None if row is None else self._speak(lane, row))
        self.decode_steps += 1
        return Decoded(job, tuple(spoken), time.monotonic_ns())

    def _speak(self, lane: TextLane, row: torch.Tensor) -> Spoken:
        # Whether there is something to say is known from its gate, where a narration has one.
        begins = lane.stream_id == NARRATION and not lane.text.unfinished
        token = lane.choose(row, self._silence,
                            self._quiet if begins and self._config.speak != 'trained' else ())
        if token == self._silence:
            return Spoken('silence', unfinished=lane.text.unfinished, token=token)
        if token in self._checkpoint.vocabulary.stop:
            delta, sentence = lane.end_turn()
            return Spoken('stop', delta, sentence, lane.text.unfinished, token)
        delta, sentence = lane.text.add(token)
        return Spoken('text', delta, sentence, lane.text.unfinished, token)


def run_together(parts: Sequence[tuple[ModelRunner, Sequence[Job]]]) -> list[Input]:
    """
    Do the jobs of several sessions on one model in one pass.

    Where that fails, each is computed by itself: what is wrong with one is told of that one alone.
    """
    done: list[Input] = []
    steps: dict[Job, Pixels] = {}
    for runner, jobs in parts:
        if isinstance(jobs[0], Perceive):
            with _telling(jobs, done):
                steps[jobs[0]] = runner.pixels(jobs[0])
    steps |= _seen_together(parts[0][0].perception, steps)
    step = parts[0][0].decoder.step
    works: list[tuple[Sequence[Job], Work[Prepared]]] = []
    for runner, jobs in parts:
        if jobs[0] in steps or not isinstance(jobs[0], Perceive):
            with _telling(jobs, done):
                works.append((jobs, runner.prepare(jobs, steps.get(jobs[0]))))
    passes: list[tuple[Sequence[Job], Prepared, Sequence[Chunk]]] = []
    while works:
        before: list[tuple[Sequence[Job], Work[Prepared], Sequence[Chunk]]] = []
        for jobs, work in works:
            with _telling(jobs, done):
                try:
                    before.append((jobs, work, next(work)))
                except StopIteration as end:
                    passes.append((jobs, end.value, end.value.chunks))
        works = [(jobs, work) for jobs, work, _ in _stepped(step, before, done)]
    for jobs, each, logits in _stepped(step, passes, done):
        with _telling(jobs, done):
            done += each.finish(logits)
    return done


def _stepped(step: Callable[[Sequence[Chunk]], list[torch.Tensor | None]],
             parts: Sequence[tuple[Sequence[Job], T, Sequence[Chunk]]],
             done: list[Input]) -> list[tuple[Sequence[Job], T, list[torch.Tensor | None]]]:
    """Compute the chunks of all in one pass; return the logits of each but those that fail."""
    chunks = [chunk for *_, own in parts for chunk in own]
    rows: Iterator[torch.Tensor | None] | None
    try:
        rows = iter(step(chunks) if chunks else [])
    except Exception:  # noqa: BLE001 - which of them it is, each one's own step says
        rows = None
    found = []
    for jobs, each, own in parts:
        with _telling(jobs, done):
            logits = step(own) if rows is None and own else list(islice(rows or (), len(own)))
            found.append((jobs, each, logits))
    return found


@contextmanager
def _telling(jobs: Sequence[Job], done: list[Input]) -> Iterator[None]:
    """Have what goes wrong told of these jobs; whatever it is, the others go on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        done.append(Failed(tuple(jobs), describe(error)))


def see_ahead(runners: Sequence[ModelRunner]) -> None:
    """Have the vision tower see, in one pass, the pixels that runners have made ahead."""
    ahead = {runner: pixels for runner in runners if (pixels := runner.ahead[1])}
    for runner, pixels in _seen_together(runners[0].perception, ahead).items():
        runner.ahead = runner.ahead[0], pixels


def _seen_together(perception: Perception, steps: Mapping[K, Pixels]) -> dict[K, Pixels]:
    """Have the vision tower see steps, those of one size in one pass, if it can; return them."""
    sizes: dict[tuple[int, int], list[K]] = {}
    for key, pixels in steps.items():
        if pixels.seen is None:
            sizes.setdefault(pixels.size, []).append(key)
    found: dict[K, Pixels] = {}
    for size, keys in sizes.items():
        with suppress(Exception):  # Which of them it is, each one's own pass says.
            seen = perception.embed_each([steps[key].patches for key in keys], *size)
            found.update((key, steps[key]._replace(seen=each)) for key, each in zip(keys, seen))
    return found


def margin_rows(config: SessionConfig) -> int:
    """Room for the narration in the visual lane, of which one call then reads both."""
    if SCHEMES[config.position_encoding].serial:
        return 0
    return min(64 + config.wait_k * config.max_steps, SIDE_ROWS)


def lane_bytes(checkpoint: Checkpoint, config: SessionConfig) -> int:
    """
    Return what the lanes of a session's video take at most [bytes]: two streams' with a relay.

    :param config: as `SessionConfig.resolved` returns it
    """
    rows = margin_rows(config) + video_rows(checkpoint, config)
    return (2 if config.memory else 1) * rows * _row_bytes(checkpoint.decoder)


def minute_bytes(checkpoint: Checkpoint, config: SessionConfig) -> int:
    """
    Return what lanes take for a minute of video, at its rate and size, and its narration [bytes].

    :param config: as `SessionConfig.resolved` returns it
    """
    steps = 60 / checkpoint.at(config.frame_rate).defaults.seconds_per_step
    rows = steps * (step_rows(checkpoint, config) + config.wait_k)
    return round(rows * _row_bytes(checkpoint.decoder))


def _row_bytes(decoder: Decoder) -> int:
    return 2 * decoder.layer_count * decoder.kv_heads * decoder.head_dim * decoder.dtype.itemsize


def _go_on(stream: Stream, source: Stream, is_recalled: bool) -> None:
    """Have a stream go on with the video and the text of another one; or recall of it."""
    stream.size, stream.grid = source.size, source.grid
    stream.narration.text = source.narration.text
    if stream.narration.record and is_recalled:
        source.recalled.append(stream)
    elif stream.narration.record:
        stream.before = source


def _keep_record(stream: Stream, lane: TextLane) -> None:
    if lane.record:
        stream.records.append(lane.record)


def describe(error: Exception) -> str:
    """Return an error in words, with its kind."""
    return f'{type(error).__name__}: {error}'
