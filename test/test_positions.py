"""Positions: the published golden layouts, the closed forms, and errors in words."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from sww_ros.streaming.positions import (
    GIPE_GAP,
    VideoClock,
    make_scheme,
    step_positions,
    text_positions,
    video_layout,
)

GOLDEN = Path(__file__).resolve().parents[2] / 'shared/golden/layouts.json'


def golden() -> list[dict]:
    """Layouts printed by the paper's authors' own training code; absent in a clone on its own."""
    if not GOLDEN.exists():
        pytest.skip('the golden layouts are not beside this clone')
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize('scheme, key', [('gdpe', 'positions_group'), ('gipe', 'positions_gap')])
def test_layouts_equal_the_published_ones(scheme, key):
    for case in golden():
        ours = video_layout(
            make_scheme(scheme), case['prefix_tokens'], case['frames'], case['grid_h'],
            case['grid_w'], case['length'] - case['assistant_prefix_start'])
        assert ours.tolist() == case[key]


@given(first=st.integers(0, 500), tau=st.integers(0, 500), h=st.integers(1, 9),
       w=st.integers(1, 9))
def test_a_step_is_a_grid_from_its_base(first, tau, h, w):
    t, rows, columns = step_positions(first, tau, h, w)
    assert (t == first + tau).all()
    assert rows.tolist() == [first + r for r in range(h) for _ in range(w)]
    assert columns.tolist() == [first + c for _ in range(h) for c in range(w)]


@given(step=st.integers(0, 200), seconds=st.sampled_from([0.5, 1.0, 2.0, 1 / 3]),
       rate=st.sampled_from([1.0, 2.0, 3.0, 25.0]))
def test_time_is_floored_seconds_times_rate(step, seconds, rate):
    assert VideoClock(rate, seconds).tau(step) == int(np.floor(step * seconds * rate))


@given(prefix=st.integers(1, 60), steps=st.integers(1, 8), text=st.integers(1, 40))
def test_text_groups_do_not_depend_on_the_video(prefix, steps, text):
    one = video_layout(make_scheme('gdpe'), prefix, steps, 2, 3, text)
    other = video_layout(make_scheme('gdpe'), prefix, steps + 1, 3, 2, text)
    assert np.array_equal(one[:, -text:], text_positions(0, text))
    assert np.array_equal(one[:, -text:], other[:, -text:])
    gap = video_layout(make_scheme('gipe'), prefix, steps, 2, 3, text)
    assert gap[0, -text] == GIPE_GAP


def test_one_frame_pair_has_a_layout():
    layout = video_layout(make_scheme('gdpe'), 4, 1, 2, 2, 3)
    assert layout[0].tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 6, 7, 8, 0, 1, 2]


def test_an_unknown_scheme_is_named():
    with pytest.raises(ValueError, match="unknown position scheme 'mrope'; one of gdpe, gipe"):
        make_scheme('mrope')
