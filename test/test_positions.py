"""Positions: the published golden layouts, the closed forms, and errors in words."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from sww_ros.streaming.layout import describe
from sww_ros.streaming.positions import (
    VideoClock,
    make_scheme,
    step_positions,
)

GOLDEN = Path(__file__).resolve().parents[2] / 'shared/golden/layouts.json'


def golden() -> list[dict]:
    """Layouts printed by the paper's authors' own training code; absent in a clone on its own."""
    if not GOLDEN.exists():
        pytest.skip('the golden layouts are not beside this clone')
    return json.loads(GOLDEN.read_text())


def test_layouts_equal_the_published_ones():
    for case in golden():
        ours = describe({key: case[key] for key in case if not isinstance(case[key], list)})
        for key in case:
            assert ours[key] == case[key], key


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


def test_an_unknown_scheme_is_named():
    with pytest.raises(ValueError, match="unknown position scheme 'mrope'; one of gdpe, gipe, "):
        make_scheme('mrope')
