"""
Scores a checkpoint on short clips of the shapes world, through the live engine.

The same clips, questions and figures for every position scheme and schedule, streaming or
offline: what the paper's tables measure, where the truth is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sww_ros.evaluation.metrics import score as caption_scores
from sww_ros.models.loading import load
from sww_ros.shapes.batches import narration_ids
from sww_ros.shapes.checkpoint import FRAME_SIZE, WAIT_K
from sww_ros.shapes.questions import ShapesQuestion
from sww_ros.shapes.questions import make as make_question
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import TICK_S, Scene, generate
from sww_ros.shapes.truth import (
    NARRATE,
    Answers,
    Judgement,
    facts_by_step,
    judge,
    newest_frame_s,
    utterances,
)
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.clip_loop import play_steps, settle
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import NARRATION, Event, TextDelta
from sww_ros.streaming.schedule import make_schedule
from sww_ros.streaming.session import Session

STEPS = 8
OWED_STEPS = 6
"""Facts of the first so many steps have to be told: the later ones leave no time for it."""
QUESTIONS = 3
MAX_OBJECTS = 2
RANDOM_K = 4
"""Random wait-K draws 2, 3 or 4 tokens a step: as many as wait-3 on average."""


@dataclass
class Tally:
    """Counts and texts over clips."""

    verdict: Judgement = field(default_factory=Judgement)
    answers: Answers = field(default_factory=Answers)
    spoken: list[str] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, float | None]:
        """Shares of true facts, told facts and right answers, caption scores x100."""
        told = [(said, [want]) for said, want in zip(self.spoken, self.wanted) if want]
        texts = caption_scores([said for said, _ in told], [want for _, want in told])
        return dict(self.verdict.summary(), answers_right=self.answers.share(),
                    **{name: round(value, 2) for name, value in texts.items()})


@dataclass(frozen=True)
class _Clip:
    """One clip: its scene, frames (2 * STEPS of them), and when which question is asked."""

    scene: Scene
    phase_s: float
    frames: list[np.ndarray]
    asked: list[tuple[int, ShapesQuestion]]

    def stamped(self, steps: int) -> Iterator[tuple[np.ndarray, int]]:
        """Frames of the first so many steps, with their stamps."""
        return ((frame, index) for index, frame in enumerate(self.frames[:2 * steps]))

    @staticmethod
    def of(seed: int) -> _Clip:
        scene = generate(seed, STEPS + 1.0, max_objects=MAX_OBJECTS)
        rng = np.random.default_rng([seed, 3])
        phase = float(rng.random() * TICK_S)
        renderer = Renderer(scene, FRAME_SIZE, FRAME_SIZE)
        asked = []
        for step in rng.choice(np.arange(1, STEPS + 1), QUESTIONS, replace=False):
            asked.append((int(step), make_question(scene, newest_frame_s(step - 1, phase), rng)))
        return _Clip(scene, phase, [renderer.frame(phase + i * TICK_S) for i in range(2 * STEPS)],
                     sorted(asked, key=lambda pair: pair[0]))


def score_clips(model: str | Path, schedule: str, seeds: Iterable[int]) -> dict:
    """
    Score a checkpoint on clips of the given scene seeds.

    Offline, each question is asked of a video that ends where it is asked; streaming, in the
    middle of the narration. The text wanted is what the schedule leaves time to say: streaming
    the sentences of a perfect narrator, offline all of them.

    :param schedule: one of SCHEDULES
    """
    checkpoint, tally = load(str(model)), Tally()
    for seed in tqdm(list(seeds), desc=schedule, unit='clip', disable=None):
        clip = _Clip.of(seed)
        config = SessionConfig(
            schedule=schedule, schedule_seed=seed % 1_000_000,
            wait_k=RANDOM_K if schedule == 'random_wait_k' else WAIT_K,
            max_pending_frames=64, max_rest_tokens=80)
        if schedule == 'offline':
            _score_offline(checkpoint, config, clip, tally)
        else:
            _score_streaming(checkpoint, config, clip, tally)
    return tally.summary()


def _score_streaming(checkpoint: Checkpoint, config: SessionConfig, clip: _Clip,
                     tally: Tally) -> None:
    answers, events = {}, []
    with Session(checkpoint, config) as session:
        for step, new in enumerate(play_steps(session, clip.stamped(STEPS), ends=False), 1):
            events += new
            for at, question in clip.asked:
                if at == step:
                    answers[session.ask(question.text)] = question
            events += settle(session)
    texts = _texts(events)
    schedule = make_schedule(config.schedule, config.wait_k, config.schedule_seed)
    counts = [schedule.granted(step + 1) - schedule.granted(step) for step in range(STEPS)]
    silence = checkpoint.vocabulary.silence
    ids = narration_ids(clip.scene, STEPS, clip.phase_s, NARRATE, silence, checkpoint.encode,
                        counts)
    said = checkpoint.tokenizer.decode([token for token in ids if token != silence])
    _note(tally, clip, texts, said[:said.rfind('.') + 1].strip())
    for question_id, question in answers.items():
        tally.answers.mark(question, texts, question_id)


def _score_offline(checkpoint: Checkpoint, config: SessionConfig, clip: _Clip,
                   tally: Tally) -> None:
    with Session(checkpoint, config) as session:
        for end in {STEPS, *(at for at, _ in clip.asked)}:
            events = []
            for new in play_steps(session, clip.stamped(end)):
                events += new
            if end == STEPS:
                _note(tally, clip, _texts(events), ' '.join(
                    fact.claim.sentence for facts in facts_by_step(
                        clip.scene, STEPS, clip.phase_s) for fact in facts), STEPS)
            for at, question in clip.asked:
                if at == end:
                    question_id = session.ask(question.text)
                    tally.answers.mark(question, _texts(settle(session)), question_id)


def _texts(events: Iterable[Event]) -> list[TextDelta]:
    return [event for event in events if isinstance(event, TextDelta)]


def _note(tally: Tally, clip: _Clip, texts: list[TextDelta], wanted: str,
          max_lateness: int = OWED_STEPS) -> None:
    """Judge a narration; its last sentence, if it was cut off, is not held against it."""
    told = utterances([(t.delta, t.sentence, t.step) for t in texts if t.stream_id == NARRATION])
    tally.verdict.add(judge(clip.scene, told, STEPS, OWED_STEPS, clip.phase_s,
                            max_lateness=max_lateness))
    tally.spoken.append(' '.join(utterance.text for utterance in told))
    tally.wanted.append(wanted)
