"""
Checkpoints that were trained to be asked turn by turn: told, asked and understood as they were.

The conversations are written out by hand, as the public code of each checkpoint would feed them;
the oracle is transformers' own model on them, with its own positions.
"""

from contextlib import contextmanager
from pathlib import Path

from family_kit import changed
import numpy as np
import pytest
from session_kit import texts
import torch
from training_kit import DATA

from sww_ros.evaluation.random_model import SMALL_QWEN2, save_random
from sww_ros.models.files import CheckpointError
from sww_ros.models.loading import load, load_stock
from sww_ros.streaming import core
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import NARRATION
from sww_ros.streaming.generation import TextAssembler, TextLane
from sww_ros.streaming.pace import Pace, advice, video_rows
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import VIDEO, replay
from sww_ros.training.clips import ClipMaker
from sww_ros.training.recipe import Recipe
from sww_ros.training.trainer import train

END = '<|im_end|>'
ROWS, COLUMNS = 2, 3
FRAMES = np.random.default_rng(0).integers(0, 256, (12, 28 * ROWS, 28 * COLUMNS, 3), np.uint8)
STREAMING_VLM = ['He shoots ...', '\n ...', ' and scores a goal i', 'n time. ...']
"""The third reply is as long as one may be, and is cut."""
LIVECC = ['He shoots ...', ' ...', ' and scores a go', 'al in time. ...']
"""The third one is cut too, and loses its last token by that."""
MMDUET2 = ['NO REPLY', 'Nobody.', 'Now, NO REPLY is not all.']


@pytest.fixture(scope='module')
def folder_of(folder, tmp_path_factory):
    """What returns the folder of a checkpoint that a profile is for."""
    qwen2_vl = tmp_path_factory.mktemp('qwen2_vl')
    save_random(qwen2_vl, SMALL_QWEN2, 1)
    return lambda name: str(qwen2_vl if name == 'livecc' else folder)


@pytest.fixture
def script(monkeypatch):
    """What each speaker is to say, token by token, whatever the model would."""
    due = {}
    honest = TextLane.choose

    def choose(self, logits, *of):
        logits = logits.clone()
        logits[due[self.stream_id].pop(0)] = 1e9
        return honest(self, logits, *of)

    monkeypatch.setattr(TextLane, 'choose', choose)
    return due


@contextmanager
def opened(checkpoint, **settings):
    config = SessionConfig(**{
        'record_trace': True, 'repetition_penalty': 1.0, 'frame_width': 28 * COLUMNS,
        'frame_height': 28 * ROWS, 'max_pending_frames': len(FRAMES), **settings})
    with Session(checkpoint, config) as session:
        yield session


def play(session, frames, ends=True):
    for index, frame in enumerate(frames):
        session.feed(frame, last=ends and index == len(frames) - 1)
    assert session.wait_idle(30)


def say(checkpoint, replies, longest):
    """Token ids of replies, each with its end where it is not cut before."""
    return [token for reply in replies for token in checkpoint.encode(f'{reply}{END}')[:longest]]


def conversation_of(name):
    """What the checkpoint's own code feeds, up to the last token of the last reply."""
    assistant = f'{END}\n<|im_start|>assistant\n'
    picture = '<|vision_start|><|V|><|vision_end|>'
    if name == 'streaming_vlm':
        text = (f'<|im_start|>system\nYou are a helpful assistant.{END}\n'
                f'<|im_start|>previous text\n{END}\n'
                f'<|im_start|>user\nTime=0.0-1.0s{picture}Who shoots?')
        for second, reply in enumerate(STREAMING_VLM):
            if second:
                text += f'{END}\n<|im_start|>user\nTime={second}.0-{second + 1}.0s{picture}'
            text += f'{assistant}{reply}'
        return text
    if name == 'livecc':
        return (f'<|im_start|>system\nYou are a helpful assistant.{END}\n<|im_start|>user\n'
                'Time=0.0-3.0s<|vision_start|><|V|><|V|><|V|><|vision_end|>Who shoots?'
                f'{assistant}He shoots ...{END}\n'
                f'<|im_start|>user\nTime=3.0-4.0s{picture}{assistant} ...{END}\n'
                f'<|im_start|>user\nTime=4.0-5.0s{picture}{assistant} and scores a g{END}\n'
                f'<|im_start|>user\nTime=5.0-6.0s{picture}{assistant}al in time. ...')
    system = ('You are a helpful assistant. Your task is to answer questions based on continuously '
              'incoming video frames. Your responses should include information from the video '
              'since your last reply (if any). If the information in this segment of the video '
              'cannot answer the question, output "NO REPLY".')
    return (f'<|im_start|>system\n{system}{END}\n'
            f'<|im_start|>user\n{picture}{picture}Who shoots?{assistant}NO REPLY{END}\n'
            f'<|im_start|>user\n{picture}{picture}{assistant}Nobody.{END}\n'
            f'<|im_start|>user\n{picture}{assistant}Now, NO REPLY is not all.')


def tokens_of(checkpoint, text):
    found = []
    for index, part in enumerate(text.split('<|V|>')):
        found += [VIDEO] * ROWS * COLUMNS * bool(index) + checkpoint.encode(part)
    return found


def stock_forward(net, trace, kind, first=1):
    """Logits and positions of the stock model on a trace's conversation, with its own positions."""
    ids = torch.from_numpy(trace.ids)[None]
    seen = ids == VIDEO
    given = {f'pixel_values{"_videos" * (kind == "video")}': trace.patches.to(net.dtype),
             f'{kind}_grid_thw': torch.tensor([[steps, 2 * ROWS, 2 * COLUMNS] for steps in (
                 first, *[1] * (trace.steps - first))])}
    ids = ids.masked_fill(seen, getattr(net.config, f'{kind}_token_id'))
    types = seen.int() * (2 if kind == 'video' else 1)
    positions, _ = net.model.get_rope_index(ids, types, **{
        name: value for name, value in given.items() if name.endswith('thw')})
    with torch.no_grad():
        found = net(input_ids=ids, mm_token_type_ids=types, position_ids=positions, **given)
    return found.logits[0], positions[:, 0].numpy()


@pytest.mark.parametrize('name, frames, replies, longest, kind', [
    ('streaming_vlm', 8, STREAMING_VLM, 20, 'video'), ('mmduet2', 5, MMDUET2, 512, 'image'),
    ('livecc', 12, LIVECC, 16, 'video')])
@pytest.mark.parametrize('dtype, close', [('float32', 1e-4), ('float64', 1e-9)])
def test_the_conversation_is_that_of_its_own_code_and_the_stock_models(
        folder_of, script, name, frames, replies, longest, kind, dtype, close):
    checkpoint = load(folder_of(name), dtype=dtype, profile=name)
    script[NARRATION] = say(checkpoint, replies, longest)
    with opened(checkpoint, prompt='Who shoots?') as session:
        play(session, FRAMES[:frames])
        trace = session.trace()
    assert not script[NARRATION]
    assert trace.ids.tolist() == tokens_of(checkpoint, conversation_of(name))
    assert set(trace.lane) == {-1}
    logits, positions = stock_forward(load_stock(folder_of(name), getattr(torch, dtype)), trace,
                                      kind, 3 if name == 'livecc' else 1)
    assert np.array_equal(trace.positions, positions)
    at = np.flatnonzero(trace.predicted >= 0)
    assert len(at) == len(say(checkpoint, replies, longest))
    wanted = logits[torch.from_numpy(at)]
    # What was put into the model's mouth.
    wanted[torch.arange(len(at)), torch.from_numpy(trace.predicted[at])] = 1e9
    assert (trace.logits - wanted).abs().max() < close


@pytest.mark.parametrize('name, frames, replies, longest', [
    ('streaming_vlm', 8, STREAMING_VLM, 20), ('livecc', 12, LIVECC, 16)])
def test_sentences_go_on_over_turns(folder_of, script, name, frames, replies, longest):
    checkpoint = load(folder_of(name), profile=name)
    script[NARRATION] = say(checkpoint, replies, longest)
    with opened(checkpoint) as session:
        play(session, FRAMES[:frames])
        told = texts(session.drain(), NARRATION)
    assert ''.join(event.delta for event in told) == 'He shoots and scores a goal in time.'
    assert [event.sentence for event in told if event.sentence] == [
        'He shoots and scores a goal in time.']
    assert told[-1].final and told[-1].finish_reason == 'stop'


def test_mmduet2s_replies_are_each_told_and_its_silence_is_not(folder, script):
    checkpoint = load(str(folder), profile='mmduet2')
    script[NARRATION] = say(checkpoint, MMDUET2, 512)
    with opened(checkpoint) as session:
        play(session, FRAMES[:5])
        told = texts(session.drain(), NARRATION)
    assert [event.sentence for event in told if event.sentence] == [
        'Nobody.', 'Now, NO REPLY is not all.']
    assert min(event.steps_seen for event in told if event.delta) == 4


@pytest.mark.parametrize('name, frames, silent', [
    ('streaming_vlm', 6, ' ...'), ('streaming_vlm', 6, '\n ...'), ('mmduet2', 6, 'NO REPLY'),
    ('livecc', 10, ' ...')])
def test_its_silence_is_silent(folder_of, script, name, frames, silent):
    checkpoint = load(folder_of(name), profile=name)
    script[NARRATION] = say(checkpoint, [silent] * 3, 20)
    with opened(checkpoint) as session:
        play(session, FRAMES[:frames], ends=False)
        assert not script[NARRATION]
        assert not texts(session.drain(), NARRATION)


@pytest.mark.parametrize('name, frames', [('streaming_vlm', 4), ('mmduet2', 4), ('livecc', 8)])
def test_a_question_is_a_turn_after_what_was_said(folder_of, script, name, frames):
    checkpoint = load(folder_of(name), dtype='float64', profile=name)
    script[NARRATION] = say(checkpoint, ['No. ...'] * 2, 20)
    script['q'] = say(checkpoint, ['Yes. ...'], 20)
    with opened(checkpoint) as session:
        play(session, FRAMES[:frames], ends=False)
        session.drain()
        session.ask('Is it red?', 'q')
        assert session.wait_idle(30)
        told = texts(session.drain(), 'q')
        trace = session.trace()
    said = ''.join(event.delta for event in told)
    assert said == ('Yes. ...' if name == 'mmduet2' else 'Yes.') and told[-1].final
    asked = trace.ids[trace.lane >= 0].tolist()
    assert asked == checkpoint.encode(f'{END}\n<|im_start|>user\nIs it red?{END}\n'
                                      '<|im_start|>assistant\nYes. ...')
    found = replay(trace, load_stock(folder_of(name), torch.float64)).logits.clone()
    found[torch.arange(len(found)), torch.from_numpy(trace.predicted[trace.predicted >= 0])] = 1e9
    assert (found - trace.logits).abs().max() < 1e-9


def asked_within(checkpoint, script, replies, cuts, **settings):
    """The trace of a video in which is asked between two frames, and the tokens of that lane."""
    script[NARRATION] = say(checkpoint, replies, 20)
    script['q'] = say(checkpoint, ['Yes.'], 20)
    asked_at, end = cuts
    with opened(checkpoint, **settings) as session:
        play(session, FRAMES[:asked_at], ends=False)
        session.ask('Is it red?', 'q')
        assert session.wait_idle(30)
        steps = asked_at // checkpoint.frames_per_step
        assert {event.steps_seen for event in texts(session.drain(), 'q')} == {steps}
        play(session, FRAMES[asked_at:end], ends=False)
        trace = session.trace()
    assert not script[NARRATION] and trace.steps == end // checkpoint.frames_per_step
    return trace, trace.ids[trace.lane >= 0].tolist()


def test_a_question_within_a_turn_is_what_the_user_says_in_it(folder, script):
    checkpoint = load(str(folder), profile='mmduet2')
    _, asked = asked_within(checkpoint, script, ['NO REPLY'] * 2, (3, 4), prompt='Who shoots?')
    assert asked == checkpoint.encode(f'Is it red?{END}\n<|im_start|>assistant\nYes.')


def test_a_question_within_a_video_closes_it_first(folder_of, script):
    checkpoint = load(folder_of('livecc'), dtype='float64', profile='livecc')
    trace, asked = asked_within(checkpoint, script, [' ...'], (4, 6))
    assert asked == checkpoint.encode(f'<|vision_end|>Is it red?{END}\n<|im_start|>assistant\nYes.')
    # After the larger of the time and the sides of what there was of the video.
    first = trace.positions[:, trace.ids == VIDEO].min() + max(2, ROWS, COLUMNS)
    assert trace.positions[0, trace.lane >= 0].tolist() == [*range(first, first + len(asked))]


@pytest.mark.parametrize('name, frames, replies, longest', [
    ('streaming_vlm', 8, STREAMING_VLM, 20), ('livecc', 12, LIVECC, 16)])
def test_the_penalty_is_on_all_that_the_conversation_has(folder_of, script, name, frames, replies,
                                                         longest):
    checkpoint = load(folder_of(name), profile=name)
    assert checkpoint.repetition_penalty == 1.05
    script[NARRATION] = say(checkpoint, replies, longest)
    with opened(checkpoint, prompt='Who shoots?') as session:
        play(session, FRAMES[:frames])
        used = session._core.video.work.narration._used
        trace = session.trace()
    assert used == set(tokens_of(checkpoint, conversation_of(name))) - {VIDEO}
    assert used == trace.used(len(trace.ids) - 1)


def test_streaming_vlm_draws_and_the_others_do_not(folder_of):
    for name, temperature, top_k in (('streaming_vlm', 0.9, 50), ('mmduet2', 0.0, 0),
                                     ('livecc', 0.0, 0)):
        checkpoint = load(folder_of(name), profile=name, dtype='float64')
        sampling = SessionConfig().resolved(checkpoint).sampling
        assert (sampling.temperature, sampling.top_k, sampling.top_p) == (temperature, top_k, 1.0)
        with opened(checkpoint, repetition_penalty=0.0, wait_k=9) as session:
            play(session, FRAMES[:8])
            trace = session.trace()
        assert trace.sampling.repetition_penalty == checkpoint.repetition_penalty
        found = replay(trace, load_stock(folder_of(name), torch.float64))
        assert found.compared > 9 and not found.differing


def test_a_stream_that_is_full_is_followed_by_one_that_knows_what_was_said(folder, script):
    checkpoint = load(str(folder), profile='streaming_vlm')
    script[NARRATION] = say(checkpoint, [' He ...', ' runs. ...', ' ...', ' He ...', ' ...'], 20)
    with opened(checkpoint, max_steps=2, prompt='Who shoots?') as session:
        play(session, FRAMES[:10], ends=False)
        trace = session.trace()
    assert trace.steps == 1
    assert trace.ids.tolist() == tokens_of(checkpoint, (
        f'<|im_start|>system\nYou are a helpful assistant.{END}\n'
        f'<|im_start|>previous text\n He runs. He{END}\n<|im_start|>user\nTime=4.0-5.0s'
        f'<|vision_start|><|V|><|vision_end|>Who shoots?{END}\n<|im_start|>assistant\n ...'))


def test_what_was_said_is_carried_in_bounds(folder, script, monkeypatch):
    monkeypatch.setattr(core, 'CARRIED_CHARACTERS', 4)
    checkpoint = load(str(folder), profile='streaming_vlm')
    script[NARRATION] = say(checkpoint, [f' {number}{number} ...' for number in range(9)], 20)
    with opened(checkpoint, max_steps=1) as session:
        play(session, FRAMES[:12], ends=False)
        assert session._core.video.said_before == ' 00 3 44'
        session.reset()
        play(session, FRAMES[:2], ends=False)
        assert session._core.video.said_before == '' and session._core.video.elapsed == 0


def test_a_stream_takes_no_more_rows_than_are_planned_for(folder, script):
    checkpoint = load(str(folder), profile='mmduet2')
    script[NARRATION] = checkpoint.encode('A' * 10)
    with opened(checkpoint, max_steps=4, wait_k=5) as session:
        play(session, FRAMES[:4], ends=False)
        rows, planned = len(session.trace().ids), video_rows(checkpoint, session._settings)
    assert not script[NARRATION]
    assert rows <= planned <= rows + 40


def test_it_is_too_slow_where_even_silence_is(folder):
    checkpoint = load(str(folder), profile='mmduet2')
    assert advice(checkpoint, 512, Pace(0.1, 0.05, 6)) == ''
    assert 'too slow for it: 2 s of video takes' in advice(checkpoint, 512, Pace(0.1, 0.5, 6))


# How they are told.


def called(folder, name, **entries):
    """The checkpoint under another name, with other entries in its config.json."""
    return changed(folder, folder.parent / name, lambda config: config.update(entries))


@pytest.mark.parametrize('name, entries, expected', [
    ('StreamingVLM', {}, 'streaming_vlm'),
    ('models--mit-han-lab--StreamingVLM/snapshots/a940', {}, 'streaming_vlm'),
    ('mine', {'_name_or_path': 'mit-han-lab/StreamingVLM'}, 'streaming_vlm'),
    ('MMDuet2', {}, 'mmduet2'),
    ('yours', {'speak_while_watching': {'profile': 'mmduet2', 'wait_k': 40}}, 'mmduet2'),
    ('Qwen2.5-VL-7B-Instruct', {}, ''),
    ('streaming-vlm/weights', {}, ''),
    ('StreamingVLM-gdpe', {'speak_while_watching': {'position_encoding': 'gdpe'}}, ''),
    ('StreamingVLM-plain', {'speak_while_watching': {'profile': 'none'}}, '')])
def test_it_is_told_from_its_files_and_its_name(folder, name, entries, expected):
    checkpoint = load(called(folder, name, **entries))
    assert checkpoint.asked == expected and checkpoint.trained == bool(
        expected or 'gdpe' in name)
    with opened(checkpoint) as session:
        info = session.info
    assert info['profile'] == expected
    rate, wait_k = {'mmduet2': (0.5, 40 if entries else 512), 'streaming_vlm': (2.0, 20)}.get(
        expected, (2.0, 3))
    assert (info['frame_rate'], info['wait_k'], info['mismatch']) == (rate, wait_k, '')


def test_livecc_is_told_from_its_name(folder_of):
    checkpoint = load(called(Path(folder_of('livecc')), 'LiveCC-7B-Instruct'))
    with opened(checkpoint) as session:
        info = session.info
    assert (info['profile'], info['frame_rate'], info['wait_k'], info['mismatch']) == (
        'livecc', 2.0, 16, '')


def test_the_parameter_goes_before_what_its_files_say(folder):
    named = called(folder, 'MMDuet2')
    with Session.open(named, SessionConfig(profile='none', overlap='serial')) as session:
        assert session.info['profile'] == '' and session.info['frames_per_step'] == 2
    with Session.open(named, SessionConfig(profile='streaming_vlm', overlap='serial')) as session:
        assert session.info['profile'] == 'streaming_vlm'


def test_what_does_not_go_together_is_said(folder):
    with pytest.raises(CheckpointError, match="no profile 'mmduet' for Qwen2.5-VL, only mmduet2"):
        load(str(folder), profile='mmduet')
    checkpoint = load(str(folder), profile='mmduet2')
    for settings in (dict(position_encoding='gdpe'), dict(schedule='random_wait_k')):
        with pytest.raises(ValueError, match='mmduet2 is asked turn by turn, which needs'):
            Session(checkpoint, SessionConfig(**settings))
    with pytest.raises(ValueError, match="profile 'none' is to be chosen when the checkpoint is"):
        Session(checkpoint, SessionConfig(profile='none', overlap='serial'))


# How they are trained.

@pytest.mark.parametrize('name', ['streaming_vlm', 'mmduet2', 'livecc'])
def test_to_train_turn_by_turn_is_refused_in_words(folder_of, name):
    about = load(folder_of(name), device='meta', profile=name)
    recipe = Recipe(model=folder_of(name), data=(DATA / 'pe_video.jsonl',), out=Path('nowhere'))
    with pytest.raises(ValueError, match='is asked turn by turn, which cannot be trained yet'):
        ClipMaker(about, load_stock(folder_of(name), torch.float32), recipe)


@pytest.mark.parametrize('name, called_so', [
    ('streaming_vlm', 'StreamingVLM'), ('mmduet2', 'MMDuet2'), ('livecc', 'LiveCC')])
def test_one_may_be_trained_to_speak_while_it_watches(folder_of, tmp_path, name, called_so):
    """In parallel positions, as any of its kind; the result says so, whatever it is called."""
    begun, out = called(Path(folder_of(name)), called_so), tmp_path / f'{called_so}-gdpe'
    train(Recipe(model=begun, data=(DATA / 'pe_video.jsonl',), out=out, steps=1, batch=1,
                 max_pixels=56 * 56, keep_all=True, lora_rank=2))
    checkpoint = load(str(out))
    assert (checkpoint.asked, checkpoint.defaults.position_encoding) == ('', 'gdpe')


# What is told of what was said.


class Letters:
    """A tokenizer whose tokens are characters."""

    def decode(self, ids, **_):
        return ''.join(map(chr, ids))


def assembled(turns, silence, goes_on):
    """What is told of turns, and the sentences; what ends in '|' is cut."""
    assembler = TextAssembler(Letters(), silence, goes_on)
    told = []
    for turn in turns:
        told += [assembler.add(ord(letter)) for letter in turn.rstrip('|')]
        if turn.endswith('|'):
            assembler.cut_turn()
        else:
            told.append(assembler.end_turn())
    return (''.join(delta for delta, _ in told), [sentence for _, sentence in told if sentence],
            assembler.unfinished)


@pytest.mark.parametrize('turns, expected', [
    (['NO REPLY'], ('', [], '')),
    (['NO REPLY', 'Yes.'], ('Yes.', ['Yes.'], '')),
    (['NO'], ('NO', ['NO'], '')),
    (['NO REPLY!'], ('NO REPLY!', ['NO REPLY!'], '')),
    (['A. NO REPLY'], ('A. NO REPLY', ['A.', 'NO REPLY'], '')),
    (['A long|', ' one.'], ('A long one.', ['A long one.'], ''))])
def test_a_whole_reply_may_be_silence(turns, expected):
    assert assembled(turns, 'NO REPLY', False) == expected


@pytest.mark.parametrize('turns, expected', [
    ([' ...', '\n ...'], ('', [], '')),
    ([' He ...', '\n shoots. ...'], (' He shoots.', ['He shoots.'], '')),
    ([' Well ... so ...'], (' Well ... so', [], 'Well ... so')),
    (['Red.\n A circle ...'], ('Red.\n A circle', ['Red.'], 'A circle')),
    ([' He .'], (' He .', ['He .'], '')),
    ([' He|', ' goes'], (' He goes', [], 'He goes'))])
def test_what_ends_every_turn_is_not_told(turns, expected):
    assert assembled(turns, ' ...', True) == expected


def test_without_a_silence_all_is_told():
    assert assembled(['NO REPLY', ' ... ', 'Well'], '', False) == (
        'NO REPLY ... Well', ['NO REPLY', '.', '.', '.', 'Well'], '')
