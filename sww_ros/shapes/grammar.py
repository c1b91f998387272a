"""The words of the shapes world: what is said of it, what is asked, and what is a true answer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sww_ros.shapes.scene import Fact, Scene

COLORS = ('red', 'green', 'blue', 'yellow', 'purple')
SHAPES = ('circle', 'square', 'triangle')
DIRECTIONS = {'left': (-1, 0), 'right': (1, 0), 'up': (0, -1), 'down': (0, 1)}
KINDS = ('appears', 'moves', 'turns', 'stops', 'becomes', 'hits', 'leaves')
NUMBERS = ('none', 'one', 'two', 'three', 'four', 'five')


@dataclass(frozen=True)
class Claim:
    """
    What one sentence says: `<color> <shape> <kind> [argument]`.

    `argument` is a direction for moves and turns, a color for becomes, `'<color> <shape>'` of the
    other shape for hits, and '' otherwise.
    """

    kind: str
    color: str
    shape: str
    argument: str = ''

    @property
    def sentence(self) -> str:
        article = 'A' if self.kind == 'appears' else 'The'
        tail = f' {self.argument}' if self.argument else ''
        if self.kind == 'hits':
            tail = f' the{tail}'
        return f'{article} {self.color} {self.shape} {self.kind}{tail}.'


_COLOR, _SHAPE, _WAY = '|'.join(COLORS), '|'.join(SHAPES), '|'.join(DIRECTIONS)
_CLAIM = re.compile(
    rf'(?:A ({_COLOR}) ({_SHAPE}) (appears)'
    rf'|The ({_COLOR}) ({_SHAPE}) (?:(stops|leaves)|(moves|turns) ({_WAY})|(becomes) ({_COLOR})'
    rf'|(hits) the ((?:{_COLOR}) (?:{_SHAPE}))))\.')


def parse(sentence: str) -> Claim | None:
    """Return the claim a sentence makes, or None where it is not a sentence of the grammar."""
    match = _CLAIM.fullmatch(sentence.strip())
    if match is None:
        return None
    color, shape, kind, *argument = (part for part in match.groups() if part is not None)
    return Claim(kind, color, shape, *argument)


@dataclass(frozen=True)
class ShapesQuestion:
    """A question of a kind, with the one true answer at the time it was made for."""

    kind: str
    text: str
    answer: str


@dataclass
class _Known:
    """What the visible facts say of one shape in the picture."""

    color: str
    shape: str
    x: float
    way: str = ''
    moved: int = -1
    rested: bool = False


class Viewer:
    """One who has seen a scene up to a time, and knows what its facts say by then."""

    def __init__(self, scene: Scene, until_s: float) -> None:
        """Look at the scene up to `until_s` seconds."""
        self.present: dict[int, _Known] = {}
        for index, fact in enumerate(scene.facts_visible(until_s)):
            self._learn(index, fact)
        for object_id, known in self.present.items():
            track = scene.tracks[object_id]
            known.x = float(track.xy[track.tick(until_s), 0])

    def _learn(self, index: int, fact: Fact) -> None:
        claim = fact.claim
        if claim.kind == 'appears':
            self.present[fact.object_id] = _Known(claim.color, claim.shape, fact.x)
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

    def only(self, shape: str) -> _Known | None:
        """The shape of this kind, where there is exactly one."""
        found = [known for known in self.present.values() if known.shape == shape]
        return found[0] if len(found) == 1 else None

    def color(self, shape: str) -> str | None:
        known = self.only(shape)
        return known and f'{known.color.capitalize()}.'

    def count(self) -> str:
        return f'{NUMBERS[len(self.present)].capitalize()}.'

    def exists(self, color: str, shape: str) -> str:
        there = any((k.color, k.shape) == (color, shape) for k in self.present.values())
        return 'Yes.' if there else 'No.'

    def stopped(self, shape: str) -> str | None:
        known = self.only(shape)
        return known and ('Yes.' if known.rested else 'No.')

    def motion(self, shape: str) -> str | None:
        known = self.only(shape)
        return known and (f'It moves {known.way}.' if known.way else 'It stays still.')

    def moved_last(self) -> str | None:
        moved = [known for known in self.present.values() if known.moved >= 0]
        if not moved:
            return None
        last = max(moved, key=lambda known: known.moved)
        return f'The {last.color} {last.shape}.'

    def where(self, shape: str) -> str | None:
        known = self.only(shape)
        # Close to a border between thirds there is no fair answer.
        if known is None or min(abs(known.x - 1 / 3), abs(known.x - 2 / 3)) <= .05:
            return None
        return ('Left.', 'Middle.', 'Right.')[min(2, max(0, int(known.x * 3)))]


def _draw_shape(viewer: Viewer, rng: np.random.Generator) -> dict[str, str]:
    shapes = [known.shape for known in viewer.present.values() if viewer.only(known.shape)]
    return dict(shape=_pick(rng, shapes or SHAPES))


def _draw_rested(viewer: Viewer, rng: np.random.Generator) -> dict[str, str]:
    """Half the time a shape that has come to rest, as most have not."""
    rested = [k.shape for k in viewer.present.values() if k.rested and viewer.only(k.shape)]
    if rested and rng.random() < 0.5:
        return dict(shape=_pick(rng, rested))
    return _draw_shape(viewer, rng)


def _draw_any(viewer: Viewer, rng: np.random.Generator) -> dict[str, str]:
    """Half the time a shape that is there, else mostly one that shares a part with it."""
    color, shape = _pick(rng, COLORS), _pick(rng, SHAPES)
    if viewer.present and rng.random() < 0.85:
        known = _pick(rng, list(viewer.present.values()))
        draw = rng.random()
        color = known.color if draw < 0.75 else color
        shape = known.shape if draw < 0.5 or draw > 0.75 else shape
    return dict(color=color, shape=shape)


@dataclass(frozen=True)
class _Kind:
    """A kind of question: its words, how to draw what it is about, how it is answered."""

    template: str
    draw: Callable[[Viewer, np.random.Generator], dict[str, str]]
    answer: Callable[..., str | None]

    def match(self, text: str) -> dict[str, str] | None:
        pattern = re.escape(self.template).replace('colour', 'colou?r')
        for name, words in (('shape', SHAPES), ('color', COLORS)):
            pattern = pattern.replace(rf'\{{{name}\}}', f'(?P<{name}>{"|".join(words)})')
        found = re.fullmatch(pattern, text.strip(), re.IGNORECASE)
        return found and {name: value.lower() for name, value in found.groupdict().items()}


_QUESTIONS = {
    'color': _Kind('What colour is the {shape}?', _draw_shape, Viewer.color),
    'count': _Kind('How many shapes are there?', lambda *_: {}, Viewer.count),
    'exists': _Kind('Is there a {color} {shape}?', _draw_any, Viewer.exists),
    'stopped': _Kind('Did the {shape} stop?', _draw_rested, Viewer.stopped),
    'motion': _Kind('What does the {shape} do?', _draw_shape, Viewer.motion),
    'moved_last': _Kind('Which shape moved last?', lambda *_: {}, Viewer.moved_last),
    'where': _Kind('Where is the {shape}?', _draw_shape, Viewer.where),
}
QUESTION_KINDS = tuple(_QUESTIONS)
EXAMPLE_QUESTIONS = tuple(kind.template.format(shape='circle', color='red')
                          for kind in _QUESTIONS.values())
"""A question of each kind; the color and the shape may be any of the world's."""


def _pick(rng: np.random.Generator, choices):
    return choices[int(rng.integers(len(choices)))]


def make_question(scene: Scene, until_s: float, rng: np.random.Generator, kind: str | None = None,
                  without: Collection[str] = ()) -> ShapesQuestion | None:
    """
    Make a question that one who has seen the scene up to `until_s` seconds can answer.

    Without a kind, one that has an answer is drawn of those that are not in `without`. None means
    that there is none now.

    :raises ValueError: for a kind that is not one of `QUESTION_KINDS`
    """
    if kind is not None and kind not in _QUESTIONS:
        raise ValueError(f'unknown kind of question {kind!r}; one of {", ".join(QUESTION_KINDS)}')
    viewer = Viewer(scene, until_s)
    for name in [kind] if kind else rng.permutation(QUESTION_KINDS).tolist():
        if name not in without:
            entry = _QUESTIONS[name]
            about = entry.draw(viewer, rng)
            answer = entry.answer(viewer, **about)
            if answer is not None:
                return ShapesQuestion(name, entry.template.format(**about), answer)
    return None


def is_known_question(text: str) -> bool:
    """Return whether a question is in this world's words."""
    return any(kind.match(text) is not None for kind in _QUESTIONS.values())


def true_answer(scene: Scene, until_s: float, text: str) -> str | None:
    """
    Return the true answer to a question at a time.

    None where the question is not in this world's words, or has no one true answer then.
    """
    viewer = Viewer(scene, until_s)
    for entry in _QUESTIONS.values():
        about = entry.match(text)
        if about is not None:
            return entry.answer(viewer, **about)
    return None
