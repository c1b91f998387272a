"""Generation: text lanes that speak about one video, decoded together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
import math

import numpy as np
import torch

from sww_ros.streaming.decoder import Chunk, Decoder
from sww_ros.streaming.kv import Lane, LaneView
from sww_ros.streaming.positions import Track
from sww_ros.streaming.schedule import Schedule
from sww_ros.streaming.text import TextAssembler


@dataclass(frozen=True)
class Vocabulary:
    """The token ids that steer generation; `silence` is -1 where the checkpoint has none."""

    stop: frozenset[int]
    silence: int = -1


@dataclass
class LaneRecord:
    """
    One lane's run as it was: what was fed, where, what each row saw, what was predicted.

    `rows[i]` is row i's index in its cache and `positions[i]` its place; `fed[i]` is -1 for a
    row of video whose logits were used; `sees[i]` counts steps, or rows of the running lane
    where video and narration share one. `predicted[i]` is the token chosen from row i's logits,
    or -1 where none was taken; `logits` holds those rows' logits.
    """

    stream_id: str
    fed: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    positions: list[list[int]] = field(default_factory=list)
    sees: list[int] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)

    def add(self, ids: Sequence[int], first_row: int, positions: np.ndarray, sees: int) -> None:
        """Note that `ids` go into the cache from `first_row` on, at `positions` (3, n)."""
        self.fed += ids
        self.rows += range(first_row, first_row + len(ids))
        self.positions += positions.T.tolist()
        self.sees += [sees] * len(ids)
        self.predicted += [-1] * len(ids)


class TextLane:
    """
    One speaker: the cache it writes to, the track it is placed on, the tokens yet to be fed.

    It is used by the generating thread alone. With interleaved positions the narration's cache
    is the visual lane itself; both sides are one thread then. `record` is kept where the session
    records a trace.
    """

    def __init__(self, stream_id: str, decoder: Decoder, cache: Lane, track: Track,
                 head: Sequence[int], tokenizer, repetition_penalty: float = 1.0,
                 before: Sequence[int] = (), record: bool = False) -> None:
        """
        Begin with `head`.

        :param repetition_penalty: as transformers has it, on what was spoken, `head` and `before`
        :param before: tokens that stand before the head, unseen by this lane's cache
        """
        self.stream_id = stream_id
        self.text = TextAssembler(tokenizer)
        self.record = LaneRecord(stream_id) if record else None
        self.spoken = 0
        self.begun = False
        self.ready: torch.Tensor | None = None
        self._decoder, self._cache, self._track = decoder, cache, track
        self._pending, self._owner, self._next_owner = list(head), 1, 1
        self._penalty = repetition_penalty
        self._used = {*before, *head}

    def replace(self, tokens: Sequence[int]) -> None:
        """Feed these tokens next, in place of the one the model chose."""
        self._pending, self._owner = list(tokens), 0

    def chunk(self, context: LaneView | None, sees: int, owner: int) -> Chunk:
        """
        Return the pending tokens as a chunk that sees `context`.

        :param sees: how much that is, for the record
        :param owner: the step, from 1, to whose text the token to be chosen belongs
        """
        ids, placed = self._place(owner, sees)
        self.begun = True
        return Chunk(self._cache, self._decoder.embed(ids), torch.from_numpy(placed), context,
                     predict=True)

    def hand_over(self) -> tuple[list[int], np.ndarray]:
        """Give up the pending tokens and their positions (3, n), to go before the next step."""
        return self._place(1, 0)

    def _place(self, owner: int, sees: int) -> tuple[list[int], np.ndarray]:
        """The pending tokens belong to the step for which they were chosen, not to the next."""
        ids, self._pending = self._pending, []
        placed = self._track.place(len(ids), self._owner or owner)
        self._next_owner = owner
        if self.record:
            self.record.add(ids, len(self._cache), placed, sees)
        return ids, placed

    def looked(self, logits: torch.Tensor, row: int, position: np.ndarray) -> None:
        """Take over the logits of a row of video, from which the next token is chosen."""
        if self.record:
            self.record.add([-1], row, position, 0)
        self.ready = logits

    def choose(self, logits: torch.Tensor, silence: int) -> int:
        """
        Choose the next token greedily from (vocabulary,) logits; it is fed with the next.

        :raises ArithmeticError: for logits that are no finite numbers
        """
        if self._penalty != 1.0 and self._used:
            used = torch.tensor(sorted(self._used), device=logits.device)
            logits = logits.clone()
            liked = logits[used]
            logits[used] = torch.where(liked > 0, liked / self._penalty, liked * self._penalty)
        token = int(logits.argmax())
        # A NaN counts as the largest, so the token's own logit tells of one anywhere.
        if not math.isfinite(best := float(logits[token])):
            raise ArithmeticError(f'the model computes no finite numbers ({best}): its weights '
                                  'are broken, or float16 is too narrow for it')
        if self.record:
            self.record.logits.append(logits.clone())
            self.record.predicted[-1] = token
        if token != silence:
            self._used.add(token)
        self.ready = None
        self._pending, self._owner = [token], self._next_owner
        self.spoken += 1
        return token


class NarrationBudget:
    """
    How many narration tokens may be spoken now, by the schedule.

    In the live schedule unspent budget is capped, so that a slow speaker does not run after the
    video for ever: what goes beyond is forfeited. Once the video has ended, all that is still
    to be said may be, up to `rest_tokens`.
    """

    def __init__(self, schedule: Schedule, cap: int | None = None, rest_tokens: int = 0) -> None:
        self.steps, self.index = 0, 0
        self.schedule, self._cap, self._granted = schedule, cap, 0
        self._rest_tokens, self.ended = rest_tokens, False

    def perceived(self, steps: int, ended: bool = False) -> None:
        """Grant what is due now that `steps` steps are perceived."""
        self.steps = steps
        if self.ended:
            return
        self._granted = self.schedule.granted(steps)
        if self._cap is not None:
            self.index = max(self.index, self._granted - self._cap)
        if ended:
            self.ended = True
            self._granted = max(self._granted, self.index) + self._rest_tokens

    @property
    def left(self) -> int:
        return self._granted - self.index

    @property
    def owner(self) -> int:
        """The step, from 1, to whose text the next token belongs."""
        return max(1, min(self.schedule.step_of(self.index), self.steps))

    @property
    def in_rest(self) -> bool:
        """Whether the schedule has nothing more to say about the next token."""
        return self.ended and self.index >= self.schedule.granted(self.steps)

    @property
    def sees(self) -> int:
        """How many steps the next token sees."""
        return self.schedule.sees(self.index, self.steps)

    def spend(self) -> None:
        self.index += 1

    def rest(self) -> None:
        """
        Give up what is left of the step whose token was the last one spoken.

        That is all that is granted in the live schedule, and once the video's last step is
        spoken about; with wait-K steps that perception has got ahead are still to come.
        """
        step = self.schedule.step_of(self.index - 1)
        is_last = self.ended and step >= self.steps
        everything = self._cap is not None or is_last
        self.index = max(self.index, self._granted if everything else self.schedule.granted(step))

    def close(self) -> None:
        """Grant nothing any more."""
        self.ended, self._granted = True, self.index
