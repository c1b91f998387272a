"""The vision tower: equal to transformers' own for every grid, windows cut off included."""

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import torch

from sww_ros.evaluation.random_model import (
    QWEN2_5_VL_3B,
    SMALL,
    SMALL_QWEN2,
    SMALL_QWEN3,
    random_model,
)
from sww_ros.models.qwen2_5_vl.language import QwenTower
from sww_ros.models.qwen2_vl import Qwen2Tower
from sww_ros.models.qwen3_vl import Qwen3Tower
from sww_ros.streaming.perception import Perception, PixelSettings

WIDE = dict(SMALL, vision=dict(SMALL['vision'], window_size=112, depth=3,
                               fullatt_block_indexes=[2]))


@pytest.fixture(scope='module')
def towers():
    return {(name, dtype): random_model(shape, 1, dtype)[0].model.visual
            for name, shape in (('narrow', SMALL), ('wide', WIDE))
            for dtype in (torch.float32, torch.float64)}


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 99),
       name=st.sampled_from(['narrow', 'wide']),
       dtype=st.sampled_from([torch.float32, torch.float64]))
def test_it_is_the_stock_tower(towers, rows, columns, seed, name, dtype):
    stock = towers[name, dtype]
    torch.manual_seed(seed)
    patches = torch.randn(4 * rows * columns, 1176, dtype=dtype)
    with torch.no_grad():
        theirs = stock(patches, grid_thw=torch.tensor([[1, 2 * rows, 2 * columns]])).pooler_output
    ours = QwenTower(stock)(patches, rows, columns).rows
    assert (ours - theirs).abs().max() <= (2e-5 if dtype == torch.float32 else 1e-9)


def test_it_is_the_stock_tower_in_the_shapes_of_the_3b_model():
    shape = dict(text=dict(SMALL['text']),
                 vision=dict(QWEN2_5_VL_3B['vision'], depth=2, fullatt_block_indexes=[1]))
    stock = random_model(shape, 2)[0].model.visual
    patches = torch.randn(4 * 6 * 5, 1176)
    with torch.no_grad():
        theirs = stock(patches, grid_thw=torch.tensor([[1, 12, 10]])).pooler_output
    ours = QwenTower(stock)(patches, 6, 5).rows
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize('rows, columns', [(1, 1), (3, 3), (5, 7)])
@pytest.mark.parametrize('kind, shape, numbers', [
    (QwenTower, WIDE, 1176), (Qwen2Tower, SMALL_QWEN2, 1176), (Qwen3Tower, SMALL_QWEN3, 1536)])
def test_steps_of_one_pass_are_seen_as_each_alone(kind, shape, numbers, rows, columns):
    tower = kind(random_model(shape, 1, torch.float64)[0].model.visual)
    unit = tower.config.patch_size * tower.merge
    perception = Perception(tower, PixelSettings(
        (0.5,) * 3, (0.5,) * 3, 1, 10**6, patch_size=tower.config.patch_size))
    steps = torch.randn(4, 4 * rows * columns, numbers, dtype=torch.float64)
    together = perception.embed_each([*steps], rows * unit, columns * unit)
    for patches, seen in zip(steps, together, strict=True):
        alone = perception.embed(patches, rows * unit, columns * unit)
        assert (seen.rows - alone.rows).abs().max() < 1e-12
        assert seen.rows.untyped_storage().nbytes() == alone.rows.nbytes, 'it keeps no other'
        assert (seen.deep is None) == (kind is not Qwen3Tower)
        if seen.deep is not None:
            assert (seen.deep - alone.deep).abs().max() < 1e-12
            assert seen.deep.untyped_storage().nbytes() == alone.deep.nbytes
