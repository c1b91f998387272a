"""
One long scene after the other, told over hand-overs: what is true and told, and what they cost.

`python -m sww_ros.shapes.score --seconds N` plays them, step by step, asks a question every few
steps, and does the same with streams that begin anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from sww_ros.shapes.checkpoint import FRAME_SIZE
from sww_ros.shapes.grammar import QUESTION_KINDS, ShapesQuestion, make_question
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import TICK_S, Scene, generate
from sww_ros.shapes.truth import (
    NARRATE,
    Answers,
    Judgement,
    Utterance,
    judge,
    newest_frame_s,
    utterances,
)
from sww_ros.streaming.clip_loop import play_steps, settle
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
            self.verdict.summary(), answers_right=self.answers.share(), scenes=len(self.seeds),
            sentences=self.verdict.sentences, questions=sum(self.answers.asked.values()),
            visual_tokens=round(self.tokens / self.of_tokens, 4) if self.of_tokens else None,
            changes=self.changes, sentences_cut=self.cut, told_again=self.told_again,
            **{name: round(sum(marks) / len(marks), 4) if marks else None
               for name, marks in self.stretches.items()})
        return dict(
            summary=summary, facts_by_kind=self.verdict.by_kind(),
            answers_by_kind=self.answers.by_kind(), seeds=self.seeds)

    def add(self, heard: _Heard, scene: Scene, steps: int, phase_s: float, prompt: str) -> None:
        """Judge what was heard of a scene."""
        spoken = heard.utterances()
        verdict = judge(scene, spoken, steps, steps - UNOWED_STEPS, phase_s, prompt)
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
            verdict.summary(), seed=scene.seed, changes=len(heard.changes),
            sentences_cut=heard.cut, told_again=again, false=verdict.false))

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
            found += utterances([(text.delta, text.sentence, begun + text.step)
                                 for text in self.texts if text.stream_id == NARRATION
                                 and text.video == video and not text.final])
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
    scene = generate(seed, steps + 1.0, max_objects=max_objects)
    rng = np.random.default_rng([seed, 3])
    phase_s = float(rng.random() * TICK_S)
    renderer = Renderer(scene, FRAME_SIZE, FRAME_SIZE)
    session.set_prompt(prompt)
    list(settle(session, lossless=False))
    heard = _Heard()
    frames = ((renderer.frame(phase_s + frame * TICK_S), frame) for frame in range(2 * steps))
    for step, new in enumerate(tqdm(play_steps(session, frames, ends=False), total=steps,
                                    desc=f'seed {seed}', unit='step', disable=None)):
        heard.take(list(new))
        if step % QUESTION_STEPS == QUESTION_STEPS - 1:
            kind = QUESTION_KINDS[step // QUESTION_STEPS % len(QUESTION_KINDS)]
            at_s = newest_frame_s(step, phase_s)
            question = make_question(scene, at_s, rng, kind) or make_question(scene, at_s, rng)
            heard.questions[session.ask(question.text)] = question
            heard.take(list(settle(session)))
    score.add(heard, scene, steps, phase_s, prompt)


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
