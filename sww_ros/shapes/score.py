"""
Scores a checkpoint on unseen scenes of the shapes world, through the live engine.

`python -m sww_ros.shapes.score --first-seed N --count M --json FILE` plays M scenes, step by
step, judges the narration fact by fact and the answers to questions asked on the way. With
`--seconds` the scenes are long, and told over hand-overs; beside them by streams that begin anew,
or, with `--carried`, questions are asked that hand-overs might spoil.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sww_ros.library import ClipError, play_steps, settle
from sww_ros.settings import add_option
from sww_ros.shapes import long_scenes
from sww_ros.shapes.grammar import QUESTION_KINDS, ShapesQuestion, make_question
from sww_ros.shapes.render import Film
from sww_ros.shapes.scene import generate
from sww_ros.shapes.truth import (
    NARRATE,
    Answers,
    Judgement,
    judge,
    standing_questions,
    utterances,
)
from sww_ros.streaming.config import BY_NAME, QUANTIZATIONS, SessionConfig
from sww_ros.streaming.events import Event, Restarted
from sww_ros.streaming.session import Session

OWED_STEPS = 16
SETTLING_STEPS = 4
QUESTIONS = 3


@dataclass
class Score:
    """Counts over scenes: the narration's verdict, and questions asked and answered by kind."""

    verdict: Judgement = field(default_factory=Judgement)
    answers: Answers = field(default_factory=Answers)
    seeds: list[dict] = field(default_factory=list)

    def table(self) -> dict:
        """Return `summary` and, below it, the figures by kind."""
        summary = self.verdict.summary()
        summary.update(answers_right=self.answers.share(), scenes=len(self.seeds),
                       sentences=self.verdict.sentences,
                       questions=sum(self.answers.asked.values()))
        return dict(
            summary=summary, facts_by_kind=self.verdict.by_kind(),
            answers_by_kind=self.answers.by_kind())


def play(session: Session, seed: int, max_objects: int, score: Score,
         prompt: str = NARRATE) -> None:
    """
    Play one scene to the session and add its figures to the score.

    Each step waits for the words it is owed, so that the run does not depend on how fast the
    machine is; perception, budget and decoding are those of the live engine.
    """
    steps = OWED_STEPS + SETTLING_STEPS
    scene = generate(seed, steps + 1.0, max_objects=max_objects)
    rng = np.random.default_rng([seed, 2])
    film = Film.of(scene, rng)
    asked_at = sorted(rng.choice(np.arange(1, OWED_STEPS), QUESTIONS, replace=False).tolist())
    questions: dict[str, ShapesQuestion] = {}
    session.set_prompt(prompt)
    list(settle(session, lossless=False))  # What is left of the scene before.
    events: list[Event] = []
    for step, new in enumerate(play_steps(session, film.steps(0, steps), ends=False)):
        events += new
        if step in asked_at:
            number = seed * QUESTIONS + asked_at.index(step)
            at = film.seen_s(step + 1)
            kind = QUESTION_KINDS[number % len(QUESTION_KINDS)]
            question = make_question(scene, at, rng, kind) or make_question(scene, at, rng)
            questions[session.ask(question.text)] = question
            events += settle(session)
    if any(isinstance(event, Restarted) for event in events):
        raise ClipError(f'seed {seed}: the stream began anew')
    verdict = judge(scene, utterances(events), steps, OWED_STEPS, film.phase_s, prompt)
    score.verdict.add(verdict)
    answers = []
    for question_id, question in questions.items():
        said = score.answers.mark(question, events, question_id)
        answers.append(dict(kind=question.kind, question=question.text, truth=question.answer,
                            answer=said))
    score.seeds.append(dict(
        seed=seed, **{k: v for k, v in verdict.summary().items() if k != 'grammatical'},
        false=verdict.false, answers=answers))


def run(model: str, first_seed: int, count: int, max_objects: int,
        prompts: Sequence[str] = (NARRATE,), **settings: str) -> Score:
    """
    Play `count` scenes of consecutive seeds, each prompt in turn, with a fresh session.

    :param settings: of that session
    """
    score = Score()
    with Session.open(model, SessionConfig(overlap='threads', **settings)) as session:
        for seed in tqdm(range(first_seed, first_seed + count), desc=f'{max_objects} objects',
                         unit='scene', disable=None):
            play(session, seed, max_objects, score, prompts[seed % len(prompts)])
    return score


def main() -> None:
    """Score, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--model', default='builtin', help='checkpoint (default: %(default)s)')
    parser.add_argument('--first-seed', type=int, default=1000)
    parser.add_argument('--count', type=int, default=200, help='scenes (default: %(default)s)')
    parser.add_argument('--max-objects', type=int, default=2)
    parser.add_argument('--beside', type=int, nargs='*', default=[3],
                        help='also report scenes with so many objects (default: 3)')
    parser.add_argument('--seconds', type=float, default=0.0,
                        help='play scenes of so many seconds instead, over hand-overs')
    parser.add_argument('--capacity', type=int, default=0, help='with --seconds, of a session')
    parser.add_argument('--memory', type=int, default=-1, help='with --seconds, of a session')
    parser.add_argument('--previous-sentences', type=int, default=-1,
                        help='with --seconds, of a session')
    parser.add_argument('--carried', action='store_true',
                        help='with --seconds, only ask right after each hand-over, and at the '
                        'same times without one')
    parser.add_argument('--standing', action='store_true',
                        help='with --seconds, ask in the prefix what one kind of shape does')
    parser.add_argument('--still', type=float, nargs='*', default=[],
                        help='with --seconds, of a session: compare these instead')
    parser.add_argument('--frame-rate', type=float, nargs='*', default=[],
                        help='with --seconds, of a session: compare these instead')
    parser.add_argument('--quantize', nargs='*', default=[], choices=QUANTIZATIONS,
                        help='of a session: compare these instead, on short scenes')
    add_option(parser, BY_NAME['dtype'], default='')
    parser.add_argument('--json', type=Path, help='file for the figures')
    arguments = parser.parse_args()
    score = (score_quantized if arguments.quantize else
             score_short if not arguments.seconds else
             score_carried if arguments.carried else score_long)
    result = score(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + '\n')


def score_long(arguments: argparse.Namespace) -> dict:
    """
    Play long scenes with and without hand-overs; or compare what one setting does to them.

    Prints the summaries, returns all figures.
    """
    def play_all(memory: int, **settings: float) -> dict:
        config = replace(_session_config(arguments, memory), **settings)
        found = long_scenes.run(arguments.model, _seeds(arguments), arguments.seconds,
                                arguments.max_objects, config,
                                standing_questions()[1:] if arguments.standing else (NARRATE,))
        print(json.dumps(found['summary'], indent=1))
        return found

    for name in ('still', 'frame_rate'):
        if values := getattr(arguments, name):
            return dict(_scenes(arguments), **{name: {
                value: play_all(arguments.memory, **{name: value}) for value in values}})
    return dict(_scenes(arguments), **play_all(arguments.memory), begun_anew=play_all(0))


def score_carried(arguments: argparse.Namespace) -> dict:
    """Ask after hand-overs, and without them; print the summary, return all figures."""
    found = long_scenes.run_carried(arguments.model, _seeds(arguments), arguments.seconds,
                                    arguments.max_objects,
                                    _session_config(arguments, arguments.memory),
                                    _session_config(arguments, 0))
    print(json.dumps(found['summary'], indent=1))
    return dict(_scenes(arguments), **found)


def _seeds(arguments: argparse.Namespace) -> range:
    return range(arguments.first_seed, arguments.first_seed + arguments.count)


def _session_config(arguments: argparse.Namespace, memory: int) -> SessionConfig:
    return SessionConfig(overlap='serial', capacity=arguments.capacity, memory=memory,
                         previous_sentences=arguments.previous_sentences)


def _scenes(arguments: argparse.Namespace) -> dict:
    return dict(model=arguments.model, first_seed=arguments.first_seed, count=arguments.count,
                max_objects=arguments.max_objects, seconds=arguments.seconds)


def score_quantized(arguments: argparse.Namespace) -> dict:
    """Play the same scenes in several precisions; print the summaries, return all figures."""
    found = {}
    for quantize in arguments.quantize:
        table = run(arguments.model, arguments.first_seed, arguments.count, arguments.max_objects,
                    dtype=arguments.dtype, quantize=quantize).table()
        print(quantize, json.dumps(table['summary'], indent=1))
        found[quantize] = table
    return dict(_scenes(arguments), dtype=arguments.dtype, quantize=found)


def score_short(arguments: argparse.Namespace) -> dict:
    """Play scenes of one stream each; print the tables, return all figures."""
    result: dict = dict(
        model=arguments.model, first_seed=arguments.first_seed, count=arguments.count,
        max_objects=arguments.max_objects, steps=OWED_STEPS)
    for objects in dict.fromkeys([arguments.max_objects, *arguments.beside]):
        score = run(arguments.model, arguments.first_seed, arguments.count, objects)
        table = score.table()
        print(f'up to {objects} objects at a time')
        print(json.dumps(table, indent=1))
        if objects == arguments.max_objects:
            result.update(table, seeds=score.seeds)
        else:
            result[f'with_{objects}_objects'] = table
    score = run(arguments.model, arguments.first_seed, arguments.count, arguments.max_objects,
                standing_questions()[1:])
    result['with_other_standing_questions'] = score.table()
    print('asked in the prefix what one kind of shape does')
    print(json.dumps(score.table()['summary'], indent=1))
    return result


if __name__ == '__main__':
    main()
