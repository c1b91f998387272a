"""
What is true of a scene: the narration it owes, sentences fact by fact, and answers.

`Truth` alone decides whether a sentence is true; `judge` asks it about a whole narration, step by
step, and `Witness` about a live one, by stamps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
import json
import math
from statistics import median

import numpy as np

from sww_ros.frames import NANOSECONDS
from sww_ros.shapes.grammar import (
    QUESTION_KINDS,
    SHAPES,
    Claim,
    ShapesQuestion,
    Viewer,
    make_question,
    parse,
    true_answer,
)
from sww_ros.shapes.scene import TICK_S, Fact, Scene, generate, newest_frame_s
from sww_ros.streaming.events import NARRATION, Event, TextDelta
from sww_ros.streaming.schedule import spread

NARRATE = 'What happens?'
"""The standing question that asks for everything."""
MAX_LATENESS_STEPS = 6
"""A sentence begun later than this after its fact is news no more, and not counted as true."""


_STANDING = {NARRATE: SHAPES} | {f'What happens to the {shape}?': (shape,) for shape in SHAPES}


def standing_questions() -> list[str]:
    """All standing questions of this world: everything, or only what one kind of shape does."""
    return list(_STANDING)


def wanted(facts: Sequence[Fact], question: str = NARRATE) -> list[Fact]:
    """
    Those of `facts` which a standing question asks for.

    :raises ValueError: for a question that is not one of `standing_questions()`
    """
    if question not in _STANDING:
        raise ValueError(f'no truth for the standing question {question!r}; '
                         f'known: {standing_questions()}')
    return [fact for fact in facts if fact.claim.shape in _STANDING[question]]


def facts_by_step(scene: Scene, steps: int, phase_s: float = 0.0, question: str = NARRATE,
                  frame_period_s: float = TICK_S) -> list[list[Fact]]:
    """For each step, the facts that it is the first to show."""
    shown: list[list[Fact]] = [[] for _ in range(steps)]
    step = 0
    for fact in wanted(scene.facts, question):
        while (step < steps
               and newest_frame_s(step, phase_s, frame_period_s) < fact.visible_s - 1e-9):
            step += 1
        if step < steps:
            shown[step].append(fact)
    return shown


def narration_ids(scene: Scene, steps: int, phase_s: float, prompt: str, silence: int,
                  encode, counts: Sequence[int]) -> list[int]:
    """
    The true narration: each sentence begun as soon as it can be, silence where there is none.

    :param counts: tokens of each step
    """
    due = ([token for fact in facts for token in encode(' ' + fact.claim.sentence)]
           for facts in facts_by_step(scene, steps, phase_s, prompt))
    return spread(due, counts, silence)


def description_ids(scene: Scene, steps: int, phase_s: float, prompt: str, encode) -> list[int]:
    """The true description of a clip that has been seen whole: all its sentences, no silence."""
    return [token for facts in facts_by_step(scene, steps, phase_s, prompt)
            for fact in facts for token in encode(' ' + fact.claim.sentence)]


def in_view(scene: Scene, until_s: float) -> list[Fact]:
    """Who is there at a time, each as its appearance in the color that it has by then."""
    appeared = {fact.object_id: fact for fact in scene.facts_visible(until_s)
                if fact.claim.kind == 'appears'}
    found = []
    for object_id, known in Viewer(scene, until_s).present.items():
        claim = Claim('appears', known.color, known.shape)
        fact = appeared[object_id]
        found.append(fact if fact.claim == claim else replace(fact, claim=claim))
    return found


class Truth:
    """
    Claims that may be made of a scene, each with when it shows, in steps or seconds.

    A sentence is true if a claim says the same, shows by the sentence's last token, is at most
    `max_lateness` old at its first token, and has not been made before.
    """

    def __init__(self, claims: Iterable[tuple[Claim, float]],
                 max_lateness: float = math.inf) -> None:
        self.claims, self._max_lateness = [*claims], max_lateness
        self.made: set[int] = set()
        """Places in `claims` of those that have been made."""

    def find(self, claim: Claim, first: float, last: float) -> int | None:
        """
        Return the place of the claim that makes a sentence true, and count it as made.

        :param first: the newest moment that the sentence's first token could see
        :param last: the same of its last token
        """
        for index, (wanted_claim, shows) in enumerate(self.claims):
            if (index not in self.made and wanted_claim == claim and shows <= last
                    and first - shows <= self._max_lateness):
                self.made.add(index)
                return index
        return None


@dataclass(frozen=True)
class Utterance:
    """One whole sentence, with the newest step its first and its last token could see."""

    text: str
    first_step: int
    last_step: int


@dataclass
class Judgement:
    """Counts of one or more narrations; `said` and `facts` are by kind of fact."""

    sentences: int = 0
    grammatical: int = 0
    true: int = 0
    said: Counter = field(default_factory=Counter)
    said_true: Counter = field(default_factory=Counter)
    facts: Counter = field(default_factory=Counter)
    narrated: Counter = field(default_factory=Counter)
    lateness: list[int] = field(default_factory=list)
    lateness_s: list[float] = field(default_factory=list)
    """Of each true sentence: from when its fact showed to the newest frame of its first token."""
    false: list[str] = field(default_factory=list)
    marks: list[bool] = field(default_factory=list)
    """For each sentence in turn, whether it is true."""
    narrated_at: dict[int, list[bool]] = field(default_factory=dict)
    """For each step, whether the facts that it was the first to show were told."""

    def add(self, other: Judgement) -> None:
        """Add the counts of another narration."""
        for name, count in vars(other).items():
            if name != 'narrated_at':
                setattr(self, name, getattr(self, name) + count)
        for step, marks in other.narrated_at.items():
            self.narrated_at[step] = [*self.narrated_at.get(step, []), *marks]

    def summary(self) -> dict[str, float | None]:
        """The shares that matter; None where there was nothing to count."""
        return dict(
            facts_true=_share(self.true, self.sentences),
            facts_narrated=_share(sum(self.narrated.values()), sum(self.facts.values())),
            grammatical=_share(self.grammatical, self.sentences),
            median_lateness_steps=median(self.lateness) if self.lateness else None)

    def by_kind(self) -> dict[str, dict[str, int]]:
        """For each kind of fact: sentences said and true, facts there and narrated."""
        return {kind: dict(said=self.said[kind], true=self.said_true[kind],
                           facts=self.facts[kind], narrated=self.narrated[kind])
                for kind in sorted(self.said | self.facts)}


def judge(scene: Scene, utterances: Iterable[Utterance], steps: int, owed_steps: int,
          phase_s: float = 0.0, question: str = NARRATE,
          max_lateness: int = MAX_LATENESS_STEPS, frame_period_s: float = TICK_S) -> Judgement:
    """
    Compare what was said of `steps` steps with the facts.

    A sentence is true if a fact says the same, was visible by its last token, not too long ago,
    and has not been told before; its lateness counts from the step that first showed the fact to
    the step of its first token. Only facts of the first `owed_steps` steps had to be narrated, so
    that the last ones leave time to finish.
    """
    shown = facts_by_step(scene, steps, phase_s, question, frame_period_s)
    owed = [(fact, step) for step, group in enumerate(shown) for fact in group]
    truth = Truth(((fact.claim, step) for fact, step in owed), max_lateness)
    verdict = Judgement()
    for utterance in utterances:
        verdict.sentences += 1
        claim, match = parse(utterance.text), None
        if claim is not None:
            verdict.grammatical += 1
            verdict.said[claim.kind] += 1
            match = truth.find(claim, utterance.first_step, utterance.last_step)
        verdict.marks.append(match is not None)
        if match is None:
            verdict.false.append(utterance.text)
            continue
        verdict.true += 1
        verdict.said_true[claim.kind] += 1
        verdict.lateness.append(max(0, utterance.first_step - owed[match][1]))
        first_s = newest_frame_s(utterance.first_step, phase_s, frame_period_s)
        verdict.lateness_s.append(max(0.0, first_s - owed[match][0].visible_s))
    for index, (fact, step) in enumerate(owed):
        if step < owed_steps:
            verdict.facts[fact.claim.kind] += 1
            verdict.narrated[fact.claim.kind] += index in truth.made
            verdict.narrated_at.setdefault(step, []).append(index in truth.made)
    return verdict


def utterances(events: Iterable[Event], before: int = 0) -> list[Utterance]:
    """
    Whole sentences of a narration; an unfinished tail is left out.

    :param before: how many steps came before the one that the events call 0
    """
    found, first = [], None
    for event in events:
        if isinstance(event, TextDelta) and event.stream_id == NARRATION:
            step = before + event.step
            first = step if first is None else first
            if event.sentence:
                found.append(Utterance(event.sentence, first, step))
                first = None
    return found


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


@dataclass
class Answers:
    """Questions `asked`, and those of them whose answer was `right`, by kind."""

    asked: Counter = field(default_factory=Counter)
    right: Counter = field(default_factory=Counter)

    def mark(self, question: ShapesQuestion, events: Iterable[Event], question_id: str) -> str:
        """Count a question by what was said under its id, which is returned."""
        said = ''.join(event.delta for event in events if isinstance(event, TextDelta)
                       and event.stream_id == question_id).strip()
        self.asked[question.kind] += 1
        self.right[question.kind] += said == question.answer
        return said

    def share(self) -> float | None:
        """The share of right answers; None where nothing was asked."""
        asked = sum(self.asked.values())
        return round(sum(self.right.values()) / asked, 4) if asked else None

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Return, for each kind that was asked, how many were, and were answered right."""
        return {kind: dict(asked=self.asked[kind], right=self.right[kind])
                for kind in QUESTION_KINDS if self.asked[kind]}


class Witness:
    """Knows the scene announced on `~/scene` of the camera; times are stamps [ns]."""

    def __init__(self, scene: Scene, start_ns: int) -> None:
        self.scene, self.start_ns = scene, start_ns
        self._facts = [*scene.facts]
        self._truth = Truth((fact.claim, fact.visible_s) for fact in scene.facts)

    @classmethod
    def from_json(cls, text: str) -> Witness:
        """Write the scene again that the camera announced."""
        announced = json.loads(text)
        return cls(generate(announced['seed'], announced['seconds'], announced['difficulty'],
                            announced['max_objects']), announced['start_stamp_ns'])

    def seconds(self, stamp_ns: int) -> float:
        """Return the time in the scene of a stamp [s]."""
        return (stamp_ns - self.start_ns) / NANOSECONDS

    def judge(self, sentence: str, stamp_ns: int) -> Fact | None:
        """Return the fact that makes a sentence true, None if there is none."""
        claim, seen_s = parse(sentence), self.seconds(stamp_ns) + 1e-9
        found = None if claim is None else self._truth.find(claim, seen_s, seen_s)
        return None if found is None else self._facts[found]

    def restarted(self, stamp_ns: int) -> None:
        """Take note that the narrator begins anew: it may say again who is there."""
        # What an earlier restart allowed, and was not said, is news no more.
        self._truth.made.update(range(len(self.scene.facts), len(self._facts)))
        for fact in in_view(self.scene, self.seconds(stamp_ns)):
            self._facts.append(fact)
            self._truth.claims.append((fact.claim, fact.visible_s))

    def answer(self, question: str, stamp_ns: int) -> str | None:
        """Return the true answer for one who saw all up to a stamp, None where it has none."""
        return true_answer(self.scene, max(0.0, self.seconds(stamp_ns)), question)

    def question(self, stamp_ns: int, used: Collection[str]) -> ShapesQuestion:
        """Return a question for one who saw all up to a stamp, of a kind not in `used`."""
        at_s = max(0.0, self.seconds(stamp_ns))
        rng = np.random.default_rng([self.scene.seed, round(at_s)])
        return (make_question(self.scene, at_s, rng, without=used)
                or make_question(self.scene, at_s, rng))
