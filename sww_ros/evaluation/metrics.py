"""All caption metrics of a corpus, as captions are scored; BLEURT where a checkpoint is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
import math
from pathlib import Path
from pickle import UnpicklingError
import re
from statistics import fmean

from nltk.translate.meteor_score import meteor_score
from safetensors import SafetensorError
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

_WORD = re.compile(r"""
    (?<=\w)(?:n't|'(?:s|re|ve|ll|d|m))\b        # what a contraction ends in: does n't, it 's
  | \d+(?:[.,:]\d+)+                            # 5.50, 1,000, 3:30
  | \w+?(?=n't\b)                               # what a contraction begins with
  | \w+(?:-\w+|'(?!(?:s|re|ve|ll|d|m)\b)\w+)*   # t-shirt, o'clock
""", re.VERBOSE)


def words(text: str) -> list[str]:
    """
    Split English text into lower-case words, without punctuation.

    It follows the Penn Treebank rules of pycocoevalcap's PTBTokenizer (a Java program) where
    captions need them: contractions are two words, hyphenated words and numbers one. It differs
    in rare cases: brackets, $ and % are punctuation, 'i.e.' and 'and/or' are two words, 'cannot'
    is one, and a stop without a space after it still ends a word.
    """
    return _WORD.findall(text.lower().replace('’', "'"))


_TINY, _SMALL = 1e-15, 1e-9
"""Keep logarithms and divisions defined where no n-gram matches, at pycocoevalcap's values."""


def bleu(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]],
         orders: int = 4) -> list[float]:
    """
    Return BLEU-1 to BLEU-`orders`, each 0 to 1, of sentences given as words.

    Counts and lengths are summed over the corpus; the brevity penalty takes the reference of the
    closest length, the shorter of two. This is pycocoevalcap's Bleu. sacrebleu's corpus score
    (tokenize='none', smooth_method='none') is the same where an n-gram of each order matches;
    elsewhere it is 0 and this is next to 0 (up to 0.03 where no text has that many words).
    """
    matched, said = [0] * orders, [0] * orders
    length = wanted = 0
    for hypothesis, group in zip(hypotheses, references, strict=True):
        length += len(hypothesis)
        wanted += min((abs(len(r) - len(hypothesis)), len(r)) for r in group)[1]
        for n in range(orders):
            counts = ngrams(hypothesis, n + 1)
            most: Counter = Counter()
            for reference in group:
                most |= ngrams(reference, n + 1)
            said[n] += counts.total()
            matched[n] += (counts & most).total()
    ratio = (length + _TINY) / (wanted + _SMALL)
    brevity = math.exp(min(0.0, 1 - 1 / ratio))
    scores, product = [], 1.0
    for n in range(orders):
        product *= (matched[n] + _TINY) / (said[n] + _SMALL)
        scores.append(brevity * product ** (1 / (n + 1)))
    return scores


def ngrams(sentence: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """Count the n-grams of one sentence."""
    return Counter(zip(*(sentence[i:] for i in range(n))))


_ORDERS = 4
_SIGMA = 6.0

Vector = dict[tuple[str, ...], float]


def cider(hypotheses: Sequence[Sequence[str]],
          references: Sequence[Sequence[Sequence[str]]]) -> float:
    """
    Return CIDEr, 0 to 10, of sentences given as words.

    It is what pycocoevalcap's Cider computes and captioning papers call CIDEr: the variant
    CIDEr-D (clipped counts, a Gaussian penalty of width 6 on the difference of lengths), with
    the document frequencies of the references given here. So it depends on the corpus, and is 0
    for a corpus of one: no word is rarer than another.
    """
    documents: Counter = Counter()
    for group in references:
        documents.update(set().union(*(ngrams(r, n) for r in group
                                       for n in range(1, _ORDERS + 1))))
    total = 0.0
    for hypothesis, group in zip(hypotheses, references, strict=True):
        ours = _weigh(hypothesis, documents, len(references))
        total += sum(_agreement(ours, _weigh(reference, documents, len(references)))
                     * _length_penalty(hypothesis, reference) for reference in group) / len(group)
    return 10 * total / len(references)


def _weigh(sentence: Sequence[str], documents: Counter, corpus: int) -> list[Vector]:
    """Term frequency times inverse document frequency, for each order of n-grams."""
    return [{gram: count * math.log(corpus / max(1, documents[gram]))
             for gram, count in ngrams(sentence, n + 1).items()} for n in range(_ORDERS)]


def _agreement(ours: list[Vector], theirs: list[Vector]) -> float:
    """The mean over the orders of the cosine between two sentences, ours clipped to theirs."""
    total = 0.0
    for one, other in zip(ours, theirs):
        norm = _norm(one) * _norm(other)
        if norm:
            total += sum(min(weight, other[gram]) * other[gram]
                         for gram, weight in one.items() if gram in other) / norm
    return total / _ORDERS


def _norm(vector: Vector) -> float:
    return math.sqrt(sum(weight ** 2 for weight in vector.values()))


def _length_penalty(hypothesis: Sequence[str], reference: Sequence[str]) -> float:
    # pycocoevalcap takes the number of bigrams for the length: no word counts as one word.
    gap = max(0, len(hypothesis) - 1) - max(0, len(reference) - 1)
    return math.exp(-gap ** 2 / (2 * _SIGMA ** 2))


class _NoSynonyms:
    """Stands in for WordNet, whose data nltk would have to download."""

    def synsets(self, word: str) -> list:
        return []


def meteor(hypotheses: Sequence[Sequence[str]],
           references: Sequence[Sequence[Sequence[str]]]) -> float:
    """
    Return the mean METEOR, 0 to 1, of sentences given as words; the best reference counts.

    It is nltk's (alpha 0.9, beta 3, gamma 0.5) with two of its three stages: exact words and
    Porter stems. The third, WordNet's synonyms, is switched off, since its data is a download.
    The figures can be compared with each other, but not with those of pycocoevalcap's
    meteor-1.5.jar, which has synonyms, a paraphrase table and other weights.
    """
    return fmean(meteor_score(group, hypothesis, wordnet=_NoSynonyms())
                 for hypothesis, group in zip(hypotheses, references, strict=True))


_BETA = 1.2


def rouge_l(hypotheses: Sequence[Sequence[str]],
            references: Sequence[Sequence[Sequence[str]]]) -> float:
    """
    Return the mean ROUGE-L, 0 to 1, of sentences given as words.

    It is pycocoevalcap's Rouge, which captioning papers use: recall weighs more (beta = 1.2),
    and with several references the best precision and the best recall are taken apart. The
    package rouge-score is another convention (beta = 1, the best single reference).
    """
    return fmean(_sentence(h, group) for h, group in zip(hypotheses, references, strict=True))


def _sentence(hypothesis: Sequence[str], group: Sequence[Sequence[str]]) -> float:
    common = [_longest_common(hypothesis, reference) for reference in group]
    if not any(common):
        return 0.0
    precision = max(common) / len(hypothesis)
    recall = max(c / len(reference) for c, reference in zip(common, group) if c)
    return (1 + _BETA ** 2) * precision * recall / (recall + _BETA ** 2 * precision)


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, one row of the table at a time."""
    row = [0] * (len(other) + 1)
    for word in one:
        above_left = 0
        for j, candidate in enumerate(other, 1):
            above = row[j]
            row[j] = above_left + 1 if word == candidate else max(above, row[j - 1])
            above_left = above
    return row[-1]


_BATCH = 16
_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError)


class Bleurt:
    """A BLEURT checkpoint in transformers' format: a sequence classifier with one label."""

    def __init__(self, checkpoint: str | Path, *, device: str = 'cpu',
                 allow_download: bool = False) -> None:
        """
        Load a port such as Elron/bleurt-base-128; code of its own, if it has some, is never run.

        Such ports are older than safetensors: their .bin files are read with torch's loader for
        weights only.

        :param checkpoint: the folder, or a hub id in the local cache
        :param device: where to compute, as torch names it
        :param allow_download: whether a hub id may be fetched from the network
        :raises ValueError: if it cannot be loaded, or is not a classifier with one label
        """
        options = dict(local_files_only=not allow_download, trust_remote_code=False)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(checkpoint, **options)
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                checkpoint, output_loading_info=True, dtype=torch.float32, **options)
        except _UNREADABLE as error:
            hint = '' if Path(checkpoint).exists() or allow_download else (
                '; it is neither a folder nor in the local cache')
            raise ValueError(f'no BLEURT checkpoint at {str(checkpoint)!r}{hint}: '
                             f'{error}') from error
        if model.config.num_labels != 1:
            raise ValueError(f'{str(checkpoint)!r} is no BLEURT checkpoint: it has '
                             f'{model.config.num_labels} labels instead of one')
        # What a folder lacks transformers makes up, with no more than a warning: random weights,
        # a tokenizer that knows no words.
        if missing := sorted(loading['missing_keys']):
            raise ValueError(f'{str(checkpoint)!r} is no BLEURT checkpoint: it lacks '
                             f'{", ".join(missing[:3])}')
        if len(self._tokenizer) <= len(set(self._tokenizer.all_special_ids)):
            raise ValueError(f'{str(checkpoint)!r} is no BLEURT checkpoint: it lacks a vocabulary')
        self._model = model.to(device).eval()
        self._tokens = min(self._tokenizer.model_max_length,
                           model.config.max_position_embeddings)

    def mean(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """
        Return the mean score, about 0 to 1, of texts of which the best reference counts.

        Text beyond what the checkpoint reads (128 or 512 tokens for both) is cut off.

        :raises ValueError: if the lengths differ or there is nothing to score
        """
        if len(hypotheses) != len(references) or not hypotheses or not all(references):
            raise ValueError('BLEURT needs one or more hypotheses with references for each')
        pairs = [(reference, hypothesis) for hypothesis, group in zip(hypotheses, references)
                 for reference in group]
        scores = iter(self._score(pairs))
        best = [max(next(scores) for _ in group) for group in references]
        return sum(best) / len(best)

    @torch.inference_mode()
    def _score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Score (reference, hypothesis) pairs, in the order that BLEURT was trained with."""
        scores: list[float] = []
        for start in range(0, len(pairs), _BATCH):
            first, second = zip(*pairs[start:start + _BATCH])
            batch = self._tokenizer(list(first), list(second), padding=True, truncation=True,
                                    max_length=self._tokens, return_tensors='pt')
            scores += self._model(**batch.to(self._model.device)).logits[:, 0].tolist()
        return scores


def score(hypotheses: Sequence[str], references: Sequence[Sequence[str]],
          bleurt: Bleurt | None = None) -> dict[str, float]:
    """
    Score one text per video against its reference texts.

    Every figure is 100 times what the metric's own function returns, as papers print them: 0 to
    100, except CIDEr, 0 to 1000 (pycocoevalcap's 0.354 is 35.4), and BLEURT, which may leave its
    usual 0 to 100. Text is split by `words`; BLEURT reads it as it is.

    :param hypotheses: one text per video; an empty one scores 0
    :param references: at least one text per video, with at least one word each
    :param bleurt: a loaded checkpoint, for the entry BLEURT
    :return: CIDEr, BLEU-1, BLEU-4, METEOR, ROUGE-L, and BLEURT if asked for
    :raises ValueError: if the lengths differ, there is nothing to score, or a reference is empty
    """
    ours, theirs = _split(hypotheses, references)
    orders = bleu(ours, theirs)
    scores = {'CIDEr': cider(ours, theirs), 'BLEU-1': orders[0], 'BLEU-4': orders[3],
              'METEOR': meteor(ours, theirs), 'ROUGE-L': rouge_l(ours, theirs)}
    if bleurt is not None:
        scores['BLEURT'] = bleurt.mean(hypotheses, references)
    return {name: 100 * value for name, value in scores.items()}


def _split(hypotheses: Sequence[str], references: Sequence[Sequence[str]],
           ) -> tuple[list[list[str]], list[list[list[str]]]]:
    if len(hypotheses) != len(references):
        raise ValueError(f'{len(hypotheses)} hypotheses, but references for {len(references)}')
    if not hypotheses:
        raise ValueError('nothing to score: no hypotheses')
    for index, group in enumerate(references):
        # A string is a sequence of strings too: each letter would be a reference.
        if isinstance(group, str):
            raise ValueError(f'references[{index}] is a text, not a list of texts')
    theirs = [[words(text) for text in group] for group in references]
    for index, group in enumerate(theirs):
        if not group or not all(group):
            raise ValueError(f'references[{index}] is empty or has a text without words')
    return [words(text) for text in hypotheses], theirs
