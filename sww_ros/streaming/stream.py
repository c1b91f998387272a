"""One video as it is perceived: prefix, visual lane, what is known of each step, its narrator."""

from __future__ import annotations

from dataclasses import dataclass, field
import threading

import numpy as np
import torch

from sww_ros.streaming.decoder import Chunk, Decoder
from sww_ros.streaming.generation import NarrationBudget, TextLane
from sww_ros.streaming.kv import LaneView
from sww_ros.streaming.positions import GroupScheme


@dataclass(frozen=True)
class StepInfo:
    """What is remembered of a perceived step."""

    stamp_ns: int
    frames_total: int


@dataclass
class Stream:
    """
    The visual group of one video, written by the perceiving thread and read by all.

    `infos` grows before the lane's length is published, so that every visible step has its info.
    """

    decoder: Decoder
    scheme: GroupScheme
    prefix: list[int]
    rows: int
    narration: TextLane
    budget: NarrationBudget
    infos: list[StepInfo] = field(default_factory=list)
    grid: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)
    sighted: int = 0
    patches: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lane = self.decoder.new_lane(self.rows)

    @property
    def step_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def prefill_prefix(self) -> None:
        """Put the prefix into the visual lane; once, before the first step."""
        positions = torch.from_numpy(self.scheme.prefix(len(self.prefix)))
        self.decoder.step([Chunk(self.lane, self.decoder.embed(self.prefix), positions)])

    def prefill_step(self, embeds: torch.Tensor, info: StepInfo) -> int:
        """Append one step's merged tokens (tokens, hidden), publish it, return its index."""
        step = len(self.infos)
        positions = torch.from_numpy(
            self.scheme.visual(len(self.prefix), step, *self.grid))
        self.infos.append(info)
        try:
            self.decoder.step([Chunk(self.lane, embeds, positions)])
        except BaseException:
            self.infos.pop()
            raise
        return step

    def visible(self) -> tuple[LaneView, int]:
        """The published rows, and the number of whole steps among them, taken together."""
        view = self.lane.view()
        if view.length <= len(self.prefix) or not self.step_tokens:
            return view, 0
        return view, (view.length - len(self.prefix)) // self.step_tokens

    def first(self, view: LaneView, steps: int) -> LaneView:
        """The part of a view that holds the prefix and the first `steps` steps."""
        return view._replace(length=len(self.prefix) + steps * self.step_tokens)


@dataclass(frozen=True)
class Frame:
    """One frame on its way to perception."""

    pixels: np.ndarray
    stamp_ns: int
    received_ns: int
    fed_ns: int


class FrameQueue:
    """Frames waiting for perception: bounded, the oldest give way; taken a step at a time."""

    def __init__(self, per_step: int, limit: int) -> None:
        self._per_step, self._limit = per_step, max(limit, per_step)
        self._frames: list[Frame] = []
        self._lock = threading.Lock()

    def put(self, frame: Frame) -> int:
        """Add a frame; return how many were dropped to make room, always whole steps."""
        with self._lock:
            dropped = 0
            if len(self._frames) >= self._limit:
                dropped = self._per_step
                del self._frames[:dropped]
            self._frames.append(frame)
            return dropped

    def take(self) -> list[Frame] | None:
        """Take the frames of the next step, or None while they are not all there."""
        with self._lock:
            if len(self._frames) < self._per_step:
                return None
            taken, self._frames = (self._frames[:self._per_step], self._frames[self._per_step:])
            return taken

    def clear(self) -> int:
        """Throw all frames away; return how many they were."""
        with self._lock:
            count = len(self._frames)
            self._frames = []
            return count

    @property
    def complete(self) -> bool:
        """Whether the frames of a step are all there."""
        return len(self._frames) >= self._per_step

    def __len__(self) -> int:
        return len(self._frames)


