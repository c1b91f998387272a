"""When a narration speaks that was never taught silence: a sentence once there is news."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
import json
import math
from pathlib import Path
import random

from core_kit import Play
import numpy as np
import pytest
import torch

from experiments import gates, lora
from experiments.paper import interval
from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.models.qwen2_5_vl.turns import PROFILES
from sww_ros.shapes.truth import Utterance
from sww_ros.streaming import perception
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.decoder import Chunk
from sww_ros.streaming.events import (
    FirstSight,
    Restarted,
    StepPerceived,
    TextDelta,
    Trouble,
)
from sww_ros.streaming.gate import (
    GATES,
    LONGEST,
    AlwaysGate,
    ChangedGate,
    NewsGate,
    SurprisedGate,
    Weighed,
    WeighingGate,
)
from sww_ros.streaming.generation import TextLane
from sww_ros.streaming.jobs import Again, Decoded, Spoken
from sww_ros.streaming.runner import ModelRunner
from sww_ros.streaming.session import Session


def spoken(text: str) -> Iterator[Spoken]:
    """A sentence letter by letter; one that ends with '|' ends by the end of its turn."""
    for index, letter in enumerate(text, 1):
        if letter == '|':
            yield Spoken('stop', sentence=text[:-1], token=0)
        elif letter == '.':
            yield Spoken('text', letter, text, token=ord(letter))
        else:
            yield Spoken('text', letter, unfinished=text[:index], token=ord(letter))


def said(gate: NewsGate, text: str) -> tuple[str, list[str]]:
    """Have a sentence said; return the text that is told, and the sentences."""
    told = [gate.said(each) for each in spoken(text)]
    return ''.join(delta for delta, _ in told), [sentence for _, sentence in told if sentence]


def weigh(gate: NewsGate, ends: float) -> None:
    """Weigh what was said, where it ends with this probability."""
    gate.weighed(gate.weighs, -math.log(ends))


# What is news.

def test_what_was_said_is_weighed_with_each_step_and_goes_on_where_it_would_not_end():
    gate = SurprisedGate()
    gate.stepped(0.0)
    assert not gate.awake and gate.weighs == ((), 1), 'nothing was said yet'
    weigh(gate, 0.9)
    assert not gate.awake and gate.weighs is None
    gate.stepped(0.0)
    weigh(gate, 1e-4)
    assert gate.awake and gate.weighs is None
    said(gate, 'ab.')
    assert not gate.awake and gate.weighs == (tuple(map(ord, 'ab.')), 2), 'is there more?'
    weigh(gate, 1e-4)
    said(gate, 'cd.')
    assert gate.weighs == (tuple(map(ord, 'ab.cd.')), 2)
    weigh(gate, 0.3)
    assert not gate.awake and gate.weighs is None


def test_a_step_that_comes_while_an_older_one_is_weighed_is_weighed_too():
    gate = SurprisedGate()
    gate.stepped(0.0)
    older = gate.weighs
    gate.stepped(0.0)
    gate.weighed(older, 0.1)
    assert gate.weighs.step == 2
    gate.weighed(older, 9.0)
    assert gate.awake and gate.weighs is None, 'what was news is so still'


def test_a_surprise_that_grows_slowly_is_no_news_and_one_that_jumps_is():
    gate = SurprisedGate()
    for number in range(60):
        gate.stepped(0.0)
        gate.weighed(gate.weighs, number / 10)
        assert not gate.awake, 'as of a scene that stands still'
    gate.stepped(0.0)
    gate.weighed(gate.weighs, 9.0)
    assert gate.awake


def test_nothing_is_weighed_while_a_sentence_is_said():
    gate = SurprisedGate()
    gate.stepped(0.0)
    weigh(gate, 1e-4)
    gate.said(next(spoken('ab.')))
    gate.stepped(0.0)
    assert gate.awake and gate.weighs is None


def test_of_a_long_story_only_the_end_is_weighed():
    gate = SurprisedGate()
    gate.stepped(0.0)
    weigh(gate, 1e-4)
    said(gate, 'a' * 2 * LONGEST + '.')
    assert gate.weighs.tokens == tuple(map(ord, 'a' * (LONGEST - 1) + '.'))


def test_a_scene_that_stands_still_is_not_weighed_whatever_noise_there_is():
    gate, chance = ChangedGate(), random.Random(1)
    gate.stepped(1.0)
    weigh(gate, 0.9)
    for _ in range(500):
        gate.stepped(chance.random() * ChangedGate.LEAST)
        assert gate.weighs is None
    gate.stepped(0.1)
    assert gate.weighs


def test_who_always_speaks_says_a_sentence_of_each_step_and_says_it_again():
    gate = AlwaysGate()
    for _ in range(3):
        gate.stepped(0.0)
        assert gate.awake
        assert said(gate, 'a.') == ('a.', ['a.'])
        assert not gate.awake


# What is said of it.

def test_the_same_sentence_again_is_silence():
    gate = NewsGate()
    gate.open()
    assert said(gate, 'a red one.') == ('a red one.', ['a red one.'])
    gate.open()
    assert said(gate, 'a red one.') == ('', []) and not gate.awake


def test_what_begins_like_the_last_sentence_is_told_once_it_differs():
    gate = NewsGate()
    gate.open()
    said(gate, 'a red one.')
    gate.open()
    told = [gate.said(each)[0] for each in spoken('a rim.')]
    assert told == ['', '', '', 'a ri', 'm', '.']
    gate.open()
    for each in [*spoken('a rim.')][:3]:
        assert gate.said(each) == ('', '')
    assert gate.let_go() == 'a r' and gate.let_go() == '', 'where no more is said'


def test_news_during_a_sentence_has_another_one_said():
    gate = NewsGate()
    gate.open()
    letters = [*spoken('a.')]
    gate.open()
    gate.said(letters[0])
    gate.open()
    gate.said(letters[1])
    assert gate.awake, 'the sentence had begun'
    said(gate, 'b.')
    assert not gate.awake


def test_a_sentence_is_over_with_its_turn():
    gate = NewsGate()
    gate.open()
    assert said(gate, 'a|') == ('a', ['a']) and not gate.awake
    gate.open()
    gate.said(Spoken('stop'))
    assert not gate.awake


# In the core.

def step(play: Play, changed: float, text: str = '', last: bool = False) -> list[str]:
    """Have a step perceived, and all said that may be; return what is told of the narration."""
    begun, play.changed, letters = len(play.events), changed, [*spoken(text)]
    play.feed(last=last)
    play.perceive()
    while job := play.take_decode():
        given = tuple(letters.pop(0) for _ in job.turns)
        play.tell(Decoded(job, given, surprise=9.0 * bool(letters)))
    assert not letters, 'not all was asked for'
    return [event.sentence or event.finish_reason for event in play.events[begun:]
            if isinstance(event, TextDelta) and (event.sentence or event.final)]


def test_between_two_pieces_of_news_steps_are_perceived_and_nothing_is_said():
    play = Play(speak='changed')
    assert step(play, 1.0, 'a.') == ['a.']
    for _ in range(5):
        assert step(play, 0.0) == [] and play.core.at_rest
    assert step(play, 0.5, 'b.') == ['b.']
    assert len(play.of(StepPerceived)) == 7
    assert [event.index for event in play.of(FirstSight)] == [0, 6], 'nobody is late with the rest'


@pytest.mark.parametrize('speak', ['always', 'changed', 'surprised'])
def test_a_video_that_ends_is_over_and_the_next_one_begins(speak):
    play = Play(speak=speak)
    assert step(play, 1.0, 'a.') == ['a.']
    assert step(play, 0.0, 'b.' if speak == 'always' else '', last=True)[-1] in ('b.', 'stop')
    assert play.finals() == ['stop']
    assert step(play, 1.0, 'b.') == ['b.']
    assert play.of(Restarted)[-1].video == 1


def test_what_is_left_of_a_step_says_more_of_it():
    play = Play(speak='surprised', wait_k=4)
    assert step(play, 0.0, 'a.') == ['a.']
    assert play.core.video.budget.left == 0, 'nothing more was to be said'
    play.feed()
    play.perceive()
    for text in ('b.', 'c.'):
        play.tell(Decoded(play.take_decode(), (), surprise=9.0))
        for each in spoken(text):
            play.tell(Decoded(play.take_decode(), (each,)))
    assert play.core.video.budget.left == 0


def test_what_was_said_is_weighed_beside_an_answer():
    play = Play(speak='surprised')
    assert step(play, 0.0, 'a.') == ['a.']
    play.ask('q', head=())
    play.feed()
    play.perceive()
    job = play.take_decode()
    assert [turn.question.question_id for turn in job.turns] == ['q']
    assert job.again == Again(play.core.video, (tuple(map(ord, 'a.')), 2), 2)
    play.tell(Decoded(job, (Spoken('stop'),), surprise=1.5))
    assert play.core.at_rest
    play.feed()
    play.perceive()
    play.tell(Decoded(play.take_decode(), (), surprise=9.0))
    assert play.take_decode().turns[0].question is None


def test_a_weight_that_cannot_be_had_begins_the_video_anew():
    play = Play(speak='surprised')
    step(play, 0.0, 'a.')
    play.feed()
    play.perceive()
    play.fail(play.take_decode())
    assert [type(event) for event in play.events[-3:]] == [Trouble, TextDelta, Restarted]


def test_a_pause_lets_nothing_be_weighed():
    from sww_ros.streaming.jobs import Paused
    play = Play(speak='surprised')
    step(play, 0.0, 'a.')
    play.feed()
    play.perceive()
    play.tell(Paused(True))
    assert play.take_decode() is None and play.core.at_rest
    play.tell(Paused(False))
    assert play.take_decode().again


def test_a_gate_goes_with_the_live_schedule_alone():
    with pytest.raises(ValueError, match="speak 'changed' says itself when to speak: it needs the "
                       'schedule live, not wait_k'):
        SessionConfig(speak='changed', schedule='wait_k')


# With a model.

def test_who_was_trained_to_be_silent_in_turns_needs_no_gate(models):
    asked = replace(models[1], profile=PROFILES['mmduet2'], asked='mmduet2')
    with pytest.raises(ValueError, match='mmduet2 was trained to say when it is silent: set speak'):
        SessionConfig(speak='changed', position_encoding='interleaved').resolved(asked)


@pytest.fixture(scope='module')
def models():
    return random_checkpoint(SMALL, 3, max_steps=64)


@pytest.fixture
def talkative(models, monkeypatch):
    """Have every sentence be 'a.', 'b.', …, as a checkpoint without silence would go on."""
    letters = [models[1].encode(letter)[0] for letter in 'abcdefgh']
    dot = models[1].encode('.')[0]

    said = count()

    def choose(self: TextLane, logits: torch.Tensor, silence: int,
               without: Sequence[int]) -> int:
        number = next(said)
        token = dot if number % 2 else letters[number // 2]
        self._take(token)
        return token

    monkeypatch.setattr(TextLane, 'choose', choose)


@pytest.fixture
def brief(monkeypatch):
    """Have each step be worth one sentence, as far as it is weighed."""
    told: set[int] = set()

    def weigh(gate: WeighingGate, said: Weighed, surprise: float) -> None:
        honest(gate, said, 9.0 * (said.step not in told))
        told.add(said.step)

    honest = WeighingGate.weighed
    monkeypatch.setattr(WeighingGate, 'weighed', weigh)


def see(session: Session, frames: np.ndarray, steps: int) -> list[str]:
    for _ in range(steps):
        for frame in frames:
            session.feed(frame)
        assert session.wait_idle(60)
    events = [*session.drain()]
    assert not [event for event in events if isinstance(event, Trouble)]
    assert sum(isinstance(event, StepPerceived) for event in events) == steps
    return [event.sentence for event in events if isinstance(event, TextDelta) and event.sentence]


@pytest.mark.parametrize('scheme', ['gdpe', 'interleaved'])
@pytest.mark.parametrize('overlap', ['serial', 'fused', 'threads', 'processes'])
def test_only_what_changes_is_told_of(models, talkative, brief, monkeypatch, overlap, scheme):
    monkeypatch.setattr(perception, 'CHANGED', 0.9999)  # Untrained towers tell little apart.
    chance = np.random.default_rng(5)
    still, other = chance.integers(0, 256, (2, 2, 56, 56, 3), np.uint8)
    config = SessionConfig(speak='changed', overlap=overlap, position_encoding=scheme,
                           capacity=8, memory=3)
    with Session(models[1], config) as session:
        assert see(session, still, 12) == ['a.'], 'over a hand-over too'
        assert see(session, other, 1) == ['b.']
        assert see(session, other, 3) == []


@pytest.mark.parametrize('scheme', ['gdpe', 'ospe', 'interleaved'])
def test_a_weight_is_that_of_the_tokens_one_by_one(models, monkeypatch, scheme):
    """In the lane of another speaker, who sees so many steps."""
    checkpoint = models[1]
    tokens = tuple(checkpoint.encode('a blue one. a red one.'))
    seen: list[tuple[Again, float]] = []
    honest = ModelRunner._speaking

    def note(self, job):
        prepared = yield from honest(self, job)

        def finish(logits):
            done = prepared.finish(logits)
            if job.again:
                seen.append((job.again, done[0].surprise))
            return done
        return prepared._replace(finish=finish)

    monkeypatch.setattr(ModelRunner, '_speaking', note)
    monkeypatch.setattr(SurprisedGate, 'weighed', lambda gate, *_: setattr(gate, 'weighs', None))
    monkeypatch.setattr(SurprisedGate, 'stepped', lambda gate, changed: setattr(
        gate, 'weighs', Weighed(tokens, 0)))
    with Session(checkpoint, SessionConfig(position_encoding=scheme, speak='surprised')) as session:
        see(session, np.random.default_rng(6).integers(0, 256, (2, 56, 56, 3), np.uint8), 3)
        for again, surprise in seen:
            assert surprise == pytest.approx(one_by_one(checkpoint, again), rel=3e-5)
    assert [again.sees for again, _ in seen] == [1, 2, 3]


def one_by_one(checkpoint, again: Again) -> float:
    stream, decoder = again.video.work, checkpoint.decoder
    track, lane = stream.timeline.answer(again.sees), decoder.new_lane(8)
    view = stream.lane.view()._replace(length=stream.ends[again.sees - 1])
    for token in (*checkpoint.encode(checkpoint.turns.assistant), *again.said.tokens):
        logits, = decoder.step([Chunk(
            lane, decoder.embed([token]), torch.from_numpy(track.place(1, 1)), view,
            predict=True)])
    quiet = {*checkpoint.vocabulary.stop, checkpoint.vocabulary.silence} - {-1}
    return -math.log(sum(float(logits.softmax(-1)[token]) for token in quiet))


@pytest.mark.parametrize('speak, says', [('always', 'ab'), ('trained', '')])
def test_who_is_to_speak_does_not_end_the_turn_instead(models, monkeypatch, speak, says):
    """Whether there is something to say its gate has said."""
    checkpoint, honest = models[1], TextLane.choose
    letters = [checkpoint.encode(letter)[0] for letter in 'ab']
    stop, = checkpoint.vocabulary.stop

    def choose(self, logits, *of):
        logits = torch.full_like(logits, -1.0)
        logits[letters[self.spoken % 2]], logits[stop] = 1.0, 2.0 if not self.spoken % 2 else 0.0
        return honest(self, logits, *of)

    monkeypatch.setattr(TextLane, 'choose', choose)
    with Session(checkpoint, SessionConfig(speak=speak, wait_k=2)) as session:
        for frame in np.zeros((2, 56, 56, 3), np.uint8):
            session.feed(frame)
        assert session.wait_idle(60)
        told = [event.delta for event in session.drain() if isinstance(event, TextDelta)]
    assert ''.join(told) == says


def test_a_weight_that_is_no_number_is_told_of(models, monkeypatch):
    honest = ModelRunner._chunk_again
    monkeypatch.setattr(ModelRunner, '_chunk_again', lambda self, again: replace(
        honest(self, again), embeds=honest(self, again).embeds * math.nan))
    with Session(models[1], SessionConfig(speak='surprised')) as session:
        for frame in np.zeros((2, 56, 56, 3), np.uint8):
            session.feed(frame)
        assert session.wait_idle(60)
        troubles = [event.message for event in session.drain() if isinstance(event, Trouble)]
    assert troubles and 'no finite numbers (nan)' in troubles[0]


# As it is measured.

def test_gates_are_scored_by_what_is_true_told_again_and_needless(monkeypatch):
    monkeypatch.setattr(gates, 'STILL_SCENES', 1)
    found = gates.score(Path('builtin'), 'surprised', [1000])
    assert found['scenes'] == 1 and found['facts_true'] == found['grammatical'] == 1.0
    assert found['repeated'] == found['needless_a_minute'] == 0.0


def test_a_true_sentence_that_is_said_again_is_a_repetition():
    tally, clip = gates.GateScore(), gates.ShapesClip.of(1000)
    fact = clip.film.scene.facts[0]
    told = [Utterance(fact.claim.sentence, step, step) for step in (4, 5)]
    tally.add(clip, [*told, Utterance('Nothing of that kind.', 6, 6)])
    assert (tally.verdict.sentences, tally.verdict.true, tally.again) == (3, 1, 1)


def test_docs_have_the_figures_of_the_seeds():
    root = Path(__file__).parents[1]
    result = json.loads((root / 'docs/models/gates.json').read_text())
    assert [*result['summary']] == [*GATES] and [*result['schemes']] == [*gates.OTHER_SCHEMES]
    for figures in (*result['summary'].values(), *result['schemes'].values()):
        for figure in figures.values():
            assert len(figure['values']) == result['seeds']
            assert figure == interval(figure['values'])
    words = (root / 'docs/models.md').read_text()
    assert gates.described(result['summary']) in words
    assert gates.described(result['schemes'], 'position_encoding') in words


def test_docs_have_what_lora_gives_back():
    root = Path(__file__).parents[1]
    result = json.loads((root / 'docs/models/lora.json').read_text())
    assert [*result['summary']] == [*lora.SCHEMES]
    for ways in result['summary'].values():
        for figure in (figure for way in ways.values() for figure in way.values()):
            assert len(figure['values']) == len(result['seeds'])
            assert figure == interval(figure['values'])
    assert lora.described(result['summary']) in (root / 'docs/models.md').read_text()
