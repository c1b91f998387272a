"""Visibility: the published training masks, and the properties every mask has."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from test_positions import golden

from sww_ros.streaming.layout import ClipShape, lay_out
from sww_ros.streaming.positions import make_scheme
from sww_ros.streaming.schedule import WaitK
from sww_ros.streaming.visibility import VISUAL_LANE, Visibility, ranges


def wait_k_rows(prefix: int, steps: int, tokens: int, wait_k: int, head: int,
                answer: int) -> Visibility:
    """The rows of a clip of equal steps, as they are trained."""
    clip = ClipShape(prefix, [(1, tokens)] * steps, head, answer)
    return lay_out(make_scheme('gdpe'), WaitK(wait_k), clip).rows


def test_training_masks_equal_the_published_ones():
    for case in golden():
        assistant = case['answer_start'] - case['assistant_prefix_start']
        rows = wait_k_rows(
            case['prefix_tokens'], case['frames'], case['grid_h'] * case['grid_w'],
            case['wait_k'], assistant, case['length'] - case['answer_start'])
        assert [ranges(row) for row in rows.mask()] == case['visible_train']


@given(st.data())
def test_every_mask_keeps_the_rules(data):
    prefix, steps, tokens = (data.draw(st.integers(1, 6)) for _ in range(3))
    lanes = [data.draw(st.lists(st.integers(0, steps), min_size=1, max_size=8))
             for _ in range(data.draw(st.integers(1, 3)))]
    lane = np.repeat([VISUAL_LANE, *range(len(lanes))],
                     [prefix + steps * tokens, *map(len, lanes)])
    step = np.concatenate([np.full(prefix, -1), np.repeat(np.arange(steps), tokens),
                           np.zeros(sum(map(len, lanes)), int)])
    sees = np.concatenate([np.zeros(prefix + steps * tokens, int), *lanes]).astype(int)
    mask = Visibility(lane, step, sees).mask()
    visual = lane == VISUAL_LANE
    assert mask.diagonal().all(), 'a row sees itself'
    assert not np.triu(mask, 1).any(), 'nobody sees a later row'
    assert not mask[np.ix_(visual, ~visual)].any(), 'the video never depends on text'
    across = mask & (lane[:, None] != lane[None, :]) & ~visual[None, :]
    assert not across.any(), 'text lanes never see each other'
    for row in np.flatnonzero(~visual):
        shown = mask[row] & visual
        assert shown[:prefix].all()
        assert shown.sum() == prefix + sees[row] * tokens, 'whole steps only'


def test_wait_k_with_one_step_shows_it_and_its_tail_at_once():
    rows = wait_k_rows(2, 1, 4, 3, 3, 4)
    mask = rows.mask()
    assert ranges(mask[9]) == [[0, 10]]
    assert ranges(mask[-1]) == [[0, 16]]


@given(prefix=st.integers(0, 4), steps=st.integers(1, 5), tokens=st.integers(1, 4),
       wait_k=st.integers(1, 4), head=st.integers(1, 4), answer=st.integers(0, 14))
def test_the_training_mask_is_the_papers_rule(prefix, steps, tokens, wait_k, head, answer):
    mask = wait_k_rows(prefix, steps, tokens, wait_k, head, answer).mask()
    video_end = prefix + steps * tokens
    text = video_end + 3
    for row in range(text):
        assert ranges(mask[row]) == [[0, row + 1]]
    for index in range(head + answer):
        # The row that predicts answer token j; those of the assistant prefix before the first.
        step = min(max(index - (head - 1), 0) // wait_k, steps - 1)
        end = text if step == steps - 1 else prefix + (step + 1) * tokens
        own = [text, text + index + 1]
        seen = [[0, own[1]]] if end == text else [[0, end], own]
        assert ranges(mask[text + index]) == [part for part in seen if part[0] < part[1]]


@given(steps=st.integers(1, 4), tokens=st.integers(1, 3), data=st.data())
def test_a_batch_of_schedules_is_each_of_them(steps, tokens, data):
    text = data.draw(st.integers(1, 6))
    seen = data.draw(st.lists(st.lists(st.integers(0, steps), min_size=text, max_size=text),
                              min_size=1, max_size=3))
    visual = steps * tokens
    lane = np.repeat([VISUAL_LANE, 0], [visual, text])
    step = np.concatenate([np.repeat(np.arange(steps), tokens), np.zeros(text, int)])
    sees = np.array([[0] * visual + one for one in seen])
    masks = Visibility(lane, step, sees).mask()
    assert masks.shape == (len(seen), visual + text, visual + text)
    for mask, one in zip(masks, sees):
        assert (mask == Visibility(lane, step, one).mask()).all()
