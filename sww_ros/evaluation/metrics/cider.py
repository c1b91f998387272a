"""CIDEr of a corpus (Vedantam et al. 2015): agreement with references, rare words count more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
import math

from sww_ros.evaluation.metrics.bleu import ngrams

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
