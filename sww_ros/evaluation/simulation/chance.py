"""Schedules by chance: a seed gives settings, a mood, and moves after that mood."""

from __future__ import annotations

import random

from sww_ros.evaluation.simulation.script import (
    Ask,
    Cancel,
    Close,
    Feed,
    Finish,
    Forget,
    Look,
    Move,
    Pause,
    Prompt,
    Script,
    Settings,
    Wait,
)
from sww_ros.evaluation.simulation.world import EXECUTORS
from sww_ros.streaming.config import QUESTION_POLICIES
from sww_ros.streaming.schedule import SCHEDULES

MOST_MOVES = 100

# How often each move comes, and how often a job fails and of which sides, by mood.
_CALM = dict(feed=8, last=1, ask=2, cancel=1, prompt=1, reset=1, pause=1, wait=1, close=0.1,
             finish=14)
_MOODS = (
    (_CALM, 0.03, ('perception', 'decoding', 'all')),
    (_CALM | dict(last=5, prompt=0.2, reset=0.2), 0.0, ()),
    (_CALM | dict(ask=10, cancel=3), 0.02, ('perception', 'decoding')),
    (_CALM | dict(reset=4, prompt=4, ask=4), 0.05, ('perception', 'decoding')),
    (_CALM | dict(pause=6, last=3), 0.02, ('perception', 'decoding')),
    (_CALM | dict(feed=20, finish=8), 0.0, ()),
    (_CALM | dict(feed=2, ask=5, wait=5), 0.0, ()),
    (_CALM | dict(feed=10, finish=30, reset=0.1, prompt=0.1, close=0), 0.9, ('perception',)),
    (_CALM | dict(feed=10, finish=30, reset=0.1, prompt=0.1, close=0), 0.9, ('decoding',)),
)
_MOODS = tuple((tuple(weights), tuple(weights.values()), failing, sides)
               for weights, failing, sides in _MOODS)
_WORDS = 'ttttSShsse'
_TAILS = ('t', 's', 'e', 'tsSe', 'tttS', 'h')
_NAMES = 'abcdef'
# Most steps of a stream, its capacity, and how many are carried over.
_RELAYS = ((3, 2, 1), (4, 2, 1), (4, 3, 1), (4, 3, 2), (6, 4, 2), (6, 3, 2), (8, 4, 3), (12, 6, 5))


def random_script(seed: int) -> Script:
    """Return the schedule of a seed."""
    chance = random.Random(seed)
    names, weights, failing, sides = chance.choice(_MOODS)
    count = chance.randint(3, MOST_MOVES)
    moves = tuple(_move(name, chance, failing, sides)
                  for name in chance.choices(names, weights, k=count))
    eager = chance.random() < 0.7
    if not eager:
        moves = tuple(move for made in moves for move in (
            (made, Look(chance.randrange(3))) if chance.random() < 0.7 else (made,)))
    return Script(random_settings(chance), moves, eager, chance.choice(_TAILS))


def random_settings(chance: random.Random) -> Settings:
    """Return settings as they come up, small, so that every limit is met."""
    max_steps = chance.choice((1, 2, 3, 4, 50))
    relay = None
    if chance.random() < 0.5:
        max_steps, *relay = chance.choice(_RELAYS)
    return Settings(
        overlap=chance.choice(tuple(EXECUTORS)), serial=chance.random() < 0.2,
        schedule=chance.choice(SCHEDULES), schedule_seed=chance.randrange(3),
        wait_k=chance.randint(1, 3), max_steps=max_steps, relay=relay and tuple(relay),
        frames_per_step=chance.choice((1, 1, 2, 3)), max_pending_frames=chance.choice((1, 2, 4, 8)),
        max_answers=chance.randint(1, 3), max_queued=chance.randint(0, 2),
        question_policy=chance.choice(QUESTION_POLICIES),
        max_answer_tokens=chance.randint(1, 5), max_rest_tokens=chance.randint(1, 4),
        question_timeout_s=chance.choice((0.0, 2.0)), single_turn=chance.random() < 0.2,
        narrate=chance.random() < 0.9)


def _move(name: str, chance: random.Random, failing: float, sides: tuple[str, ...]) -> Move:
    if name == 'finish':
        fails = chance.choice(sides) if failing and chance.random() < failing else ''
        return Finish(chance.randrange(3), fails, ''.join(chance.choices(_WORDS, k=2)))
    if name in ('feed', 'last'):
        return Feed(name == 'last')
    if name == 'ask':
        return Ask(chance.choice(_NAMES), chance.choice((0, 0, 1, 2)))
    if name == 'cancel':
        return Cancel(chance.choice(_NAMES))
    if name == 'pause':
        return Pause(chance.random() < 0.5)
    if name == 'wait':
        return Wait(chance.randint(1, 3))
    return {'prompt': Prompt, 'reset': Forget, 'close': Close}[name]()
