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
from sww_ros.streaming.sampling import GREEDY, Sampling

_TERMINATORS = '.!?。！？\n'
_UNFINISHED = '\ufffd'
_LONE_SURROGATE = re.compile('[\ud800-\udfff]')


class TextAssembler:
    """
    Turns a stream of token ids into deltas that never split a character, and into sentences.

    The tokens of a sentence are decoded together, as a byte-level tokenizer may spread one
    character over several of them; those of a sentence that goes on over turns, turn by turn.

    A checkpoint may have been taught to say something in place of nothing. What may become that
    is held back until it is plain that it does not.
    """

    def __init__(self, tokenizer, silence: str = '', goes_on: bool = False) -> None:
        """
        Begin with a turn.

        :param silence: what a turn says in place of nothing, '' if there is no such thing
        :param goes_on: whether it also ends every turn, and sentences go on over turns
        """
        self._tokenizer, self._silence, self._goes_on = tokenizer, silence, goes_on
        self._ids: list[int] = []
        self._said = self._before = self._held = ''
        self._turn_begins = True

    def add(self, token: int) -> tuple[str, str]:
        """Take one token; return (new text, the whole sentence if this ends one), '' for none."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        # No UTF-8, so no message, could carry one.
        text = _LONE_SURROGATE.sub(_UNFINISHED, text)
        if text.endswith(_UNFINISHED):
            return '', ''
        if self._goes_on and self._turn_begins:
            text = text.lstrip('\n')  # Between turns, not sentences.
        told = len(text) - self._may_be_silence(text)
        self._held = text[told:]
        text = self._before + text[:told]
        delta, self._said = text[len(self._said):], text
        ends = delta and not self._held and _ends_sentence(text)
        return delta, self.flush() if ends else ''

    def _may_be_silence(self, text: str) -> int:
        """How many of the last characters may turn out to be the silence, or its beginning."""
        if self._goes_on:
            return next((count for count in range(min(len(self._silence), len(text)), 0, -1)
                         if text.endswith(self._silence[:count])), 0)
        return len(text) if self._turn_begins and self._silence.startswith(text) else 0

    @property
    def unfinished(self) -> str:
        """What has been said since the last sentence, stripped."""
        return self._said.strip()

    def flush(self) -> str:
        """Return what has been said since the last sentence, stripped, and begin anew."""
        sentence, self._ids = self._said.strip(), []
        self._said = self._before = self._held = ''
        self._turn_begins = False
        return sentence

    def end_turn(self) -> tuple[str, str]:
        """The turn has ended: return (new text, the sentence that ends with it), '' for none."""
        delta = '' if self._held == self._silence else self._held
        self._said += delta
        goes_on = self._goes_on and not _ends_sentence(self._said)
        sentence = '' if goes_on else self.flush()
        self.cut_turn()
        return delta, sentence

    def cut_turn(self) -> None:
        """The turn was too long: what is said goes on in the next one."""
        self._ids, self._before, self._held, self._turn_begins = [], self._said, '', True


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
    or -1 where none was taken, and `draws[i]` the draw by which, or -1.0; `logits` holds those
    rows' logits, before any penalty.
    """

    stream_id: str
    fed: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    positions: list[list[int]] = field(default_factory=list)
    sees: list[int] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    draws: list[float] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)

    def add(self, ids: Sequence[int], first_row: int, positions: np.ndarray, sees: int) -> None:
        """Note that `ids` go into the cache from `first_row` on, at `positions` (3, n)."""
        self.fed += ids
        self.rows += range(first_row, first_row + len(ids))
        self.positions += positions.T.tolist()
        self.sees += [sees] * len(ids)
        self.predicted += [-1] * len(ids)
        self.draws += [-1.0] * len(ids)


class TextLane:
    """
    One speaker: the cache it writes to, the track it is placed on, the tokens yet to be fed.

    It is used by the generating thread alone, once its stream is abreast of the one before. With
    interleaved positions the narration's cache is the visual lane itself; both sides are one
    thread then. `record` is kept where the session records a trace.
    """

    def __init__(self, stream_id: str, decoder: Decoder, cache: Lane, track: Track,
                 head: Sequence[int], text: TextAssembler, sampling: Sampling = GREEDY,
                 before: Sequence[int] = (), record: bool = False,
                 next_turn: Sequence[int] = (), turn_by_turn: bool = False,
                 drops_cut: bool = False, first: int = 0) -> None:
        """
        Begin with `head`.

        :param sampling: how tokens are chosen; its penalty is on `before` and all that was fed
        :param before: tokens that stand before the head, unseen by this lane's cache
        :param next_turn: what is fed in place of a token that ends the turn
        :param turn_by_turn: whether that has to close what is said before the next step comes
        :param drops_cut: whether what was not ended loses its last token by that
        :param first: steps of the video before its stream, which tell its draws from others'
        """
        self.stream_id = stream_id
        self.text = text
        self.record = LaneRecord(stream_id) if record else None
        self.spoken = 0
        self.begun = False
        self.ready: torch.Tensor | None = None
        self._decoder, self.cache, self._track = decoder, cache, track
        self._pending, self._owner, self._next_owner = list(head), 1, 1
        self._sampling, self._first = sampling, first
        self._used, self._next_turn = {*before}, list(next_turn)
        self._turn_by_turn, self._drops_cut = turn_by_turn, drops_cut

    def end_turn(self) -> tuple[str, str]:
        """Have the next turn opened in place of the token chosen; return what it leaves to tell."""
        self._open_turn()
        return self.text.end_turn()

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
                self._take(word.token)
                if word.token in vocabulary.stop:
                    self._open_turn()
            self.begun = True
            yield sees, ids, np.concatenate(placed, axis=1)

    def hand_over(self) -> tuple[list[int], np.ndarray]:
        """Give up the pending tokens and their positions (3, n), to go before the next step."""
        if self._pending and self.closing and self._pending != self.closing:
            self._pending = [*([] if self._drops_cut else self._pending), *self.closing]
            self.text.cut_turn()
        return self._place(1, 0)

    @property
    def closing(self) -> list[int]:
        """What closes what has been said in its cache, before another speaks there."""
        return self._next_turn if self._turn_by_turn and self.begun else []

    def read(self, ids: Sequence[int]) -> None:
        """Have tokens that stand in its cache count for the repetition penalty."""
        self._used.update(ids)

    def _place(self, owner: int, sees: int, rows: int | None = None,
               row: int | None = None) -> tuple[list[int], np.ndarray]:
        """The pending tokens belong to the step for which they were chosen, not to the next."""
        rows = self.pending if rows is None else rows
        ids, self._pending = self._pending[:rows], self._pending[rows:]
        placed = self._track.place(len(ids), self._owner or owner)
        self._next_owner = owner
        self.read(ids)
        if self.record:
            self.record.add(ids, len(self.cache) if row is None else row, placed, sees)
        return ids, placed

    def looked(self, logits: torch.Tensor, row: int, position: np.ndarray) -> None:
        """Take over the logits of a row of video, from which the next token is chosen."""
        if self.record:
            self.record.add([-1], row, position, 0)
        self.ready = logits

    def choose(self, logits: torch.Tensor, silence: int, without: Sequence[int] = ()) -> int:
        """
        Choose the next token from (vocabulary,) logits; it is fed with the next.

        :param silence: a token that may be repeated without a penalty
        :param without: tokens that it may not be; such a choice is left out of the record, as it
            need not be the one that a replay would make
        :raises ArithmeticError: for logits that are no finite numbers
        """
        sampling = self._sampling
        draw = (sampling.draw(self.stream_id, self._first, self.spoken)
                if sampling.temperature else -1.0)
        if without:
            logits = logits.clone()
            logits[list(without)] = -math.inf
        token = sampling.choose(sampling.penalized(logits, self._used - {silence}), draw)
        if self.record and not without:
            self.record.logits.append(logits.clone())
            self.record.predicted[-1], self.record.draws[-1] = token, draw
        self._take(token)
        return token

    def _take(self, token: int) -> None:
        """Have a token that was chosen fed with the next."""
        self.ready = None
        self._pending, self._owner = [token], self._next_owner
        self.spoken += 1
