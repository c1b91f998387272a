"""One engine, several sessions: words as alone, steps shared, turns fair, trouble kept apart."""

from collections.abc import Iterator
from contextlib import contextmanager
import gc
from operator import attrgetter
from threading import Event, Thread, Timer
import weakref

from core_kit import Play
import numpy as np
import pytest
from session_kit import texts
import torch

from sww_ros import Engine, SessionClosed, SessionConfig
from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.evaluation.simulate import gather
from sww_ros.shapes.score import Score
from sww_ros.shapes.score import play as play_scene
from sww_ros.streaming import executors, rules
from sww_ros.streaming.core import Core
from sww_ros.streaming.decoder import Decoder
from sww_ros.streaming.events import (
    NARRATION,
    FramesDropped,
    Restarted,
    StepPerceived,
    TextDelta,
    Trouble,
)
from sww_ros.streaming.jobs import Carry, Decode, Perceive, Reset
from sww_ros.streaming.kv import SideLane
from sww_ros.streaming.relay import Relay
from sww_ros.streaming.rules import (
    Rota,
    Rule,
    fused,
    generation,
    looked_at,
    one_at_a_time,
    perception,
)
from sww_ros.streaming.session import Loaded, Session
from sww_ros.streaming.stream import Stream
from sww_ros.streaming.trace import replay

OVERLAPS = ('fused', 'threads', 'serial')
SCHEMES = ('gdpe', 'ospe', 'interleaved')
STEPS = 12
SCENES = (*range(50_000, 50_007), 50_008)


@pytest.fixture(scope='module')
def models():
    return random_checkpoint(SMALL, 3, torch.float64, silence_token='<|silence|>', max_steps=100)


@contextmanager
def engine_of(models, overlap: str = 'fused', **settings) -> Iterator[Engine]:
    config = SessionConfig(**{'overlap': overlap, 'max_pending_frames': 200, **settings})
    with Engine(Loaded(models[1], config)) as engine:
        yield engine


def frames(seed: int, steps: int = STEPS) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2 * steps, 56, 56, 3), np.uint8)


def feed_all(sessions: list[Session], steps: int = STEPS) -> None:
    """Feed each session frames of its own, one by one in turn, and wait until all is said."""
    for each in zip(*(frames(seed, steps) for seed in range(len(sessions)))):
        for session, frame in zip(sessions, each):
            session.feed(frame)
    assert all(session.wait_idle(60) for session in sessions)


def feed_at_once(engine: Engine, sessions: list[Session], given: list) -> None:
    """Feed each session frames before a step of any is taken, and wait until all is said."""
    with engine._scheduler.changed:
        for session, own in zip(sessions, given, strict=True):
            for frame in own:
                session.feed(frame)
    assert all(session.wait_idle(60) for session in sessions)


def all_of(sessions: list[Session], kind: type) -> list[list]:
    return [[event for event in session.drain() if isinstance(event, kind)]
            for session in sessions]


@pytest.mark.parametrize('overlap', OVERLAPS)
def test_each_session_says_what_it_says_alone(models, overlap):
    """Whatever the others do meanwhile, questions included; with the same logits."""
    def config(number: int) -> SessionConfig:
        return SessionConfig(
            schedule='wait_k', wait_k=2 + number, position_encoding=SCHEMES[number],
            prompt='?' * (3 + number), record_trace=True, max_pending_frames=200,
            max_answer_tokens=20)

    def told(session: Session, traces: list) -> list[tuple]:
        traces.append(session.trace())
        return [(event.delta, event.seq, event.steps_seen)
                for event in texts(session.drain(), NARRATION)]

    def alone(number: int, traces: list) -> list[tuple]:
        with Session(models[1], config(number)) as session:
            for frame in frames(number):
                session.feed(frame)
            assert session.wait_idle(60)
            return told(session, traces)

    together, apart = [], []
    with engine_of(models, overlap) as engine:
        sessions = [engine.session(config(number)) for number in range(len(SCHEMES))]
        for session in sessions:
            session.drain()
        feed_all(sessions)
        said = [told(session, together) for session in sessions]
        questions = [session.ask('what?') for session in sessions]
        assert all(session.wait_idle(60) for session in sessions)
        answered = [session.trace() for session in sessions]
        assert all(texts(session.drain(), question)[-1].finish_reason in ('stop', 'length')
                   for session, question in zip(sessions, questions))
        assert engine.shared_steps > 0
    # A session that was warmed up has begun anew before, and numbers its text on.
    wanted = [alone(number, apart) for number in range(len(SCHEMES))]
    for mine, theirs in zip(said, wanted, strict=True):
        first = mine[0][1]
        assert [(delta, seq - first, seen) for delta, seq, seen in mine] == theirs
    for mine, theirs in zip(together, apart, strict=True):
        assert (mine.predicted == theirs.predicted).all()
        assert (mine.logits - theirs.logits).abs().max() < 1e-9
    for trace in answered:
        verdict = replay(trace, models[0])
        assert verdict.compared > 2 * STEPS and not verdict.differing
        assert (trace.logits - verdict.logits).abs().max() < 1e-9


def test_lanes_of_several_sessions_are_decoded_in_one_step(models, monkeypatch):
    lanes, honest = [], Decoder.step

    def step(self, chunks):
        lanes.append(sum(chunk.predict for chunk in chunks))
        return honest(self, chunks)

    with engine_of(models, 'fused', wait_k=8) as engine:
        sessions = [engine.session() for _ in range(3)]
        before, shared = engine.decode_steps, engine.shared_steps
        monkeypatch.setattr(Decoder, 'step', step)
        # All is there before anybody may speak, so that all speak at the same time.
        for session in sessions:
            session.ask('what?')
        feed_at_once(engine, sessions, [frames(0, 1)] * 3)
        spoken = sum(session.decode_steps for session in sessions)
        assert max(lanes) == 6, 'three narrations and three answers'
        assert engine.shared_steps > shared
        assert engine.decode_steps - before < spoken


@pytest.mark.parametrize('overlap', OVERLAPS)
def test_what_is_wrong_with_one_is_told_of_that_one_alone(models, monkeypatch, overlap):
    with engine_of(models, overlap) as engine:
        good, bad = engine.session(), engine.session()
        feed_all([good, bad], 2)
        all_of([good, bad], object)
        honest, raised = Decoder.step, []

        def step(self, chunks):
            stream = bad._core.video.work
            if stream and len(raised) < 3 and any(  # More in a row, and it would give up.
                    chunk.lane is stream.narration.cache and chunk.predict for chunk in chunks):
                raised.append(len(chunks))
                raise RuntimeError('no memory')
            return honest(self, chunks)

        monkeypatch.setattr(Decoder, 'step', step)
        feed_all([good, bad])
        monkeypatch.setattr(Decoder, 'step', honest)
        assert [event.message for event in bad.drain() if isinstance(event, Trouble)][0] == (
            'RuntimeError: no memory')
        events = good.drain()
        assert not any(isinstance(event, (Trouble, Restarted, FramesDropped)) for event in events)
        assert sum(isinstance(event, StepPerceived) for event in events) == STEPS
        numbers = [event.seq for event in events if isinstance(event, TextDelta)]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@pytest.mark.parametrize('broken', [False, True])
def test_the_vision_tower_sees_small_steps_in_one_pass(models, monkeypatch, broken):
    """If one of them is not to be seen, the others are seen by themselves."""
    perception, seen = models[1].perception, []
    bad, honest = np.zeros((56, 56, 3), np.uint8), perception.embed
    unseen = perception.patches([bad, bad], 56, 56)

    def embed(patches, height, width):
        seen.append(len(patches) // len(unseen))
        if any(torch.equal(part, unseen) for part in patches.split(len(unseen))):
            raise RuntimeError('no memory')
        return honest(patches, height, width)

    with engine_of(models) as engine:
        sessions = [engine.session() for _ in range(3)]
        feed_all(sessions, 1)
        all_of(sessions, object)
        monkeypatch.setattr(perception, 'embed', embed)
        feed_at_once(engine, sessions, [
            frames(0, 1), [bad, bad] if broken else frames(0, 1), frames(0, 1)])
        monkeypatch.setattr(perception, 'embed', honest)
        assert seen == ([3, 3, 1, 1, 1] if broken else [3]), 'ahead, and once they are taken'
        steps = [sum(isinstance(event, StepPerceived) for event in session.drain())
                 for session in sessions]
        assert steps == [1, not broken, 1]


def test_words_that_several_owe_their_next_streams_go_into_one_pass(models, monkeypatch):
    passes, honest = [], Decoder.step

    def step(self, chunks):
        passes.append([isinstance(chunk.lane, SideLane) and not chunk.predict for chunk in chunks])
        return honest(self, chunks)

    with engine_of(models, capacity=4, memory=2, max_steps=8) as engine:
        sessions = [engine.session() for _ in range(3)]
        all_of(sessions, object)
        monkeypatch.setattr(Decoder, 'step', step)
        for pair in np.split(frames(0), STEPS):
            feed_at_once(engine, sessions, [pair] * 3)
        assert all(sum(isinstance(event, Restarted) for event in told) > 1
                   for told in all_of(sessions, object))
    before = [each for each in passes if all(each)]
    assert max(map(len, before)) == 3


@pytest.mark.parametrize('broken', [False, True])
@pytest.mark.parametrize('overlap', OVERLAPS)
def test_pieces_of_the_next_streams_of_several_go_into_one_pass(
        models, monkeypatch, overlap, broken):
    """Each is what the stock model makes of it; what is wrong with one is told of that alone."""
    pieces, honest, kept_chunk = [], executors.run_together, Stream.kept_chunk
    config = dict(record_trace=True, capacity=4, memory=2, max_steps=8)

    def run(parts):
        pieces.append(sum(isinstance(job, Carry) for _, jobs in parts for job in jobs))
        return honest(parts)

    with engine_of(models, overlap, **config) as engine:
        sessions = [engine.session() for _ in range(3)]
        all_of(sessions, object)

        def chunk_of(stream, step):
            bad = sessions[1]._core.video.successor
            if broken and bad and stream is bad.work:
                raise RuntimeError('no memory')
            return kept_chunk(stream, step)

        monkeypatch.setattr(executors, 'run_together', run)
        monkeypatch.setattr(Stream, 'kept_chunk', chunk_of)
        feed_at_once(engine, sessions, [frames(number) for number in range(3)])
        assert max(pieces) == 3
        for number, session in enumerate(sessions):
            told = session.drain()
            reasons = {event.reason for event in told if isinstance(event, Restarted)}
            assert sum(isinstance(event, StepPerceived) for event in told) == STEPS
            assert any(isinstance(event, Trouble) for event in told) == (broken and number == 1)
            assert ('relay' in reasons) != (broken and number == 1)
            traces, compared = session.traces(), 0
            assert len(traces) > 1 or (broken and number == 1)
            for trace in traces:
                verdict = replay(trace, models[0])
                compared += verdict.compared
                assert not verdict.differing
                if verdict.compared:
                    assert (trace.logits - verdict.logits).abs().max() < 1e-9
            assert compared >= STEPS


@pytest.mark.parametrize('overlap', OVERLAPS)
def test_what_comes_while_pixels_are_made_goes_into_the_same_pass(models, monkeypatch, overlap):
    perception, waiting, seen = models[1].perception, [], []
    cut, embed = perception.patches, perception.embed

    def patches(given, *size):
        if waiting:
            feeder = Thread(target=lambda late: [second.feed(frame) for frame in late],
                            args=[waiting.pop()])
            feeder.start()
            feeder.join(30)
            assert not feeder.is_alive(), 'nobody is kept from feeding'
        return cut(given, *size)

    def counted(given, *size):
        seen.append(len(given) // len(cut(frames(0, 1), *size)))
        return embed(given, *size)

    with engine_of(models, overlap) as engine:
        first, second = engine.session(), engine.session()
        feed_all([first, second], 1)
        monkeypatch.setattr(perception, 'patches', patches)
        monkeypatch.setattr(perception, 'embed', counted)
        waiting.append(frames(1, 1))
        for frame in frames(0, 1):
            first.feed(frame)
        assert first.wait_idle(60) and second.wait_idle(60)
        assert seen == [2]


def passes_of(monkeypatch) -> list[int]:
    """Return how many sessions each pass of several will have had."""
    parts, honest = [], executors.run_together
    monkeypatch.setattr(executors, 'run_together',
                        lambda each: parts.append(len(each)) or honest(each))
    return parts


def test_what_comes_while_the_vision_tower_sees_goes_into_the_same_pass(models, monkeypatch):
    perception, waiting, works = models[1].perception, [], []
    embed = perception.embed

    def embedded(*given):
        if waiting:
            works.append(engine._scheduler.work[0])
            for frame in waiting.pop():
                second.feed(frame)
        return embed(*given)

    with engine_of(models) as engine:
        first, second = engine.session(), engine.session()
        feed_all([first, second], 1)
        monkeypatch.setattr(perception, 'embed', embedded)
        parts = passes_of(monkeypatch)
        waiting.append(frames(1, 1))
        feed_at_once(engine, [first], [frames(0, 1)])
        assert second.wait_idle(60)
        assert parts[0] == 2
        assert works == ['perceive'], 'whoever looks for what hangs can tell'


def test_who_waits_for_the_interpreter_is_let_in_before_a_step_is_taken(models, monkeypatch):
    perception, cut = models[1].perception, models[1].perception.patches
    monkeypatch.setattr(executors, 'LET_IN_S', 0.5)
    feeders = []

    def patches(*given):
        if not feeders:
            feeders.append(Timer(0.05, lambda: [second.feed(frame) for frame in frames(1, 1)]))
            feeders[0].start()
        return cut(*given)

    with engine_of(models) as engine:
        first, second = engine.session(), engine.session()
        feed_all([first, second], 1)
        monkeypatch.setattr(perception, 'patches', patches)
        parts = passes_of(monkeypatch)
        feed_at_once(engine, [first], [frames(0, 1)])
        feeders[0].join()
        assert second.wait_idle(60)
        assert parts[0] == 2


def test_pixels_that_cannot_be_made_are_told_of_one_alone(models, monkeypatch):
    perception, honest, bad = models[1].perception, models[1].perception.patches, frames(7, 1)[0]

    def patches(given, *size):
        if any(frame is bad for frame in given):
            raise RuntimeError('no memory')
        return honest(given, *size)

    with engine_of(models) as engine:
        sessions = [engine.session() for _ in range(3)]
        feed_all(sessions, 1)
        all_of(sessions, object)
        monkeypatch.setattr(perception, 'patches', patches)
        feed_at_once(engine, sessions, [frames(0, 1), [bad, bad], frames(0, 1)])
        told = all_of(sessions, object)
        assert [sum(isinstance(event, StepPerceived) for event in each) for each in told] == [
            1, 0, 1]
        assert [[event.message for event in each if isinstance(event, Trouble)]
                for each in told] == [[], ['RuntimeError: no memory'], []]


def test_one_that_gives_up_is_closed_alone(models, monkeypatch):
    with engine_of(models) as engine:
        good, bad = engine.session(), engine.session()
        monkeypatch.setattr(bad._runner, 'begin', lambda jobs: 1 / 0)
        monkeypatch.setattr(bad._runner, 'prepare', lambda jobs: 1 / 0)
        bad.reset()
        assert bad.wait_idle(60)
        with pytest.raises(SessionClosed, match='division by zero'):
            bad.ask('what?')
        feed_all([good], 2)
        assert sum(isinstance(event, StepPerceived) for event in good.drain()) == 2
        assert engine.session().info['overlap'] == 'fused'


def test_closing_one_leaves_no_gap_in_the_others_and_nothing_of_itself(models):
    with engine_of(models) as engine:
        stays, goes = engine.session(), engine.session()
        stays.drain()
        feed_all([stays, goes], 2)
        goes.ask('what?')
        goes.close()
        assert texts(list(goes.events()), 'q1')[-1].final
        feed_all([stays], 2)
        numbers = [event.seq for event in texts(stays.drain(), NARRATION)]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) and len(numbers) > 4
        gone = weakref.ref(goes)
        del goes
        gc.collect()
        assert gone() is None
        assert engine._scheduler._turns.cores == [stays._core]


def test_closing_waits_for_what_is_computed(models, monkeypatch):
    begun, goes_on, order, honest = Event(), Event(), [], Decoder.step

    def step(self, chunks):
        begun.set()
        assert goes_on.wait(30)
        order.append('computed')
        return honest(self, chunks)

    with engine_of(models) as engine:
        session = engine.session()
        monkeypatch.setattr(Decoder, 'step', step)
        for frame in frames(0, 1):
            session.feed(frame)
        assert begun.wait(30)
        closing = Thread(target=lambda: (session.close(), order.append('closed')))
        closing.start()
        assert session.poll(30) == FramesDropped('closed', 2)  # Nothing is to be told any more.
        goes_on.set()
        closing.join()
        assert order == ['computed', 'closed']


def test_what_is_set_for_all_cannot_be_set_for_one(models):
    with engine_of(models, prompt='Look.') as engine:
        assert engine.session().info['prompt'] == 'Look.'
        own = engine.session(SessionConfig(prompt='Tell.', wait_k=1))
        assert (own.info['prompt'], own.info['wait_k'], own.info['overlap']) == (
            'Tell.', 1, 'fused')
        with pytest.raises(ValueError, match="overlap is 'fused' for all sessions of this engine, "
                                             "and cannot be 'serial' for one"):
            engine.session(SessionConfig(overlap='serial'))
        with pytest.raises(ValueError, match='threads is 0 for all'):
            engine.session(SessionConfig(threads=2))
        with pytest.raises(ValueError, match='given together'):
            engine.session(SessionConfig(frame_width=56))
        feed_all([own], 1)
    with pytest.raises(SessionClosed, match='the engine is closed'):
        engine.session()
    with pytest.raises(SessionClosed, match='the session is closed'):
        own.ask('what?')
    with pytest.raises(ValueError, match='perceives for one session alone'):
        Engine.open(config=SessionConfig(overlap='processes'))


@pytest.fixture(scope='module')
def alone() -> dict[int, Score]:
    """What is said of scenes by a session that has an engine for itself."""
    scores = {seed: Score() for seed in SCENES}
    with Session.open(config=SessionConfig(overlap='fused')) as session:
        for seed, score in scores.items():
            play_scene(session, seed, 2, score)
    return scores


@pytest.mark.parametrize('cameras', [2, 4, 8])
def test_cameras_each_tell_their_own_scene(alone, cameras):
    scores = {seed: Score() for seed in SCENES[:cameras]}
    with Engine.open(config=SessionConfig(overlap='fused')) as engine:
        players = [Thread(target=play_scene, args=(engine.session(), seed, 2, score))
                   for seed, score in scores.items()]
        for player in players:
            player.start()
        for player in players:
            player.join()
        assert engine.shared_steps > 0
    for seed, score in scores.items():
        assert score.table()['summary']['facts_true'] >= 0.97
        assert score.seeds == alone[seed].seeds


def done_by_turns(turns: Rota, plays: list[Play], rule: Rule) -> list[tuple[Core, type]]:
    """Take and do one pass; return whose jobs of which kinds were in it."""
    handed = turns.take(rule, 0)
    for core, job in handed:
        next(play for play in plays if play.core is core).done(job)
    return [(core, type(job)) for core, job in handed]


def test_steps_are_perceived_in_turn_whoever_has_more_of_them():
    plays = [Play() for _ in range(3)]
    turns = Rota(play.core for play in plays)
    for play in plays:
        play.perceive()
    for play, frames_fed in zip(plays, (12, 6, 4)):
        play.feed(frames_fed)
    order = [done_by_turns(turns, plays, perception) for _ in range(11)]
    numbers = [[play.core for play in plays].index(core) for (core, _), in order]
    assert numbers == [0, 1, 2, 0, 1, 2, 0, 1, 0, 0, 0]


@pytest.mark.parametrize('rule', [perception, one_at_a_time, fused])
def test_small_steps_that_wait_go_into_one_pass(rule):
    """So many as have little more than the tokens of one; of whose size is not known, one."""
    plays = [Play(narrate=False) for _ in range(4)]
    turns = Rota(play.core for play in plays)

    def passes(tokens: int) -> list[int]:
        for play in plays:
            play.tokens = tokens
            play.feed()
        found = []
        while done := done_by_turns(turns, plays, rule):
            found.append(sum(kind is Perceive for _, kind in done))
        return found

    assert passes(64) == [0] * 4 + [1] * 4, 'prefixes first, and then nothing is known'
    assert passes(65) == [2, 2]
    assert passes(32) == [1] * 4
    assert passes(32) == [4]
    plays[2].tell(Reset())
    assert passes(32) == [2, 0, 1, 1], 'nobody is passed over'


@pytest.mark.parametrize('rule', [perception, one_at_a_time, fused])
def test_pieces_of_several_streams_that_come_next_go_into_one_pass(rule):
    plays = [Play(narrate=False, relay=Relay(3, 2, 6)) for _ in range(4)]
    turns = Rota(play.core for play in plays)

    def passes(steps: int, tokens: int) -> list[int]:
        for play in plays:
            play.tokens = tokens
            for _ in range(steps):
                play.feed()
                play.perceive()
        found = []
        while done := done_by_turns(turns, plays, rule):
            found.append(sum(kind is Carry for _, kind in done))
        return found

    assert passes(3, 32) == [0] * 4 + [4, 4], 'a prefix has a pass of its own'
    assert passes(2, 64) == [0] * 4 + [2, 2, 2, 2]


def test_a_token_of_others_rides_on_the_pass_of_a_piece():
    carries, speaks, sees = (Play(relay=Relay(3, 2, 6)) for _ in range(3))
    for play, steps in ((carries, 3), (speaks, 1), (sees, 1)):
        play.tokens = 9
        play.feed(2 * steps)
        play.perceive()
    carries.done(carries.core.next_piece())
    for play in (carries, sees):
        play.speak()
        play.feed()
    carries.ask()
    handed = fused([play.core for play in (carries, speaks, sees)], 0)
    assert [(core, type(job)) for core, job in handed] == [
        (carries.core, Carry), (sees.core, Perceive), (speaks.core, Decode), (sees.core, Decode)]
    assert handed[3][1].riding is handed[1][1] and handed[2][1].riding is None


@pytest.mark.parametrize('rule', [perception, one_at_a_time, fused])
def test_pixels_are_made_of_those_steps_that_the_next_pass_takes(rule):
    plays = [Play(narrate=False) for _ in range(4)]
    cores = [play.core for play in plays]

    def looked(tokens: int) -> list[int]:
        for play in plays:
            play.tokens = tokens
            play.feed()
            play.perceive()  # Of steps to come the size is known then.
        for play in plays[1:]:
            play.feed()
        found = [cores.index(core) for core in looked_at(rule, cores)]
        handed = rule(cores, 0)
        assert found == [cores.index(core) for core, _ in handed]
        for core, job in handed:
            plays[cores.index(core)].done(job)
        for play in plays:
            play.tell(Reset())
        return found

    assert looked(32) == [1, 2, 3]
    assert looked(50) == [1, 2]
    assert looked(128) == [1]
    for play in plays:
        play.perceive()
        play.feed()
    assert looked_at(rule, cores) == [], 'of a first step the size is not known'
    plays[0].tokens = 9
    plays[0].perceive()
    plays[0].feed()
    assert looked_at(generation, cores) == []


def test_a_step_that_the_next_frame_may_have_dropped_is_not_looked_at():
    play = Play(narrate=False, max_pending_frames=4)
    play.tokens = 9
    for _ in range(2):
        play.feed()
        play.perceive()
    play.feed(3)
    assert looked_at(fused, [play.core]) == [play.core]
    play.feed(1)
    assert looked_at(fused, [play.core]) == []
    assert play.core.tokens_due == 9


@pytest.mark.parametrize('rule', [one_at_a_time, fused])
def test_a_camera_of_which_nothing_is_said_does_not_wait_for_the_words_of_another(rule):
    silent, talker = Play(narrate=False), Play(max_answer_tokens=1000)
    turns = Rota([silent.core, talker.core])
    for play in (silent, talker):
        play.perceive()
        play.feed()
        play.perceive()
    talker.ask()
    silent.feed(12)
    for _ in range(12):
        done_by_turns(turns, [silent, talker], rule)
    assert len(silent.steps()) == 7


def test_cores_that_share_an_executor_keep_all_that_one_alone_keeps():
    found = {seed: broken for seed in range(400) if (broken := gather(seed).violations)}
    assert not found
    assert sum(gather(seed).shared_steps for seed in range(40)) > 100


def _first_step(cores):
    taken = ((core, core.next_perception()) for core in cores)
    return next(([each] for each in taken if each[1]), [])


def _pieces_first(cores, steps=rules._steps):
    return rules._together(cores, attrgetter('piece_tokens'), Core.next_piece) or steps(cores)


@pytest.mark.parametrize('where, member, wrong, words', [
    (Rota, 'take', lambda self, rule, now_ns: rule(self.cores, now_ns), 'waits for a second job'),
    (rules, '_steps', _first_step, 'there is room in the pass'),
    (rules, '_steps', _pieces_first, 'has no step itself')])
def test_unfair_turns_are_found(monkeypatch, where, member, wrong, words):
    monkeypatch.setattr(where, member, wrong)
    assert any(words in broken for seed in range(100) for broken in gather(seed).violations)
