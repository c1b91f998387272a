"""
A longer memory: which steps that have left the stream a question is answered from.

What was said of a video is its index: each sentence stands for the steps before it was told. A
question goes to the sentence that has most of its words, of those alike to the newest. Where that
is about the stream that is there, nothing is recalled. Otherwise the steps before it are put into
a stream of their own, as they were embedded, for this answer alone. Nothing here computes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
import re

_WORD = re.compile(r'\w+')
_FUNCTION_WORDS = frozenset(
    'a an and any are as at by can could did do does for from has have how i in is it its of on or '
    'that the their there these they this to was were what when where which who why will with you'
    .split())


def telling_words(question: str) -> list[str]:
    """Return the words of a question, in English, that say what it is about."""
    words = (word.lower() for word in _WORD.findall(question))
    return [word for word in words if word not in _FUNCTION_WORDS]


@dataclass(frozen=True)
class StepInfo:
    """What is remembered of a perceived step."""

    stamp_ns: int
    frames_total: int


@dataclass(frozen=True)
class _Sentence:
    """Its tokens, and the number of the step, from 1, that it was begun about."""

    step: int
    tokens: frozenset[int]


class Past:
    """What is remembered of a video over all its streams: at most the last `limit` steps."""

    def __init__(self, limit: int = 0, stretch: int = 0) -> None:
        """
        Remember nothing yet.

        :param stretch: how many steps are recalled for one question
        """
        self.limit, self._stretch, self._count = limit, stretch, 0
        self._steps: deque[StepInfo] = deque(maxlen=limit)
        self._sentences: deque[_Sentence] = deque()
        self._begun, self._tokens = 0, list[int]()

    def perceived(self, info: StepInfo) -> None:
        """Take note of the next step."""
        if self.limit:
            self._count += 1
            self._steps.append(info)

    def spoken(self, token: int, step: int, unfinished: bool) -> None:
        """Take note of a token about a step, from 1, and whether it leaves a sentence open."""
        if not self.limit:
            return
        self._begun = self._begun if self._tokens else step
        self._tokens.append(token)
        if not unfinished:
            self._sentences.append(_Sentence(self._begun, frozenset(self._tokens)))
            self._tokens.clear()
        while self._sentences and self._sentences[0].step <= self._first + 1:
            self._sentences.popleft()

    @property
    def _first(self) -> int:
        """How many steps are forgotten."""
        return self._count - len(self._steps)

    def find(self, about: tuple[int, ...], base: int) -> tuple[int, tuple[StepInfo, ...]] | None:
        """
        Return the steps to recall for a question: how many came before them, and what they are.

        :param about: the tokens of its telling words
        :param base: how many steps came before the stream that is there
        """
        asked, best, most = frozenset(about), None, 0
        for sentence in self._sentences:
            if (alike := len(asked & sentence.tokens)) and alike >= most:
                best, most = sentence, alike
        if best is None or best.step > base:
            return None
        end = best.step - 1
        first = max(self._first, end - self._stretch)
        found = tuple(self._steps[step - self._first] for step in range(first, end))
        return (first, found) if found else None
