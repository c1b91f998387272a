"""One video as it is perceived: prefix, visual lane, what is known of each step, its narrator."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
import threading

import numpy as np
import torch

from sww_ros.streaming.decoder import Chunk, Decoder
from sww_ros.streaming.generation import NarrationBudget, TextLane
from sww_ros.streaming.kv import Lane, LaneView
from sww_ros.streaming.positions import Scheme, Timeline, text_positions


@dataclass(frozen=True)
class StepInfo:
    """What is remembered of a perceived step."""

    stamp_ns: int
    frames_total: int


@dataclass
class Stream:
    """
    The visual group of one video, written by the perceiving thread and read by all.

    `infos` and `ends`, the rows of the lane up to each step's last, grow before the lane's length
    is published, so that every visible step has its info. `tail` follows the last step of a
    video that ends, and is published with it; `spoken` says that no more is said of it. `cut_by`
    is why another stream has taken its place.
    """

    decoder: Decoder
    scheme: Scheme
    timeline: Timeline
    prefix: list[int]
    tail: list[int]
    lane: Lane
    narration: TextLane
    budget: NarrationBudget
    number: int = 0
    infos: list[StepInfo] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    ended: bool = False
    spoken: bool = False
    cut_by: str = ''
    placed: list[np.ndarray] = field(default_factory=list)
    grid: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)
    sighted: int = 0
    patches: list[torch.Tensor] = field(default_factory=list)

    def prefill_prefix(self) -> None:
        """Put the prefix into the visual lane; once, before the first step."""
        positions = torch.from_numpy(text_positions(0, len(self.prefix)))
        self.decoder.step([Chunk(self.lane, self.decoder.embed(self.prefix), positions)])

    def prefill_step(self, embeds: torch.Tensor, info: StepInfo, last: bool = False) -> int:
        """
        Append one step's merged tokens (tokens, hidden), publish it, return its index.

        With `last` the video ends here, and its tail goes with the step. With interleaved
        positions the last token spoken goes before the step, in the same forward pass, and the
        step's own logits give the next token.
        """
        step, parts, placed = len(self.infos), [embeds], []
        spoken = self.scheme.serial and self.narration.begun
        if spoken:
            ids, before = self.narration.hand_over()
            parts.insert(0, self.decoder.embed(ids))
            placed.append(before)
        placed.append(self.timeline.step(*self.grid))
        if last:
            parts.append(self.decoder.embed(self.tail))
            placed.append(self.timeline.tail())
        chunk = Chunk(self.lane, torch.cat(parts), torch.from_numpy(np.concatenate(placed, 1)),
                      predict=spoken)
        self.infos.append(info)
        self.ends.append(len(self.lane) + chunk.rows)
        self.ended = last
        try:
            logits = self.decoder.step([chunk])[0]
        except BaseException:
            self.infos.pop()
            self.ends.pop()
            self.ended = False
            raise
        if self.narration.record:
            self.placed.append(np.concatenate(placed[spoken:], axis=1))
        if spoken:
            self.narration.looked(logits, self.ends[-1] - 1, placed[-1][:, -1:])
        return step

    def visible(self) -> tuple[LaneView, int]:
        """The published rows, and the number of whole steps among them, taken together."""
        view = self.lane.view()
        return view, bisect_right(self.ends, view.length)

    def first(self, view: LaneView, steps: int) -> LaneView:
        """The part of a view that holds the prefix and the first `steps` steps."""
        return view._replace(length=self.ends[steps - 1] if steps else len(self.prefix))

    def over(self, steps: int) -> bool:
        """Whether the first `steps` steps are the whole video."""
        return self.ended and steps == len(self.ends)


@dataclass(frozen=True)
class Frame:
    """One frame on its way to perception."""

    pixels: np.ndarray
    stamp_ns: int
    received_ns: int
    fed_ns: int
    last: bool = False


class FrameQueue:
    """Frames waiting for perception: bounded, the oldest give way; taken a step at a time."""

    def __init__(self, per_step: int, limit: int) -> None:
        self._per_step, self._limit = per_step, max(limit, per_step)
        self._frames: list[Frame] = []
        self._cut = False
        self._lock = threading.Lock()

    def put(self, frame: Frame) -> int:
        """Add a frame; return how many were dropped to make room, always whole steps."""
        with self._lock:
            dropped = 0
            if len(self._frames) >= self._limit:
                dropped = self._per_step
                self._cut |= self._frames[dropped - 1].last
                del self._frames[:dropped]
            self._frames.append(frame)
            if frame.last:
                # A step wants all its frames: the last one stands for those that are missing.
                self._frames += [frame] * (-len(self._frames) % self._per_step)
            return dropped

    def cut(self) -> None:
        """Note that what comes next is another video; the end of this one is not here."""
        with self._lock:
            self._cut = True

    def take(self) -> tuple[list[Frame], bool] | None:
        """
        Take the frames of the next step, or None while they are not all there.

        With them comes whether they begin another video, as the end of the last one was dropped.
        """
        with self._lock:
            if len(self._frames) < self._per_step:
                return None
            taken, self._frames = (self._frames[:self._per_step], self._frames[self._per_step:])
            another, self._cut = self._cut, False
            return taken, another

    def clear(self) -> int:
        """Throw all frames away; return how many they were."""
        with self._lock:
            count = len(self._frames)
            self._cut |= any(frame.last for frame in self._frames)
            self._frames = []
            return count

    @property
    def complete(self) -> bool:
        """Whether the frames of a step are all there."""
        return len(self._frames) >= self._per_step

    def __len__(self) -> int:
        return len(self._frames)


