"""BLEU of a corpus (Papineni et al. 2002), as captions are scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
import math

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
