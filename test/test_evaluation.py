"""Evaluation on captioned clips: the live engine, whose offline text is the stock model's."""

from __future__ import annotations

import copy
from dataclasses import replace
import json
from pathlib import Path
import resource
from string import ascii_letters
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from turn_kit import VideoPart, turn_positions

from sww_ros.evaluation import clips
from sww_ros.evaluation.__main__ import main
from sww_ros.evaluation.clips import ClipError, Player, lateness, read_clips
from sww_ros.evaluation.random_model import (
    QWEN2_5_VL_3B,
    SMALL,
    random_model,
)
from sww_ros.evaluation.run import MODES, Options, evaluate
from sww_ros.models.loading import builtin_path, load, take_apart
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.perception import fit_size
from sww_ros.streaming.positions import SCHEMES, VideoClock
from sww_ros.training.frames import read_frames

pytest.importorskip('av')

CLIPS = Path(__file__).resolve().parents[1] / 'test/data/clips'
CAPTIONS, QUESTIONS = CLIPS / 'pe_video.jsonl', CLIPS / 'funqa.json'
SILENCE = '<|silence|>'


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """The stock model takes no more of the machine than the engine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def builtin() -> Checkpoint:
    return load('builtin')


@pytest.fixture(scope='module')
def small():
    """The stock model and the checkpoint of the same random weights, which have a silence token."""
    return talkative(3, silence_token=SILENCE)


def talkative(seed: int, **streaming: object,
              ) -> tuple[Qwen2_5_VLForConditionalGeneration, Checkpoint]:
    """A random model that speaks letters, and heeds what it has seen and said before."""
    model, tokenizer = random_model(SMALL, seed, **streaming)
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in ascii_letters]
    with torch.no_grad():
        # Tied to the output, an embedding otherwise likes itself best.
        model.model.language_model.norm.weight.normal_()
        table = model.get_input_embeddings().weight
        silent = torch.ones(len(table), 1)
        silent[letters] = 0
        table.mul_(1 - 0.9 * silent)
        for name, weight in model.model.named_parameters():
            # Else all layers together add next to nothing to the token that went in.
            if weight.ndim == 2 and ('.layers.' in name or '.merger.' in name):
                weight.mul_(8)
    return model, take_apart(copy.deepcopy(model), tokenizer)


def noise(steps: int, height: int = 56, width: int = 56, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2 * steps, height, width, 3), np.uint8)


def player(checkpoint: Checkpoint, mode: str, live: bool = False, trace: bool = False,
           **options: object) -> Player:
    chosen = Options(session=replace(
        Options().session, **{'repetition_penalty': 1.0, **options})).resolved(checkpoint)
    return Player(checkpoint, replace(chosen.played(mode), record_trace=trace), live)


# All of it.


def test_built_in_checkpoint_on_the_committed_captions(tmp_path: Path, capsys):
    out = tmp_path / 'out.json'
    assert main(['--data', str(CAPTIONS), '--mode', *MODES, '--repetition-penalty', '1',
                 '--resamples', '50', '--json', str(out)]) == 0
    printed = capsys.readouterr()
    assert "'builtin' runs with schedule 'offline' but was trained with 'wait_k'" in printed.err
    assert 'CIDEr' in printed.out and 'random_wait_k' in printed.out
    results = json.loads(out.read_text())
    assert list(results['modes']) == list(MODES)
    for mode, found in results['modes'].items():
        assert (found['scored'], found['skipped']) == (10, [])
        assert {'CIDEr', 'BLEU-1', 'BLEU-4', 'METEOR', 'ROUGE-L'} == set(found['intervals'])
        for clip in found['clips']:
            assert clip['hypothesis'] == ''.join(part['text'] for part in clip['said']).strip()
            assert clip['prompt'] == 'What happens?'
            spoken_at = [part['step'] for part in clip['said']]
            assert spoken_at == sorted({*spoken_at} - {0})
            if mode == 'offline':
                # Trained to speak while watching, it may be silent at once.
                assert spoken_at in ([clip['steps']], []), 'nothing is said before the end'
            else:
                assert not spoken_at or spoken_at[-1] <= clip['steps']
        # One caption has a token a step: random wait-K draws by it, a pace never trained.
        assert found['lateness']['silent'] <= dict(offline=2, random_wait_k=1, wait_k=0)[mode]
    streaming, offline = (results['modes'][mode] for mode in ('wait_k', 'offline'))
    assert streaming['metrics']['CIDEr'] > 150, 'it was trained for this world'
    assert streaming['lateness']['before_end'] > 0.5 and offline['lateness']['before_end'] == 0
    assert streaming['lateness']['median_first_s'] <= 2
    assert offline['lateness']['first_s'] == \
        pytest.approx(6.4, abs=0.5)


def test_random_checkpoint_speaks_about_every_clip_in_every_mode(folder: Path, tmp_path: Path,
                                                                 capsys):
    """A checkpoint without a silence token, with questions of its own for each clip."""
    out = tmp_path / 'out.json'
    assert main(['--model', str(folder), '--data', str(QUESTIONS), '--mode', *MODES,
                 '--max-rest-tokens', '12', '--wait-k', '4', '--resamples', '0',
                 '--json', str(out)]) == 0
    assert 'warning' not in capsys.readouterr().err
    for found in json.loads(out.read_text())['modes'].values():
        assert found['scored'] == 10 and found['intervals'] == {}
        assert len({clip['prompt'] for clip in found['clips']}) > 3
        for clip in found['clips']:
            assert sum(part['tokens'] for part in clip['said']) >= 4


def test_a_killed_run_goes_on_to_the_same_results(tmp_path: Path, capsys):
    out, log = tmp_path / 'out.json', tmp_path / 'out.clips.jsonl'
    command = ['--data', str(CAPTIONS), '--max-clips', '4', '--mode', 'random_wait_k', 'offline',
               '--json', str(out)]
    assert main(command) == 0
    whole, lines = out.read_text(), log.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 2 * 4
    out.unlink()
    # Killed in the middle of a line, in the first of two modes.
    log.write_bytes(b''.join(lines[:3]) + lines[3][:25])
    capsys.readouterr()
    assert main(command) == 0
    assert '2 results are in' in capsys.readouterr().err
    assert out.read_text() == whole
    assert log.read_bytes() == b''.join(lines)
    # Another mode may join; another way to speak may not.
    assert main([*command, '--mode', 'offline', 'wait_k']) == 0
    assert list(json.loads(out.read_text())['modes']) == ['offline', 'wait_k']
    capsys.readouterr()
    assert main([*command, '--wait-k', '5']) == 2
    assert 'other settings (wait_k was 3, is 5): remove it' in capsys.readouterr().err


def test_what_cannot_be_played_is_skipped_and_counted(tmp_path: Path, capsys):
    (tmp_path / 'cut.mp4').write_bytes((CLIPS / 'pe_0.mp4').read_bytes()[:900])
    data, out = tmp_path / 'data.jsonl', tmp_path / 'out.json'
    data.write_text('\n'.join(json.dumps(dict(video=str(video), caption='A red square appears.'))
                              for video in ('cut.mp4', CLIPS / 'pe_0.mp4', CLIPS / 'pe_3.mp4')))
    assert main(['--data', str(data), '--max-steps', '6', '--json', str(out)]) == 0
    printed = capsys.readouterr()
    assert 'skipped, wait_k, ' in printed.err and 'cut.mp4' in printed.err
    (found,) = json.loads(out.read_text())['modes'].values()
    assert [clip['video'] for clip in found['clips']] == [str(CLIPS / 'pe_0.mp4')]
    broken, long = found['skipped']
    assert broken['source'] == f'{data}:1' and 'cannot read the video' in broken['reason']
    assert long['source'] == f'{data}:3'
    assert 'the clip has 7 steps, 1 to 6 are taken: raise --max-steps' in long['reason']
    # Nothing left to score is no success.
    assert main(['--data', str(data), '--max-clips', '1']) == 1


def test_trouble_in_the_engine_costs_one_clip(small, monkeypatch):
    clips = read_clips([CAPTIONS], prompt='?')[:3]
    checkpoint, told = small[1], []
    honest = type(checkpoint.perception).embed
    calls = []

    def fails(self, *arguments):
        calls.append(1)
        if len(calls) == clips[0].length_s + 3:
            raise RuntimeError('no memory left')
        return honest(self, *arguments)

    monkeypatch.setattr(type(checkpoint.perception), 'embed', fails)
    found = evaluate(checkpoint, clips, Options(session=replace(
        Options().session, max_rest_tokens=3)), warn=told.append)
    (found,) = found['modes'].values()
    assert [clip['source'] for clip in found['clips']] == [clips[0].source, clips[2].source]
    assert found['skipped'] == [dict(
        source=clips[1].source, reason='trouble in the engine: RuntimeError: no memory left')]
    assert told == [f'skipped, wait_k, {clips[1].source}: {found["skipped"][0]["reason"]}']


# The live engine.


def stock_tokens(model: Qwen2_5_VLForConditionalGeneration, checkpoint: Checkpoint,
                 frames: np.ndarray, prompt: str, limit: int) -> list[int]:
    """Return what transformers' own greedy `generate` says of the same chat turns and pixels."""
    perception, steps = checkpoint.perception, len(frames) // 2
    size = fit_size(*frames.shape[1:3], perception.settings)
    rows, columns = perception.grid(*size)
    patches = torch.cat([perception.patches(frames[i:i + 2], *size)
                         for i in range(0, len(frames), 2)])
    pad = model.config.video_token_id
    turns, encode = checkpoint.turns, checkpoint.encode
    ids = torch.tensor([[*encode(*turns.prefix(checkpoint.defaults.system, prompt)),
                         *[pad] * steps * rows * columns,
                         *encode(turns.tail), *encode(turns.assistant)]])
    stop = {*checkpoint.vocabulary.stop, checkpoint.vocabulary.silence} - {-1}
    spoken = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values_videos=patches,
        video_grid_thw=torch.tensor([[steps, 2 * rows, 2 * columns]]),
        mm_token_type_ids=torch.where(ids == pad, 2, 0),
        second_per_grid_ts=torch.tensor([checkpoint.defaults.seconds_per_step]),
        do_sample=False, max_new_tokens=limit, eos_token_id=sorted(stop))
    return spoken[0, ids.shape[1]:].tolist()


def live_tokens(checkpoint: Checkpoint, frames: np.ndarray, prompt: str, limit: int,
                ) -> tuple[list[int], str]:
    """Return what the live engine says offline at stock positions: its tokens and the text."""
    with player(checkpoint, 'offline', trace=True, position_encoding='offline',
                max_rest_tokens=limit) as playing:
        # The second clip of a session, so that what is left of the first would show.
        playing.play(noise(2, seed=9), 'Something else.')
        text = playing.play(frames, prompt).text
        predicted = playing._session.trace().predicted
    return predicted[predicted >= 0].tolist(), text


@pytest.mark.parametrize('seed', range(6))
def test_offline_text_is_what_the_stock_model_generates(seed: int):
    """Videos that are wider than long, of which transformers 4.x and 5.x think alike."""
    model, checkpoint = talkative(seed)
    frames = noise(2 + seed % 3, 28 * (1 + seed % 3), 28 * (6 + seed), seed)
    prompt = 'What happens?' if seed % 2 else 'x' * (1 + seed)
    ours, text = live_tokens(checkpoint, frames, prompt, 40)
    assert ours == stock_tokens(model, checkpoint, frames, prompt, 40)
    assert len(set(ours)) > 3
    assert text == checkpoint.tokenizer.decode(ours)


def test_offline_text_of_trained_weights_is_what_the_stock_model_generates(builtin: Checkpoint,
                                                                           monkeypatch):
    """
    All committed clips, which are longer than wide.

    transformers 5.x begins the text behind such a video in the middle of its time: here the stock
    model is given the positions of 4.x, by which Qwen2.5-VL was trained.
    """
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(builtin_path(), dtype=torch.float32)

    def rope_index(input_ids, mm_token_type_ids, video_grid_thw, **_):
        (steps, rows, columns), kinds = video_grid_thw[0].tolist(), mm_token_type_ids[0].tolist()
        first = kinds.index(2)
        video = VideoPart(steps, rows // 2, columns // 2)
        rest = len(kinds) - first - video.tokens
        defaults = builtin.defaults
        positions = torch.from_numpy(turn_positions(
            [first, video, rest],
            VideoClock(defaults.tokens_per_second, defaults.seconds_per_step)))[:, None]
        return positions, (positions.max() + 1 - len(kinds)).view(1, 1)

    monkeypatch.setattr(model.model, 'get_rope_index', rope_index)
    spoken = set()
    for clip in read_clips([CAPTIONS, QUESTIONS], prompt='What happens?')[::3]:
        frames = read_frames(clip)
        ours, text = live_tokens(builtin, frames, clip.prompt, 24)
        assert ours == stock_tokens(model, builtin, frames, clip.prompt, 24), clip
        spoken.add(text)
    assert len(spoken) > 3


def test_wait_k_does_not_depend_on_how_fast_it_is_fed(small, builtin, monkeypatch):
    """Step by step, or all frames at once with both sides at work."""
    monkeypatch.setattr(clips, 'time', SimpleNamespace(
        sleep=lambda seconds: None, monotonic=lambda: 0.0,
        monotonic_ns=clips.time.monotonic_ns))
    # Interleaved positions depend on the text, and the text on when it is spoken.
    cases = [(small[1], mode, scheme) for mode in ('wait_k', 'random_wait_k')
             for scheme in SCHEMES if scheme != 'interleaved'] + [(builtin, 'wait_k', 'gdpe')]
    for checkpoint, mode, scheme in cases:
        texts = []
        for live in (False, True):
            with player(checkpoint, mode, live, position_encoding=scheme,
                        max_rest_tokens=5) as playing:
                texts.append(playing.play(noise(6), 'What?').text)
        assert texts[0] == texts[1] and len(set(texts[0])) > 3, (mode, scheme)


def test_frames_are_fed_in_real_time(small):
    _, checkpoint = small
    with player(checkpoint, 'wait_k', live=True, max_rest_tokens=4) as playing:
        begin = clips.time.monotonic()
        played = playing.play(noise(1), 'What?')
        assert clips.time.monotonic() - begin >= 0.5
    assert played.live_tail_s > 0
    assert lateness([played], 3, 1.0)['live_tail_s'] == played.live_tail_s


def test_one_session_plays_all_clips_and_an_error_or_a_draw_begins_another(small, monkeypatch):
    opened = []
    real = clips.Session
    monkeypatch.setattr(clips, 'Session', lambda *a: opened.append(real(*a)) or opened[-1])
    with player(small[1], 'wait_k', max_steps=3) as playing:
        for number, prompt in enumerate(['a', 'a', 'b']):
            playing.play(noise(2), prompt, number)
        assert len(opened) == 1
        with pytest.raises(ClipError, match='4 steps, 1 to 3 are taken'):
            playing.play(noise(4), 'b')
        with pytest.raises(ClipError, match='the prompt is empty'):
            playing.play(noise(2), ' ')
        playing.play(noise(2), 'b')
        assert len(opened) == 2
    with player(small[1], 'random_wait_k', wait_k=5) as playing:
        first, second, again = (playing.play(noise(8), 'a', n) for n in (1, 2, 1))
    assert first == again
    assert [part.tokens for part in first.said] != [part.tokens for part in second.said]


def test_real_shape_speaks_in_every_scheme():
    """Two layers of Qwen2.5-VL-3B; the memory they take is what grows, not what others took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shape = dict(text=dict(QWEN2_5_VL_3B['text'], num_hidden_layers=2),
                 vision=dict(QWEN2_5_VL_3B['vision'], depth=2, fullatt_block_indexes=[1]))
    model, tokenizer = random_model(shape, 0)
    checkpoint = take_apart(model, tokenizer)
    clip = [replace(read_clips([CAPTIONS], prompt=checkpoint.defaults.prompt)[0], end_s=2.0)]
    for scheme in SCHEMES:
        found = evaluate(checkpoint, clip, Options(session=replace(
            Options().session, position_encoding=scheme, wait_k=2, max_rest_tokens=2)))
        (found,) = found['modes'].values()
        assert found['scored'] == 1 and not found['skipped']
        assert sum(part['tokens'] for part in found['clips'][0]['said']) > 0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 6_000_000, f'{grown} KiB'
