"""Training: rows as the engine lays them out, losses as it streams, what is learnt and resumed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training_kit import Bench, noise

from sww_ros.streaming.layout import IGNORE
from sww_ros.streaming.positions import SCHEMES, make_scheme
from sww_ros.streaming.schedule import WaitK
from sww_ros.streaming.visibility import ranges
from sww_ros.training.clips import ClipWords, lay_clip, pack, pad
from sww_ros.training.model import BLOCK, block_mask, mask_mod
from sww_ros.training.recipe import SCHEDULES

ANSWERS = dict(long='It goes on and on, to the end.', short='No.')


@pytest.fixture(scope='module')
def bench():
    torch.set_num_threads(1)
    return Bench()


@pytest.mark.parametrize('answer', ANSWERS)
@pytest.mark.parametrize('schedule', SCHEDULES)
@pytest.mark.parametrize('scheme', SCHEMES)
def test_rows_and_loss_are_those_of_the_engine(bench, scheme, schedule, answer):
    """The engine, told the answer, lays out the rows of the clip and has its loss."""
    bench.take(position_encoding=scheme, schedule=schedule, wait_k=4, position_gap=500)
    frames, text = noise(5, 30, 28), ANSWERS[answer]
    clip = bench.clip(text, frames, seed=7)
    trace, cost = bench.live(text, frames, seed=7)
    # The token that ends the turn is never fed. Where it comes before the video's end, the engine
    # opens another turn; with interleaved positions what follows is another sequence then.
    rows = np.flatnonzero(clip.rows.labels != IGNORE)
    upto = int(rows[-1]) + 1
    assert np.array_equal(clip.rows.ids[:upto], trace.ids[:upto])
    assert np.array_equal(clip.rows.positions[:, :upto], trace.positions[:, :upto])
    assert np.array_equal(clip.rows.rows.mask()[:upto, :upto], trace.rows().mask()[:upto, :upto])
    assert np.array_equal(clip.rows.labels[rows], trace.predicted[rows])
    assert torch.equal(clip.patches, trace.patches)
    batch = pad([clip])
    with torch.no_grad():
        loss = float(bench.loss()(batch)) / batch.answer_tokens
    assert loss == pytest.approx(cost, abs=1e-5)


def golden() -> list[dict]:
    """The authors' own layouts; a clone on its own has none."""
    file = Path(__file__).resolve().parents[2] / 'shared/golden/layouts.json'
    return json.loads(file.read_text()) if file.exists() else []


@pytest.mark.parametrize('case', golden())
def test_rows_are_those_of_the_authors_training_code(case):
    steps, grid = case['frames'], (case['grid_h'], case['grid_w'])
    head = case['answer_start'] - case['assistant_prefix_start']
    words = ClipWords(range(case['prefix_tokens']), range(3), range(head),
                  range(case['length'] - case['answer_start']))
    for name, key in (('offline', 'origin'), ('gdpe', 'group'), ('gipe', 'gap')):
        clip = lay_clip(make_scheme(name), WaitK(case['wait_k']), words, steps, grid, steps)
        assert clip.positions.tolist() == case[f'positions_{key}']
        assert [ranges(row) for row in clip.rows.mask()] == case['visible_train']


@pytest.mark.parametrize('scheme', SCHEMES)
def test_packed_padded_and_flex_have_the_same_loss(bench, scheme):
    bench.take(position_encoding=scheme, schedule='random_wait_k')
    clips = [bench.clip(text, noise(steps, seed=steps), seed=steps)
             for steps, text in ((1, 'One.'), (4, 'Some words more.'), (2, 'Two of them, say.'))]
    losses = []
    for batch in (pad(clips), pack(clips), pack(clips, BLOCK)):
        for attention in ('sdpa', 'flex'):
            with torch.no_grad():
                losses.append(float(bench.loss(attention)(batch)) / batch.answer_tokens)
        visible = mask_mod(batch)
        size, length = batch.ids.shape
        row = torch.arange(length)
        dense = visible(torch.arange(size)[:, None, None], None, row[None, :, None],
                        row[None, None, :])
        assert torch.equal(dense, batch.mask()[:, 0])
        blocks = block_mask(batch)
        assert blocks.shape == (size, 1, length, length)
    assert losses == pytest.approx([losses[0]] * 6, abs=1e-5)
