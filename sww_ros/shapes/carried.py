"""
Answers over hand-overs: the same questions at the same times, with and without one.

`python -m sww_ros.shapes.score --seconds N --carried`: right after each hand-over a question of
every kind is asked. What it is decided by has been seen in the steps that were carried over, or
before them. The same is asked of a stream that has not been relieved and holds all of these steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from sww_ros.shapes.checkpoint import FRAME_SIZE
from sww_ros.shapes.grammar import QUESTION_KINDS, ShapesQuestion, Viewer, make_question
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import TICK_S, Scene, generate
from sww_ros.shapes.truth import Answers, newest_frame_s
from sww_ros.streaming.clip_loop import play_steps, settle
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import Restarted, TextDelta
from sww_ros.streaming.session import Session

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


@dataclass(frozen=True)
class _Film:
    """A scene as frames, from any step on."""

    scene: Scene
    renderer: Renderer
    phase_s: float

    def steps(self, first: int, end: int) -> Iterator[tuple[np.ndarray, int]]:
        for frame in range(2 * first, 2 * end):
            yield self.renderer.frame(self.phase_s + frame * TICK_S), frame

    def seen_s(self, steps: int) -> float:
        """Return until when one has seen the scene who has seen so many steps [s]."""
        return newest_frame_s(steps - 1, self.phase_s)


def decided_s(scene: Scene, at_s: float, question: ShapesQuestion) -> float:
    """Return when that was seen by which a question is decided [s]: now, if it is about now."""
    if question.kind not in _DECIDING:
        return at_s
    about = [number for number, known in Viewer(scene, at_s).present.items()
             if question.kind == 'moved_last' or known.shape in question.text]
    return max(fact.visible_s for fact in scene.facts_visible(at_s)
               if fact.object_id in about and fact.claim.kind in _DECIDING[question.kind])


def play(relayed: Session, uncut: Session, seed: int, steps: int, max_objects: int,
         score: CarriedScore) -> None:
    """
    Play one scene, and before each question that is asked the last steps to the other session.

    :raises ClipError: for a run in which frames were lost or an error occurred
    """
    scene = generate(seed, steps + 1.0, max_objects=max_objects)
    rng = np.random.default_rng([seed, 4])
    film = _Film(scene, Renderer(scene, FRAME_SIZE, FRAME_SIZE), float(rng.random() * TICK_S))
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


def run(model: str, seeds: Sequence[int], seconds: float, max_objects: int,
        config: SessionConfig, uncut: SessionConfig) -> dict:
    """Play a scene of so many seconds for each seed; return the figures as plain data."""
    score = CarriedScore()
    with Session.open(model, config) as relayed, Session.open(model, uncut) as whole:
        info = relayed.info
        for seed in seeds:
            play(relayed, whole, seed, round(seconds / info['seconds_per_step']), max_objects,
                 score)
    return dict(capacity=info['capacity'], memory=info['memory'], max_steps=info['max_steps'],
                previous_sentences=config.previous_sentences, **score.table())
