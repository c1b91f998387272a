"""ROUGE-L of a corpus (Lin 2004): the longest common subsequence of words."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

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
