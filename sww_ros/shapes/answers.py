"""Counts questions asked and answered right, by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from sww_ros.shapes.questions import Question
from sww_ros.streaming.events import TextDelta


@dataclass
class Answers:
    """Questions `asked`, and those of them whose answer was `right`, by kind."""

    asked: Counter = field(default_factory=Counter)
    right: Counter = field(default_factory=Counter)

    def mark(self, question: Question, texts: Iterable[TextDelta], question_id: str) -> str:
        """Count a question by what was said under its id, which is returned."""
        said = ''.join(text.delta for text in texts if text.stream_id == question_id).strip()
        self.asked[question.kind] += 1
        self.right[question.kind] += said == question.answer
        return said

    def share(self) -> float | None:
        """The share of right answers; None where nothing was asked."""
        asked = sum(self.asked.values())
        return round(sum(self.right.values()) / asked, 4) if asked else None
