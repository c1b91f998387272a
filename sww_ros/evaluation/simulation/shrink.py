"""From a schedule that fails to the smallest that fails in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace

from sww_ros.evaluation.simulation.invariants import violations
from sww_ros.evaluation.simulation.script import Finish, Look, Script, Settings

Finds = Callable[[Script], list[str]]


def shrink(script: Script, finds: Finds = violations) -> Script:
    """
    Return the smallest script found that breaks the first invariant which `script` breaks.

    Parts of the moves are left out (delta debugging), then settings and moves are made plain, as
    long as anything becomes smaller.
    """
    name = _first(finds(script))
    if not name:
        return script

    def fails(candidate: Script) -> bool:
        return any(words.startswith(f'{name}:') for words in finds(candidate))

    changed = True
    while changed:
        changed = False
        for candidates in (_shorter, _plainer):
            while (smaller := next(filter(fails, candidates(script)), None)) is not None:
                script, changed = smaller, True
    return script


def _first(found: list[str]) -> str:
    return found[0].split(':')[0] if found else ''


def _shorter(script: Script) -> Iterator[Script]:
    """All with a part of the moves left out, from halves to single ones."""
    moves = script.moves
    size = len(moves)
    while size:
        for start in range(0, len(moves), size):
            yield replace(script, moves=moves[:start] + moves[start + size:])
        size //= 2


def _plainer(script: Script) -> Iterator[Script]:
    """All with one setting, or one move, as it is by default."""
    if not script.eager:
        yield replace(script, eager=True,
                      moves=tuple(move for move in script.moves if not isinstance(move, Look)))
    for whole in (Settings(), Script()):
        part = script.settings if isinstance(whole, Settings) else script
        for field in fields(whole):
            if field.name in ('settings', 'moves', 'eager'):
                continue
            value = getattr(whole, field.name)
            if getattr(part, field.name) != value:
                plain = replace(part, **{field.name: value})
                yield plain if part is script else replace(script, settings=plain)
    for index, move in enumerate(script.moves):
        for field in fields(move):
            # Who finishes is not a matter of taste.
            if getattr(move, field.name) != field.default and not (
                    isinstance(move, Finish) and field.name == 'worker'):
                plain = replace(move, **{field.name: field.default})
                yield replace(script,
                              moves=(*script.moves[:index], plain, *script.moves[index + 1:]))
