"""
Layouts: the closed forms of all five schemes, step by step and whole, and the command line.

The expected positions are written down here from the paper's rules, row by row in plain Python.
"""

import bisect
from dataclasses import dataclass, replace
import itertools
import json
from pathlib import Path
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from test_positions import golden
from turn_kit import VideoPart, turn_positions

from experiments import layouts
from sww_ros.streaming.layout import ClipShape, describe, lay_out, main
from sww_ros.streaming.positions import SCHEMES, VideoClock, make_scheme
from sww_ros.streaming.schedule import WaitK

ROOT = Path(__file__).resolve().parents[1]
DECOUPLED = ('gdpe', 'gipe')


class Granted:
    """A schedule that grants each step some number of tokens, maybe none."""

    def __init__(self, counts: tuple[int, ...]):
        self.totals = [0, *itertools.accumulate(counts)]

    def granted(self, steps: int) -> int:
        return self.totals[steps]

    def step_of(self, index: int) -> int:
        return bisect.bisect_right(self.totals, index)

    def sees(self, index: int, perceived: int) -> int:
        return min(self.step_of(index), perceived)


@dataclass(frozen=True)
class Clip:
    """A clip: its grid and its answer tokens, step by step; all else that positions depend on."""

    prefix: int
    grids: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]
    head: int
    gap: int
    seconds: float
    rate: float
    tail: bool

    def scheme(self, name: str):
        return make_scheme(name, VideoClock(self.rate, self.seconds), self.gap)

    def said(self, step: int) -> int:
        """k_i, from 0: the assistant prefix comes before the first token."""
        return self.counts[step] + (self.head if step == self.begins else 0)

    @property
    def begins(self) -> int:
        """The step of the first token, from 0; the last one, if there is none."""
        return next((i for i, count in enumerate(self.counts) if count), len(self.counts) - 1)

    def positions(self, name: str) -> np.ndarray:
        layout = lay_out(self.scheme(name), Granted(self.counts), ClipShape(
            self.prefix, self.grids, self.head, sum(self.counts), self.tail))
        return layout.positions[:, layout.video_first]

    @property
    def visual_rows(self) -> int:
        return self.prefix + sum(h * w for h, w in self.grids) + (3 if self.tail else 0)


@st.composite
def clips(draw, same_grid: bool = False) -> Clip:
    steps = draw(st.integers(1, 7))
    grid = st.tuples(st.integers(1, 6), st.integers(1, 6))
    grids = [draw(grid)] * steps if same_grid else draw(
        st.lists(grid, min_size=steps, max_size=steps))
    counts = draw(st.lists(st.integers(0, 9), min_size=steps, max_size=steps))
    return Clip(draw(st.integers(0, 30)), tuple(grids), tuple(counts), draw(st.integers(1, 4)),
                draw(st.integers(1, 20_000)), draw(st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0])),
                draw(st.sampled_from([1.0, 2.0, 3.0, 25.0])), draw(st.booleans()))


def text(first: int, count: int) -> list[tuple[int, int, int]]:
    return [(first + j,) * 3 for j in range(count)]


def grid_at(base: int, tau: int, grid: tuple[int, int]) -> list[tuple[int, int, int]]:
    return [(base + tau, base + r, base + c) for r in range(grid[0]) for c in range(grid[1])]


def one_visual_group(clip: Clip) -> tuple[list, list]:
    """Prefix and steps at (p + tau, p + r, p + c); and the tail, from the largest + 1 on."""
    rows = text(0, clip.prefix)
    for step, grid in enumerate(clip.grids):
        rows += grid_at(clip.prefix, int(step * clip.seconds * clip.rate // 1), grid)
    tail = text(max(itertools.chain.from_iterable(rows)) + 1, 3)
    return rows, tail


def after_video(clip: Clip) -> list:
    """Stock text leaves room for the video, as wide as it is by then, and for its tail."""
    said, at = [], 0
    last = clip.prefix + int((len(clip.grids) - 1) * clip.seconds * clip.rate // 1)
    for step in range(len(clip.grids)):
        if clip.said(step):
            by_then = replace(clip, grids=clip.grids[:step + 1])
            at = max(at, max(last, one_visual_group(by_then)[1][0][0] - 1) + 1 + 3)
            said += text(at, clip.said(step))
            at += clip.said(step)
    return said


def overlapped(clip: Clip) -> tuple[list, list, list]:
    """E_0 = p - 1, E_{i+1} = max(E_i + m_{i+1}, E_i + k_i): V_{i+1} and A_i both at E_i + 1."""
    ends, rows, said = [clip.prefix - 1], text(0, clip.prefix), []
    for step, grid in enumerate(clip.grids):
        rows += grid_at(ends[-1] + 1, 0, grid)
        # The bound of the first step has room for the assistant prefix, which goes there.
        head = [clip.head, 0][step > 0]
        before = clip.counts[step - 1] + [clip.head, 0][step > 1] if step else 0
        ends.append(max(ends[-1] + max(1, *grid), ends[-1] + before))
        said += text(ends[-1] + 1, head + clip.counts[step])
    return rows, text(ends[-1] + 1, 3), said


def running(clip: Clip) -> tuple[list, list, list]:
    """One index through V_1 A_1 V_2 A_2 ...: each takes as many positions as it is wide."""
    at, rows, tail, said = clip.prefix, text(0, clip.prefix), [], []
    for step, grid in enumerate(clip.grids):
        rows += grid_at(at, 0, grid)
        at += max(1, *grid)
        if clip.tail and step == len(clip.grids) - 1:
            tail = text(at, 3)
            at += 3
        said += text(at, clip.said(step))
        at += clip.said(step)
    return rows, tail, said


def expected(name: str, clip: Clip) -> list[tuple[int, int, int]]:
    spoken = clip.head + sum(clip.counts)
    if name == 'ospe':
        rows, tail, said = overlapped(clip)
    elif name == 'interleaved':
        rows, tail, said = running(clip)
    else:
        rows, tail = one_visual_group(clip)
        said = after_video(clip) if name == 'offline' else text(
            {'gdpe': 0, 'gipe': clip.gap}[name], spoken)
    return rows + (tail if clip.tail else []) + said


@pytest.mark.parametrize('name', SCHEMES)
@given(clip=clips())
def test_every_scheme_is_its_closed_form(name, clip):
    positions = clip.positions(name)
    assert positions.dtype == np.int64
    assert [tuple(column) for column in positions.T.tolist()] == expected(name, clip)


@pytest.mark.parametrize('name', SCHEMES)
@given(clip=clips(same_grid=True))
def test_a_stream_laid_out_as_it_goes_on_is_the_whole_clip(name, clip):
    """Token by token, step by step, by a timeline that never knows how long it will be."""
    totals = [0, *itertools.accumulate(clip.counts)]
    timeline = clip.scheme(name).timeline(clip.prefix, granted=lambda step: totals[step],
                                          head_tokens=clip.head, reserved_steps=len(clip.grids))
    track, visual, said = timeline.narration(), [], []
    for step, grid in enumerate(clip.grids):
        visual.append(timeline.step(*grid))
        if clip.tail and step == len(clip.grids) - 1:
            visual.append(timeline.tail())
        if step == clip.begins:
            said.append(track.place(clip.head, 1))
        said += [track.place(1, step + 1) for _ in range(clip.counts[step])]
    whole = clip.positions(name)
    assert (np.concatenate([*visual, *said], axis=1) == whole[:, clip.prefix:]).all()


@pytest.mark.parametrize('name', SCHEMES)
def test_a_stream_never_ends(name):
    """A day of steps: positions go on, and no step is placed where another one is."""
    timeline = make_scheme(name).timeline(5, granted=lambda steps: 3 * steps, head_tokens=3)
    track, at = timeline.narration(), -1
    for step in range(24 * 3600):
        placed = timeline.step(1, 2)
        assert placed[0, 0] > at
        at = placed[0, 0]
        if step % 1000 == 0:
            track.place(3, step + 1)


@given(clip=clips(), said=st.lists(st.integers(0, 30), min_size=7, max_size=7))
def test_only_interleaved_video_depends_on_what_was_said(clip, said):
    """OSPE's does on what was granted; so in all schemes but one both sides run in parallel."""
    def video(name: str, spoken: list[int]) -> list:
        totals = [0, *itertools.accumulate(clip.counts)]
        timeline = clip.scheme(name).timeline(
            clip.prefix, granted=lambda step: totals[step], head_tokens=clip.head)
        track, placed = timeline.narration(), []
        for step, (grid, count) in enumerate(zip(clip.grids, spoken)):
            placed.append(timeline.step(*grid).tolist())
            track.place(count, step + 1)
        return placed + [timeline.tail().tolist()]

    silent = [0] * len(clip.grids)
    for name in SCHEMES:
        if name != 'interleaved':
            assert video(name, said) == video(name, silent), name
    moved = video('interleaved', said)
    for step, still in enumerate(video('interleaved', silent)):
        before = sum(said[:min(step, len(clip.grids))])
        assert (np.array(moved[step]) == np.array(still) + before).all()


@given(clip=clips(), other=clips())
def test_decoupled_text_never_depends_on_the_video(clip, other):
    for name in DECOUPLED:
        counts = (*[0] * (len(other.grids) - 1), sum(clip.counts))
        other = replace(other, counts=counts, head=clip.head, gap=clip.gap)
        mine, theirs = (c.positions(name)[:, c.visual_rows:] for c in (clip, other))
        assert (mine == theirs).all()


@given(clip=clips(), said=st.lists(st.integers(0, 40), min_size=7, max_size=7))
def test_text_beyond_its_ospe_bound_runs_on_and_takes_up_later_slack(clip, said):
    totals = [0, *itertools.accumulate(clip.counts)]
    timeline = clip.scheme('ospe').timeline(clip.prefix, granted=lambda step: totals[step],
                                            head_tokens=clip.head)
    track, placed, starts = timeline.narration(), [], []
    for step, grid in enumerate(clip.grids):
        timeline.step(*grid)
        starts.append(int(timeline.answer(step + 1).place(1)[0, 0]))
        placed.append(track.place(said[step], step + 1)[0].tolist())
    at = list(itertools.chain.from_iterable(placed))
    assert all(a < b for a, b in itertools.pairwise(at)), 'no position twice'
    free = 0
    for start, tokens in zip(starts, placed):
        free = max(free, start)
        assert tokens == list(range(free, free + len(tokens))), 'its own place, or the next free'
        free += len(tokens)


@given(clip=clips(), asked=st.integers(0, 6))
def test_an_answer_begins_where_its_text_group_does(clip, asked):
    for name in SCHEMES:
        timeline = clip.scheme(name).timeline(clip.prefix, reserved_steps=len(clip.grids))
        for grid in clip.grids:
            last = timeline.step(*grid)
        if name == 'interleaved':
            timeline.narration().place(asked, 1)
        seen = len(clip.grids)
        if name == 'ospe':
            first = last.min() + max(1, *clip.grids[-1])
        elif name == 'interleaved':
            first = last.min() + max(1, *clip.grids[-1]) + asked
        elif name == 'offline':
            # The room of three tokens of tail is kept.
            first = one_visual_group(clip)[1][-1][0] + 1
        else:
            first = {'gdpe': 0, 'gipe': clip.gap}[name]
        assert timeline.answer(seen).place(2, 1).tolist() == [[first, first + 1]] * 3, name


@pytest.mark.parametrize('name', ['gdpe', 'gipe', 'offline'])
def test_a_step_that_was_lost_leaves_its_time_free(name):
    timeline = make_scheme(name, VideoClock(2.0, 1.0)).timeline(10)
    assert timeline.step(1, 1, frame=0)[0, 0] == 10
    assert timeline.step(1, 1, frame=3)[0, 0] == 16
    assert timeline.step(1, 1)[0, 0] == 18


@given(tokens=st.integers(0, 60), wait_k=st.integers(1, 6), steps=st.integers(1, 8))
def test_wait_k_gives_token_j_to_its_step(tokens, wait_k, steps):
    layout = lay_out(make_scheme('gdpe'), WaitK(wait_k), ClipShape(1, [(1, 1)] * steps, 1, tokens))
    assert layout.came[layout.narration].tolist() == [
        2 * (min(j // wait_k, steps - 1) + 1) + 1 for j in range(tokens)]


# Two cases worked out by hand. A: prefix 2, two steps of 1x2, K = 1, head 3, four answer tokens.
# B: prefix 1, three steps of 2x1, K = 2, head 1, three answer tokens, so A_3 is empty.
CASE_A = dict(prefix_tokens=2, frames=2, grid_h=1, grid_w=2, wait_k=1, assistant_prefix_start=9,
              answer_start=12, length=16)
CASE_B = dict(prefix_tokens=1, frames=3, grid_h=2, grid_w=1, wait_k=2, assistant_prefix_start=10,
              answer_start=11, length=14)


def test_overlap_by_hand():
    # E_0 = 1, V_1 at 2, E_1 = 3; A_1 (head and one token) and V_2 at 4, E_2 = max(5, 3 + 4) = 7;
    # A_2 and the tail at 8.
    t, rows, columns = describe(CASE_A)['positions_overlap']
    said = [4, 5, 6, 7, 8, 9, 10]
    assert t == [0, 1, 2, 2, 4, 4, 8, 9, 10, *said]
    assert rows == [0, 1, 2, 2, 4, 4, 8, 9, 10, *said]
    assert columns == [0, 1, 2, 3, 4, 5, 8, 9, 10, *said]
    # E_0 = 0, V_1 at 1, E_1 = 2; A_1 (1 + 2) and V_2 at 3, E_2 = max(4, 5) = 5; A_2 (1) and V_3
    # at 6, E_3 = max(7, 6) = 7; the tail at 8.
    t, rows, columns = describe(CASE_B)['positions_overlap']
    said = [3, 4, 5, 6]
    assert t == columns == [0, 1, 1, 3, 3, 6, 6, 8, 9, 10, *said]
    assert rows == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, *said]


def test_interleaved_by_hand():
    # prefix 0 1 | V_1 2 3 | A_1 4 5 6 7 | V_2 8 9 | tail 10 11 12 | A_2 13 14 15
    t, rows, columns = describe(CASE_A)['positions_interleaved']
    said = [4, 5, 6, 7, 13, 14, 15]
    assert t == rows == [0, 1, 2, 2, 8, 8, 10, 11, 12, *said]
    assert columns == [0, 1, 2, 3, 8, 9, 10, 11, 12, *said]
    # prefix 0 | V_1 1 2 | A_1 3 4 5 | V_2 6 7 | A_2 8 | V_3 9 10 | tail 11 12 13
    t, rows, columns = describe(CASE_B)['positions_interleaved']
    said = [3, 4, 5, 8]
    assert t == columns == [0, 1, 1, 6, 6, 9, 9, 11, 12, 13, *said]
    assert rows == [0, 1, 2, 6, 7, 9, 10, 11, 12, 13, *said]


STEPS_WITH_TEXT = [((2, 3), (4, 1)), ((3, 2), (5, 1)), ((1, 1), (0, 2)), ((2, 2), (0, 0))]
"""Grid of merged tokens, and tokens of text before and after them."""


def turn(steps) -> list[int | VideoPart]:
    """Those steps as the parts of a turn."""
    return [part for grid, (before, after) in steps
            for part in (before, VideoPart(1, *grid), after)]


@pytest.mark.parametrize('name', ['gdpe', 'gipe', 'offline'])
def test_steps_that_carry_text_are_a_turn_of_one_step_videos(name):
    timeline = make_scheme(name, VideoClock(3.0)).timeline(7, tail_tokens=2)
    placed = [timeline.step(*grid, text=text) for grid, text in STEPS_WITH_TEXT]
    stock = turn_positions([7, *turn(STEPS_WITH_TEXT), 2])
    assert np.array_equal(np.concatenate([*placed, timeline.tail()], axis=1), stock[:, 7:])
    text = timeline.narration().place(2, 1)
    first = {'gdpe': 0, 'gipe': 10_000, 'offline': stock.max() + 1}[name]
    assert text.tolist() == [[first, first + 1]] * 3


def test_the_clock_counts_until_a_step_carries_text():
    timeline = make_scheme('gdpe', VideoClock(3.0)).timeline(7)
    assert [timeline.step(1, 1)[0, 0], timeline.step(1, 1)[0, 0]] == [7, 10]
    assert timeline.step(1, 1, text=(1, 0)).tolist() == [[11, 12]] * 3


def test_text_of_a_step_runs_on_through_what_was_said_between():
    timeline = make_scheme('interleaved').timeline(7, tail_tokens=2)
    said = timeline.narration()
    placed = []
    for grid, text in STEPS_WITH_TEXT:
        placed += [timeline.step(*grid, text=text), said.place(3, 1)]
    parts = [part for step in STEPS_WITH_TEXT for part in (*turn([step]), 3)]
    stock = turn_positions([7, *parts, 2])
    assert np.array_equal(np.concatenate([*placed, timeline.tail()], axis=1), stock[:, 7:])


def test_overlapped_text_and_the_next_step_with_its_own_start_together():
    timeline = make_scheme('ospe').timeline(7, granted=lambda step: 9 * step, head_tokens=2)
    steps = [timeline.step(2, 3, text=(4, 1)), timeline.step(2, 3, text=(5, 1))]
    assert [step[0, 0] for step in steps] == [7, 15]
    said = timeline.narration()
    # The second step has to leave room for 2 + 9 tokens, and is 9 positions long.
    assert [said.place(1, 1)[0, 0], said.place(1, 2)[0, 0]] == [15, 26]


def test_offline_text_leaves_room_for_the_longest_video_of_steps_with_text():
    timeline = make_scheme('offline').timeline(7, reserved_steps=4, tail_tokens=2)
    timeline.step(2, 3, text=(4, 1))
    assert timeline.narration().place(1, 1)[0, 0] == 7 + 4 * 8 + 2


def test_the_order_in_which_rows_come():
    layout = lay_out(make_scheme('interleaved'), WaitK(2), ClipShape(1, [(2, 1)] * 3, 1, 3))
    # prefix | V_1 | V_2 | V_3 | tail | A_1 | A_2, in the order prefix V_1 A_1 V_2 A_2 V_3 tail
    assert layout.video_first.tolist() == [0, 1, 2, 6, 7, 9, 10, 11, 12, 13, 3, 4, 5, 8]
    assert (np.diff(layout.positions[0]) >= 0).all()
    assert layout.came.tolist() == [0, 2, 2, 3, 3, 3, 4, 4, 5, 6, 6, 6, 6, 6]
    apart = lay_out(make_scheme('gdpe'), WaitK(2), ClipShape(1, [(2, 1)] * 3, 1, 3))
    assert apart.video_first.tolist() == list(range(14))
    assert np.sort(apart.came).tolist() == layout.came.tolist()


def given_of(case: dict) -> dict:
    return {key: value for key, value in case.items() if not isinstance(value, list)}


def test_the_command_prints_the_published_layouts(tmp_path, capsys):
    file = tmp_path / 'cases.json'
    file.write_text(json.dumps([given_of(case) for case in golden()]))
    assert main([str(file)]) == 0
    for ours, case in zip(json.loads(capsys.readouterr().out), golden(), strict=True):
        assert {key: ours[key] for key in case} == case


def test_the_command_end_to_end(tmp_path):
    file = tmp_path / 'cases.json'
    file.write_text(json.dumps([CASE_A, CASE_B]))
    result = subprocess.run([sys.executable, '-m', 'sww_ros.streaming.layout', str(file)],
                            capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert (result.returncode, result.stderr) == (0, '')
    assert json.loads(result.stdout) == [describe(CASE_A), describe(CASE_B)]


@pytest.mark.parametrize('content, words', [
    ('{"frames": 1}', 'a list of layouts is wanted, not dict'),
    ('[3]', 'case 0: a layout is an object, not int'),
    ('[{"frames": 1}]', 'case 0: prefix_tokens must be a whole number of at least 0, not None'),
    (json.dumps([CASE_A, CASE_B | dict(wait_k=0)]),
     'case 1: wait_k must be a whole number of at least 1, not 0'),
    (json.dumps([CASE_A | dict(frames=2.5)]), 'frames must be a whole number of at least 1'),
    (json.dumps([CASE_A | dict(frames=True)]), 'frames must be a whole number of at least 1'),
    (json.dumps([CASE_A | dict(frames=3)]), 'must be assistant_prefix_start (9)'),
    (json.dumps([CASE_A | dict(length=11)]), 'then length (11)'),
    ('[{', 'Expecting property name'),
    ('\xff', 'error: '),
])
def test_what_is_no_list_of_layouts_is_told(tmp_path, capsys, content, words):
    file = tmp_path / 'cases.json'
    file.write_text(content, encoding='latin-1')
    assert main([str(file)]) == 2
    out, error = capsys.readouterr()
    assert out == ''
    assert error.startswith(f'error: {file}: ')
    assert words in error


def test_a_file_that_is_not_there_is_told(tmp_path, capsys):
    assert main([str(tmp_path / 'none.json')]) == 2
    assert 'No such file' in capsys.readouterr().err


@pytest.mark.parametrize('around', [(0, 0), layouts.TIMED])
@pytest.mark.parametrize('name', SCHEMES)
def test_the_picture_shows_what_the_code_lays_out(name, around):
    one = layouts.drawing(name, around)
    assert sum(count for group, count in one.groups if group[0] == 'T') == (
        layouts.STEPS * sum(around))
    rows = sum(count for _, count in one.groups)
    assert one.positions.shape == (3, rows)
    assert one.mask.shape == (rows, rows)
    assert one.mask.diagonal().all()


def test_the_picture_is_drawn(tmp_path, capsys):
    pytest.importorskip('matplotlib')
    assert layouts.main(['--out', str(tmp_path / 'layouts.png'), '--timed']) == 0
    assert (tmp_path / 'layouts.png').read_bytes().startswith(b'\x89PNG')
    assert layouts.main(['--out', str(tmp_path / 'no/such/folder.png')]) == 2
    assert 'No such file' in capsys.readouterr().err
