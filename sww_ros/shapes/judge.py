"""Judges a narration fact by fact: true or not, how late, grammatical or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from sww_ros.shapes.grammar import Claim, parse
from sww_ros.shapes.narration import NARRATE, facts_by_step
from sww_ros.shapes.scene import Scene

MAX_LATENESS_STEPS = 6
"""A sentence begun later than this after its fact is news no more, and not counted as true."""


@dataclass(frozen=True)
class Utterance:
    """One whole sentence, with the newest step its first and its last token could see."""

    text: str
    first_step: int
    last_step: int


@dataclass
class Verdict:
    """Counts of one or more narrations; `said` and `facts` are by kind of fact."""

    sentences: int = 0
    grammatical: int = 0
    true: int = 0
    said: Counter = field(default_factory=Counter)
    said_true: Counter = field(default_factory=Counter)
    facts: Counter = field(default_factory=Counter)
    narrated: Counter = field(default_factory=Counter)
    lateness: list[int] = field(default_factory=list)
    false: list[str] = field(default_factory=list)
    marks: list[bool] = field(default_factory=list)
    """For each sentence in turn, whether it is true."""
    narrated_at: dict[int, list[bool]] = field(default_factory=dict)
    """For each step, whether the facts that it was the first to show were told."""

    def add(self, other: Verdict) -> None:
        """Add the counts of another narration."""
        for name in ('sentences', 'grammatical', 'true'):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ('said', 'said_true', 'facts', 'narrated'):
            getattr(self, name).update(getattr(other, name))
        self.lateness += other.lateness
        self.false += other.false
        self.marks += other.marks
        for step, told in other.narrated_at.items():
            self.narrated_at[step] = [*self.narrated_at.get(step, []), *told]

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
          max_lateness: int = MAX_LATENESS_STEPS,
          again: Sequence[tuple[Claim, int]] = ()) -> Verdict:
    """
    Compare what was said of `steps` steps with the facts.

    A sentence is true if a fact says the same, was visible by its last token, not too long ago,
    and has not been told before; its lateness counts from the step that first showed the fact to
    the step of its first token. Only facts of the first `owed_steps` steps had to be narrated, so
    that the last ones leave time to finish.

    :param again: claims that may be made once more from a step on, but need not
    """
    shown = facts_by_step(scene, steps, phase_s, question)
    owed = [(fact.claim, step) for step, group in enumerate(shown) for fact in group]
    facts = [*owed, *again]
    told: set[int] = set()
    verdict = Verdict()
    for utterance in utterances:
        verdict.sentences += 1
        claim = parse(utterance.text)
        verdict.marks.append(False)
        if claim is None:
            verdict.false.append(utterance.text)
            continue
        verdict.grammatical += 1
        verdict.said[claim.kind] += 1
        match = next((i for i, (fact, step) in enumerate(facts) if i not in told
                      and fact == claim and step <= utterance.last_step
                      and utterance.first_step - step <= max_lateness), None)
        if match is None:
            verdict.false.append(utterance.text)
            continue
        told.add(match)
        verdict.marks[-1] = True
        verdict.true += 1
        verdict.said_true[claim.kind] += 1
        verdict.lateness.append(max(0, utterance.first_step - facts[match][1]))
    for index, (fact, step) in enumerate(owed):
        if step < owed_steps:
            verdict.facts[fact.kind] += 1
            verdict.narrated[fact.kind] += index in told
            verdict.narrated_at.setdefault(step, []).append(index in told)
    return verdict


def utterances(deltas: Sequence[tuple[str, str, int]]) -> list[Utterance]:
    """Whole sentences from (delta, sentence, step) pieces; an unfinished tail is left out."""
    found, first = [], None
    for _, sentence, step in deltas:
        first = step if first is None else first
        if sentence:
            found.append(Utterance(sentence, first, step))
            first = None
    return found


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
