"""
One long scene after the other, told over hand-overs: what is true and told, and what they cost.

`python -m sww_ros.shapes.score --seconds N` plays them, step by step, asks a question every few
steps, and does the same with streams that begin anew. With `--carried`, right after each hand-over
a question of every kind is asked. What it is decided by has been seen in the steps that were
carried over, or before them. The same is asked of a stream that holds all of these steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from sww_ros.library import play_steps, settle
from sww_ros.shapes.grammar import QUESTION_KINDS, ShapesQuestion, Viewer, make_question
from sww_ros.shapes.render import Film
from sww_ros.shapes.scene import Scene, generate
from sww_ros.shapes.truth import (
    MAX_LATENESS_STEPS,
    NARRATE,
    Answers,
    Judgement,
    Utterance,
    judge,
    utterances,
)
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import NARRATION, Event, Restarted, StepPerceived, TextDelta
from sww_ros.streaming.session import Session

QUESTION_STEPS = 8
"""A question is asked every so many steps."""
SOON_STEPS = 6
"""So many steps after a hand-over, what is told again is told because of it."""
UNOWED_STEPS = 4
"""The last steps, whose facts need not have been told."""
STRETCH_STEPS = 600
"""The first and the last stretch of a scene are compared: ten minutes, or a third of it."""


@dataclass
class LongScore:
    """
    Counts over long scenes.

    Of the `of_tokens` visual tokens of all steps `tokens` went into the streams. `changes` are
    streams that gave way to the next one, `cut` sentences that were broken off by it, `told_again`
    sentences soon after it that had been told before. `stretches` holds the marks of sentences and
    of facts in the first and in the last stretch.
    """

    verdict: Judgement = field(default_factory=Judgement)
    answers: Answers = field(default_factory=Answers)
    tokens: int = 0
    of_tokens: int = 0
    changes: int = 0
    cut: int = 0
    told_again: int = 0
    stretches: dict[str, list[bool]] = field(default_factory=lambda: {
        f'{what}_{when}': [] for what in ('true', 'narrated') for when in ('first', 'last')})
    seeds: list[dict] = field(default_factory=list)

    def table(self) -> dict:
        """Return `summary`, and below it the figures by kind and of every scene."""
        summary = dict(
            self.verdict.summary(), lateness_s=self._lateness_s(),
            answers_right=self.answers.share(), scenes=len(self.seeds),
            sentences=self.verdict.sentences, questions=sum(self.answers.asked.values()),
            visual_tokens=round(self.tokens / self.of_tokens, 4) if self.of_tokens else None,
            changes=self.changes, sentences_cut=self.cut, told_again=self.told_again,
            **{name: round(sum(marks) / len(marks), 4) if marks else None
               for name, marks in self.stretches.items()})
        return dict(
            summary=summary, facts_by_kind=self.verdict.by_kind(),
            answers_by_kind=self.answers.by_kind(), seeds=self.seeds)

    def add(self, heard: _Heard, film: Film, steps: int, prompt: str) -> None:
        """Judge what was heard of a scene."""
        spoken, in_a_second = heard.utterances(), film.steps_in_a_second
        verdict = judge(film.scene, spoken, steps, steps - UNOWED_STEPS * in_a_second,
                        film.phase_s, prompt, MAX_LATENESS_STEPS * in_a_second,
                        frame_period_s=film.period_s)
        again = heard.told_again(spoken, verdict.marks)
        for question_id, question in heard.questions.items():
            self.answers.mark(question, heard.texts, question_id)
        self._compare(spoken, verdict, steps)
        self.verdict.add(verdict)
        self.tokens += sum(heard.tokens)
        self.of_tokens += len(heard.tokens) * max(heard.tokens)
        self.changes += len(heard.changes)
        self.cut += heard.cut
        self.told_again += again
        self.seeds.append(dict(
            verdict.summary(), seed=film.scene.seed, changes=len(heard.changes),
            sentences_cut=heard.cut, told_again=again, false=verdict.false))

    def _lateness_s(self) -> float | None:
        late = self.verdict.lateness_s
        return round(sum(late) / len(late), 3) if late else None

    def _compare(self, spoken: Sequence[Utterance], verdict: Judgement, steps: int) -> None:
        stretch = min(STRETCH_STEPS, steps // 3)
        for when, within in (('first', range(stretch)), ('last', range(steps - stretch, steps))):
            self.stretches[f'true_{when}'] += [
                mark for said, mark in zip(spoken, verdict.marks, strict=True)
                if said.first_step in within]
            self.stretches[f'narrated_{when}'] += [
                mark for step, marks in verdict.narrated_at.items() if step in within
                for mark in marks]


class _Heard:
    """What the events of one scene say; its steps are counted through, whatever begins anew."""

    def __init__(self) -> None:
        self.texts: list[TextDelta] = []
        self.questions: dict[str, ShapesQuestion] = {}
        self.changes: list[int] = []
        self.tokens: list[int] = []
        self.cut = self._steps = 0
        self._begun: dict[int, int] = {}
        self._unfinished = False

    def take(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, StepPerceived):
                self._begun.setdefault(event.video, self._steps - event.index)
                self._steps += 1
                self.tokens.append(event.tokens)
            elif isinstance(event, Restarted):
                self.changes.append(self._steps)
            elif isinstance(event, TextDelta):
                self.texts.append(event)
                if event.stream_id == NARRATION:
                    self.cut += event.final and self._unfinished
                    self._unfinished = bool(event.delta) and not event.sentence

    def utterances(self) -> list[Utterance]:
        """Whole sentences; one that was cut is none, and nothing goes on with it."""
        found: list[Utterance] = []
        for video, begun in self._begun.items():
            found += utterances((text for text in self.texts
                                 if text.video == video and not text.final), begun)
        return found

    def told_again(self, spoken: Sequence[Utterance], marks: Sequence[bool]) -> int:
        """How many untrue sentences, soon after a change, were true sentences before it."""
        true: set[str] = set()
        found = 0
        for said, mark in zip(spoken, marks, strict=True):
            soon = any(0 <= said.first_step + 1 - change < SOON_STEPS for change in self.changes)
            found += soon and not mark and said.text in true
            if mark:
                true.add(said.text)
        return found


def play(session: Session, seed: int, steps: int, max_objects: int, score: LongScore,
         prompt: str = NARRATE) -> None:
    """
    Play one scene to the session and add its figures to the score.

    :raises ClipError: for a run in which frames were lost or an error occurred
    """
    info = session.info
    scene = generate(seed, steps * info['seconds_per_step'] + 1.0, max_objects=max_objects)
    rng = np.random.default_rng([seed, 3])
    film = Film.of(scene, rng, 1 / info['frame_rate'])
    session.set_prompt(prompt)
    list(settle(session, lossless=False))
    heard, every = _Heard(), QUESTION_STEPS * film.steps_in_a_second
    for step, new in enumerate(tqdm(play_steps(session, film.steps(0, steps), ends=False),
                                    total=steps, desc=f'seed {seed}', unit='step', disable=None)):
        heard.take(list(new))
        if step % every == every - 1:
            kind = QUESTION_KINDS[step // every % len(QUESTION_KINDS)]
            at_s = film.seen_s(step + 1)
            question = make_question(scene, at_s, rng, kind) or make_question(scene, at_s, rng)
            heard.questions[session.ask(question.text)] = question
            heard.take(list(settle(session)))
    score.add(heard, film, steps, prompt)


def run(model: str, seeds: Sequence[int], seconds: float, max_objects: int,
        config: SessionConfig, prompts: Sequence[str] = (NARRATE,)) -> dict:
    """Play a scene of so many seconds for each seed, prompts in turn; return figures as data."""
    score = LongScore()
    with Session.open(model, config) as session:
        info = session.info
        steps = round(seconds / info['seconds_per_step'])
        for seed in seeds:
            play(session, seed, steps, max_objects, score, prompts[seed % len(prompts)])
    return dict(capacity=info['capacity'], memory=info['memory'], max_steps=info['max_steps'],
                **score.table())


_DECIDING = {'moved_last': ('moves', 'turns'),
             'stopped': ('appears', 'moves', 'turns', 'stops', 'hits')}
"""The kinds of questions that are about the past, and of the facts that decide them."""


@dataclass
class CarriedScore:
    """
    Answers about carried steps and about those before: after a hand-over, and uncut without.

    Questions about what neither stream has seen are left out.
    """

    carried: Answers = field(default_factory=Answers)
    carried_uncut: Answers = field(default_factory=Answers)
    before: Answers = field(default_factory=Answers)
    before_uncut: Answers = field(default_factory=Answers)
    hand_overs: int = 0

    def table(self) -> dict:
        """Return `summary`, and below it the counts by kind."""
        summary = dict(
            hand_overs=self.hand_overs, questions_carried=sum(self.carried.asked.values()),
            answers_carried=self.carried.share(), answers_uncut=self.carried_uncut.share(),
            questions_before=sum(self.before.asked.values()),
            answers_before=self.before.share(), answers_before_uncut=self.before_uncut.share())
        return dict(summary=summary, by_kind={
            name: getattr(self, name).by_kind()
            for name in ('carried', 'carried_uncut', 'before', 'before_uncut')})


def decided_s(scene: Scene, at_s: float, question: ShapesQuestion) -> float:
    """Return when that was seen by which a question is decided [s]: now, if it is about now."""
    if question.kind not in _DECIDING:
        return at_s
    about = [number for number, known in Viewer(scene, at_s).present.items()
             if question.kind == 'moved_last' or known.shape in question.text]
    return max(fact.visible_s for fact in scene.facts_visible(at_s)
               if fact.object_id in about and fact.claim.kind in _DECIDING[question.kind])


def play_carried(relayed: Session, uncut: Session, seed: int, steps: int, max_objects: int,
                 score: CarriedScore) -> None:
    """
    Play one scene, and before each question that is asked the last steps to the other session.

    :raises ClipError: for a run in which frames were lost or an error occurred
    """
    scene = generate(seed, steps + 1.0, max_objects=max_objects)
    rng = np.random.default_rng([seed, 4])
    film = Film.of(scene, rng)
    info, base = relayed.info, 0
    _forget(relayed)
    for step, events in enumerate(tqdm(
            play_steps(relayed, film.steps(0, steps), ends=False), total=steps,
            desc=f'seed {seed}', unit='step', disable=None), 1):
        if not any(isinstance(event, Restarted) for event in list(events)):
            continue
        score.hand_overs += 1
        base += info['capacity'] - info['memory']
        first, at_s = step - info['capacity'], film.seen_s(step)
        questions = [found for kind in QUESTION_KINDS
                     if first >= 0 and (found := make_question(scene, at_s, rng, kind))]
        when = [decided_s(scene, at_s, question) for question in questions]
        carried = [question for question, s in zip(questions, when) if s > film.seen_s(base)]
        before = [question for question, s in zip(questions, when)
                  if film.seen_s(first) < s <= film.seen_s(base)]
        _ask(relayed, carried, score.carried)
        _ask(relayed, before, score.before)
        _forget(uncut)
        for told in play_steps(uncut, film.steps(max(0, first), step), ends=False):
            list(told)
        _ask(uncut, carried, score.carried_uncut)
        _ask(uncut, before, score.before_uncut)


def _forget(session: Session) -> None:
    session.reset()
    list(settle(session, lossless=False))


def _ask(session: Session, questions: Sequence[ShapesQuestion], answers: Answers) -> None:
    for question in questions:
        question_id = session.ask(question.text)
        texts = [event for event in settle(session) if isinstance(event, TextDelta)]
        answers.mark(question, texts, question_id)


def run_carried(model: str, seeds: Sequence[int], seconds: float, max_objects: int,
                config: SessionConfig, uncut: SessionConfig) -> dict:
    """Play a scene of so many seconds for each seed; return the figures as plain data."""
    score = CarriedScore()
    with Session.open(model, config) as relayed, Session.open(model, uncut) as whole:
        info = relayed.info
        for seed in seeds:
            steps = round(seconds / info['seconds_per_step'])
            play_carried(relayed, whole, seed, steps, max_objects, score)
    return dict(capacity=info['capacity'], memory=info['memory'], max_steps=info['max_steps'],
                previous_sentences=config.previous_sentences, **score.table())
