"""Generation: text lanes that speak about one video, decoded together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from sww_ros.streaming.decoder import Chunk, Decoder
from sww_ros.streaming.kv import LaneView
from sww_ros.streaming.positions import GroupScheme
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
    One lane's run as it was: what was fed, how many steps each row saw, what was predicted.

    `predicted[i]` is the token chosen from row i's logits, or -1 where none was taken; `logits`
    holds those rows' logits where the session records a trace.
    """

    stream_id: str
    fed: list[int] = field(default_factory=list)
    sees: list[int] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)


class TextLane:
    """
    One speaker: its own cache, its own text group, and the tokens it has yet to feed.

    It is used by the generating thread alone.
    """

    def __init__(self, stream_id: str, decoder: Decoder, scheme: GroupScheme,
                 head: Sequence[int], tokenizer, repetition_penalty: float = 1.0,
                 record_logits: bool = False) -> None:
        self.stream_id = stream_id
        self.text = TextAssembler(tokenizer)
        self.record = LaneRecord(stream_id)
        self.spoken = 0
        self._decoder, self._scheme = decoder, scheme
        self._cache = decoder.new_lane(len(head) + 64)
        self._pending = list(head)
        self._penalty, self._record_logits = repetition_penalty, record_logits
        self._used: set[int] = set()

    def replace(self, tokens: Sequence[int]) -> None:
        """Feed these tokens next, in place of the one the model chose."""
        self._pending = list(tokens)

    def chunk(self, context: LaneView, steps: int) -> Chunk:
        """Return the pending tokens as a chunk that sees `steps` steps in `context`."""
        ids = self._pending
        self.record.fed += ids
        self.record.sees += [steps] * len(ids)
        self.record.predicted += [-1] * len(ids)
        positions = torch.from_numpy(self._scheme.text(len(self._cache), len(ids)))
        return Chunk(self._cache, self._decoder.embed(ids), positions, context, predict=True)

    def choose(self, logits: torch.Tensor, silence: int) -> int:
        """Choose the next token greedily from (vocabulary,) logits; it is fed with the next."""
        if self._penalty != 1.0 and self._used:
            used = torch.tensor(sorted(self._used), device=logits.device)
            logits = logits.clone()
            liked = logits[used]
            logits[used] = torch.where(liked > 0, liked / self._penalty, liked * self._penalty)
        if self._record_logits:
            self.record.logits.append(logits.clone())
        token = int(logits.argmax())
        if token != silence:
            self._used.add(token)
        self.record.predicted[-1] = token
        self._pending = [token]
        self.spoken += 1
        return token


class NarrationBudget:
    """
    How many narration tokens may be spoken now, by the schedule.

    In the live schedule unspent budget is capped, so that a slow speaker does not run after the
    video for ever: what goes beyond is forfeited.
    """

    def __init__(self, schedule: Schedule, cap: int | None = None) -> None:
        self.steps, self.index = 0, 0
        self._schedule, self._cap, self._granted = schedule, cap, 0

    def perceived(self, steps: int) -> None:
        """Grant what is due now that `steps` steps are perceived."""
        self.steps, self._granted = steps, self._schedule.granted(steps)
        if self._cap is not None:
            self.index = max(self.index, self._granted - self._cap)

    @property
    def left(self) -> int:
        return self._granted - self.index

    @property
    def sees(self) -> int:
        """How many steps the next token sees."""
        return self._schedule.sees(self.index, self.steps)

    def spend(self) -> None:
        self.index += 1

    def rest(self) -> None:
        """Give up what is left: nothing more is said until the next step."""
        self.index = max(self.index, self._granted)
