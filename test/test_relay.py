"""The relay: what the core decides, and that each of a video's streams is the stock model's."""

from collections.abc import Sequence
import gc
import itertools
import os
import random
import time
import weakref

from core_kit import Play
import numpy as np
import pytest
import torch

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import NARRATION, Restarted, StepPerceived, TextDelta, Trouble
from sww_ros.streaming.generation import TextAssembler
from sww_ros.streaming.jobs import Carry, Decoded, Open, Perceive, Spoken
from sww_ros.streaming.kv import Lane
from sww_ros.streaming.relay import Relay
from sww_ros.streaming.rules import RULES
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import replay

PARALLEL = ('gdpe', 'gipe', 'ospe', 'offline')
STEPS = 17


@pytest.fixture(scope='module')
def models():
    return random_checkpoint(SMALL, 4, torch.float64, silence_token='<|silence|>')


def watch(session: Session, chance: random.Random | None, steps: int = STEPS,
          asked: Sequence[int] = (3, 7)) -> list:
    """Feed so many steps, and ask at some of them; return what is told."""
    rng = np.random.default_rng(0)
    for step in range(steps):
        for _half in range(2):
            session.feed(rng.integers(0, 256, (40, 48, 3), np.uint8), step)
            time.sleep(chance.choice((0, 0, 0.004)) if chance else 0)
        if step in asked:
            session.ask('x' * step)
    assert session.wait_idle(60)
    return session.drain()


def differing(session: Session, oracle) -> tuple[int, int, float]:
    """How many tokens were compared in all streams, how many differ, and the largest error."""
    tokens, wrong, error = 0, 0, 0.0
    for trace in session.traces():
        verdict = replay(trace, oracle)
        tokens, wrong = tokens + verdict.compared, wrong + verdict.differing
        if verdict.compared:
            error = max(error, float((trace.logits - verdict.logits).abs().max()))
    return tokens, wrong, error


@pytest.mark.parametrize('overlap', RULES)
@pytest.mark.parametrize('scheme', PARALLEL)
def test_every_stream_of_a_relay_is_the_stock_models(models, scheme, overlap):
    config = SessionConfig(
        position_encoding=scheme, overlap=overlap, record_trace=True, wait_k=2, max_steps=8,
        capacity=6, memory=3, max_pending_frames=64, max_answer_tokens=12,
        schedule='random_wait_k' if scheme == 'ospe' else 'live')
    with Session(models[1], config) as session:
        events = watch(session, random.Random(overlap))
        tokens, wrong, error = differing(session, models[0])
        streams = len(session.traces())
    assert not [event for event in events if isinstance(event, Trouble)]
    relays = [event for event in events if isinstance(event, Restarted)]
    assert {(event.reason, event.video) for event in relays} == {('relay', 0)}
    assert streams == len(relays) + 1 >= 4
    assert tokens > STEPS and (wrong, error < 1e-9) == (0, True)
    steps = [(event.video, event.index) for event in events if isinstance(event, StepPerceived)]
    assert steps == [(0, index) for index in range(STEPS)]
    texts = [event for event in events if isinstance(event, TextDelta)]
    assert not [event for event in texts if event.final and event.stream_id == NARRATION]
    for question in ('q1', 'q2'):
        assert sum(event.final for event in texts if event.stream_id == question) == 1


@pytest.mark.parametrize('overlap', ['serial', 'processes'])
def test_what_was_said_before_the_carried_steps_stands_in_the_prefix(
        models, monkeypatch, overlap):
    numbers = itertools.count()
    monkeypatch.setattr(TextAssembler, 'add', lambda *_: ('a', f'S{next(numbers)}.'))
    config = SessionConfig(overlap=overlap, record_trace=True, wait_k=2, max_steps=8, capacity=6,
                           memory=2, max_pending_frames=64, previous_sentences=2)
    with Session(models[1], config) as session:
        events = watch(session, random.Random(1))
        tokens, wrong, error = differing(session, models[0])
        traces = session.traces()
        prefixes = [models[1].tokenizer.decode(trace.ids[trace.step < 0]) for trace in traces]
    assert tokens > STEPS and (wrong, error < 1e-9) == (0, True)
    sentences = [event.sentence for event in events if isinstance(event, TextDelta)
                 and event.stream_id == NARRATION and event.sentence]
    assert len(traces) > 3 and sentences[0] not in prefixes[0]
    for prefix in prefixes[2:]:
        assert sum(f'{first} {second}' in prefix
                   for first, second in zip(sentences, sentences[1:])) == 1


def test_only_what_was_said_before_the_carried_steps_is_told_again():
    play = Play(relay=Relay(4, 2, 6, sentences=1), schedule='wait_k')
    for number in range(4):
        play.feed()
        play.perceive()
        play.done(play.take_decode())
        play.tell(Decoded(play.take_decode(), (Spoken('text', 'a', f'S{number}.'),)))
    assert play.core.video.successor.standing == 'Tell.\nS1.'
    prepare(play)
    assert play.core.video.base == 2 and play.core.video.standing == 'Tell.\nS1.'
    assert [text for _, text in play.core.video.told] == ['S1.', 'S2.', 'S3.']


def test_in_processes_words_that_are_not_shared_are_repeated_by_the_generating_side(
        models, monkeypatch):
    monkeypatch.setattr('sww_ros.streaming.runner.SIDE_ROWS', 12)
    config = SessionConfig(overlap='processes', record_trace=True, wait_k=3, max_steps=8,
                           capacity=6, memory=3, max_pending_frames=64)
    with Session(models[1], config) as session:
        events = watch(session, random.Random(1))
        tokens, wrong, error = differing(session, models[0])
    assert [event.reason for event in events if isinstance(event, Restarted)].count('relay') >= 3
    assert tokens > STEPS and (wrong, error < 1e-9) == (0, True)


def relayed(**settings: object) -> Play:
    """A core whose streams of 4 steps are relieved by ones with 2 of them."""
    return Play(relay=Relay(4, 2, 6), schedule='wait_k', **settings)


def step(play: Play, *kinds: str) -> list:
    """A step comes, and of each kind a token is spoken about it."""
    told = play.feed() + play.perceive()
    for kind in kinds:
        told += play.speak(kind, 1)
    return told


def prepare(play: Play) -> list:
    told = []
    while job := play.core.next_piece():
        told += play.done(job)
    return told


def test_a_stream_is_relieved_between_two_sentences():
    play = relayed()
    for _ in range(4):
        step(play, 'text', 'text')
    old = play.core.video
    prepare(play)
    assert play.core.video is old, 'a sentence goes on'
    step(play, 'text')
    assert play.core.video is old
    play.speak('stop', 1)
    assert play.core.video is not old and play.core.video.base == 2
    assert [event.reason for event in play.of(Restarted)] == ['relay']
    # Of the steps that came meanwhile none is missing, and the next token goes on after the last.
    assert len(play.core.video.steps) == 3
    step(play)
    turn = play.take_decode()
    assert (turn.turns[0].sees, turn.turns[0].owner) == (4, 4)
    assert play.steps() == [(0, index) for index in range(6)]


def test_a_step_of_a_pass_for_several_comes_to_a_successor_by_a_piece():
    play = relayed()
    for _ in range(4):
        step(play, 'text', 'text')
    prepare(play)
    step(play, 'text')
    old, successor = play.core.video, play.core.video.successor
    play.feed()
    job = play.core.next_perception(shared=True)
    assert job.also is None and len(successor.steps) == 3
    decode = play.take_decode()
    assert decode.words.video is successor
    assert play.core.next_piece() is None, 'one thing but a decode step is out at a time'
    play.done(decode, 'stop')
    assert play.core.video is old, 'the step that is out would be missing'
    decode = play.done(job) and play.take_decode()
    assert decode.words is None
    piece = play.core.next_piece()
    assert isinstance(piece, Carry) and play.done(decode) and play.core.video is old
    play.speak('stop', 1)
    play.done(piece)
    assert play.core.video is successor and len(successor.steps) == 4


def test_a_piece_waits_for_words_that_are_written():
    play = relayed()
    for _ in range(4):
        step(play, 'text', 'text')
    prepare(play)
    step(play, 'text')
    play.feed()
    decode = play.take_decode()
    assert decode.words.video is play.core.video.successor
    play.done(play.core.next_perception(shared=True))
    assert play.core.next_piece() is None
    play.done(decode)
    assert isinstance(play.core.next_piece(), Carry)


def test_a_step_that_finds_no_room_is_not_waited_for_by_a_sentence():
    play = relayed()
    for _ in range(6):
        step(play, 'text', 'text')
    prepare(play)
    assert play.of(Restarted) == []
    play.feed()
    assert [event.reason for event in play.of(Restarted)] == ['relay']
    assert not play.finals(), 'and the sentence goes on'


def test_an_answer_goes_on_about_the_stream_that_was_relieved_and_that_one_dies_with_it():
    play = relayed(narrate=False, max_answer_tokens=2)
    for _ in range(4):
        step(play)
    play.ask()
    prepare(play)
    assert [event.reason for event in play.of(Restarted)] == ['relay']
    decode = play.take_decode()
    old = weakref.ref(decode.turns[0].video)
    assert old() is not play.core.video and decode.turns[0].sees == 4
    play.done(decode)
    del decode
    play.ask('new')
    play.speak(steps=1)
    assert play.finals('q') == ['length']
    assert old() is None, 'its lanes go with its last reader'
    assert {event.video for event in play.of(TextDelta)} == {0}


def test_a_question_of_a_listener_sees_the_same_steps_before_and_after():
    play = relayed(narrate=False, max_answer_tokens=1)
    for _ in range(4):
        step(play)
    prepare(play)
    play.ask()
    play.speak()
    [text] = play.of(TextDelta)
    assert (text.step, text.steps_seen, text.frames_seen) == (3, 4, 8)


def test_what_fails_in_preparing_ends_nothing_but_the_relay():
    play = relayed()
    for _ in range(4):
        step(play, 'text', 'text')
    play.ask()
    play.fail(play.core.next_piece())
    assert [event.fatal for event in play.of(Trouble)] == [False]
    assert play.core.next_piece() is None and play.core.open_questions == ['q']
    for _ in range(3):
        step(play, 'text', 'text')
    assert [event.reason for event in play.of(Restarted)] == ['capacity']


def test_a_step_that_waits_goes_before_the_pieces_of_a_stream_but_for_a_few():
    play = Play(relay=Relay(8, 6, 12), wait_k=1)
    for _ in range(8):
        step(play, 'text')
    play.feed()
    jobs = []
    while not isinstance(job := play.take_perception(), Perceive):
        jobs.append(job)
        play.done(job)
    assert [type(job) for job in jobs] == [Open, Carry, Carry, Carry]
    play.done(job)
    assert isinstance(play.core.next_piece(), Carry)


def test_a_video_that_ends_is_not_relieved():
    play = relayed()
    for _ in range(4):
        step(play, 'text', 'text')
    play.feed(last=True)
    play.rest()
    assert play.of(Restarted) == [] and play.core.at_rest


@pytest.mark.parametrize(('settings', 'words'), [
    (dict(max_steps=4, capacity=4), 'capacity 4 and max_steps 4 must rise'),
    (dict(capacity=4, memory=4), 'memory 4, capacity 4 and max_steps 64 must rise')])
def test_a_relay_that_does_not_fit_is_refused_in_words(models, settings, words):
    with pytest.raises(ValueError, match=words):
        Session(models[1], SessionConfig(**settings))


@pytest.mark.parametrize(('settings', 'found'), [
    (dict(max_steps=48), (40, 16, 48)), (dict(capacity=40), (40, 16, 100)),
    (dict(capacity=200), (200, 80, 240)), (dict(memory=0), (100, 0, 100)),
    (dict(position_encoding='interleaved'), (100, 0, 100)),
    (dict(schedule='offline'), (100, 0, 100))])
def test_what_is_left_out_is_filled_in(models, settings, found):
    checkpoint = random_checkpoint(SMALL, 4, max_steps=100)[1]
    with Session(checkpoint, SessionConfig(**settings)) as session:
        info = session.info
    assert (info['capacity'], info['memory'], info['max_steps']) == found
    words = (f'begins anew after {found[2]} steps' if not info['memory'] else
             f'of {found[0]} steps is relieved by one that begins with the last {found[1]}')
    assert words in info['relay']


@pytest.mark.parametrize(('settings', 'found'), [
    (dict(), (60, 9, 90)), (dict(memory=20), (60, 20, 90)), (dict(memory=0), (90, 0, 90)),
    (dict(max_steps=48), (40, 16, 48)), (dict(capacity=10), (10, 4, 90)),
    (dict(capacity=10, memory=3), (10, 3, 90))])
def test_a_checkpoint_says_when_its_streams_are_relieved(settings, found):
    checkpoint = random_checkpoint(SMALL, 4, max_steps=90, capacity=60, memory=9)[1]
    resolved = SessionConfig(**settings).resolved(checkpoint)
    assert (resolved.capacity, resolved.memory, resolved.max_steps) == found


def test_a_checkpoint_that_says_what_does_not_fit_is_refused_in_words():
    with pytest.raises(ValueError, match='memory 9, capacity 8 and max_steps 90 must rise'):
        random_checkpoint(SMALL, 4, max_steps=90, capacity=8, memory=9)


def test_interleaved_the_video_begins_anew(models):
    config = SessionConfig(position_encoding='interleaved', max_steps=6, max_pending_frames=64)
    with Session(models[1], config) as session:
        events = watch(session, random.Random(2), 8)
    assert [event.reason for event in events if isinstance(event, Restarted)] == ['capacity']


def lanes_of(pid: int) -> tuple[int, int, int]:
    """How many buffers in shared memory a process has mapped, their size, its descriptors."""
    with open(f'/proc/{pid}/maps') as maps:
        spans = [line.split()[0].split('-') for line in maps if 'visual lane' in line]
    size = sum(int(end, 16) - int(begin, 16) for begin, end in spans)
    return len(spans), size, len(os.listdir(f'/proc/{pid}/fd'))


MANY = dict(wait_k=1, max_steps=4, capacity=2, memory=1, max_pending_frames=2000,
            max_answer_tokens=2)


def test_in_processes_two_buffers_are_shared_over_a_thousand_hand_overs(models):
    gc.collect()  # Sessions of other tests may not have been yet.
    before, taken, _ = lanes_of(os.getpid())
    with Session(models[1], SessionConfig(overlap='processes', **MANY)) as session:
        mine, theirs, relays = [], [], 0
        while relays < 1000:
            events = watch(session, None, 600)
            relays += sum(isinstance(event, Restarted) for event in events)
            mine.append(lanes_of(os.getpid()))
            theirs.append(lanes_of(session._runner.pid))
        reserved = session.info['lane_bytes']
    for count, size, _ in (*mine, *theirs):
        # Beside the stream that is spoken of there may be one that is to relieve it.
        assert count - before <= 2 and size - taken <= reserved + 2 * 4096
    assert len({descriptors for _, _, descriptors in mine}) == 1
    assert len(set(theirs)) == 1


def test_in_one_process_two_lanes_are_reserved_for_a_thousand_hand_overs(models, monkeypatch):
    made, reserved = [], Lane.reserve

    def watched(lane, count):
        view = reserved(lane, count)
        if lane.view().margin:
            made.append((view.whole.data_ptr(), view.whole.nbytes))
        return view

    monkeypatch.setattr(Lane, 'reserve', watched)
    with Session(models[1], SessionConfig(overlap='serial', **MANY)) as session:
        # An answer that outlives a stream would keep a third lane.
        events = watch(session, None, 1100, asked=())
        assert sum(size for _, size in set(made)) <= session.info['lane_bytes']
    assert sum(isinstance(event, Restarted) for event in events) >= 1000
    assert len(set(made)) == 2
