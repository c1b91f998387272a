"""Caption metrics: the figures of public implementations on fixed sentences; BLEURT's loader."""

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

from sww_ros.evaluation.metrics import Bleurt, bleu, cider, score, words

PUBLIC = json.loads((Path(__file__).parent / 'data/metrics/expected.json').read_text())
NAMES = ['CIDEr', 'BLEU-1', 'BLEU-4', 'METEOR', 'ROUGE-L']
SENTENCES = st.lists(st.sampled_from('a red dog runs to the left'.split()), min_size=1,
                     max_size=12).map(' '.join)


@pytest.mark.parametrize('case', PUBLIC['corpora'], ids=lambda case: case['name'])
def test_scores_are_those_of_pycocoevalcap_and_nltk(case):
    assert list(case['expected']) == NAMES
    assert score(case['hypotheses'], case['references']) == pytest.approx(
        case['expected'], abs=1e-6, rel=0)


def test_scores_of_all_corpora_together_are_spread_out():
    for name in NAMES:
        values = [case['expected'][name] for case in PUBLIC['corpora']]
        assert min(values) < 1
        assert max(values) > 99 or name == 'CIDEr'


@pytest.mark.parametrize('case', PUBLIC['corpora'], ids=lambda case: case['name'])
def test_bleu_is_sacrebleus_where_each_order_matches(case):
    found = score(case['hypotheses'], case['references'])['BLEU-4']
    if case['sacrebleu']:
        assert found == pytest.approx(case['sacrebleu'], abs=1e-6, rel=0)
    else:
        assert found < 3


@pytest.mark.parametrize('case', PUBLIC['words'], ids=lambda case: case['text'] or 'empty')
def test_words_are_those_of_the_ptb_tokenizer(case):
    assert words(case['text']) == case['expected']


@pytest.mark.parametrize('text, expected', [
    ('left.The right (a side)', ['left', 'the', 'right', 'a', 'side']),
    ('10% of $5, i.e. little', ['10', 'of', '5', 'i', 'e', 'little']),
    ('*bold*\n- item', ['bold', 'item'])])
def test_words_where_they_differ_from_the_ptb_tokenizer(text, expected):
    assert words(text) == expected


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(SENTENCES, min_size=1, max_size=5))
def test_what_repeats_its_reference_scores_full_marks(texts):
    found = score(texts, [[text] for text in texts])
    assert found['BLEU-1'] == pytest.approx(100)
    assert found['ROUGE-L'] == pytest.approx(100)


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(SENTENCES | st.just(''), st.lists(SENTENCES, min_size=1,
                                                                 max_size=3)), min_size=1,
                      max_size=5))
def test_scores_stay_on_their_scales(pairs):
    found = score([h for h, _ in pairs], [r for _, r in pairs])
    assert found.pop('CIDEr') <= 1000 + 1e-6
    assert all(-1e-9 <= value <= 100 + 1e-6 for value in found.values())


def test_the_functions_behind_have_the_scales_of_their_sources():
    ours, theirs = [['a', 'dog'], ['a', 'cat']], [[['a', 'dog']], [['a', 'cat']]]
    assert bleu(ours, theirs, orders=2) == pytest.approx([1, 1])
    # Two of four orders exist; 'a' is in each document and weighs nothing.
    assert cider(ours, theirs) == pytest.approx(10 * 2 / 4)


@pytest.mark.parametrize('hypotheses, references, reason', [
    (['a'], [], '1 hypotheses, but references for 0'),
    ([], [], 'nothing to score'),
    (['a'], [[]], r'references\[0\] is empty'),
    (['a', 'b'], [['a'], ['b', ' ... ']], r'references\[1\] is empty or has a text without'),
    (['a'], ['a dog'], r'references\[0\] is a text, not a list'),
])
def test_what_cannot_be_scored_is_refused(hypotheses, references, reason):
    with pytest.raises(ValueError, match=reason):
        score(hypotheses, references)


def save_bert(folder: Path, labels: int = 1, model: type = BertForSequenceClassification) -> Path:
    """Write a tiny BERT with random weights and its tokenizer."""
    torch.manual_seed(0)
    vocabulary = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'red', 'dog', 'runs', 'left']
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1,
                        num_attention_heads=2, intermediate_size=32, max_position_embeddings=16,
                        num_labels=labels, initializer_range=1.0)
    model(config).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


def test_bleurt_is_the_mean_over_texts_of_the_best_reference(tmp_path):
    bleurt = Bleurt(save_bert(tmp_path))
    one, other = bleurt.mean(['a dog'], [['a red dog']]), bleurt.mean(['a dog'], [['dog runs']])
    assert one != pytest.approx(other)
    assert bleurt.mean(['a dog'], [['a red dog', 'dog runs']]) == pytest.approx(max(one, other))
    both = bleurt.mean(['a dog', 'a dog'], [['a red dog'], ['dog runs']])
    assert both == pytest.approx((one + other) / 2, abs=1e-5)
    assert score(['a dog'], [['a red dog']], bleurt)['BLEURT'] == pytest.approx(100 * one)


def test_bleurt_reads_the_reference_first(tmp_path):
    folder = save_bert(tmp_path)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = BertTokenizer.from_pretrained(folder)
    expected = model(**tokenizer('a red dog', 'dog runs', return_tensors='pt')).logits.item()
    assert Bleurt(folder).mean(['dog runs'], [['a red dog']]) == pytest.approx(expected, abs=1e-5)


def test_bleurt_cuts_texts_that_are_too_long(tmp_path):
    bleurt = Bleurt(save_bert(tmp_path))
    assert bleurt.mean(['dog ' * 50], [['a ' * 50]]) == pytest.approx(
        bleurt.mean(['dog ' * 90], [['a ' * 90]]))


def test_bleurt_names_what_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match='nowhere.*neither a folder nor in the local cache'):
        Bleurt(tmp_path / 'nowhere')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='no BLEURT checkpoint at .*empty'):
        Bleurt(tmp_path / 'empty')
    with pytest.raises(ValueError, match='2 labels instead of one'):
        Bleurt(save_bert(tmp_path / 'two', labels=2))
    with pytest.raises(ValueError, match='is no BLEURT checkpoint: it lacks classifier'):
        save_bert(tmp_path / 'bare')
        save_bert(tmp_path / 'bare', model=BertModel)
        Bleurt(tmp_path / 'bare')


def test_bleurt_loads_the_files_of_older_ports(tmp_path):
    folder = save_bert(tmp_path)
    expected = Bleurt(folder).mean(['a dog'], [['a red dog']])
    weights = BertForSequenceClassification.from_pretrained(folder).state_dict()
    torch.save(weights, folder / 'pytorch_model.bin')
    vocabulary = BertTokenizer.from_pretrained(folder).vocab
    (folder / 'vocab.txt').write_text('\n'.join(sorted(vocabulary, key=vocabulary.get)))
    (folder / 'model.safetensors').unlink()
    (folder / 'tokenizer.json').unlink()
    assert Bleurt(folder).mean(['a dog'], [['a red dog']]) == pytest.approx(expected, abs=1e-5)


class Intruder:
    """Runs what it should not when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_bleurt_runs_no_code_of_a_checkpoint(tmp_path):
    folder = save_bert(tmp_path / 'bleurt')
    (folder / 'model.safetensors').unlink()
    torch.save({'classifier.weight': Intruder(tmp_path / 'trace')}, folder / 'pytorch_model.bin')
    with pytest.raises(ValueError, match='no BLEURT checkpoint at'):
        Bleurt(folder)
    assert not (tmp_path / 'trace').exists()


def test_bleurt_names_damaged_weights(tmp_path):
    (save_bert(tmp_path) / 'model.safetensors').write_bytes(b'damaged')
    with pytest.raises(ValueError, match='no BLEURT checkpoint at'):
        Bleurt(tmp_path)


def test_bleurt_wants_its_vocabulary(tmp_path):
    (save_bert(tmp_path) / 'tokenizer.json').unlink()
    with pytest.raises(ValueError, match='lacks a vocabulary'):
        Bleurt(tmp_path)


def test_bleurt_wants_references_for_each_text(tmp_path):
    bleurt = Bleurt(save_bert(tmp_path))
    for hypotheses, references in [([], []), (['a'], []), (['a'], [[]])]:
        with pytest.raises(ValueError, match='references for each'):
            bleurt.mean(hypotheses, references)
