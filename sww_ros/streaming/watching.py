"""The perceiving side of a session: frames in, steps of video into the visual lane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import threading
import time

from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import NARRATION, Event, FramesDropped, Restarted, StepPerceived
from sww_ros.streaming.generation import NarrationBudget
from sww_ros.streaming.lanes import open_lane
from sww_ros.streaming.overlap import BusyLog
from sww_ros.streaming.perception import fit_size
from sww_ros.streaming.positions import Scheme
from sww_ros.streaming.prompt import ASSISTANT_HEAD, VIDEO_TAIL, prefix_parts
from sww_ros.streaming.schedule import make_schedule
from sww_ros.streaming.stream import Frame, FrameQueue, StepInfo, Stream

_CAP_STEPS = 4
"""How many steps' worth of live narration may be owed before the oldest is forfeited."""


@dataclass(frozen=True, eq=False)
class _Request:
    """One call for a new stream, told apart from any other of the same reason."""

    reason: str


class Watcher:
    """
    Owns the current stream; only its thread writes visual lanes and begins new streams.

    `emit` takes events.
    """

    def __init__(self, checkpoint: Checkpoint, config: SessionConfig, scheme: Scheme,
                 emit: Callable[[Event], None], decoding: BusyLog,
                 spoken: Callable[[Stream], bool]) -> None:
        """
        Begin the first stream.

        :param spoken: whether nothing is left to say of a stream whose video has ended
        """
        self._checkpoint, self._config, self._scheme = checkpoint, config, scheme
        self._emit, self._decoding, self._spoken = emit, decoding, spoken
        self._prompt = config.prompt or checkpoint.defaults.prompt
        self.wait_k = config.wait_k or checkpoint.defaults.wait_k
        self.max_steps = config.max_steps or checkpoint.defaults.max_steps
        self.frames = FrameQueue(checkpoint.perception.settings.temporal_patch_size,
                                 config.max_pending_frames)
        self._lock = threading.Lock()
        self._requested: _Request | None = None
        self.stream = self._begin(0)

    @property
    def prompt(self) -> str:
        return self._prompt

    def restart(self, reason: str, prompt: str | None = None) -> None:
        """Ask for a new stream, from any thread; frames that wait are dropped."""
        with self._lock:
            self._prompt = self._prompt if prompt is None else prompt
            self._requested = _Request(reason)
            dropped = self.frames.clear()
        self._drop('reset', dropped)

    @property
    def restarting(self) -> bool:
        """Whether a new stream has been asked for and has not begun."""
        return self._requested is not None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to perceive; to be asked between two pieces of work."""
        return not self.restarting and not self.frames.complete

    def work(self) -> bool:
        """Perceive one step, if its frames are there."""
        with self._lock:
            request = self._requested
            # In this order: a step that is complete only after the first look has to wait for
            # the second, or it would cut what is still to be said of the video before.
            ready = not request and self.frames.complete and not self._owed
            taken = self.frames.take() if ready else None
        if request:
            self._switch(request)
            return True
        if taken is None:
            return False
        frames, another = taken
        if self.stream.ended or (another and self.stream.infos):
            self._switch(_Request('ended'))
        elif len(self.stream.infos) >= self.max_steps:
            self._switch(_Request('capacity'))
        self._perceive(frames)
        return True

    @property
    def _owed(self) -> bool:
        """Whether the video has ended, and something is left to say of it."""
        return self.stream.ended and not self._spoken(self.stream)

    def _drop(self, reason: str, count: int) -> None:
        if count:
            self._emit(FramesDropped(reason, count))

    def _switch(self, request: _Request) -> None:
        stream = self._begin(self.stream.number + 1)
        self.stream.cut_by = request.reason  # Before the speaker can see that it was replaced.
        self.stream = stream
        with self._lock:
            # A request that came meanwhile, with another prompt perhaps, has yet to be met.
            if self._requested is request:
                self._requested = None
        self._emit(Restarted(request.reason, self.stream.number))

    def _begin(self, number: int) -> Stream:
        checkpoint = self._checkpoint
        prefix = checkpoint.encode(*prefix_parts(checkpoint.defaults.system, self._prompt))
        head, budget = checkpoint.encode(ASSISTANT_HEAD), self._budget()
        timeline = self._scheme.timeline(
            len(prefix), granted=budget.schedule.granted, head_tokens=len(head),
            reserved_steps=0 if self._config.schedule == 'offline' else self.max_steps)
        lane = checkpoint.decoder.new_lane(len(prefix) + 256)
        narration = open_lane(checkpoint, self._config, NARRATION, head, timeline.narration(),
                              prefix, lane if self._scheme.serial else None)
        stream = Stream(checkpoint.decoder, self._scheme, timeline, prefix,
                        checkpoint.encode(VIDEO_TAIL), lane, narration, budget, number)
        stream.prefill_prefix()
        return stream

    def _budget(self) -> NarrationBudget:
        config = self._config
        schedule = make_schedule(config.schedule, self.wait_k, config.schedule_seed)
        return NarrationBudget(
            schedule, cap=_CAP_STEPS * self.wait_k if config.schedule == 'live' else None,
            rest_tokens=config.max_rest_tokens)

    def _perceive(self, frames: list[Frame]) -> None:
        stream, perception = self.stream, self._checkpoint.perception
        started = time.monotonic_ns()
        try:
            if not stream.size[0]:
                self._choose_size(stream, frames[0])
            patches = perception.patches([frame.pixels for frame in frames], *stream.size)
            preprocessed = time.monotonic_ns()
            embeds = perception.embed(patches, *stream.size)
            seen = time.monotonic_ns()
            before = stream.infos[-1].frames_total if stream.infos else 0
            # A frame that stands for missing ones counts once.
            count = len({id(frame) for frame in frames})
            step = stream.prefill_step(embeds, StepInfo(frames[-1].stamp_ns, before + count),
                                       frames[-1].last or self._full(stream))
        except Exception:
            self._drop('bad', len(frames))
            raise
        done = time.monotonic_ns()
        if self._config.record_trace:
            stream.patches.append(patches)
        self._emit(StepPerceived(
            index=step, stamp_ns=frames[-1].stamp_ns, frames=count,
            received_ns=frames[-1].received_ns, fed_ns=frames[-1].fed_ns, started_ns=started,
            preprocessed_ns=preprocessed, vision_ns=seen, perceived_ns=done,
            overlap_ns=self._decoding.covered_ns(started, done), video=stream.number))

    def _full(self, stream: Stream) -> bool:
        """Whether a stream that is only spoken of at its end has to end with this step."""
        return (self._config.schedule == 'offline'
                and len(stream.infos) + 1 >= self.max_steps)

    def _choose_size(self, stream: Stream, frame: Frame) -> None:
        """Fix the size of all frames of a stream: as configured, or fitted to the first one."""
        settings = self._checkpoint.perception.settings
        if self._config.frame_width and self._config.frame_height:
            wanted = (self._config.frame_height, self._config.frame_width)
            stream.size = tuple(max(1, side // settings.unit) * settings.unit for side in wanted)
        else:
            stream.size = fit_size(*frame.pixels.shape[:2], settings)
        stream.grid = self._checkpoint.perception.grid(*stream.size)
