"""
Timed words as LiveCC and StreamingVLM are trained on: a record is a conversation of two turns.

    [{"role": "user", "content": [
        {"type": "video", "video": "a.mp4", "video_start": 12.0, "video_end": 74.5},
        {"type": "text", "text": "Please describe the video.", "previous": "...", "title": "..."}]},
     {"role": "assistant", "content": [
        {"type": "text_stream", "text_stream": [[12.1, 12.4, "So"], [12.4, 12.9, "here"], ...]}]}]

(`data/production/to_conversation.py` in LiveCC's public code). Their clips last up to minutes and
are cut between words into samples. When in a sample a word is said is for the schedule to say, as
with any other caption, but where silence is taught (`Recipe.silence`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import math

ROLE = 'role'


@dataclass(frozen=True)
class TimedWords:
    """
    Words, and from when to when in the video they stand [s].

    `timed` has each with when it was heard, counted from `start_s` [s].
    """

    start_s: float
    end_s: float
    timed: tuple[tuple[float, str], ...]

    @property
    def words(self) -> str:
        return ' '.join(word for _, word in self.timed)


def is_conversation(value: object) -> bool:
    """Return whether a JSON value is a list of turns."""
    return (isinstance(value, list) and bool(value)
            and all(isinstance(turn, dict) and ROLE in turn for turn in value))


def flat(turns: list[dict]) -> dict:
    """Return what the parts of all turns say, by its key; `start` and `end` as other forms have."""
    record: dict = {}
    for turn in turns:
        parts = turn.get('content')
        for part in parts if isinstance(parts, list) else ():
            record |= part if isinstance(part, dict) else {}
    record.pop('type', None)
    for key in ('start', 'end'):
        if f'video_{key}' in record:
            record[key] = record.pop(f'video_{key}')
    return record


def cut(stream: Sequence, start_s: float, end_s: float, longest_s: float) -> Iterator[TimedWords]:
    """
    Yield even parts of a clip, `longest_s` long at most, with the words that end in each.

    Parts in which nothing is said are left out.

    :param stream: [start, end, word] each [s], in the time of the video
    :raises ValueError: for words of another form
    """
    words: list[tuple[float, str]] = []
    for entry in stream:
        if not (isinstance(entry, Sequence) and len(entry) == 3
                and all(isinstance(at, int | float) and math.isfinite(at) for at in entry[:2])
                and isinstance(entry[2], str)):
            raise ValueError(f'{entry!r} is not [start, end, "word"]')
        words.append((float(entry[1]), entry[2].strip()))
    parts = max(1, math.ceil((end_s - start_s) / longest_s - 1e-9))
    each_s = (end_s - start_s) / parts
    said: list[list[tuple[float, str]]] = [[] for _ in range(parts)]
    for at_s, word in words:
        if word:
            # A word that ends on a border is heard before it.
            place = min(max(heard_in(at_s - start_s, each_s), 0), parts - 1)
            said[place].append((at_s - start_s - place * each_s, word))
    for number, part in enumerate(said):
        if part:
            yield TimedWords(start_s + number * each_s, start_s + (number + 1) * each_s,
                             tuple(part))


def heard_in(at_s: float, each_s: float) -> int:
    """Return in which stretch of `each_s` seconds, from 0, a word has been heard to its end."""
    return math.ceil(at_s / each_s - 1e-9) - 1
