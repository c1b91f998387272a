"""
The rows of one training clip: what stands where, who sees whom, what is to be predicted.

They are the rows of a live run of the same clip that is told its words: positions come from the
engine's own `Timeline`, visibility from its `Rows` and `Schedule`. The paper's layouts are those
of `streaming/layout.py`, which knows a schedule only by the counts of an answer; what OSPE
reserves and when interleaved text begins depend on the schedule itself, so it is asked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sww_ros.streaming.positions import TAIL_TOKENS, Scheme, text_positions
from sww_ros.streaming.schedule import Schedule
from sww_ros.streaming.trace import VIDEO
from sww_ros.streaming.visibility import PREFIX_STEP, SEES_TAIL, TAIL_STEP, VISUAL_LANE, Rows

IGNORE = -100
"""The label of rows that predict nothing."""


@dataclass(frozen=True)
class Words:
    """Token ids of one clip's text; `answer` ends in the token that ends the turn."""

    prefix: Sequence[int]
    tail: Sequence[int]
    head: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True)
class ClipRows:
    """
    n rows: `ids` (VIDEO where a merged visual token stands), `labels` (n,), `positions` (3, n).

    `labels[i]` is the token that row i has to predict, or IGNORE. Rows of video stand in the
    order of time, rows and columns.
    """

    ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    rows: Rows

    def __len__(self) -> int:
        return len(self.ids)


def lay_clip(scheme: Scheme, schedule: Schedule, words: Words, steps: int,
             grid: tuple[int, int], max_steps: int) -> ClipRows:
    """
    Lay out a clip of `steps` steps of `grid` merged tokens whose video ends with the last.

    Rows stand as prefix, video, tail, assistant prefix, answer; with interleaved positions in
    the order in which they come, causal, since video and narration are one sequence there.

    :param max_steps: the engine's own bound, for which `offline` positions leave room
    """
    owners = _owners(schedule, len(words.answer), steps)
    # Nothing is said before the step of the first token; the assistant prefix comes with it.
    begins = owners[0]
    timeline = scheme.timeline(len(words.prefix), granted=schedule.granted,
                               head_tokens=len(words.head),
                               reserved_steps=max_steps if schedule.granted(1) else 0)
    track = timeline.narration()
    seen, said, ends = [], [], []
    for step in range(1, steps + 1):
        seen.append(timeline.step(*grid))
        if step == steps:
            seen[-1] = np.concatenate([seen[-1], timeline.tail()], axis=1)
        said.append(text_positions(0, 0))
        if step == begins:
            said[-1] = track.place(len(words.head), 1)
        if count := owners.count(step):
            said[-1] = np.concatenate([said[-1], track.place(count, step)], axis=1)
        ends.append(seen[-1].shape[1])
    place = _serial if scheme.serial else _parallel
    visual, text = place(len(words.prefix), ends, [part.shape[1] for part in said])
    length = len(words.prefix) + len(visual) + len(text)
    ids, labels = np.full(length, VIDEO), np.full(length, IGNORE)
    positions = np.empty((3, length), np.int64)
    prefix = np.arange(len(words.prefix))
    for at, placed in ((prefix, text_positions(0, len(prefix))),
                       (visual, np.concatenate(seen, axis=1)),
                       (text, np.concatenate(said, axis=1))):
        positions[:, at] = placed
    ids[prefix], ids[visual[-TAIL_TOKENS:]] = words.prefix, words.tail
    ids[text] = [*words.head, *words.answer]
    labels[_predicting(scheme.serial, visual, text, ends, owners, len(words.head))] = words.answer
    if scheme.serial:
        lane, step = np.full(length, VISUAL_LANE), np.arange(length)
        return ClipRows(ids, labels, positions, Rows(lane, step, np.zeros(length, np.int64)))
    return ClipRows(ids, labels, positions,
                    _rows(schedule, len(prefix), ends, len(words.head), len(words.answer)))


def _owners(schedule: Schedule, tokens: int, steps: int) -> list[int]:
    """The step, from 1, to whose text each token belongs; the last one takes the rest."""
    return [max(1, min(schedule.step_of(index), steps)) for index in range(tokens)]


def _parallel(prefix: int, seen: list[int], said: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Columns of video (its tail too) and text, one after the other."""
    visual = prefix + np.arange(sum(seen))
    return visual, prefix + len(visual) + np.arange(sum(said))


def _serial(prefix: int, seen: list[int], said: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Columns of video and text where each step's text follows it."""
    visual, text, at = [], [], prefix
    for video, words in zip(seen, said):
        visual.append(np.arange(at, at + video))
        text.append(np.arange(at + video, at + video + words))
        at += video + words
    return np.concatenate(visual), np.concatenate(text)


def _predicting(serial: bool, visual: np.ndarray, text: np.ndarray, seen: list[int],
                owners: list[int], head: int) -> np.ndarray:
    """The column whose output is each token of the answer."""
    columns = text[head - 1:-1].copy()
    if serial:
        # The engine feeds the last token of A_i in front of V_{i+1}, whose last row then speaks.
        last = visual[np.cumsum(seen) - 1]
        for index in range(1, len(owners)):
            if owners[index] != owners[index - 1]:
                columns[index] = last[owners[index] - 1]
    return columns


def _rows(schedule: Schedule, prefix: int, seen: list[int], head: int, answer: int) -> Rows:
    """What each row sees: that which the token it predicts may know."""
    steps, video = len(seen), sum(seen)
    lane = np.repeat([VISUAL_LANE, 0], [prefix + video, head + answer])
    step = np.concatenate([np.full(prefix, PREFIX_STEP), np.repeat(np.arange(steps), seen),
                           np.zeros(head + answer, int)])
    step[prefix + video - TAIL_TOKENS:prefix + video] = TAIL_STEP
    predicts = np.maximum(np.arange(head + answer) - (head - 1), 0)
    shown = np.array([schedule.sees(int(index), steps) for index in predicts])
    sees = np.zeros(prefix + video + head + answer, np.int64)
    sees[prefix + video:] = np.where(shown >= steps, SEES_TAIL, shown)
    return Rows(lane, step, sees)
