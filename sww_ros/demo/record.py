"""What the demo heard in one run, and the figures that it comes to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np

from sww_ros.frames import NANOSECONDS
from sww_ros.shapes.scene import Fact
from sww_ros.shapes.truth import Witness
from sww_ros.terminal.transcript import NARRATION, Line, nanoseconds


@dataclass
class NarratedSentence:
    """A narrated sentence, and the fact that makes it true, where the truth is known."""

    line: Line
    fact: Fact | None = None


@dataclass
class Exchange:
    """A question, and what came of it; `truths` are the answers that were true while it came."""

    text: str
    kind: str = ''
    asked_ns: int = 0
    question_id: str = ''
    refused: str = ''
    line: Line | None = None
    truths: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.line is not None or bool(self.refused)

    @property
    def right(self) -> bool | None:
        """Whether the answer is true; None where the truth is not known."""
        if self.line is None:
            # A question of the demo's own had an answer when it was asked.
            return False if self.kind else None
        return self.line.text in self.truths if self.truths else None


@dataclass(frozen=True)
class Step:
    """The latencies of one perceived step [ns], and the counters of frames by then."""

    video: int
    stamp_ns: int
    capture_to_callback_ns: int
    perceived_ns: int
    first_token_ns: int | None
    overlap_ratio: float
    frames: dict[str, int]

    @classmethod
    def from_message(cls, message: Any) -> Step:
        """Return what counts of a StepLatency."""
        return cls(
            message.video, nanoseconds(message.header.stamp),
            nanoseconds(message.capture_to_callback), nanoseconds(message.perceived),
            nanoseconds(message.first_token) if message.has_first_token else None,
            message.overlap_ratio,
            {name: getattr(message, f'frames_{name}')
             for name in ('received', 'perceived', 'dropped')})

    @property
    def seen_ns(self) -> int | None:
        """When the first token that could see this step was decoded, on the stamps' clock."""
        if self.first_token_ns is None:
            return None
        return (self.stamp_ns + self.capture_to_callback_ns + self.perceived_ns
                + self.first_token_ns)


@dataclass(frozen=True)
class Piece:
    """When a piece of text was published, and the newest frame that it could see [ns]."""

    emitted_ns: int
    seen_ns: int


@dataclass
class DemoRecord:
    """
    All of a run; `start_ns` is the time 0 of the scene or video on the stamps' clock.

    `pieces` of text are kept by stream.
    """

    model: str
    source: str
    start_ns: int = 0
    ready_s: float = 0.0
    first_word_s: float | None = None
    witness: Witness | None = None
    scene: dict | None = None
    sentences: list[NarratedSentence] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    pieces: dict[str, list[Piece]] = field(default_factory=dict)


def spread(values_ns: Iterable[float]) -> dict[str, float] | None:
    """Return p50 and p95 [ms] and the count of durations [ns], None where there are none."""
    values = [value / 1e6 for value in values_ns]
    if not values:
        return None
    p50, p95 = np.percentile(values, [50, 95])
    return dict(p50_ms=round(float(p50), 2), p95_ms=round(float(p95), 2), count=len(values))


def summarize(record: DemoRecord) -> dict:
    """Return the summary, ready for JSON; times are seconds since the scene or video began."""
    return dict(
        model=record.model, source=record.source, scene=record.scene,
        first_word_s=_rounded(record.first_word_s), ready_s=_rounded(record.ready_s),
        narration=[_sentence(record, sentence) for sentence in record.sentences],
        answers=[_exchange(record, exchange) for exchange in record.exchanges],
        latency=_latencies(record), frames=record.steps[-1].frames if record.steps else None,
        steps=len(record.steps),
        overlap_ratio=(_rounded(fmean(step.overlap_ratio for step in record.steps))
                       if record.steps else None),
        tokens=_tokens(record), truth=_truth(record))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _since(record: DemoRecord, stamp_ns: int) -> float:
    return round((stamp_ns - record.start_ns) / NANOSECONDS, 3)


def _spoken(record: DemoRecord, line: Line) -> dict:
    return dict(text=line.text, time=_since(record, line.seen_ns),
                last_time=_since(record, line.last_seen_ns),
                spoken=_since(record, line.emitted_ns), latency_s=_rounded(line.latency_s))


def _sentence(record: DemoRecord, sentence: NarratedSentence) -> dict:
    told = _spoken(record, sentence.line)
    if record.witness is not None:
        told['true'] = sentence.fact is not None
    return told


def _exchange(record: DemoRecord, exchange: Exchange) -> dict:
    told = dict(question=exchange.text, kind=exchange.kind,
                asked=_since(record, exchange.asked_ns), refused=exchange.refused,
                truth=exchange.truths[0] if exchange.truths else None, right=exchange.right,
                answer=None)
    if (line := exchange.line) is not None:
        told.update(_spoken(record, line), answer=line.text, finish_reason=line.finish_reason)
        told.pop('text')
    return told


def _latencies(record: DemoRecord) -> dict:
    """Each stage, and how long what happens in the scene stays unseen and unsaid."""
    steps, sentences = record.steps, record.sentences
    stages = dict(
        capture_to_callback=spread(step.capture_to_callback_ns for step in steps),
        callback_to_perceived=spread(step.perceived_ns for step in steps),
        perceived_to_first_token=spread(
            step.first_token_ns for step in steps if step.first_token_ns is not None),
        capture_to_first_token=spread(
            step.seen_ns - step.stamp_ns for step in steps if step.seen_ns is not None),
        question_to_first_word=spread(
            exchange.line.emitted_ns - exchange.asked_ns for exchange in record.exchanges
            if exchange.line is not None and exchange.line.tokens),
        token_gap=spread(
            later.emitted_ns - sooner.emitted_ns for pieces in record.pieces.values()
            for sooner, later in pairwise(pieces) if sooner.seen_ns == later.seen_ns))
    if record.witness is not None:
        stages['hazard'] = spread(_hazards(record))
        stages['event_to_first_word'] = spread(
            sentence.line.emitted_ns - record.start_ns - sentence.fact.visible_s * NANOSECONDS
            for sentence in sentences if sentence.fact is not None)
    return stages


def _hazards(record: DemoRecord) -> Iterable[float]:
    """From each event's first visible moment to the first token that could see it [ns]."""
    steps = sorted(record.steps, key=lambda step: step.stamp_ns)
    for fact in record.witness.scene.facts:
        visible_ns = record.start_ns + round(fact.visible_s * NANOSECONDS)
        step = next((s for s in steps if s.stamp_ns >= visible_ns - 1000), None)
        if step is not None and step.seen_ns is not None:
            yield step.seen_ns - visible_ns


def _tokens(record: DemoRecord) -> dict:
    narrated = len(record.pieces.get(NARRATION, []))
    spoken = sum(map(len, record.pieces.values()))
    watched_s = 0.0
    if record.steps:
        watched_s = (record.steps[-1].stamp_ns - record.start_ns) / NANOSECONDS
    return dict(narration=narrated, answers=spoken - narrated, watched_s=_rounded(watched_s),
                per_s=round(spoken / watched_s, 2) if watched_s > 0 else None)


def _truth(record: DemoRecord) -> dict | None:
    """How much of what was said is true, and how much of what was true was said."""
    if record.witness is None:
        return None
    judged = [exchange.right for exchange in record.exchanges if exchange.right is not None]
    last_ns = record.steps[-1].stamp_ns if record.steps else record.start_ns
    shown = record.witness.scene.facts_visible(record.witness.seconds(last_ns))
    return dict(
        sentences=len(record.sentences),
        sentences_true=sum(sentence.fact is not None for sentence in record.sentences),
        facts_shown=len(shown),
        facts_told=len({id(s.fact) for s in record.sentences}
                       & {id(fact) for fact in record.witness.scene.facts}),
        answers=len(judged), answers_right=sum(judged))
