"""The answers on their way: whoever waits for one finds it here."""

from __future__ import annotations

from collections.abc import Callable
import threading
import uuid

from sww_interfaces.msg import TextChunk


class Answer:
    """
    One question's answer as it grows; `done` is set when its last chunk has come.

    `notice` is what the asker should know at once, `trouble` why there will be no answer.
    """

    def __init__(self, on_chunk: Callable[[TextChunk], None]) -> None:
        self.question_id = f'q{uuid.uuid4().hex[:8]}'
        self.tokens = 0
        self.finish_reason = ''
        self.notice = self.trouble = ''
        self.done = threading.Event()
        self.on_chunk = on_chunk
        self._deltas: list[str] = []

    @property
    def text(self) -> str:
        """The answer as far as it has come."""
        return ''.join(self._deltas).strip()

    def add(self, chunk: TextChunk) -> None:
        self._deltas.append(chunk.delta)
        self.tokens += bool(chunk.delta)
        self.on_chunk(chunk)
        if chunk.is_final:
            self.finish_reason = chunk.finish_reason
            self.done.set()


class AnswerBook:
    """All answers that have not ended; any thread may use it."""

    def __init__(self) -> None:
        self._answers: dict[str, Answer] = {}
        self._changed = threading.Condition()

    def begin(self, on_chunk: Callable[[TextChunk], None] = lambda _: None) -> Answer:
        """Make room for an answer, before its question is asked."""
        answer = Answer(on_chunk)
        with self._changed:
            self._answers[answer.question_id] = answer
        return answer

    def forget(self, answer: Answer) -> None:
        """Take back `begin`: the question was not taken."""
        with self._changed:
            self._answers.pop(answer.question_id, None)
            self._changed.notify_all()

    def add(self, chunk: TextChunk) -> None:
        """Add a chunk to its answer."""
        with self._changed:
            answer = self._answers.get(chunk.stream_id)
        if answer is not None:
            answer.add(chunk)
            if chunk.is_final:
                self.forget(answer)

    def explain(self, question_id: str, reason: str) -> None:
        """Note, in words, why an answer will not come."""
        with self._changed:
            if answer := self._answers.get(question_id):
                answer.trouble = reason

    @property
    def question_ids(self) -> list[str]:
        """The questions whose answers have not ended."""
        with self._changed:
            return list(self._answers)

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until all answers have ended; False after the time [s]."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._answers, timeout_s)

    def __len__(self) -> int:
        """How many answers have not ended."""
        return len(self._answers)
