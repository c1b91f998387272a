"""
The relay: a stream that nears its capacity gets a successor, which takes over between sentences.

Every stream is short, begins at position 0, and is laid out like any other. A successor is
prepared beside the stream that speaks, in pieces: its prefix, then step after step of the last
`memory` ones as they were embedded (pixels are not looked at again), each with the words said
before it. From then on it is abreast: steps that come go into both, and so do words. Nothing here
computes: these are the rules by which the core hands pieces out, and has a successor take over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from sww_ros.streaming.jobs import Carry, Open, Video, Word, Words

CARRIED = 0.4
"""Which share of `capacity` is carried over where nothing else is said: 16 steps of 40."""
SPARE = 6
"""One step in so many of `max_steps` is kept for a hand-over, likewise: 8 of 48."""


@dataclass(frozen=True)
class Relay:
    """
    When a stream is relieved, in steps.

    With `capacity` steps it gets a successor, which begins with the last `memory` of them; it
    never has more than `max_steps`. The last `sentences` before those steps go into its prefix.
    """

    capacity: int
    memory: int
    max_steps: int
    sentences: int = 0

    @staticmethod
    def plan(max_steps: int, capacity: int = 0, memory: int = -1,
             sentences: int = 0) -> Relay | None:
        """
        Return when streams are relieved; None where they are not, as nothing is carried over.

        :param capacity: as described; 0: what leaves enough of `max_steps` for a hand-over
        :param memory: as described; -1: a share of `capacity`
        :raises ValueError: in words, where one does not fit into the other
        """
        capacity = capacity or max_steps - max(1, max_steps // SPARE)
        memory = int(capacity * CARRIED) if memory < 0 else memory
        if not memory:
            return None
        if not memory < capacity < max_steps:
            raise ValueError(
                f'memory {memory}, capacity {capacity} and max_steps {max_steps} must rise in '
                'this order: a stream that has `capacity` steps is relieved by one that begins '
                'with `memory` of them, and has `max_steps` at most; memory 0 begins anew instead')
        return Relay(capacity, memory, max_steps, sentences)

    @property
    def kept(self) -> int:
        """How many of the newest steps' embeddings may be asked for."""
        return self.memory + self.max_steps - self.capacity

    @property
    def pieces(self) -> int:
        """
        How many pieces may go before a step that waits.

        So many that a successor is abreast after half the steps between `capacity` and
        `max_steps`, on a machine that is never idle; on others they are done between frames.
        """
        return 1 + -(-2 * self.memory // (self.max_steps - self.capacity))

    def successor(self, video: Video, stream: int) -> Video:
        """Return the stream that is to relieve one, empty still."""
        first = len(video.steps) - self.memory
        said = [text for step, text in video.told if step <= video.base + first]
        # What is older is not asked for again.
        video.told = video.told[max(0, len(said) - self.sentences):]
        return Video(video.number, video.prompt, video.budget, stream, video.base + first, first,
                     sights=video.sights, before=' '.join(said[-self.sentences:])
                     if self.sentences else '', past=video.past, gate=video.gate)

    def recalling(self, video: Video, stream: int, about: tuple[int, ...]) -> Video | None:
        """Return the stream to answer a question from, empty still, if it is about the past."""
        found = video.past.find(about, video.base)
        if found is None:
            return None
        base, steps = found
        return Video(video.number, video.prompt, video.budget, stream, base, sights=video.sights,
                     recalled=steps, beside=video)


def room_for(capacity: int) -> int:
    """How many steps leave enough for a hand-over after `capacity` of them."""
    return capacity + -(-capacity // (SPARE - 1))


def is_abreast(video: Video) -> bool:
    """Whether the successor of a stream has all steps that it has to have."""
    successor = video.successor
    return successor is not None and successor.first + len(successor.steps) == len(video.steps)


def next_piece(video: Video) -> Open | Carry | None:
    """Return the next piece of the preparation of a stream's successor, if any is missing."""
    successor = video.successor
    if successor is None or is_abreast(video):
        return None
    if not successor.opened:
        return Open(successor, video)
    there = len(successor.steps)
    seen = tuple(word for word in owed(video).words if word.sees <= there)
    return Carry(successor, video, successor.first + there, seen)


def next_recalled(video: Video, current: Video) -> Open | Carry:
    """Return the next piece of a stream that is made for an answer, beside the current one."""
    return Carry(video, video, len(video.steps)) if video.opened else Open(video, current)


def owed(video: Video) -> Words:
    """Return what a stream's narration has said that its successor has not been given yet."""
    successor = _successor(video)
    return Words(successor, tuple(_carried(video)[successor.fed:]))


def take_over(video: Video) -> Video:
    """Return the successor of a stream, which goes on where that is."""
    successor = _successor(video)
    successor.words, successor.told = _carried(video), video.told
    successor.budget = video.budget.after(successor.first)
    successor.spoken, successor.unfinished = video.spoken, video.unfinished
    successor.first, video.successor = 0, None
    return successor


def _successor(video: Video) -> Video:
    """Whoever asks knows that there is one."""
    return cast(Video, video.successor)


def _carried(video: Video) -> list[Word]:
    """The words about the steps that a successor has, counted as it does."""
    first = _successor(video).first
    return [Word(word.token, word.owner - first, word.sees - first)
            for word in video.words if word.owner > first]
