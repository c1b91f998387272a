"""Text: characters are never split, sentences come out whole."""

import pytest

from sww_ros.evaluation.random_model import byte_tokenizer
from sww_ros.streaming.generation import TextAssembler


def speak(text: str) -> tuple[list[str], list[str]]:
    tokenizer = byte_tokenizer()
    assembler = TextAssembler(tokenizer)
    pieces = [assembler.add(token) for token in tokenizer(text)['input_ids']]
    return [delta for delta, _ in pieces if delta], [s for _, s in pieces if s]


def test_a_character_of_several_tokens_comes_in_one_piece():
    deltas, _ = speak('é東🙂')
    assert deltas == ['é', '東', '🙂']


def test_the_deltas_add_up_to_the_text():
    text = ' The red circle moves. It is 3.5 m away! 東京。'
    deltas, sentences = speak(text)
    assert ''.join(deltas) == text
    assert sentences == ['The red circle moves.', 'It is 3.5 m away!', '東京。']


@pytest.mark.parametrize('text', ['', ' ', '3.', 'no end'])
def test_what_is_no_sentence_waits_for_the_flush(text):
    tokenizer = byte_tokenizer()
    assembler = TextAssembler(tokenizer)
    for token in tokenizer(text)['input_ids']:
        assert assembler.add(token)[1] == ''
    assert assembler.flush() == text.strip()
    assert assembler.flush() == ''
