"""Training of the built-in checkpoint: batches as the engine lays rows out, resume, export."""

import json

import numpy as np
import pytest
import torch

from sww_ros.models.qwen2_5_vl import TURNS
from sww_ros.shapes.checkpoint import (
    GRID,
    IGNORE,
    SILENCE,
    Batcher,
    BatchRecipe,
    build_config,
    build_model,
    build_tokenizer,
    cell_truths,
    frames_to_patches,
    save_checkpoint,
)
from sww_ros.shapes.grammar import KINDS
from sww_ros.shapes.render import FRAME_SIZE, Renderer
from sww_ros.shapes.scene import generate
from sww_ros.shapes.train import ModelWithHeads, RunSettings, draw_recipe, train
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import StepPerceived
from sww_ros.streaming.positions import SCHEMES
from sww_ros.streaming.session import Session


@pytest.fixture(scope='module')
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope='module')
def tiny(tokenizer, tmp_path_factory):
    """An untrained checkpoint of the built-in kind, on disk."""
    folder = tmp_path_factory.mktemp('tiny')
    save_checkpoint(build_model(build_config(tokenizer, 64, 2), seed=1), tokenizer, folder)
    return folder


@pytest.mark.parametrize('scheme, schedule', [
    *((name, 'wait_k') for name in SCHEMES), *((name, 'offline') for name in SCHEMES)])
def test_a_batch_teaches_what_the_engine_will_do(tokenizer, tiny, scheme, schedule):
    """The rows of a batch have the ids, positions and visibility of a live run of that clip."""
    steps, offline = 4, schedule == 'offline'
    recipe = BatchRecipe(clips=1, steps=steps, max_objects=2, questions=1)
    batcher = Batcher(tokenizer, scheme, offline)
    seed = next(seed for seed in range(99) if batcher._clip(
        recipe, np.random.default_rng(seed))['lanes'][0][2] == steps)
    batch = batcher.make(recipe, np.random.default_rng(seed))
    config = SessionConfig(position_encoding=scheme, schedule=schedule, overlap='fused',
                           record_trace=True)
    with Session.open(str(tiny), config) as session:
        for step in range(steps):
            session.feed(np.zeros((FRAME_SIZE, FRAME_SIZE, 3), np.uint8))
            session.feed(np.zeros((FRAME_SIZE, FRAME_SIZE, 3), np.uint8),
                         last=offline and step == steps - 1)
            assert session.wait_idle(30)
        session.ask('Where is the circle?')
        assert session.wait_idle(30)
        trace = session.trace()
    # The last spoken token of a live run is never fed; a batch feeds it for nothing.
    narrated = trace.lane < (1 if scheme != 'interleaved' else 0)
    upto = min(int(narrated.sum()), batch.questions - 1)
    assert offline or batch.questions == upto + 1
    first = int(batch.visual[0])
    assert batch.ids[0, :first].tolist() == trace.ids[:first].tolist()
    head = tokenizer(TURNS.assistant)['input_ids']
    at = int(np.flatnonzero(trace.ids == head[0])[2])
    assert batch.ids[0, at:at + len(head)].tolist() == trace.ids[at:at + len(head)].tolist()
    assert np.array_equal(batch.positions[:, 0, :upto], trace.positions[:, :upto])
    assert np.array_equal(batch.mask[0, 0, :upto, :upto], trace.rows().mask()[:upto, :upto])
    if offline and scheme == 'interleaved':
        return  # A live question goes on behind the narration; a batch asks before it.
    # A question's lane, from the start of its turn on.
    asked = int(np.flatnonzero(~narrated)[0])
    tail = 3 if offline else 0
    assert np.array_equal(batch.positions[:, 0, batch.questions + tail],
                          trace.positions[:, asked])
    seen = trace.rows().mask()[asked, :first + steps * 9]
    assert np.array_equal(batch.mask[0, 0, batch.questions + tail, :first + steps * 9], seen)


def test_offline_batches_carry_the_tail_in_every_text(tokenizer):
    tail = tokenizer(TURNS.tail)['input_ids']
    batcher = Batcher(tokenizer, 'offline', offline=True)
    batch = batcher.make(BatchRecipe(2, 5, 2, questions=2), np.random.default_rng(4))
    last = int(batch.visual[-1]) + 1
    assert batch.ids[:, last:last + 3].tolist() == [tail] * 2
    assert batch.ids[:, batch.questions:batch.questions + 3].tolist() == [tail] * 2
    text = batch.positions[0, :, last:batch.questions]
    assert (text.diff(dim=-1) == 1).all(), 'the text goes on after the tail'


def test_labels_are_the_next_tokens_of_the_narration(tokenizer):
    batch = Batcher(tokenizer).make(BatchRecipe(2, 4, 2), np.random.default_rng(1))
    first_text = int(batch.visual[-1]) + 1
    told = batch.labels[:, first_text:batch.questions]
    assert (told != IGNORE).sum() == 2 * 4 * 3
    at = (told != IGNORE).nonzero()
    for row, column in at.tolist():
        assert batch.ids[row, first_text + column + 1] == told[row, column]
    assert tokenizer.convert_tokens_to_ids(SILENCE) in told


def test_questions_see_whole_steps_and_not_the_narration(tokenizer):
    batch = Batcher(tokenizer).make(BatchRecipe(3, 5, 2, questions=2), np.random.default_rng(2))
    first, last = int(batch.visual[0]), int(batch.visual[-1]) + 1
    asked = batch.mask[:, 0, batch.questions:]
    assert not asked[:, :, last:batch.questions].any()
    assert (asked[:, :, first:last].sum(-1) % 9 == 0).all()


def test_late_starts_keep_narration_and_video_together(tokenizer):
    def offset(late: int) -> int:
        batch = Batcher(tokenizer).make(BatchRecipe(1, 3, 1, late_start=late),
                                        np.random.default_rng(3))
        first, last = int(batch.visual[0]), int(batch.visual[-1]) + 1
        return int(batch.positions[0, 0, last + 3] - batch.positions[0, 0, first])
    assert offset(0) == offset(20)


def test_cells_know_what_is_where():
    scene = generate(7, 17.0)
    cells = cell_truths(scene, 16, 0.0)
    assert cells.shape == (16, GRID * GRID, 4)
    events = {KINDS[e - 1] for e in np.unique(cells[..., 3]) if e}
    assert {'appears', 'moves', 'stops'} <= events


def test_the_training_tower_is_the_stock_one(tokenizer):
    model = build_model(build_config(tokenizer, 64, 2), seed=1)
    renderer = Renderer(generate(1))
    patches = torch.from_numpy(frames_to_patches(
        np.stack([renderer.frame(i / 2) for i in range(6)])))
    grid = torch.tensor([[3, 2 * GRID, 2 * GRID]])
    with torch.no_grad():
        stock = model.model.visual(patches, grid_thw=grid).pooler_output
        ours = ModelWithHeads(model, 64).see(patches)
    assert (stock - ours).abs().max() < 1e-5


def test_training_patches_are_the_engines(tiny):
    from sww_ros.models.loading import load
    renderer = Renderer(generate(2))
    frames = np.stack([renderer.frame(0.0), renderer.frame(0.5)])
    live = load(str(tiny)).perception.patches(list(frames), FRAME_SIZE, FRAME_SIZE)
    assert torch.allclose(torch.from_numpy(frames_to_patches(frames)), live, atol=1e-6)


def run(out, steps: int, **changes):
    settings = dict(out=out, steps=steps, clips=4, seed=3, workers=1, hidden=64, layers=2,
                    bf16=False, log_every=2, save_every=2)
    out.mkdir(exist_ok=True)
    train(0, RunSettings(**{**settings, **changes}))
    return (out / 'model.safetensors').read_bytes()


def test_training_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    whole = run(tmp_path / 'whole', 4)
    lines = [json.loads(line) for line in open(tmp_path / 'whole/training.jsonl')]
    assert [line['step'] for line in lines] == [2, 4]
    from sww_ros.shapes import train as module
    honest = module.TrainingWorker._step

    def killed(self, step, batch):
        if step == 3:
            raise KeyboardInterrupt
        return honest(self, step, batch)

    monkeypatch.setattr(module.TrainingWorker, '_step', killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / 'cut', 4)
    monkeypatch.setattr(module.TrainingWorker, '_step', honest)
    assert run(tmp_path / 'cut', 4) == whole


def test_what_was_trained_loads_and_streams(tmp_path):
    run(tmp_path, 2)
    with Session.open(str(tmp_path), SessionConfig(overlap='fused')) as session:
        assert session.info['wait_k'] == 3
        for _ in range(2):
            session.feed(np.zeros((200, 200, 3), np.uint8))
        assert session.wait_idle(30)
        assert any(isinstance(event, StepPerceived) for event in session.drain())


def test_the_curriculum_goes_from_short_to_long():
    rng = np.random.default_rng(0)
    early = [draw_recipe(0.01, 32, rng) for _ in range(50)]
    late = [draw_recipe(0.9, 32, rng) for _ in range(200)]
    assert {(r.steps, r.max_objects) for r in early} == {(8, 1)}
    assert {r.steps for r in late} == {8, 16, 24, 32}
    assert {r.max_objects for r in late} == {1, 2, 3}
    assert len({r.prompt for r in late}) > 1
