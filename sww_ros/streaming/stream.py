"""One video as it is computed: prefix, visual lane, where each step ends, its narrator's lane."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from sww_ros.streaming.decoder import Chunk, Decoder
from sww_ros.streaming.generation import LaneRecord, TextLane, Vocabulary
from sww_ros.streaming.jobs import Word
from sww_ros.streaming.kv import Lane, LaneView
from sww_ros.streaming.positions import Scheme, Timeline, text_positions
from sww_ros.streaming.schedule import Schedule


@dataclass
class Stream:
    """
    The visual group of one video, written by whoever perceives and read by all.

    `ends` holds the rows of the lane up to each step's last. `tail` follows the last step of a
    video that ends. `kept` are the newest steps as they were embedded, for a stream that is to
    relieve this one; `owed` are words that its narration has yet to repeat. `records` are the
    runs of the texts about this video, where a trace is kept, the narration's first; `before` is
    the stream that this one relieves, likewise.
    """

    decoder: Decoder
    scheme: Scheme
    timeline: Timeline
    prefix: list[int]
    tail: list[int]
    lane: Lane
    narration: TextLane
    schedule: Schedule
    kept: deque[torch.Tensor]
    owed: list[Word] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    ended: bool = False
    placed: list[np.ndarray] = field(default_factory=list)
    grid: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)
    patches: list[torch.Tensor] = field(default_factory=list)
    records: list[LaneRecord] = field(default_factory=list)
    before: Stream | None = None

    def prefill_prefix(self) -> None:
        """Put the prefix into the visual lane; once, before the first step."""
        positions = torch.from_numpy(text_positions(0, len(self.prefix)))
        self.decoder.step([Chunk(self.lane, self.decoder.embed(self.prefix), positions)])

    def step_chunk(self, embeds: torch.Tensor, last: bool = False) -> Chunk:
        """
        Return the chunk that appends one step's merged tokens (tokens, hidden) to the lane.

        With `last` the video ends here, and its tail goes with the step. With interleaved
        positions the last token spoken goes before the step, in the same forward pass, and the
        step's own logits give the next token: give them to `perceived`.
        """
        spoken, placed = self.place_step(last)
        self.kept.append(embeds)
        parts = [self.decoder.embed(spoken)] * bool(spoken) + [embeds]
        if last:
            parts.append(self.decoder.embed(self.tail))
        return Chunk(self.lane, torch.cat(parts), torch.from_numpy(placed), predict=bool(spoken))

    def place_step(self, last: bool = False) -> tuple[list[int], np.ndarray]:
        """
        Note where the rows of the next step go.

        Returns the tokens spoken that go before it, and the positions (3, n) of all.
        """
        spoken, placed = [], []
        if self.scheme.serial and self.narration.begun:
            spoken, before = self.narration.hand_over()
            placed.append(before)
        placed.append(self.timeline.step(*self.grid))
        if last:
            placed.append(self.timeline.tail())
        placed = np.concatenate(placed, axis=1)
        self.ended = last
        if self.narration.record:
            self.placed.append(placed[:, len(spoken):])
        self.ends.append(len(self.lane) + placed.shape[1])
        return spoken, placed

    def perceived(self, chunk: Chunk, logits: torch.Tensor | None) -> None:
        """Take over what the pass over `step_chunk` gave."""
        if logits is not None:
            self.narration.looked(logits, self.ends[-1] - 1, chunk.positions[:, -1:].numpy())

    def step_as_embedded(self, index: int) -> torch.Tensor:
        """Return the merged tokens (tokens, hidden) of one of the newest steps, as perceived."""
        return self.kept[index - len(self.ends)]

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
