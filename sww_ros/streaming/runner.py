"""Does the core's jobs with a model: frames to cached steps, lanes to tokens, tokens to text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
import time
from typing import NamedTuple
import weakref

import torch

from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.decoder import Chunk, Decoder
from sww_ros.streaming.events import NARRATION
from sww_ros.streaming.generation import TextLane
from sww_ros.streaming.jobs import (
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
from sww_ros.streaming.pace import video_rows, working_size
from sww_ros.streaming.perception import without_still
from sww_ros.streaming.positions import Scheme, Track
from sww_ros.streaming.relay import Relay
from sww_ros.streaming.schedule import make_schedule
from sww_ros.streaming.stream import KeptSteps, Stream

HEAD_ROWS = 64
"""How much of questions, all together, is prefilled in one decode step: narration waits for it."""

SIDE_ROWS = 2048
"""At most so many rows of narration lie beside the visual lane; a longer one lies by itself."""


class Prepared(NamedTuple):
    """Chunks to be computed in one step, and what makes results of the logits of each."""

    chunks: Sequence[Chunk]
    finish: Callable[[Sequence[torch.Tensor | None]], list[Input]]


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
        self._next_turn = checkpoint.encode(checkpoint.turns.next_turn)
        self.decode_steps = 0

    @property
    def decoder(self) -> Decoder:
        """What computes for it, and for others that share the checkpoint."""
        return self._checkpoint.decoder

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
            return [self._carry(job)]
        if isinstance(job, Decode):
            return self._decode(job)
        return self._perceive(job, *[each for each in jobs[1:] if isinstance(each, Decode)])

    def prepare(self, jobs: Sequence[Job]) -> Prepared:
        """Return what is to be computed for a decode step, or for a step and what rides on it."""
        job, decodes = jobs[0], [job for job in jobs if isinstance(job, Decode)]
        return self._looking(job, *decodes) if isinstance(job, Perceive) else self._speaking(
            *decodes)

    def close(self) -> None:
        """Free what it holds beside memory; no job runs any more."""

    def _open(self, job: Open) -> Opened:
        job.video.work = stream = self._begin(job.video, job.source)
        stream.prefill_prefix()
        return Opened(job)

    def _begin(self, video: Video, source: Video | None) -> Stream:
        checkpoint, config = self._checkpoint, self._config
        turns = checkpoint.turns
        prefix = checkpoint.encode(*turns.prefix(checkpoint.defaults.system, video.standing))
        head, tail = checkpoint.encode(turns.assistant), checkpoint.encode(turns.tail)
        schedule = (source.work.schedule.after(video.first) if source else
                    make_schedule(config.schedule, config.wait_k, config.schedule_seed))
        timeline = self._scheme.timeline(
            len(prefix), granted=schedule.granted, head_tokens=len(head),
            reserved_steps=0 if config.schedule == 'offline' else config.reserved_steps,
            tail_tokens=len(tail))
        rows = len(prefix) + 256
        lane = (self._new_video_lane(rows) if video.recalled else
                self._video_lane(rows, relieves=source is not None))
        narration = self._open_lane(
            NARRATION, head, timeline.narration(), prefix,
            lane if self._scheme.serial else checkpoint.decoder.new_side_lane(len(head) + 64),
            self._next_turn)
        stream = Stream(checkpoint.decoder, self._scheme, timeline, prefix,
                        checkpoint.text_of_step, tail, lane, narration, schedule,
                        source.work.kept if source else self._new_kept_steps())
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
        return KeptSteps(max(relay.kept, recalled + relay.max_steps if recalled else 0)
                         if relay else 0)

    def _new_video_lane(self, rows: int) -> Lane:
        return self._checkpoint.decoder.new_lane(rows, margin=self._margin)

    def _take_back(self, video: Video, lane: Lane) -> None:
        """Have the lane of a stream used again once nobody reads it: each job holds its video."""
        weakref.finalize(video, self._free.append, lane)

    @property
    def _margin(self) -> int:
        return margin_rows(self._config, self._scheme)

    def _open_lane(self, stream_id: str, head: Sequence[int], track: Track,
                   before: Sequence[int], cache: Lane | None = None,
                   next_turn: Sequence[int] = ()) -> TextLane:
        """
        Return a speaker that begins with `head`, placed on `track`.

        :param before: the prefix, which the repetition penalty counts as used
        :param cache: the lane it writes to; one of its own if not given
        :param next_turn: what is fed in place of a token that ends its turn
        """
        checkpoint, config = self._checkpoint, self._config
        if cache is None:
            cache = checkpoint.decoder.new_lane(len(head) + 64)
        return TextLane(stream_id, checkpoint.decoder, cache, track, head, checkpoint.tokenizer,
                        config.repetition_penalty, before, config.record_trace, next_turn)

    # Perception.

    def _perceive(self, job: Perceive, riding: Decode | None = None) -> list[Input]:
        """Perceive a step; a decode step rides in the same pass, where its turns see the step."""
        return self._computed(self._looking(job, riding))

    def _computed(self, each: Prepared) -> list[Input]:
        return each.finish(self._checkpoint.decoder.step(each.chunks) if each.chunks else [])

    def _looking(self, job: Perceive, riding: Decode | None = None) -> Prepared:
        stream, perception = job.video.work, self._checkpoint.perception
        started = time.monotonic_ns()
        if not stream.size[0]:
            self._choose_size(stream, job.frames[0])
        patches = perception.patches([frame.pixels for frame in job.frames], *stream.size)
        preprocessed = time.monotonic_ns()
        found = perception.embed(patches, *stream.size)
        streams = [stream, job.also.work] if job.also else [stream]
        if self._config.still:
            found, looks = without_still(found, stream.looks, self._config.still)
            for each in streams:
                each.looks = looks
        seen = time.monotonic_ns()
        chunk, *also = [each.step_chunk(found, job.last) for each in streams]
        beside = self._words_beside(riding) if riding else []
        due, chunks = self._chunks(riding.turns if riding else (), (stream, chunk))

        def finish(logits: Sequence[torch.Tensor | None]) -> list[Input]:
            stream.perceived(chunk, logits[0])
            stream.kept.add(found, patches if self._config.record_trace else None)
            if self._config.record_trace:
                for each in streams:
                    each.patches.append(patches)
            tokens = len(found.rows if found.places is None else found.places)
            done: list[Input] = [
                Perceived(job, started, preprocessed, seen, time.monotonic_ns(), tokens)]
            if riding:
                done.append(self._choose(riding, due, logits[1:1 + len(chunks)]))
            return done
        return Prepared([chunk, *chunks, *also, *beside], finish)

    def _carry(self, job: Carry) -> Carried:
        stream, step = job.video.work, job.source.base + job.index
        words = self._repeat(stream, job.words)
        stream.looks = job.source.work.looks
        self._checkpoint.decoder.step([stream.kept_chunk(step), *words])
        stream.keep_patches(step)
        return Carried(job)

    def _choose_size(self, stream: Stream, frame: Frame) -> None:
        """Fix the size of all frames of a stream: as configured, or fitted to the first one."""
        stream.size = working_size(self._checkpoint, self._config, frame.pixels.shape[:2])
        stream.grid = self._checkpoint.perception.grid(*stream.size)

    # Generation.

    def _decode(self, job: Decode) -> list[Input]:
        return self._computed(self._speaking(job))

    def _speaking(self, job: Decode) -> Prepared:
        beside = self._words_beside(job)
        due, chunks = self._chunks(job.turns)
        return Prepared([*chunks, *beside],
                    lambda logits: [self._choose(job, due, logits[:len(chunks)])])

    def _words_beside(self, job: Decode) -> list[Chunk]:
        """Put words into a lane first where its turn comes now; else return what goes beside."""
        due = job.words
        narrated = next((turn.video for turn in job.turns if turn.question is None), None)
        if due and due.video is not narrated:
            return self._repeat(due.video.work, due.words)
        return self._repeat(narrated.work, due.words if due else (), False) if narrated else []

    def _repeat(self, stream: Stream, words: Sequence[Word], beside: bool = True) -> list[Chunk]:
        """Put words into the narration's lane; what may go beside in another pass is returned."""
        words, stream.owed = [*stream.owed, *words], []
        passes = len({word.sees for word in words})
        for number, chunk in enumerate(stream.repeat(words, self._checkpoint.vocabulary), 1):
            if beside and number == passes:
                return [chunk]
            self._checkpoint.decoder.step([chunk])
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
            lane = self._open_lane(question.question_id, question.head,
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
        token = lane.choose(row, self._silence)
        if token == self._silence:
            return Spoken('silence', unfinished=lane.text.unfinished, token=token)
        if token in self._checkpoint.vocabulary.stop:
            return Spoken('stop', sentence=lane.end_turn(), token=token)
        delta, sentence = lane.text.add(token)
        return Spoken('text', delta, sentence, lane.text.unfinished, token)


def run_together(parts: Sequence[tuple[ModelRunner, Sequence[Job]]]) -> list[Input]:
    """
    Do the jobs of several sessions on one model in one pass.

    Where that fails, each is computed by itself: what is wrong with one is told of that one alone.
    """
    done: list[Input] = []
    passes: list[tuple[Sequence[Job], Prepared]] = []
    for runner, jobs in parts:
        try:
            passes.append((jobs, runner.prepare(jobs)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
            done.append(Failed(tuple(jobs), describe(error)))
    step = parts[0][0].decoder.step
    chunks = [chunk for _, each in passes for chunk in each.chunks]
    rows: Iterator[torch.Tensor | None] | None
    try:
        rows = iter(step(chunks) if chunks else [])
    except Exception:  # noqa: BLE001 - which of them it is, each one's own step says
        rows = None
    for jobs, each in passes:
        try:
            logits = (step(each.chunks) if rows is None and each.chunks
                      else list(islice(rows or (), len(each.chunks))))
            done += each.finish(logits)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
            done.append(Failed(tuple(jobs), describe(error)))
    return done


def margin_rows(config: SessionConfig, scheme: Scheme) -> int:
    """Room for the narration in the visual lane, of which one call then reads both."""
    return 0 if scheme.serial else min(64 + config.wait_k * config.max_steps, SIDE_ROWS)


def lane_bytes(checkpoint: Checkpoint, config: SessionConfig, scheme: Scheme) -> int:
    """
    Return what the lanes of a session's video take at most [bytes]: two streams' with a relay.

    :param config: as `SessionConfig.resolved` returns it
    """
    decoder = checkpoint.decoder
    rows = margin_rows(config, scheme) + video_rows(checkpoint, config)
    row = 2 * decoder.layer_count * decoder.kv_heads * decoder.head_dim * decoder.dtype.itemsize
    return (2 if config.memory else 1) * rows * row


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
