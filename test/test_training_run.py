"""Whole trainings: what they lower, leave alone, write; stopped and gone on with; refused."""

from dataclasses import replace
import json
import math
from pathlib import Path
import resource
import shutil
import signal

from accelerate import Accelerator
import numpy as np
from peft import PeftModel
import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from training_kit import DATA, Bench, noise, torchrun
from transformers import Qwen2_5_VLForConditionalGeneration

from sww_ros.evaluation.random_model import QWEN2_5_VL_3B, SMALL, save_random
from sww_ros.models.loading import builtin_path, load
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import StepPerceived
from sww_ros.streaming.positions import SCHEMES
from sww_ros.streaming.session import Session
from sww_ros.training.__main__ import main
from sww_ros.training.annotations import PAPER, guess_form, read_annotations
from sww_ros.training.clips import ClipMaker, pad
from sww_ros.training.frames import Sample
from sww_ros.training.model import ADAPTER, Loss, export, load_model
from sww_ros.training.recipe import Recipe, parse
from sww_ros.training.trainer import LOG, Trainer, learning_rate_scale, train

PE_VIDEO, FUNQA = DATA / 'pe_video.jsonl', DATA / 'funqa.json'


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(1)


def recipe(out: Path, *data: Path, **changes) -> Recipe:
    settings = dict(model='builtin', data=data or (PE_VIDEO,), out=out, steps=4, batch=3,
                    learning_rate=1e-3, warmup=0.0, save_every=2)
    return Recipe(**(settings | changes))


def log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / 'model.safetensors')


def largest_difference(one: Path, other: Path) -> float:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def mean_loss(wanted: Recipe, model: str) -> float:
    """The loss of a checkpoint over all samples of a recipe."""
    wanted = replace(wanted, model=model, lora_rank=0, lora_alpha=0.0, lora_dropout=0.0)
    model = load_model(wanted)
    maker = ClipMaker(model.about, model.stock, wanted)
    samples = read_annotations(wanted.data, prompt=maker.settings.defaults.prompt, limits=PAPER,
                               tokenizer=model.about.tokenizer)
    batch = pad([maker.make(sample, maker.read(sample)) for sample in samples])
    with torch.no_grad():
        return float(Loss(model, 'sdpa')(batch)) / batch.answer_tokens


@pytest.mark.parametrize('data', [PE_VIDEO, FUNQA], ids=['pe_video', 'funqa'])
@pytest.mark.parametrize('changes', [{}, dict(lora_rank=8, learning_rate=5e-3)],
                         ids=['full', 'lora'])
def test_training_lowers_the_loss(tmp_path, data, changes):
    wanted = recipe(tmp_path / 'out', data, steps=10, batch=4, micro_batch=2, **changes)
    train(wanted)
    before, after = (mean_loss(wanted, model) for model in ('builtin', str(wanted.out)))
    assert after < 0.8 * before
    assert [line['update'] for line in log(wanted.out)] == list(range(1, 11))


def test_what_was_trained_opens_and_says_how(tmp_path, capsys):
    train(recipe(tmp_path, steps=1, position_encoding='gipe', position_gap=700, fps=1.0,
                 schedule='random_wait_k', wait_k=4, max_pixels=56 * 56))
    said = capsys.readouterr().out
    assert 'positions    gipe, gap 700 (was gdpe in the checkpoint)\n' in said
    assert '1 frames a second (was wait_k, K = 3, 2 frames a second in the checkpoint)' in said
    entry = json.loads((tmp_path / 'config.json').read_text())['speak_while_watching']
    assert entry == dict(position_encoding='gipe', position_gap=700, schedule='random_wait_k',
                         wait_k=4, seconds_per_step=2.0, system='Speak while watching.',
                         prompt='What happens?', max_steps=48, silence_token='<|silence|>')
    with Session.open(str(tmp_path), SessionConfig(overlap='fused')) as session:
        assert (session.scheme.name, session.scheme.gap) == ('gipe', 700)
        assert session.info['frame_rate'] == 1.0 and not session.info['mismatch']
        for _ in range(2):
            session.feed(np.zeros((200, 200, 3), np.uint8))
        assert session.wait_idle(30)
        assert any(isinstance(event, StepPerceived) for event in session.drain())
        assert session._core.video.work.grid == (2, 2), 'frames are as large as in training'
    assert not list(tmp_path.glob('state-*'))


def test_silence_is_learnt_from_timed_words(tmp_path, capsys):
    """By a checkpoint that had none; it has one afterwards."""
    save_random(tmp_path / 'stock', SMALL, 1)
    video = dict(type='video', video=str(DATA / 'pe_0.mp4'), video_start=0.0, video_end=5.0)
    timed = dict(type='text_stream', text_stream=[[0.0, 0.5, 'Now.'], [3.0, 3.2, 'So!']])
    data = tmp_path / 'timed.jsonl'
    data.write_text(json.dumps([dict(role='user', content=[video]),
                                dict(role='assistant', content=[timed])]))
    train(recipe(tmp_path / 'out', data, model=str(tmp_path / 'stock'), steps=1, batch=1,
                 silence='<|silence|>'))
    assert 'K = 3, 2 frames a second, silence <|silence|>' in capsys.readouterr().out
    assert [line['answer_tokens'] for line in log(tmp_path / 'out')] == [5 * 3], 'and no end'
    before, after = load(str(tmp_path / 'stock')), load(str(tmp_path / 'out'))
    assert before.vocabulary.silence == -1
    assert [after.vocabulary.silence] == after.encode('<|silence|>')


def test_the_merger_learns_and_the_rest_of_the_tower_does_not(tmp_path):
    train(recipe(tmp_path, steps=2))
    before, after = weights(builtin_path()), weights(tmp_path)
    for name, weight in before.items():
        frozen = name.startswith('visual.') and 'merger' not in name
        assert torch.equal(weight, after[name]) == frozen, name


def test_merged_weights_are_base_and_adapters(tmp_path):
    wanted = recipe(tmp_path, steps=2, lora_rank=4, lora_dropout=0.1, learning_rate=1e-2)
    train(wanted)
    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(builtin_path())
    adapted = PeftModel.from_pretrained(base, tmp_path / ADAPTER).eval()
    merged = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path).eval()
    ids, grid = torch.tensor([[1, 2, 3, 471, 471, 471, 471, 5]]), torch.tensor([[1, 4, 4]])
    given = dict(input_ids=ids, pixel_values_videos=torch.randn(16, 1176), video_grid_thw=grid,
                 mm_token_type_ids=(ids == 471).long() * 2)
    with torch.no_grad():
        one, other = adapted(**given).logits, merged(**given).logits
        plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(builtin_path())(**given).logits
    assert torch.allclose(one, other, atol=1e-4)
    assert not torch.allclose(one, plain, atol=1e-2)


class Killed(Exception):
    """What a power cut would be."""


@pytest.mark.parametrize('changes', [{}, dict(lora_rank=4, lora_dropout=0.2, pack=True)],
                         ids=['full', 'lora'])
def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch, changes):
    whole, cut = (recipe(tmp_path / name, steps=5, schedule='random_wait_k', **changes)
                  for name in ('whole', 'cut'))
    train(whole)
    honest = Trainer._update

    def killed(self, update, clips):
        if update == 3:
            raise Killed
        honest(self, update, clips)

    monkeypatch.setattr(Trainer, '_update', killed)
    with pytest.raises(Killed):
        train(cut)
    monkeypatch.setattr(Trainer, '_update', honest)
    assert [line['update'] for line in log(cut.out)] == [1, 2, 3]
    with pytest.raises(ValueError, match='wait_k 3, not 5.*--no-resume'):
        train(replace(cut, wait_k=5))
    train(cut)
    curves = [[line['loss'] for line in log(out)] for out in (whole.out, cut.out)]
    assert curves[0] == pytest.approx(curves[1], abs=1e-6) and len(curves[0]) == 5
    assert largest_difference(whole.out, cut.out) < 1e-6
    with pytest.raises(ValueError, match='holds a checkpoint'):
        train(cut)


def test_an_interrupted_training_keeps_its_last_update(tmp_path, monkeypatch, capsys):
    """And goes on wherever its annotations are read from, but not with others."""
    out, honest = tmp_path / 'out', Trainer._update

    def interrupted(self, update, clips):
        signal.raise_signal(signal.SIGINT)
        honest(self, update, clips)

    def again(data: Path) -> int:
        return main(['--model', 'builtin', '--data', str(data), '--video-root', str(DATA),
                     '--out', str(out), '--steps', '2', '--batch', '1'])

    # Whoever starts the tests in the background may have SIGINT ignored.
    monkeypatch.setattr(Trainer, '_update', interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert again(PE_VIDEO) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert 'state-00000001 is kept: the same command goes on' in capsys.readouterr().err
    monkeypatch.setattr(Trainer, '_update', honest)
    changed = tmp_path / 'pe_video.jsonl'
    changed.write_text('\n'.join(PE_VIDEO.read_text().splitlines()[::-1]))
    assert again(changed) == 2
    assert 'holds a training on other samples' in capsys.readouterr().err
    monkeypatch.chdir(DATA)
    assert again(Path(PE_VIDEO.name)) == 0
    assert [line['update'] for line in log(out)] == [1, 2]


def test_a_full_disk_is_told(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise SafetensorError('No space left on device')

    monkeypatch.setattr('sww_ros.training.model.save_file', full)
    assert main(['--model', 'builtin', '--data', str(PE_VIDEO), '--out', str(tmp_path), '--steps',
                 '2', '--batch', '1', '--save-every', '1']) == 2
    said = capsys.readouterr().err
    assert 'cannot write the state' in said and 'No space left' in said and 'kept' in said
    assert not list(tmp_path.glob('state-*'))


def test_what_could_not_be_written_is_told_as_the_system_says_it(tmp_path, capsys):
    """The optimizer's file is what is too large here; torch calls that an unexpected position."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000_000, before[1]))
    try:
        assert main(['--model', 'builtin', '--data', str(PE_VIDEO), '--out', str(tmp_path),
                     '--steps', '2', '--batch', '1', '--save-every', '1']) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert 'cannot write the state' in said and 'File too large' in said
    assert 'unexpected pos' not in said
    assert not list(tmp_path.glob('state-*'))


def test_whoever_may_read_the_folder_may_read_the_weights(tmp_path):
    train(recipe(tmp_path, steps=1, lora_rank=2))
    usual = (tmp_path / 'config.json').stat().st_mode
    files = [*tmp_path.rglob('*.safetensors')]
    assert len(files) == 2 and all(file.stat().st_mode == usual for file in files)


def test_weights_that_are_no_numbers_are_not_trained_on(tmp_path):
    spoiled = tmp_path / 'spoiled'
    shutil.copytree(builtin_path(), spoiled)
    content = weights(spoiled)
    content['model.layers.2.mlp.up_proj.weight'][3, 4] = math.nan
    save_file(content, spoiled / 'model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(ValueError, match=r'no finite numbers in .*layers\.2\.mlp\.up_proj'):
        train(recipe(tmp_path / 'out', model=str(spoiled)))


def test_an_update_does_not_depend_on_how_it_is_cut(tmp_path):
    """Clips one by one, side by side, or packed: the mean is over all tokens of the update."""
    cuts = [dict(micro_batch=1), dict(micro_batch=3), dict(pack=True, max_rows=600)]
    outs = [tmp_path / str(index) for index in range(len(cuts))]
    for out, cut in zip(outs, cuts):
        train(recipe(out, PE_VIDEO, FUNQA, steps=2, batch=5, **cut))
    for out in outs[1:]:
        assert log(out)[0]['loss'] == pytest.approx(log(outs[0])[0]['loss'], abs=1e-5)
        assert log(out)[0]['gradient'] == pytest.approx(log(outs[0])[0]['gradient'], rel=1e-4)
        assert log(out)[1]['loss'] == pytest.approx(log(outs[0])[1]['loss'], abs=1e-3)


@pytest.mark.parametrize('nodes', [1, 2], ids=['one node', 'two nodes'])
def test_two_processes_train_what_one_does(tmp_path, nodes):
    """The last update has one clip, so that one process has nothing of its own to do."""
    options = ['--model', 'builtin', '--data', str(PE_VIDEO), str(FUNQA),
               '--epochs', '0.3', '--batch', '5', '--learning-rate', '1e-3']
    single = tmp_path / 'single'
    assert main([*options, '--out', str(single)]) == 0
    double = torchrun(*options, out=tmp_path, nodes=nodes)
    assert [line['answer_tokens'] for line in log(double)] == [
        line['answer_tokens'] for line in log(single)]
    assert len(log(single)) == 2
    assert largest_difference(single, double) < 1e-5


class OneOfTwo(Accelerator):
    """One process, to which the other one says that it goes on elsewhere, or with other data."""

    num_processes, differs_in = 2, 0

    def gather(self, tensor):
        other = tensor.clone()
        other[0, self.differs_in] += 1
        return torch.cat([tensor, other])


@pytest.mark.parametrize('differs_in, said', [
    (0, 'go on from different updates, 0 to 1: --out must be in a folder that all of them share'),
    (1, 'do not train the same: give all of them the same options and the same annotations')])
def test_processes_that_would_train_something_else_are_told(tmp_path, monkeypatch, differs_in,
                                                            said):
    """On several nodes; otherwise they would wait for one another, or learn from other clips."""
    monkeypatch.setattr('accelerate.Accelerator', OneOfTwo)
    monkeypatch.setattr(OneOfTwo, 'differs_in', differs_in)
    with pytest.raises(ValueError, match=said):
        train(recipe(tmp_path))


def test_the_shape_of_the_3b_model_trains_in_every_scheme(tmp_path):
    """Two layers of Qwen2.5-VL-3B on both sides, one update of each scheme."""
    shape = dict(text=dict(QWEN2_5_VL_3B['text'], num_hidden_layers=2),
                 vision=dict(QWEN2_5_VL_3B['vision'], depth=2, fullatt_block_indexes=[1]))
    bench = Bench(shape)
    for scheme in SCHEMES:
        bench.take(position_encoding=scheme, steps=1, batch=1, learning_rate=1e-5,
                   gradient_checkpointing=True)
        wanted = replace(bench.recipe, out=tmp_path / scheme)
        wanted.out.mkdir()
        bench.maker.read = lambda sample: noise(2, 56, 56)
        trainer = Trainer(wanted, bench.model, bench.maker,
                          [Sample(Path('none'), 'What?', 'A thing.')], Accelerator(cpu=True),
                          'sdpa')
        before = bench.net.model.visual.merger.mlp[2].weight.detach().clone()
        trainer.run()
        line, = log(wanted.out)
        assert math.isfinite(line['loss']) and line['gradient'] > 0
        assert not torch.equal(bench.net.model.visual.merger.mlp[2].weight, before)


def test_a_broken_video_is_told_and_passed_over(tmp_path, capsys):
    shutil.copy(DATA / 'pe_0.mp4', tmp_path)
    (tmp_path / 'broken.mp4').write_bytes(b'no video')
    lines = [dict(video=name, caption='A red circle appears.', duration=5.0)
             for name in ('broken.mp4', 'pe_0.mp4', 'missing.mp4')]
    data = tmp_path / 'data.jsonl'
    data.write_text('\n'.join(map(json.dumps, lines)))
    out = tmp_path / 'out'
    train(recipe(out, data, steps=2, batch=2, keep_all=True))
    warnings = [line['warning'] for line in log(out) if 'warning' in line]
    assert len(warnings) == 1 and 'broken.mp4' in warnings[0]
    said = capsys.readouterr().out
    assert 'kept 2 of 3 samples; 1 without video' in said and 'warning: ' in said
    (tmp_path / 'pe_0.mp4').unlink()
    data.write_text(json.dumps(lines[0]))
    with pytest.raises(ValueError, match='not one of 1 videos can be read'):
        train(recipe(tmp_path / 'none', data, keep_all=True))


@pytest.mark.parametrize('changes, said', [
    (dict(max_steps=2), 'has more than 2 steps of 2 frames'),
    (dict(pack=True, max_rows=50), 'more than 50: raise --max-rows')])
def test_clips_that_are_too_long_are_told(tmp_path, changes, said):
    with pytest.raises(ValueError, match='not one of 9 videos'):
        train(recipe(tmp_path, **changes))
    assert len(log(tmp_path)) == 9 and all(said in line['warning'] for line in log(tmp_path))


def test_a_state_that_cannot_be_read_is_not_passed_over(tmp_path):
    (tmp_path / 'state-00000002').mkdir()
    with pytest.raises(ValueError, match='cannot read the state .*--no-resume'):
        train(recipe(tmp_path))
    train(recipe(tmp_path, steps=1, resume=False))
    assert not list(tmp_path.glob('state-*'))


def test_forms_are_guessed_by_their_keys(tmp_path):
    assert guess_form(PE_VIDEO) == 'pe_video' and guess_form(FUNQA) == 'funqa'
    file = tmp_path / 'bag.jsonl'
    file.write_text(json.dumps(dict(bag='a', topic='/image', caption='x')))
    assert guess_form(file) == 'bag'
    file.write_text('{"text": "x"}')
    with pytest.raises(ValueError, match='--form'):
        guess_form(file)
    file.write_text('no JSON\n{"caption": null}\n{"question": "x"}')
    assert guess_form(file) == 'funqa', 'the first record with something to go by'


def test_the_defaults_are_the_papers():
    paper = parse(['--model', 'm', '--data', 'd', '--out', 'o'])
    assert (paper.learning_rate, paper.warmup, paper.batch, paper.epochs) == (2e-5, 0.03, 64, 1)
    assert (paper.fps, paper.schedule, paper.wait_k) == (2.0, 'wait_k', 3)
    assert (paper.seconds, paper.caption_rate) == ((5.0, 30.0), (3.0, 5.0))
    assert paper.position_encoding == 'gdpe' and not paper.lora_rank and paper.bf16 is None
    scales = [learning_rate_scale(update, 100, 0.03) for update in range(100)]
    assert scales[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1]) and 0 < scales[-1] < 0.001


@pytest.mark.parametrize('options, said', [
    (['--wait-k', '0'], 'wait_k must be 1 to 1000, not 0'),
    (['--learning-rate', '0'], 'learning_rate must be 1e-09 to'),
    (['--warmup', '3'], 'warmup must be 0 to 0.999, not 3'),
    (['--lora-alpha', '8'], 'need a lora_rank'),
    (['--silence', 'not a token'], "one token of the checkpoint, and 'not a token' is "),
    (['--silence', '<|silence|>', '--schedule', 'offline'], 'there is none, leave it out'),
    (['--lora', '100000'], 'lora_rank must be 0 to 1024, not 100000'),
    (['--lora', '65'], 'lora_rank must be at most 64, half the width'),
    (['--wait-k', '1000000'], 'wait_k must be 1 to 1000, not 1000000'),
    (['--seconds', '9', '5'], 'seconds must be a range'),
    (['--attention', 'flex'], 'FlexAttention has no backward pass'),
    (['--model', '/nowhere'], 'the folder does not exist'),
    (['--data', '/nowhere.jsonl'], 'cannot read the annotations /nowhere.jsonl'),
    (['--form', 'funqa'], 'no usable sample'),
    (['--max-pixels', '10'], 'max_pixels must be at least 784'),
    (['--out', __file__], 'is a file'),
    (['--out', f'{__file__}/out'], 'out: Not a directory'),
])
def test_what_cannot_be_used_is_said_in_words(tmp_path, capsys, options, said):
    if options == ['--attention', 'flex'] and torch.cuda.is_available():
        pytest.skip('flex trains here')
    arguments = ['--model', 'builtin', '--data', str(PE_VIDEO), '--out', str(tmp_path / 'out')]
    assert main([*arguments, *options]) == 2
    error = capsys.readouterr().err
    assert said in error and 'Traceback' not in error


@pytest.mark.parametrize('options', [['--schedule', 'live'], ['--position-encoding', 'rope'],
                                     ['--lora', 'many']])
def test_unknown_choices_are_refused_by_the_command_line(options):
    with pytest.raises(SystemExit):
        parse(['--model', 'm', '--data', 'd', '--out', 'o', *options])


TINY = dict(text=dict(hidden_size=48, intermediate_size=64, num_hidden_layers=1,
                      num_attention_heads=4, num_key_value_heads=2,
                      rope_parameters=dict(rope_type='default', rope_theta=1e4,
                                           mrope_section=[2, 2, 2])),
            vision=dict(depth=1, hidden_size=32, intermediate_size=48, num_heads=2,
                        window_size=56, fullatt_block_indexes=[0], tokens_per_second=2))


def test_adapters_on_a_base_kept_in_bf16_train_and_merge(tmp_path):
    """As on a GPU: what is frozen stays bf16, and merging rounds as it does from fp32."""
    save_random(tmp_path / 'base', TINY, 0)
    wanted = recipe(tmp_path, FUNQA, model=str(tmp_path / 'base'), lora_rank=4)
    model = load_model(wanted, saving=True)
    assert {weight.dtype for weight in model.trained.values()} == {torch.float32}
    assert {weight.dtype for weight in model.net.parameters()
            if not weight.requires_grad} == {torch.bfloat16}
    maker = ClipMaker(model.about, model.stock, wanted)
    batch = pad([maker.make(Sample(Path('none'), 'What?', 'A thing.'), noise(2, 56, 56))])
    loss, losses = Loss(model, 'sdpa'), []
    optimizer = torch.optim.AdamW(model.trained.values(), lr=1e-2)
    for _ in range(8):
        with torch.autocast('cpu', torch.bfloat16):
            cost = loss(batch)
        cost.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(cost.item())
    assert losses[-1] < 0.8 * losses[0]
    plain = load_model(wanted)
    with torch.no_grad():
        for name, weight in plain.trained.items():
            weight.copy_(model.trained[name])
    for name, one in (('saving', model), ('plain', plain)):
        export(one, maker.settings, tmp_path / name)
    assert largest_difference(tmp_path / 'saving', tmp_path / 'plain') == 0
    assert largest_difference(tmp_path / 'saving', tmp_path / 'base') > 0


def test_a_checkpoint_in_bf16_is_written_in_bf16(tmp_path):
    save_random(tmp_path / 'base', TINY, 0)
    out = tmp_path / 'out'
    train(recipe(out, FUNQA, model=str(tmp_path / 'base'), steps=1, batch=1,
                 gradient_checkpointing=True, tensorboard=True))
    assert {weight.dtype for weight in weights(out).values()} == {torch.bfloat16}
    assert list((out / 'tensorboard').iterdir())
    size = json.loads((out / 'preprocessor_config.json').read_text())['size']
    assert size == dict(shortest_edge=56 * 56, longest_edge=308 * 28 * 28)
    with Session.open(str(out), SessionConfig(overlap='fused')) as session:
        assert session._checkpoint.trained


@pytest.mark.parametrize('options, said', [
    (['--data', '/nowhere.jsonl'], 'cannot read the annotations /nowhere.jsonl'),
    (['--data', str(DATA)], f'cannot read the annotations {DATA}'),
    (['--out', f'{__file__}/out'], 'out: Not a directory'),
    (['--out', '/proc/out'], '/proc/out: No such file'),
])
def test_what_is_wrong_with_the_files_is_said_before_a_model_is_loaded(tmp_path, monkeypatch,
                                                                       capsys, options, said):
    def load(*_):
        raise AssertionError('loaded')

    monkeypatch.setattr('sww_ros.training.trainer.load_model', load)
    arguments = ['--model', 'builtin', '--data', str(PE_VIDEO), '--out', str(tmp_path / 'out')]
    assert main([*arguments, *options]) == 2
    assert said in capsys.readouterr().err
