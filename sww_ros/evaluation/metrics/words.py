"""A sentence as the words that the metrics compare."""

from __future__ import annotations

import re

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
