"""The shapes world: seeded scenes, pictures, facts, questions, and a narration judged by them."""

from pathlib import Path
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from sww_ros.shapes.checkpoint import build_tokenizer, conversation, sentences
from sww_ros.shapes.grammar import (
    KINDS,
    QUESTION_KINDS,
    Claim,
    make_question,
    parse,
    true_answer,
)
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import PRESETS, TICK_S, Difficulty, generate, newest_frame_s
from sww_ros.shapes.truth import (
    Utterance,
    facts_by_step,
    judge,
    standing_questions,
    utterances,
    wanted,
)
from sww_ros.streaming.events import NARRATION, TextDelta

ROOT = Path(__file__).resolve().parents[1]


def test_a_seed_is_a_scene():
    assert generate(5).facts == generate(5).facts
    assert generate(5).facts != generate(6).facts


def test_all_kinds_of_facts_happen():
    seen = {fact.claim.kind for seed in range(200) for fact in generate(seed).facts}
    assert seen == set(KINDS)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), objects=st.integers(1, 4))
def test_scenes_keep_their_promises(seed, objects):
    scene = generate(seed, 20.0, max_objects=objects)
    for tick in range(int(scene.seconds / TICK_S)):
        inside = [t for t in scene.tracks
                  if not np.isnan(t.xy[tick, 0]) and ((t.xy[tick] >= 0) & (t.xy[tick] <= 1)).all()]
        assert len(inside) <= objects
        colors = [t.color[tick] for t in inside]
        assert len(set(colors)) == len(colors), 'a color names one shape'
        for i, one in enumerate(inside):
            for other in inside[i + 1:]:
                gap = np.hypot(*(one.xy[tick] - other.xy[tick]))
                assert gap > 0.85 * (one.radius + other.radius), 'shapes touch, never overlap'
    visible = [fact.visible_s for fact in scene.facts]
    assert visible == sorted(visible)
    assert all(fact.visible_s >= fact.event_s for fact in scene.facts)


def test_moving_and_resting_facts_agree_with_the_tracks():
    for seed in range(40):
        scene = generate(seed)
        for fact in scene.facts:
            tick = round(fact.event_s / TICK_S)
            xy = scene.tracks[fact.object_id].xy
            if tick + 1 >= len(xy) or np.isnan(xy[tick + 1, 0]):
                continue
            dx, dy = xy[tick + 1] - xy[tick]
            if fact.claim.kind in ('moves', 'turns'):
                way = {'left': dx < 0, 'right': dx > 0, 'up': dy < 0, 'down': dy > 0}
                assert way[fact.claim.argument]
            elif fact.claim.kind in ('stops', 'hits'):
                assert (dx, dy) == (0, 0)


@pytest.mark.parametrize('width, height', [(84, 84), (320, 240), (33, 90)])
def test_pictures_have_the_size_asked_for_and_repeat(width, height):
    scene = generate(3)
    one = Renderer(scene, width, height).frame(2.3)
    assert one.shape == (height, width, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, Renderer(scene, width, height).frame(2.3))


def test_a_shape_is_drawn_where_it_is_and_in_its_color():
    scene = generate(5, difficulty=Difficulty(noise=0, texture=0, light=0))
    fact = next(f for f in scene.facts if f.claim.kind == 'appears')
    frame = Renderer(scene, 200, 200).frame(fact.event_s + 0.1)
    assert fact.claim.color == 'yellow'
    r, g, b = frame[int(fact.y * 200), int(fact.x * 200)].astype(int)
    assert r > 150 and g > 150 and b < 110


def test_light_and_noise_vary():
    scene = generate(12)
    renderer = Renderer(scene)
    assert not np.array_equal(renderer.frame(0.0), renderer.frame(0.1))


@pytest.mark.parametrize('call, words', [
    (lambda: generate(1, difficulty='mad'), "unknown difficulty 'mad'; one of easy, normal, hard"),
    (lambda: generate(1, seconds=0), 'positive length'),
    (lambda: generate(1, max_objects=9), 'max_objects must be 1 to 4'),
    (lambda: Renderer(generate(1), 8, 8), 'at least 16x16 pixels, not 8x8'),
    (lambda: make_question(generate(1), 3, np.random.default_rng(0), 'why'),
     "kind of question 'why'"),
    (lambda: wanted([], 'Why?'), "no truth for the standing question 'Why"),
])
def test_bad_requests_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_difficulties_go_from_one_shape_to_three():
    assert [PRESETS[name].max_objects for name in ('easy', 'normal', 'hard')] == [1, 2, 3]


def test_every_sentence_parses_back_into_its_claim():
    for text in sentences():
        claim = parse(text)
        assert claim is not None
        assert claim.sentence == text


@pytest.mark.parametrize('text', [
    '', 'The red circle.', 'A red circle moves left.', 'The red circle moves.',
    'The red circle becomes left.', 'the red circle stops.', 'The red circle stops. '
    'The red circle stops.', 'The pink circle stops.'])
def test_what_is_not_of_the_grammar_does_not_parse(text):
    assert parse(text) is None


def test_each_word_of_the_world_is_one_token():
    tokenizer = build_tokenizer()
    for text in sentences():
        assert len(tokenizer(' ' + text)['input_ids']) == len(text.split()) + 1
    for text in (*conversation(), 'What is this, 東京?'):
        assert tokenizer.decode(tokenizer(text)['input_ids']) == text


def test_facts_come_with_the_first_step_that_shows_them():
    scene = generate(8, 17.0)
    shown = facts_by_step(scene, 16, phase_s=0.2)
    assert sum(map(len, shown)) >= 4
    for step, facts in enumerate(shown):
        for fact in facts:
            assert fact.visible_s <= newest_frame_s(step, 0.2) + 1e-9
            assert step == 0 or fact.visible_s > newest_frame_s(step - 1, 0.2)


def test_a_standing_question_asks_for_one_kind_of_shape():
    scene = generate(5)
    for question in standing_questions()[1:]:
        shape = question.split()[-1].rstrip('?')
        assert {f.claim.shape for f in wanted(scene.facts, question)} <= {shape}


@pytest.mark.parametrize('kind', QUESTION_KINDS)
def test_questions_know_their_answers_again(kind):
    found = 0
    for seed in range(40):
        scene, rng = generate(seed), np.random.default_rng(seed)
        question = make_question(scene, 9.0, rng, kind)
        if question is None:
            continue
        found += 1
        assert question.kind == kind
        assert true_answer(scene, 9.0, question.text) == question.answer
        assert true_answer(scene, 9.0, question.text.lower().replace('colour', 'color')) \
            == question.answer
    assert found >= 5


def test_answers_follow_the_facts():
    scene = generate(7)  # A purple square goes up, stops, goes down, and leaves at 12.5 s.
    assert true_answer(scene, 1.0, 'What colour is the square?') == 'Purple.'
    assert true_answer(scene, 3.0, 'What does the square do?') == 'It moves up.'
    assert true_answer(scene, 5.0, 'Did the square stop?') == 'No.'
    assert true_answer(scene, 6.0, 'Did the square stop?') == 'Yes.'
    assert true_answer(scene, 9.0, 'How many shapes are there?') == 'One.'
    assert true_answer(scene, 13.0, 'Is there a purple square?') == 'No.'
    assert true_answer(scene, 0.2, 'Which shape moved last?') is None
    assert true_answer(scene, 5.0, 'What is the meaning of life?') is None


def truth(seed: int = 7) -> tuple:
    scene = generate(seed, 21.0)
    return scene, [Utterance(fact.claim.sentence, step, step + 1)
                   for step, facts in enumerate(facts_by_step(scene, 20)) for fact in facts]


def test_the_truth_is_judged_true():
    scene, spoken = truth()
    summary = judge(scene, spoken, 20, 16).summary()
    assert summary == dict(facts_true=1.0, facts_narrated=1.0, grammatical=1.0,
                           median_lateness_steps=0)


def test_lies_repeats_prophecies_and_babble_are_found():
    scene, spoken = truth()
    first = spoken[0]
    lies = [
        Utterance(Claim('leaves', 'yellow', 'triangle').sentence, 3, 4),
        Utterance(first.text, 5, 6),
        Utterance('The the the.', 5, 6),
    ]
    verdict = judge(scene, [*spoken, *lies], 20, 16)
    assert verdict.false == [lie.text for lie in lies]
    assert verdict.sentences - verdict.grammatical == 1
    early = judge(scene, [Utterance(spoken[1].text, 0, 0)], 20, 16)
    assert early.true == 0


def test_lateness_and_omissions_are_counted():
    scene, spoken = truth()
    late = [Utterance(u.text, u.first_step + 3, u.last_step + 3) for u in spoken[:2]]
    verdict = judge(scene, late, 20, 16)
    assert verdict.lateness == [3, 3]
    owed = [u for u in spoken if u.first_step < 16]
    assert verdict.summary()['facts_narrated'] == round(2 / len(owed), 4)


def piece(step: int, delta: str, sentence: str = '', stream_id: str = NARRATION) -> TextDelta:
    return TextDelta(stream_id, 0, delta, sentence, False, '', step, step + 1, 0, 0, 0, 0, False)


def test_pieces_make_utterances():
    pieces = [piece(4, ' The'), piece(4, 'Two.', 'Two.', 'q'), piece(5, ' end.', 'The end.'),
              piece(6, ' A')]
    assert utterances(pieces) == [Utterance('The end.', 4, 5)]
    assert utterances(pieces, before=10) == [Utterance('The end.', 14, 15)]


def test_the_world_knows_neither_training_nor_scoring():
    """Scenes, pictures, questions and truth go without torch and without the files of either."""
    code = ('import sys\n'
            'import sww_ros.shapes.render, sww_ros.shapes.truth\n'
            'names = [name.removeprefix("sww_ros.shapes.") for name in sys.modules]\n'
            'assert not {"torch", "transformers", "checkpoint", "train", "score",'
            ' "endurance"} & {*names}')
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT, timeout=300)
