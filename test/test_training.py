"""Training: rows as the engine lays them out, losses as it streams, what is learnt and resumed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training_kit import Bench, noise

from sww_ros.evaluation.random_model import SMALL, SMALL_QWEN2, SMALL_QWEN3, shape
from sww_ros.shapes.checkpoint import SILENCE
from sww_ros.streaming.layout import IGNORE
from sww_ros.streaming.positions import SCHEMES, make_scheme
from sww_ros.streaming.schedule import WaitK
from sww_ros.streaming.visibility import ranges
from sww_ros.training.clips import ClipWords, lay_clip, pack, pad
from sww_ros.training.memory import memory_of
from sww_ros.training.model import BLOCK, block_mask, mask_mod
from sww_ros.training.recipe import SCHEDULES

ANSWERS = dict(long='It goes on and on, to the end.', short='No.')


@pytest.fixture(scope='module', params=[SMALL, SMALL_QWEN2, SMALL_QWEN3],
                ids=['qwen2_5_vl', 'qwen2_vl', 'qwen3_vl'])
def bench(request):
    torch.set_num_threads(1)
    return Bench(request.param)


@pytest.mark.parametrize('answer', ANSWERS)
@pytest.mark.parametrize('schedule', SCHEDULES)
@pytest.mark.parametrize('scheme', SCHEMES)
def test_rows_and_loss_are_those_of_the_engine(bench, scheme, schedule, answer):
    """The engine, told the answer, lays out the rows of the clip and has its loss."""
    bench.take(position_encoding=scheme, schedule=schedule, wait_k=4, position_gap=500)
    check_like_the_engine(bench, ANSWERS[answer])


def check_like_the_engine(bench, text: str, **timed) -> np.ndarray:
    """Return the clip's labels."""
    frames = noise(5, 30, 28)
    clip = bench.clip(text, frames, seed=7, **timed)
    trace, cost = bench.live(text, frames, seed=7, **timed)
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
    return clip.rows.labels[rows]


@pytest.mark.parametrize('schedule', ['wait_k', 'random_wait_k'])
@pytest.mark.parametrize('scheme', SCHEMES)
def test_silence_is_taught_between_timed_words(scheme, schedule):
    """The engine, told so, lays out the same rows; a step is a second, the third has no words."""
    torch.set_num_threads(1)
    bench = Bench(SMALL, position_encoding=scheme, schedule=schedule, wait_k=4, position_gap=500,
                  silence=SILENCE)
    said = check_like_the_engine(bench, 'ABCD', timed=(
        (0.2, 'A'), (1.0, 'B'), (1.1, 'C'), (4.7, 'D'), (9.0, 'too late for this')))
    space, a, b, c, d, silence = bench.about.encode(' ABCD' + SILENCE)
    spoken = said[said != silence].tolist()
    assert spoken[:8] == [space, a, space, b, space, c, space, d]
    if schedule == 'wait_k':
        # What the last step has no time for is left out.
        rest = [silence] * 4
        assert said.reshape(5, 4).tolist() == [
            [space, a, space, b], [space, c, silence, silence], rest, rest, said[-4:].tolist()]
        assert said[-4:].tolist() == [space, d, *bench.about.encode(' t')]


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
        clip = lay_clip(make_scheme(name), WaitK(case['wait_k']), words, [([], [])] * steps, grid,
                        steps)
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


# What it takes.


@pytest.mark.parametrize('again', [False, True])
def test_memory_is_told_before(again):
    """What three layers more keep of a pass, within a tenth; what is trained, to the byte."""
    kept, counted, told = {}, {}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor
    for layers in (3, 6):
        bench = Bench(shape(256, 704, layers, 4, 2, depth=2, hidden_size=32, intermediate_size=48,
                            window_size=56, fullatt_block_indexes=[1]),
                      gradient_checkpointing=again)
        weights = {w.untyped_storage().data_ptr() for w in bench.net.parameters()}
        batch = pad([bench.clip('x' * 20, noise(4, 56, 56))])
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            bench.loss()(batch).backward()
        counted[layers] = sum(s.nbytes() for at, s in kept.items() if at not in weights)
        told[layers] = memory_of(bench.model, bench.recipe, 4)
    assert (counted[6] - counted[3]) / batch.ids.numel() == pytest.approx(
        told[6].row - told[3].row, rel=0.1)
    trained = list(bench.model.trained.values())
    optimizer = torch.optim.AdamW(trained, fused=True)
    optimizer.step()
    assert told[6].gradients == sum(weight.grad.nbytes for weight in trained)
    assert told[6].moments == sum(optimizer.state[weight][name].nbytes for weight in trained
                                  for name in ('exp_avg', 'exp_avg_sq'))
    assert told[6].weights == sum(weight.nbytes for weight in bench.net.parameters())
    assert str(told[6]).startswith(f'{told[6].fixed / 1e9:.2g} GB of weights')
