"""Text that comes in is checked where it comes in; text that goes out is whole."""

import json
import os
import signal

from engine_harness import START_S, Listener
import pytest
from session_kit import feed, opened, speak_only, texts, until

from sww_ros.__main__ import main as watch
from sww_ros.demo.__main__ import parse as parse_demo
from sww_ros.engine import client as client_module
from sww_ros.evaluation.random_model import SMALL, random_checkpoint, save_random
from sww_ros.streaming.config import (
    MAX_PROMPT_TOKENS,
    MAX_QUESTION_TOKENS,
    SessionConfig,
    check_prompt,
    check_question,
)
from sww_ros.streaming.events import (
    NARRATION,
    QuestionState,
    StepPerceived,
    TextDelta,
    Trouble,
)
from sww_ros.streaming.generation import TextAssembler
from sww_ros.streaming.session import Session

LATIN_1 = os.fsdecode(b'caf\xe9')
"""As Python reads the argument of a terminal that does not speak UTF-8."""
BAD = [
    (LATIN_1, r"no Unicode text at character 3 \('caf\\udce9'\): give it as UTF-8"),
    ('\ud800' * 9, 'no Unicode text at character 0'),
    (None, 'must be a string, not NoneType'),
    (b'bytes', 'must be a string, not bytes'),
    (['list'], 'must be a string, not list'),
]
EMOJI = '\N{ROBOT FACE}'


@pytest.fixture(scope='module')
def checkpoint():
    return random_checkpoint(SMALL, 3, silence_token='<|silence|>', max_steps=50)[1]


@pytest.mark.parametrize('text, words', BAD)
@pytest.mark.parametrize('check', [check_prompt, check_question])
def test_what_is_no_text_is_refused_in_words_that_can_be_printed(check, text, words):
    with pytest.raises(ValueError, match=words) as refused:
        check(text)
    str(refused.value).encode()


@pytest.mark.parametrize('text, words', BAD)
def test_a_bad_string_costs_a_session_nothing(checkpoint, text, words):
    with opened(checkpoint, max_answer_tokens=20) as session:
        feed(session)
        answered = session.ask('what?')
        prompt = session.info['prompt']
        with pytest.raises(ValueError, match=words):
            session.set_prompt(text)
        with pytest.raises(ValueError, match=words):
            session.ask(text)
        feed(session)
        events = session.drain()
        assert session.info['prompt'] == prompt
    assert not any(isinstance(e, Trouble) for e in events)
    assert [e.index for e in events if isinstance(e, StepPerceived)] == [0, 1]
    assert texts(events, answered)[-1].finish_reason in ('stop', 'length')


@pytest.mark.parametrize('text, words', BAD)
def test_a_bad_prompt_in_the_settings_is_refused(text, words):
    with pytest.raises(ValueError, match=f'the prompt .*{words}'):
        SessionConfig(prompt=text)


def test_tokens_are_limited_not_only_characters(checkpoint):
    question, prompt = EMOJI * (MAX_QUESTION_TOKENS // 2), EMOJI * (MAX_PROMPT_TOKENS // 2)
    with opened(checkpoint) as session:
        feed(session)
        with pytest.raises(ValueError, match='the question has 1024 tokens, at most 512'):
            session.ask(question)
        with pytest.raises(ValueError, match='the prompt has 4096 tokens, at most 2048'):
            session.set_prompt(prompt)
        session.ask(EMOJI * (MAX_QUESTION_TOKENS // 4))
        feed(session)
        events = session.drain()
    assert [e.index for e in events if isinstance(e, StepPerceived)] == [0, 1]
    with pytest.raises(ValueError, match='the prompt has 4096 tokens, at most 2048'):
        Session(checkpoint, SessionConfig(prompt=prompt))


def test_what_only_the_engine_can_refuse_is_refused_and_not_kept_for_its_restart(
        tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, 'BACKOFF_S', (0.1,))
    save_random(tmp_path, SMALL, 3)
    listener = Listener(str(tmp_path), session=client_module.SESSION,
                        config=SessionConfig(overlap='fused'))
    client = listener.client
    try:
        client.start(START_S)
        for text, words in BAD[:2]:
            with pytest.raises(ValueError, match=words):
                client.set_prompt(text)
            with pytest.raises(ValueError, match=words):
                client.ask(text)
        question = client.ask(EMOJI * MAX_QUESTION_TOKENS)
        assert listener.wait_final(question).finish_reason == 'error'
        refused, = listener.of(QuestionState)
        assert 'the question has 2048 tokens, at most 512' in refused.reason
        client.set_prompt('Look out for doors.')
        client.set_prompt(EMOJI * (MAX_PROMPT_TOKENS // 2))
        listener.wait(lambda: listener.of(Trouble))
        assert 'the prompt has 4096 tokens, at most 2048' in listener.of(Trouble)[0].message
        os.kill(client.pid, signal.SIGKILL)
        listener.wait(lambda: len(listener.ready) == 2, 25)
        assert client.info['prompt'] == 'Look out for doors.'
        assert len(listener.lost) == 1
    finally:
        client.close()


@pytest.mark.parametrize('options', [
    ['--prompt', LATIN_1], ['--ask', f'1: {LATIN_1}'], ['--ask', '1: '], ['--prompt', ' ']])
def test_bad_text_on_the_command_line_is_refused_before_anything_is_loaded(options, capsys):
    with pytest.raises(SystemExit) as ended:
        watch(['no-such-video.mp4', '--model', 'no-such-model', *options])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    said.encode()
    assert 'give it as UTF-8' in said or 'is empty' in said


@pytest.mark.parametrize('question', [LATIN_1, '', 'x' * 3000], ids=['bytes', 'empty', 'long'])
def test_a_bad_question_to_the_demo_is_refused(question, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_demo(['--questions', 'What is there?', question])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    said.encode()
    assert 'argument --questions: the question' in said


class Stuttering:
    """A tokenizer whose tokens are characters, lone surrogates too."""

    def decode(self, ids, **_: object) -> str:
        return ''.join(map(chr, ids))


@pytest.mark.parametrize('said', ['a\ud83d b.', '\udce9. ', 'x\udfff\ud800.'])
def test_a_lone_surrogate_in_a_caption_is_replaced(said):
    assembler = TextAssembler(Stuttering())
    pieces = [assembler.add(ord(character)) for character in said]
    pieces.append(('', assembler.flush()))
    assert not any(0xd800 <= ord(c) < 0xe000 for piece in pieces for text in piece for c in text)
    assert json.loads(json.dumps(pieces))
    assert ''.join(delta for delta, _ in pieces).encode()


# What is cut is no sentence.


def cut_by_prompt(session, *_):
    session.set_prompt('Something else.')


def cut_by_capacity(session, *_):
    feed(session)


def cut_by_error(session, checkpoint, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(type(checkpoint.perception), 'embed', lambda *_: 1 / 0)
        feed(session)


@pytest.mark.parametrize('reason, cut', [
    ('reset', lambda session, *_: session.reset()), ('prompt', cut_by_prompt),
    ('capacity', cut_by_capacity), ('error', cut_by_error)])
def test_a_narration_that_is_cut_says_why_and_its_fragment_is_no_sentence(
        checkpoint, monkeypatch, reason, cut):
    speak_only(monkeypatch, checkpoint, 'a')
    with opened(checkpoint, max_steps=1 if reason == 'capacity' else 9, wait_k=3) as session:
        feed(session)
        before = texts(session.drain(), NARRATION)
        cut(session, checkpoint, monkeypatch)
        assert session.wait_idle(30)
        after = texts(session.drain(), NARRATION)
    assert ''.join(delta.delta for delta in before) == 'aaa'
    final = after[0]
    assert (final.final, final.finish_reason, final.video) == (True, reason, 0)
    assert not any(delta.sentence for delta in [*before, *after])


@pytest.mark.parametrize('reason, end', [
    ('reset', lambda session, question: session.reset()),
    ('cancelled', lambda session, question: session.cancel(question)),
    ('interrupted', lambda session, question: session.ask('Another?')),
    ('cancelled', lambda session, question: session.close()),
])
def test_an_answer_that_is_cut_leaves_no_sentence(checkpoint, monkeypatch, reason, end):
    speak_only(monkeypatch, checkpoint, 'a')
    with opened(checkpoint, max_answers=1, question_policy='interrupt',
                max_answer_tokens=100_000) as session:
        feed(session)
        question = session.ask('what?')
        spoken = until(session, lambda e: isinstance(e, TextDelta) and e.stream_id == question)
        end(session, question)
        events = [*spoken, *until(session, lambda e: (
            isinstance(e, TextDelta) and e.stream_id == question and e.final))]
    final = texts(events, question)[-1]
    assert (final.finish_reason, final.sentence) == (reason, '')


def test_what_was_said_to_the_end_is_a_sentence_though_it_has_no_full_stop(
        checkpoint, monkeypatch):
    speak_only(monkeypatch, checkpoint, 'a')
    with opened(checkpoint, wait_k=3, max_rest_tokens=2, max_answer_tokens=3) as session:
        feed(session)
        question = session.ask('what?')
        feed(session, last=True)
        events = session.drain()
    for stream, said in ((NARRATION, 'a' * 8), (question, 'aaa')):
        final = texts(events, stream)[-1]
        assert (final.finish_reason, final.sentence) == ('length', said)


def test_the_words_of_a_refusal_survive_any_terminal():
    with pytest.raises(ValueError) as refused:
        check_question('x' * 50 + '\udc80' + EMOJI * 50)
    str(refused.value).encode('ascii')
