"""One video as it is computed: prefix, visual lane, where each step ends, its narrator's lane."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import numpy as np
import torch

from sww_ros.streaming.decoder import Chunk, Decoder
from sww_ros.streaming.family import Seen
from sww_ros.streaming.generation import LaneRecord, TextLane, Vocabulary
from sww_ros.streaming.jobs import Word
from sww_ros.streaming.kv import Lane, LaneView
from sww_ros.streaming.positions import Scheme, Timeline, text_positions
from sww_ros.streaming.schedule import Schedule


class KeptSteps:
    """The newest steps of a video over all its streams, as they were seen."""

    def __init__(self, limit: int) -> None:
        """Keep at most `limit` of them."""
        self._steps: deque[tuple[Seen | None, torch.Tensor | None]] = deque(maxlen=limit)
        self._count = 0

    def add(self, seen: Seen | None, patches: torch.Tensor | None) -> None:
        """Keep the next step; what is not known here, or not needed, is None."""
        self._steps.append((seen, patches))
        self._count += 1

    @property
    def newest(self) -> Seen | None:
        """The step that was added last, if any was that is known here."""
        return self._steps[-1][0] if self._steps else None

    def __getitem__(self, step: int) -> tuple[Seen | None, torch.Tensor | None]:
        """
        Return a step of the video, from 0.

        :raises IndexError: for one that is not kept any more
        """
        return self._steps[step - self._count]


class PlacedStep(NamedTuple):
    """
    The rows of a step: token ids and, between `before` and `after`, its visual rows.

    `spoken` was said before the step and comes first; `after` includes the video's tail where it
    ends. `positions` (3, n) are those of all rows. `places` (n,) says which of the step's tokens
    have a row.
    """

    spoken: list[int]
    before: list[int]
    after: list[int]
    positions: np.ndarray
    places: np.ndarray


@dataclass
class Stream:
    """
    The visual group of one video, written by whoever perceives and read by all.

    `text_of` gives the tokens that stand before and after the visual rows of a step, by its index
    from 0, whether it is the last, and whether the narration has begun; `tail` follows the last
    step of a video that ends. `ends` holds the rows of the lane up to each step's last. `kept` are
    the newest steps of the video, for its other streams too; `owed` are words that its narration
    has yet to repeat. `looks` (tokens, hidden) is what it was last given of each place, where
    tokens may be left out, and `places` are those of its newest step that were not, None for all.
    `turns` is how many steps the first turn of the user has, and each later one, 0 where all are in
    one; `in_turn` says that one is open, as more steps belong into it. Where a trace is kept,
    `placed` are the rows of each step, and `records` are the runs of the texts about this video,
    the narration's first; `before` is the stream that this one relieves, `recalled` are those made
    for answers beside it.
    """

    decoder: Decoder
    scheme: Scheme
    timeline: Timeline
    prefix: list[int]
    text_of: Callable[[int, bool, bool], tuple[list[int], list[int]]]
    tail: list[int]
    lane: Lane
    narration: TextLane
    schedule: Schedule
    kept: KeptSteps
    turns: tuple[int, int] = (0, 0)
    in_turn: bool = False
    owed: list[Word] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    placed: list[PlacedStep] = field(default_factory=list)
    looks: torch.Tensor | None = None
    places: Sequence[int] | None = None
    grid: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)
    patches: list[torch.Tensor] = field(default_factory=list)
    records: list[LaneRecord] = field(default_factory=list)
    before: Stream | None = None
    recalled: list[Stream] = field(default_factory=list)

    def prefill_prefix(self) -> None:
        """Put the prefix into the visual lane; once, before the first step."""
        positions = torch.from_numpy(text_positions(0, len(self.prefix)))
        self.decoder.step([Chunk(self.lane, self.decoder.embed(self.prefix), positions)])

    def step_chunk(self, seen: Seen, last: bool = False) -> Chunk:
        """
        Return the chunk that appends what is seen of one step to the lane.

        With `last` the video ends here, and its tail goes with the step. With interleaved
        positions the last token spoken goes before the step, in the same forward pass, and the
        step's own logits give the next token: give them to `perceived`.
        """
        runs_on = self._runs_on
        step = self.place_step(last, None if seen.places is None else seen.places.tolist())
        rows, deep = self.decoder.rows_of([*step.spoken, *step.before], seen, step.after)
        return Chunk(self.lane, rows, torch.from_numpy(step.positions),
                     predict=runs_on, deep=deep)

    def place_step(self, last: bool = False, places: Sequence[int] | None = None) -> PlacedStep:
        """Note where the rows of the next step go; those of the tokens at `places`, or all."""
        spoken: list[int] = []
        placed = []
        before, after = self.text_of(len(self.ends), last, self._runs_on)
        if self._runs_on:
            spoken, positions = self.narration.hand_over()
            placed.append(positions)
        if self.scheme.serial:
            self.narration.read([*before, *after])
        whole = self.timeline.step(*self.grid, text=(len(before), len(after)))
        visual = np.arange(whole.shape[1] - len(before) - len(after))
        if places is not None:
            whole = np.delete(whole, len(before) + np.delete(visual, places), axis=1)
            visual = np.array(places)
        placed.append(whole)
        if last:
            placed.append(self.timeline.tail())
            after = [*after, *self.tail]
        step = PlacedStep(spoken, before, after, np.concatenate(placed, axis=1), visual)
        if self.narration.record:
            self.placed.append(step)
        self.places = places
        self.ends.append(len(self.lane) + step.positions.shape[1])
        first, more = self.turns
        beyond = len(self.ends) - first
        self.in_turn = not last and (beyond < 0 or more > 1 and beyond % more > 0)
        return step

    @property
    def _runs_on(self) -> bool:
        """Whether the narration goes on in the rows of the next step."""
        return self.scheme.serial and self.narration.begun

    def perceived(self, chunk: Chunk, logits: torch.Tensor | None) -> None:
        """Take over what the pass over `step_chunk` gave."""
        if logits is not None:
            self.narration.looked(logits, self.ends[-1] - 1, chunk.positions[:, -1:].numpy())

    def kept_chunk(self, step: int) -> Chunk:
        """Return the chunk that appends one of the newest steps of the video, from 0."""
        seen = cast(Seen, self.kept[step][0])  # Whoever computes has seen it.
        # What is left out of a first step was there before it.
        return self.step_chunk(seen if self.ends else replace(seen, places=None))

    def keep_patches(self, step: int) -> None:
        """Have a step of the video that has been put into this stream in its trace."""
        patches = self.kept[step][1]
        if patches is not None:
            self.patches.append(patches)

    def repeat(self, words: Sequence[Word], vocabulary: Vocabulary) -> Iterator[Chunk]:
        """
        Have the narration go on after words that were spoken about the stream before.

        Yields the chunks of their rows, each to be computed before the next one is asked for.
        """
        for sees, ids, placed in self.narration.repeat(words, vocabulary):
            yield Chunk(self.narration.cache, self.decoder.embed(ids), torch.from_numpy(placed),
                        self.first(self.lane.view(), sees))

    def first(self, view: LaneView, steps: int) -> LaneView:
        """The part of a view that holds the prefix and the first `steps` steps."""
        return view._replace(length=self.ends[steps - 1] if steps else len(self.prefix))
