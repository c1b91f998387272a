"""
The layout of a whole clip: where every row sits, what it sees and what it predicts.

Both trainings take it from here, and live runs are held against it. Positions are those of the
engine's own `Timeline`, visibility is that of its `Schedule`.

`python -m sww_ros.streaming.layout CASES.json` prints, for cases that give `prefix_tokens`,
`frames` (steps), `grid_h`, `grid_w`, `wait_k`, `assistant_prefix_start`, `answer_start` and
`length`, the same list with the positions of all schemes and the training mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
import json
from pathlib import Path
import sys

import numpy as np

from sww_ros.streaming.positions import (
    DEFAULT_SCHEME,
    SCHEMES,
    TAIL_TOKENS,
    Scheme,
    Timeline,
    make_scheme,
    text_positions,
)
from sww_ros.streaming.schedule import Schedule, WaitK
from sww_ros.streaming.visibility import (
    PREFIX_STEP,
    SEES_TAIL,
    TAIL_STEP,
    VISUAL_LANE,
    Visibility,
    ranges,
)

IGNORE = -100
"""The label of rows that predict nothing."""
_NOTHING = text_positions(0, 0)


@dataclass(frozen=True)
class ClipShape:
    """
    The sizes of one clip: its text in tokens, step i of its video `grids[i]` merged tokens.

    `around[i]` tokens of text stand before and after those of step i; none do where it is empty.
    `head` is the assistant prefix; `tail` says whether the video ends with the last step.
    Question i sees the first `questions[i]` steps; its lane has `question` rows. `late_start`
    counts steps of video, and their narration, before those of the clip; `max_steps` is the
    engine's own bound, for which `offline` positions leave room.
    """

    prefix: int
    grids: Sequence[tuple[int, int]]
    head: int
    narration: int
    tail: bool = True
    questions: Sequence[int] = ()
    question: int = 0
    late_start: int = 0
    max_steps: int = 0
    around: Sequence[tuple[int, int]] = ()

    @property
    def steps(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Each step's grid, and its tokens of text before and after."""
        return list(zip(self.grids, self.around or [(0, 0)] * len(self.grids)))


@dataclass(frozen=True)
class Layout:
    """
    The n rows of one clip: prefix, video, tail, head, narration, then question lanes.

    With interleaved positions each step's text follows its video, and the clip is causal. Index
    arrays say which rows are what, `visual` those of the steps with their text; `predicting[j]` is
    the row whose output is narration token j.
    `positions` (3, n); `came` (rows without question lanes,) rises in the order in which a stream
    V_1 A_1 V_2 A_2 ... runs, and is the same within a V or A.
    """

    positions: np.ndarray
    rows: Visibility
    came: np.ndarray
    prefix: np.ndarray
    visual: np.ndarray
    tail: np.ndarray
    head: np.ndarray
    narration: np.ndarray
    predicting: np.ndarray
    questions: list[np.ndarray]

    def __len__(self) -> int:
        return self.positions.shape[1]

    @property
    def video_first(self) -> np.ndarray:
        """The rows of the clip with all video before all text, whatever the scheme."""
        return np.concatenate([self.prefix, self.visual, self.tail, self.head, self.narration])


def lay_out(scheme: Scheme, schedule: Schedule, clip: ClipShape) -> Layout:
    """
    Lay out one clip.

    Nothing is said before the step that grants the first token, and the head comes with it; the
    last step takes all tokens that are left. A question comes before its step's last token is in
    the cache. Where the schedule waits for the end of the video, a question is about a video that
    ends where it is asked: its lane begins with that video's tail.

    :raises ValueError: for a late start in a scheme whose steps have no place of their own
    """
    if clip.late_start and not scheme.info.timed:
        raise ValueError(f'late_start {clip.late_start} has no meaning with {scheme.name}, where '
                         'each step sits after the one before: leave it out')
    steps, streams = len(clip.grids), schedule.granted(len(clip.grids)) > 0
    owners = [_owner(schedule, index, steps) for index in range(clip.narration)]
    placed = _place(scheme, schedule, clip, owners, streams)
    seen, said = ([part.shape[1] for part in parts] for parts in (placed.video, placed.text))
    tail, step = placed.tail.shape[1], 2 * np.arange(1, steps + 1)
    came = np.concatenate([np.zeros(clip.prefix, int), np.repeat(step, seen),
                           np.full(tail, step[-1]), np.repeat(step + 1, said)])
    # Where the rows of prefix, video, tail and text stand: as they come if positions run on.
    order = np.argsort(came, kind='stable') if scheme.serial else np.arange(len(came))
    at = np.argsort(order)
    prefix, visual, ending, text = np.split(at, np.cumsum([clip.prefix, sum(seen), tail]))
    lanes, length = [], len(at)
    for count in clip.questions:
        lanes.append(length + np.arange(placed.asked[count].shape[1]))
        length += len(lanes[-1])
    positions = np.empty((3, length), np.int64)
    positions[:, at] = np.concatenate(
        [text_positions(0, clip.prefix), *placed.video, placed.tail, *placed.text], axis=1)
    for lane, count in zip(lanes, clip.questions):
        positions[:, lane] = placed.asked[count]
    layout = Layout(
        positions, Visibility(*np.zeros((3, length), np.int64)), came[order], prefix, visual,
        ending, text[:clip.head], text[clip.head:], text[clip.head - 1:-1].copy(), lanes)
    layout.rows.lane[:], layout.rows.step[prefix] = VISUAL_LANE, PREFIX_STEP
    if scheme.serial:
        shown = _run_as_one(layout, owners, seen, said if streams else [0] * steps)
    else:
        shown = _run_in_parallel(layout, schedule, seen)
    for number, (lane, count) in enumerate(zip(lanes, clip.questions), 1):
        layout.rows.lane[lane], layout.rows.sees[lane] = number, shown[count]
    return layout


def _run_as_one(layout: Layout, owners: Sequence[int], seen: Sequence[int],
                said: Sequence[int]) -> Sequence[int]:
    """Make the clip one causal lane, whose rows count as steps; return what a question sees."""
    text = np.concatenate([layout.head, layout.narration])
    ends, until = layout.visual[np.cumsum(seen) - 1], np.concatenate([[0], text])[np.cumsum(said)]
    layout.rows.step[len(layout.prefix):len(layout.came)] = np.arange(
        len(layout.prefix), len(layout.came))
    last = [*ends[:-1], *layout.tail[-1:]] if len(layout.tail) else ends
    # The engine feeds the last token of A_i in front of V_{i+1}, whose last row then speaks.
    for index in range(1, len(owners)):
        if owners[index] != owners[index - 1]:
            layout.predicting[index] = last[owners[index] - 1]
    # All rows before that of the last token of the step it comes with.
    return [len(layout.prefix), *np.maximum(ends + 1, until)]


def _run_in_parallel(layout: Layout, schedule: Schedule, seen: Sequence[int]) -> Sequence[int]:
    """Give the narration a lane that sees what its schedule shows; return what a question sees."""
    steps, rows = len(seen), layout.rows
    rows.step[layout.visual], rows.step[layout.tail] = np.repeat(np.arange(steps), seen), TAIL_STEP
    # The last row of the head predicts token 0.
    predicts = np.maximum(np.arange(1 - len(layout.head), 1 + len(layout.narration)), 0)
    sees = np.array([schedule.sees(int(index), steps) for index in predicts])
    text = np.concatenate([layout.head, layout.narration])
    rows.lane[text], rows.sees[text] = 0, np.where(sees >= steps, SEES_TAIL, sees)
    return range(steps + 1)


@dataclass
class _Placed:
    """Positions of a clip: each step's video and text, the tail, each question by what it sees."""

    video: list[np.ndarray] = field(default_factory=list)
    text: list[np.ndarray] = field(default_factory=list)
    tail: np.ndarray = field(default_factory=lambda: _NOTHING)
    asked: dict[int, np.ndarray] = field(default_factory=dict)


def _owner(schedule: Schedule, index: int, steps: int) -> int:
    """The step, from 1, to whose text a token belongs."""
    return max(1, min(schedule.step_of(index), steps))


def _place(scheme: Scheme, schedule: Schedule, clip: ClipShape, owners: Sequence[int],
           streams: bool) -> _Placed:
    """Place a clip step by step, as the engine does; `streams` if it speaks before the end."""
    steps = len(clip.grids)

    def begin() -> Timeline:
        return scheme.timeline(clip.prefix, schedule.granted, clip.head,
                               max(clip.max_steps, steps) if streams else 0)

    timeline, placed = begin(), _Placed()
    track = timeline.narration()
    for step, (grid, around) in enumerate(clip.steps, 1):
        placed.video.append(timeline.step(*grid, clip.late_start + step - 1, around))
        if clip.tail and step == steps:
            placed.tail = timeline.tail()
        text, count = [_NOTHING], owners.count(step)
        if step == _owner(schedule, 0, steps):
            text.append(track.place(clip.head, 1))
            track.place(schedule.granted(clip.late_start))
        # Not without a token: a track turns to a step's own place when it is asked for that step.
        if count:
            text.append(track.place(count - 1, step))
        if streams and step in clip.questions:
            placed.asked[step] = timeline.answer(step).place(clip.question, 1)
        if count:
            text.append(track.place(1, step))
        placed.text.append(np.concatenate(text, axis=1))
    if not streams:
        placed.asked = {count: _place_after_end(begin(), clip.steps[:count], clip.question)
                        for count in set(clip.questions)}
    return placed


def _place_after_end(timeline: Timeline,
                     steps: Sequence[tuple[tuple[int, int], tuple[int, int]]],
                     tokens: int) -> np.ndarray:
    """Place the tail of a video and a question about it."""
    for grid, around in steps:
        timeline.step(*grid, text=around)
    return np.concatenate([timeline.tail(), timeline.answer(len(steps)).place(tokens, 1)], axis=1)


def describe(case: dict) -> dict:
    """
    Return a case of a layouts file with the positions of all schemes and `visible_train`.

    :raises ValueError: for a case without a field, or with sizes that do not fit together
    """
    needed = ('prefix_tokens', 'frames', 'grid_h', 'grid_w', 'wait_k', 'assistant_prefix_start',
              'answer_start', 'length')
    if not isinstance(case, dict):
        raise ValueError(f'a layout is an object, not {type(case).__name__}')
    for name in needed:
        least = 0 if name == 'prefix_tokens' else 1
        # By type, as true is an int in Python.
        if type(case.get(name)) is not int or case[name] < least:
            raise ValueError(f'{name} must be a whole number of at least {least}, '
                             f'not {case.get(name)!r}')
    prefix, steps, wait_k = case['prefix_tokens'], case['frames'], case['wait_k']
    grid = case['grid_h'], case['grid_w']
    head = case['answer_start'] - case['assistant_prefix_start']
    answer = case['length'] - case['answer_start']
    before = prefix + steps * grid[0] * grid[1] + TAIL_TOKENS
    if head < 1 or answer < 0 or before != case['assistant_prefix_start']:
        raise ValueError(
            f'prefix_tokens + frames * grid_h * grid_w + {TAIL_TOKENS} = {before} must be '
            f'assistant_prefix_start ({case["assistant_prefix_start"]}), then answer_start '
            f'({case["answer_start"]}), then length ({case["length"]})')
    clip = ClipShape(prefix, [grid] * steps, head, answer)
    layouts = {name: lay_out(make_scheme(name), WaitK(wait_k), clip) for name in SCHEMES}
    found = {f'positions_{SCHEMES[name].published}':
             layout.positions[:, layout.video_first].tolist() for name, layout in layouts.items()}
    mask = layouts[DEFAULT_SCHEME].rows.mask()
    return case | found | dict(visible_train=[ranges(row) for row in mask])


def main(arguments: list[str] | None = None) -> int:
    """Print the cases of a file with their layouts."""
    parser = argparse.ArgumentParser(prog='python -m sww_ros.streaming.layout',
                                     description=__doc__)
    parser.add_argument('cases', type=Path, help='JSON list of layouts')
    options = parser.parse_args(arguments)
    try:
        cases = json.loads(options.cases.read_text())
        if not isinstance(cases, list):
            raise ValueError(f'a list of layouts is wanted, not {type(cases).__name__}')
        described = []
        for number, case in enumerate(cases):
            try:
                described.append(describe(case))
            except ValueError as error:
                raise ValueError(f'case {number}: {error}') from error
    except (OSError, ValueError) as error:
        print(f'error: {options.cases}: {error}', file=sys.stderr)
        return 2
    json.dump(described, sys.stdout)
    print()
    return 0


if __name__ == '__main__':
    sys.exit(main())
