"""Positions: the rule of time, videos in a turn as the stock model lays them out, golden cases."""

from fractions import Fraction
import json
from pathlib import Path
import random

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel
from turn_kit import VideoPart, turn_positions

from sww_ros.streaming.layout import describe
from sww_ros.streaming.positions import (
    SCHEMES,
    VideoClock,
    make_scheme,
    step_positions,
    text_positions,
)

GOLDEN = Path(__file__).resolve().parents[2] / 'shared/golden/layouts.json'
TEXT, VIDEO = 0, 2
"""The kinds of token that transformers tells apart."""
FRAME_RATES = [Fraction(1, 2), 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 24, 25, Fraction(2997, 100), 30]
"""Frames per second; a step is two frames."""


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


@given(step=st.integers(0, 3600), fps=st.sampled_from(FRAME_RATES),
       rate=st.sampled_from([1, 2, 3, 4, 25]))
def test_time_is_floored_seconds_times_rate(step, fps, rate):
    """As in exact arithmetic: seven steps of 2/3 s at 3 positions a second are 14, not 13."""
    exact = step * Fraction(2) / fps * rate
    assert VideoClock(float(rate), float(2 / fps)).tau(step) == exact // 1


def test_an_unknown_scheme_is_named():
    with pytest.raises(ValueError, match="unknown position scheme 'mrope'; one of ") as refused:
        make_scheme('mrope')
    assert str(refused.value).endswith(', '.join(sorted(SCHEMES)))


class Stock:
    """The position rule of transformers' own Qwen2.5-VL, without the weights."""

    get_rope_index = Qwen2_5_VLModel.get_rope_index
    get_vision_position_ids = Qwen2_5_VLModel.get_vision_position_ids

    def __init__(self, tokens_per_second: int) -> None:
        self.config = Qwen2_5_VLConfig(vision_config=dict(tokens_per_second=tokens_per_second))

    def positions(self, parts: list[int | VideoPart], seconds: float) -> np.ndarray:
        """Positions (3, n) of text and videos, one after the other."""
        kinds, grids = [], []
        for part in parts:
            if isinstance(part, VideoPart):
                grids.append([part.steps, 2 * part.height, 2 * part.width])
                kinds += [VIDEO] * part.tokens
            else:
                kinds += [TEXT] * part
        found, _ = self.get_rope_index(
            torch.zeros(1, len(kinds), dtype=torch.long), torch.tensor([kinds]),
            video_grid_thw=torch.tensor(grids),
            second_per_grid_ts=torch.tensor([seconds] * len(grids)))
        return found[:, 0].numpy()


def random_turn(chance: random.Random) -> list[int | VideoPart]:
    """Text, a video, text, a video, ..., text."""
    parts = [chance.randint(1, 40)]
    for _ in range(chance.choice([1, 1, 2, 3])):
        parts += [VideoPart(*(chance.randint(1, 7) for _ in range(3))), chance.randint(1, 20)]
    return parts


@pytest.mark.parametrize('seed', range(8))
def test_a_turn_equals_the_stock_models(seed):
    """
    Part by part bit for bit, 50 turns a seed; and whole where no video is longer than wide.

    transformers 5.3 and later begin the text behind a video max(H, W) after the video's first
    position, in the middle of its time; 4.x, the paper's code and we begin it after the largest
    position. Where time is the largest axis, only the parts can be compared.
    """
    chance, whole = random.Random(seed), 0
    for _ in range(50):
        parts = random_turn(chance)
        clock = VideoClock(float(chance.choice([1, 2, 3, 4, 25])),
                           float(2 / chance.choice(FRAME_RATES)))
        stock, ours = Stock(int(clock.tokens_per_second)), turn_positions(parts, clock)
        videos = [part for part in parts if isinstance(part, VideoPart)]
        if all(clock.tau(v.steps - 1) < max(v.height, v.width) for v in videos):
            assert (ours == stock.positions(parts, clock.seconds_per_step)).all()
            whole += 1
        at, first = 0, 0
        for part in parts:
            count = part.tokens if isinstance(part, VideoPart) else part
            alone = stock.positions([first, part] if first else [part], clock.seconds_per_step)
            assert (ours[:, at:at + count] == alone[:, first:]).all()
            at, first = at + count, int(alone.max()) + 1
    assert 3 < whole < 50, 'both kinds of turn come up'


@pytest.mark.parametrize('seed', range(3))
def test_offline_is_the_stock_layout_of_one_turn(seed):
    chance = random.Random(seed)
    for _ in range(40):
        prefix, text = chance.randint(1, 30), chance.randint(1, 30)
        steps, height, width = (chance.randint(1, 6) for _ in range(3))
        clock = VideoClock(float(chance.choice([1, 2, 25])), chance.choice([0.25, 0.5, 1.0, 1.5]))
        timeline = make_scheme('offline', clock).timeline(prefix)
        placed = [text_positions(0, prefix), *(timeline.step(height, width)
                                               for _ in range(steps)), timeline.tail()]
        placed.append(timeline.narration().place(text, 1))
        turn = [prefix, VideoPart(steps, height, width), 3 + text]
        assert (np.concatenate(placed, axis=1) == turn_positions(turn, clock)).all()


def test_text_behind_a_video_begins_after_its_largest_position():
    """Two turns by hand: the first video is longer than wide, the second wider than long."""
    t, rows, columns = turn_positions([2, VideoPart(3, 1, 2), 1, VideoPart(1, 3, 1), 1])
    assert t.tolist() == [0, 1, 2, 2, 4, 4, 6, 6, 7, 8, 8, 8, 11]
    assert rows.tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 7, 8, 9, 10, 11]
    assert columns.tolist() == [0, 1, 2, 3, 2, 3, 2, 3, 7, 8, 8, 8, 11]
