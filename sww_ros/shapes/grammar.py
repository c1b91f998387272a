"""The words of the shapes world: facts as sentences, and sentences parsed back into facts."""

from __future__ import annotations

from dataclasses import dataclass
import re

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
    rf'A (?P<c0>{_COLOR}) (?P<s0>{_SHAPE}) appears\.'
    rf'|The (?P<c1>{_COLOR}) (?P<s1>{_SHAPE}) (?:'
    rf'(?P<bare>stops|leaves)'
    rf'|(?P<motion>moves|turns) (?P<way>{_WAY})'
    rf'|becomes (?P<to>{_COLOR})'
    rf'|hits the (?P<other>(?:{_COLOR}) (?:{_SHAPE})))\.')


def parse(sentence: str) -> Claim | None:
    """Return the claim a sentence makes, or None where it is not a sentence of the grammar."""
    match = _CLAIM.fullmatch(sentence.strip())
    if match is None:
        return None
    if match['c0']:
        return Claim('appears', match['c0'], match['s0'])
    who = (match['c1'], match['s1'])
    if match['bare']:
        return Claim(match['bare'], *who)
    if match['motion']:
        return Claim(match['motion'], *who, match['way'])
    if match['to']:
        return Claim('becomes', *who, match['to'])
    return Claim('hits', *who, match['other'])


def split_sentences(text: str) -> list[str]:
    """Cut running narration after each full stop; an unfinished tail counts as a sentence."""
    return [part.strip() for part in re.findall(r'[^.]*\.|[^.]+$', text) if part.strip()]
