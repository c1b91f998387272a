"""METEOR of a corpus (Lavie and Agarwal 2007), without synonyms."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from nltk.translate.meteor_score import meteor_score


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
