"""Generation: text lanes that speak about one video, decoded together, and tokens as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
import math
import re

import numpy as np
import torch

from sww_ros.streaming.decoder import Chunk, Decoder
from sww_ros.streaming.jobs import Word
from sww_ros.streaming.kv import Lane, LaneView
from sww_ros.streaming.positions import Track

_TERMINATORS = '.!?。！？\n'
_UNFINISHED = '\ufffd'
_LONE_SURROGATE = re.compile('[\ud800-\udfff]')


class TextAssembler:
    """
    Turns a stream of token ids into deltas that never split a character, and into sentences.

    The tokens of a sentence are decoded together, as a byte-level tokenizer may spread one
    character over several of them.
    """

    def __init__(self, tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._said = ''

    def add(self, token: int) -> tuple[str, str]:
        """Take one token; return (new text, the whole sentence if this ends one), '' for none."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        # No UTF-8, so no message, could carry one.
        text = _LONE_SURROGATE.sub(_UNFINISHED, text)
        if text.endswith(_UNFINISHED):
            return '', ''
        delta, self._said = text[len(self._said):], text
        return delta, self.flush() if delta and _ends_sentence(text) else ''

    @property
    def unfinished(self) -> str:
        """What has been said since the last sentence, stripped."""
        return self._said.strip()

    def flush(self) -> str:
        """Return what has been said since the last sentence, stripped, and begin anew."""
        sentence, self._ids, self._said = self._said.strip(), [], ''
        return sentence


def _ends_sentence(text: str) -> bool:
    text = text.rstrip(' ')
    if not text or text[-1] not in _TERMINATORS or not text.strip():
        return False
    # "3." may go on as "3.5".
    return not (text[-1] == '.' and text[-2:-1].isdigit())


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

    It is used by the generating thread alone, once its stream is abreast of the one before. With
    interleaved positions the narration's cache is the visual lane itself; both sides are one
    thread then. `record` is kept where the session records a trace.
    """

    def __init__(self, stream_id: str, decoder: Decoder, cache: Lane, track: Track,
                 head: Sequence[int], tokenizer, repetition_penalty: float = 1.0,
                 before: Sequence[int] = (), record: bool = False,
                 next_turn: Sequence[int] = ()) -> None:
        """
        Begin with `head`.

        :param repetition_penalty: as transformers has it, on what was spoken, `head` and `before`
        :param before: tokens that stand before the head, unseen by this lane's cache
        :param next_turn: what is fed in place of a token that ends the turn
        """
        self.stream_id = stream_id
        self.text = TextAssembler(tokenizer)
        self.record = LaneRecord(stream_id) if record else None
        self.spoken = 0
        self.begun = False
        self.ready: torch.Tensor | None = None
        self._decoder, self.cache, self._track = decoder, cache, track
        self._pending, self._owner, self._next_owner = list(head), 1, 1
        self._penalty = repetition_penalty
        self._used, self._next_turn = {*before, *head}, list(next_turn)

    def end_turn(self) -> str:
        """Have the next turn opened in place of the token chosen; return what was unfinished."""
        self._open_turn()
        return self.text.flush()

    def _open_turn(self) -> None:
        if self._next_turn:
            self._pending, self._owner = list(self._next_turn), 0

    @property
    def pending(self) -> int:
        """How many tokens are yet to be fed."""
        return len(self._pending)

    def chunk(self, context: LaneView | None, sees: int, owner: int,
              rows: int | None = None) -> Chunk:
        """
        Return the pending tokens as a chunk that sees `context`, and predicts if it is all.

        :param sees: how much that is, for the record
        :param owner: the step, from 1, to whose text the token to be chosen belongs
        :param rows: take no more than so many of them
        """
        ids, placed = self._place(owner, sees, rows)
        self.begun = True
        return Chunk(self.cache, self._decoder.embed(ids), torch.from_numpy(placed), context,
                     predict=not self._pending)

    def repeat(self, words: Sequence[Word], vocabulary: Vocabulary,
               ) -> Iterator[tuple[int, list[int], np.ndarray]]:
        """
        Take over words that were chosen in another lane; the last one is pending then.

        Yields, for those that see alike, how many steps they see, and ids and positions (3, n) of
        the rows before them, which have to be in the cache when it goes on.
        """
        row = len(self.cache)
        for sees, group in groupby(words, lambda word: word.sees):
            ids, placed = [], []
            for word in group:
                more, where = self._place(word.owner, sees, row=row)
                row += len(more)
                ids += more
                placed.append(where)
                self._take(word.token, vocabulary.silence)
                if word.token in vocabulary.stop:
                    self._open_turn()
            self.begun = True
            yield sees, ids, np.concatenate(placed, axis=1)

    def hand_over(self) -> tuple[list[int], np.ndarray]:
        """Give up the pending tokens and their positions (3, n), to go before the next step."""
        return self._place(1, 0)

    def _place(self, owner: int, sees: int, rows: int | None = None,
               row: int | None = None) -> tuple[list[int], np.ndarray]:
        """The pending tokens belong to the step for which they were chosen, not to the next."""
        rows = self.pending if rows is None else rows
        ids, self._pending = self._pending[:rows], self._pending[rows:]
        placed = self._track.place(len(ids), self._owner or owner)
        self._next_owner = owner
        if self.record:
            self.record.add(ids, len(self.cache) if row is None else row, placed, sees)
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
        self._take(token, silence)
        return token

    def _take(self, token: int, silence: int) -> None:
        """Have a token that was chosen fed with the next."""
        if token != silence:
            self._used.add(token)
        self.ready = None
        self._pending, self._owner = [token], self._next_owner
        self.spoken += 1
