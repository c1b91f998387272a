"""The true narration of a scene: which facts each step shows, and the words a narrator owes."""

from __future__ import annotations

from collections.abc import Sequence

from sww_ros.shapes.grammar import SHAPES
from sww_ros.shapes.scene import Fact, Scene

NARRATE = 'What happens?'
"""The standing question that asks for everything."""


def standing_questions() -> list[str]:
    """All standing questions of this world: everything, or only what one kind of shape does."""
    return [NARRATE] + [f'What happens to the {shape}?' for shape in SHAPES]


def wanted(facts: Sequence[Fact], question: str = NARRATE) -> list[Fact]:
    """
    Those of `facts` which a standing question asks for.

    :raises ValueError: for a question that is not one of `standing_questions()`
    """
    if question == NARRATE:
        return list(facts)
    for shape in SHAPES:
        if question == f'What happens to the {shape}?':
            return [fact for fact in facts if fact.claim.shape == shape]
    raise ValueError(f'no truth for the standing question {question!r}; '
                     f'known: {standing_questions()}')


def newest_frame_s(step: int, phase_s: float, frame_period_s: float = 0.5,
                   frames_per_step: int = 2) -> float:
    """Time of the last frame of a step, in seconds, for a camera that starts at `phase_s`."""
    return phase_s + ((step + 1) * frames_per_step - 1) * frame_period_s


def facts_by_step(scene: Scene, steps: int, phase_s: float = 0.0,
                  question: str = NARRATE) -> list[list[Fact]]:
    """For each step, the facts that it is the first to show."""
    shown: list[list[Fact]] = [[] for _ in range(steps)]
    step = 0
    for fact in wanted(scene.facts, question):
        while step < steps and newest_frame_s(step, phase_s) < fact.visible_s - 1e-9:
            step += 1
        if step < steps:
            shown[step].append(fact)
    return shown
