"""The columns of a training batch in any position scheme: who sits where, and who sees whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sww_ros.streaming.positions import Scheme, Timeline, text_positions
from sww_ros.streaming.visibility import PREFIX_STEP, VISUAL_LANE, Rows


@dataclass(frozen=True)
class Columns:
    """
    Where each kind of row stands in a batch of B clips, L columns long.

    Index arrays: `visual`, `head` (tail and assistant prefix), `narration`, `predicting` (the
    column whose output is narration token j), one entry of `lanes` per question, from column
    `first_lane` on. `positions` (3, B, L).
    """

    visual: np.ndarray
    head: np.ndarray
    narration: np.ndarray
    predicting: np.ndarray
    lanes: list[np.ndarray]
    first_lane: int
    length: int
    positions: np.ndarray
    rows: Rows


def lay_columns(scheme: Scheme, prefix: int, video: tuple[int, int, int], head: int,
                wait_k: int, narration: int, seen: np.ndarray, width: int, *,
                tail_tokens: int = 0, offline: bool = False, late_start: int = 0,
                max_steps: int = 0) -> Columns:
    """
    Lay out prefix, video, narration and question lanes.

    Streaming narration speaks K tokens a step; interleaved rows stand in running order, V_1,
    A_1, V_2, ..., the others as prefix, video, text. `offline` rows see the whole clip, or what
    of it the question is about, with a video tail of their own.

    :param video: steps, height and width in merged tokens
    :param narration: narration tokens, wait_k * steps of them unless `offline`
    :param seen: steps that each question sees, (B, questions)
    :param width: columns of a question lane, without its tail
    :param late_start: steps of video (and their narration) that are not part of the clip
    :param max_steps: the longest video, for which `offline` positions leave room while streaming
    :raises ValueError: for a late start in a scheme whose steps have no place of their own
    """
    if late_start and scheme.name in ('ospe', 'interleaved'):
        raise ValueError(f'late_start {late_start} has no meaning with {scheme.name}, where each '
                         'step sits after the one before: leave it out')
    steps, unit = video[0], video[1] * video[2]
    if offline:
        return _offline(scheme, prefix, video, head, narration, seen, width, tail_tokens)
    timeline = scheme.timeline(prefix, granted=lambda step: wait_k * step, head_tokens=head,
                               reserved_steps=max(max_steps, steps))
    track = timeline.narration()
    frames, said, asked = [], [], {}
    for step in range(steps):
        frames.append(timeline.step(*video[1:], late_start + step))
        spoken = [track.place(0 if step else head, step + 1)]
        if not step:
            track.place(late_start * wait_k)
        spoken.append(track.place(wait_k - 1, step + 1))
        # A question that comes now finds all but the last token in the cache.
        asked[step + 1] = timeline.answer(step + 1).place(width, 1)
        said.append(np.concatenate([*spoken, track.place(1)], axis=1))
    order = [part for pair in zip(frames, said) for part in pair] if scheme.serial else (
        frames + said)
    ends = prefix + np.cumsum([part.shape[1] for part in order])
    columns = {id(part): np.arange(end - part.shape[1], end) for part, end in zip(order, ends)}
    visual = np.concatenate([columns[id(part)] for part in frames])
    words = np.concatenate([columns[id(part)] for part in said])
    first_lane = int(ends[-1])
    predicting = words[head - 1:-1].copy()
    if scheme.serial:
        predicting[wait_k::wait_k] = visual[2 * unit - 1::unit]
    clips, questions = seen.shape
    length = first_lane + questions * width
    positions = np.empty((3, clips, length), np.int64)
    positions[:, :, :first_lane] = np.concatenate(
        [text_positions(0, prefix), *order], axis=1)[:, None]
    rows = _rows(first_lane, prefix, questions, width, clips)
    if scheme.serial:
        rows.step[prefix:first_lane] = np.arange(prefix, first_lane)
        cached = [0, *(columns[id(part)][-1] for part in said)]
    else:
        rows.lane[words], rows.step[words] = 0, 0
        rows.step[visual] = np.repeat(np.arange(steps), unit)
        predicts = np.arange(len(words)) - (head - 1)
        rows.sees[:, words] = np.minimum(np.maximum(predicts, 0) // wait_k, steps - 1) + 1
        cached = range(steps + 1)
    lanes = _lanes(first_lane, questions, width)
    for clip in range(clips):
        for lane, steps_seen in zip(lanes, seen[clip]):
            positions[:, clip, lane] = asked[steps_seen]
            rows.sees[clip, lane] = cached[steps_seen]
    return Columns(visual, words[:head], words[head:], predicting, lanes, first_lane, length,
                   positions, rows)


def _offline(scheme: Scheme, prefix: int, video: tuple[int, int, int], head: int,
             narration: int, seen: np.ndarray, width: int, tail: int) -> Columns:
    steps, unit = video[0], video[1] * video[2]
    clips, questions = seen.shape
    visual = np.arange(prefix, prefix + steps * unit)
    first_text = prefix + steps * unit
    first_lane = first_text + tail + head + narration
    width += tail
    length = first_lane + questions * width
    positions = np.empty((3, clips, length), np.int64)
    rows = _rows(first_lane, prefix, questions, width, clips)
    rows.step[visual] = np.repeat(np.arange(steps), unit)
    rows.lane[first_text:first_lane] = 0
    rows.step[first_text:first_lane] = 0
    rows.sees[:, first_text:first_lane] = steps
    timelines = {count: _ended(scheme, prefix, (count, *video[1:]))
                 for count in {steps, *seen.ravel().tolist()}}
    frames, after = timelines[steps]
    positions[:, :, :first_text] = np.concatenate([text_positions(0, prefix), *frames],
                                                  axis=1)[:, None]
    positions[:, :, first_text:first_lane] = np.concatenate(
        [after.tail(), after.narration().place(head + narration, 1)], axis=1)[:, None]
    lanes = _lanes(first_lane, questions, width)
    for clip in range(clips):
        for lane, count in zip(lanes, seen[clip]):
            after = timelines[count][1]
            positions[:, clip, lane] = np.concatenate(
                [after.tail(), after.answer(count).place(width - tail, 1)], axis=1)
            rows.sees[clip, lane] = count
    text = np.arange(first_text, first_lane)
    return Columns(visual, text[:tail + head], text[tail + head:], text[tail + head - 1:-1],
                   lanes, first_lane, length, positions, rows)


def _ended(scheme: Scheme, prefix: int, video: tuple[int, int, int],
           ) -> tuple[list[np.ndarray], Timeline]:
    """The positions of a video that has ended, and its timeline."""
    timeline = scheme.timeline(prefix)
    frames = [timeline.step(*video[1:]) for _ in range(video[0])]
    timeline.tail()
    return frames, timeline


def _rows(first_lane: int, prefix: int, questions: int, width: int, clips: int) -> Rows:
    """Rows of which all before the question lanes are visual."""
    length = first_lane + questions * width
    lane = np.full(length, VISUAL_LANE)
    lane[first_lane:] = np.repeat(np.arange(questions) + 1, width)
    step = np.zeros(length, int)
    step[:prefix] = PREFIX_STEP
    return Rows(lane, step, np.zeros((clips, length), np.int64))


def _lanes(first: int, questions: int, width: int) -> list[np.ndarray]:
    return [np.arange(first + i * width, first + (i + 1) * width) for i in range(questions)]
