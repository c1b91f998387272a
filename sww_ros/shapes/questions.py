"""Questions about a scene with their true answers, from the facts visible at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sww_ros.shapes.grammar import COLORS, NUMBERS, SHAPES
from sww_ros.shapes.scene import TICK_S, Scene


@dataclass(frozen=True)
class Question:
    """A question of a kind, with the one true answer at the time it was made for."""

    kind: str
    text: str
    answer: str


@dataclass
class _Known:
    """What the visible facts say of one shape."""

    color: str
    shape: str
    x: float
    appeared: int
    way: str = ''
    moved: int = -1
    rested: bool = False


class Viewer:
    """One who has seen a scene up to a time, and knows what its facts say by then."""

    def __init__(self, scene: Scene, until_s: float) -> None:
        self.present: dict[int, _Known] = {}
        self.appeared: list[tuple[int, str, str]] = []
        for index, fact in enumerate(scene.facts_visible(until_s)):
            self._learn(index, fact)
        tick = int(until_s / TICK_S + 1e-9)
        for object_id, known in self.present.items():
            xy = scene.tracks[object_id].xy
            known.x = float(xy[min(tick, len(xy) - 1), 0])

    def _learn(self, index: int, fact) -> None:
        claim = fact.claim
        if claim.kind == 'appears':
            self.present[fact.object_id] = _Known(claim.color, claim.shape, fact.x, index)
            self.appeared.append((fact.object_id, claim.color, claim.shape))
            return
        known = self.present[fact.object_id]
        if claim.kind in ('moves', 'turns'):
            known.way, known.moved, known.rested = claim.argument, index, False
        elif claim.kind in ('stops', 'hits'):
            known.way, known.rested = '', True
        elif claim.kind == 'becomes':
            known.color = claim.argument
        elif claim.kind == 'leaves':
            del self.present[fact.object_id]

    def _unique_shapes(self) -> list[_Known]:
        shapes = [known.shape for known in self.present.values()]
        return [known for known in self.present.values() if shapes.count(known.shape) == 1]

    def ask_color(self, rng: np.random.Generator) -> Question | None:
        known = _pick(rng, self._unique_shapes())
        return known and Question(
            'color', f'What colour is the {known.shape}?', f'{known.color.capitalize()}.')

    def ask_count(self, rng: np.random.Generator) -> Question:
        return Question('count', 'How many shapes are there?',
                        f'{NUMBERS[len(self.present)].capitalize()}.')

    def ask_exists(self, rng: np.random.Generator) -> Question:
        color, shape = str(rng.choice(COLORS)), str(rng.choice(SHAPES))
        known = _pick(rng, list(self.present.values()))
        if known is not None and rng.random() < 0.85:
            # Half the time a shape that is there, else one that shares a part with it.
            draw = rng.random()
            color = known.color if draw < 0.75 else color
            shape = known.shape if draw < 0.5 or draw > 0.75 else shape
        there = any((k.color, k.shape) == (color, shape) for k in self.present.values())
        return Question('exists', f'Is there a {color} {shape}?', 'Yes.' if there else 'No.')

    def ask_stopped(self, rng: np.random.Generator) -> Question | None:
        unique = self._unique_shapes()
        rested = [known for known in unique if known.rested]
        known = _pick(rng, rested if rested and rng.random() < 0.5 else unique)
        return known and Question('stopped', f'Did the {known.shape} stop?',
                                  'Yes.' if known.rested else 'No.')

    def ask_motion(self, rng: np.random.Generator) -> Question | None:
        known = _pick(rng, self._unique_shapes())
        return known and Question('motion', f'What does the {known.shape} do?',
                                  f'It moves {known.way}.' if known.way else 'It stays still.')

    def ask_moved_last(self, rng: np.random.Generator) -> Question | None:
        moved = [known for known in self.present.values() if known.moved >= 0]
        if not moved:
            return None
        last = max(moved, key=lambda known: known.moved)
        return Question('moved_last', 'Which shape moved last?',
                        f'The {last.color} {last.shape}.')

    def ask_where(self, rng: np.random.Generator) -> Question | None:
        clear = [k for k in self._unique_shapes() if min(abs(k.x - 1 / 3), abs(k.x - 2 / 3)) > .05]
        known = _pick(rng, clear)
        return known and Question('where', f'Where is the {known.shape}?',
                                  ('Left.', 'Middle.', 'Right.')[min(2, int(known.x * 3))])


KINDS = ('color', 'count', 'exists', 'stopped', 'motion', 'moved_last', 'where')


def _pick(rng: np.random.Generator, choices: list[_Known]) -> _Known | None:
    return choices[int(rng.integers(len(choices)))] if choices else None


def make(scene: Scene, until_s: float, rng: np.random.Generator,
         kind: str | None = None) -> Question | None:
    """
    Make a question that one who has seen the scene up to `until_s` seconds can answer.

    Without a kind, one that has an answer is drawn; with one, None means there is none now.

    :raises ValueError: for a kind that is not one of `KINDS`
    """
    viewer = Viewer(scene, until_s)
    if kind is not None:
        if kind not in KINDS:
            raise ValueError(f'unknown kind of question {kind!r}; one of {", ".join(KINDS)}')
        return getattr(viewer, f'ask_{kind}')(rng)
    for index in rng.permutation(len(KINDS)):
        question = getattr(viewer, f'ask_{KINDS[index]}')(rng)
        if question is not None:
            return question
    return viewer.ask_count(rng)


def answer(scene: Scene, until_s: float, text: str) -> str | None:
    """The true answer to a question in this world's words at a time, or None where it has none."""
    for kind in KINDS:
        rng = np.random.default_rng(0)
        for _ in range(64):
            question = make(scene, until_s, rng, kind)
            if question is None:
                break
            if question.text == text:
                return question.answer
    return None
