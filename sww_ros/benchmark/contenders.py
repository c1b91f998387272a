"""
Those who narrate in the peers' benchmark, each played and timed alike.

All have the same weights, frames and tokens a step, and nothing stops one early: no token is
silence or the end of a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import copy
from dataclasses import dataclass, replace
from functools import partial
import time
from typing import Protocol

import numpy as np
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from sww_ros.benchmark.full_load import Side, run_once
from sww_ros.benchmark.models import MEDIUM
from sww_ros.benchmark.stock import (
    Carried,
    Generate,
    Narrator,
    Stock,
    Windows,
    static_cache,
)
from sww_ros.evaluation.random_model import random_model
from sww_ros.models.loading import builtin_path, load, take_apart
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import Event, FirstSight, QuestionState
from sww_ros.streaming.generation import Vocabulary
from sww_ros.streaming.perception import fit_size
from sww_ros.streaming.session import Session

WAIT_K = 3
"""Tokens of narration a step."""
PATIENCE_S = 3600.0
SIDE_BY_SIDE = ('threads', 'processes')
"""Overlaps in which each side has cores of its own: they get the fewest torch threads a side."""


@dataclass(frozen=True)
class Contest:
    """One model for all: as transformers has it, and taken apart for the engine; the frames."""

    stock: Stock
    checkpoint: Checkpoint
    frames: Sequence[np.ndarray]

    def patches(self, step: int) -> torch.Tensor:
        """Return what the vision tower is given of a step; made anew, as live frames are."""
        unit = self.checkpoint.perception.settings.unit
        frames = self.frames[2 * step:2 * step + 2]
        return self.checkpoint.perception.patches(
            frames, *(side * unit for side in self.stock.grid))


class Contender(Protocol):
    """One way to narrate, on a number of torch threads."""

    threads: int

    def seconds(self, steps: int) -> float:
        """Play a stream whose frames are all there; return how long it took until all is said."""

    def hazard_seconds(self, steps: int, sentence: int) -> float:
        """
        After so many steps a sentence of `sentence` tokens begins, and the next frames come.

        Return the time from their coming to the first token that saw them.
        """


@dataclass(frozen=True)
class StockContender:
    """A narrator made of stock modules, which sees and speaks in turn."""

    contest: Contest
    make: Callable[[Contest, int], Narrator]
    threads: int = 1

    def seconds(self, steps: int) -> float:
        """Play a stream."""
        narrator = self._begin(steps)
        start = time.monotonic()
        self.play(narrator, steps)
        return time.monotonic() - start

    def hazard_seconds(self, steps: int, sentence: int) -> float:
        """Play, then time the first token about a step that comes during a sentence."""
        narrator = self._begin(steps + sentence // WAIT_K + 2)
        self.play(narrator, steps)
        narrator.see(self.contest.patches(steps))
        came_ns = narrator.say(sentence).times_ns[0]
        narrator.see(self.contest.patches(steps + 1))
        return (narrator.say(1).times_ns[0] - came_ns) / 1e9

    def play(self, narrator: Narrator, steps: int) -> list[int]:
        """Show and say so many steps; return all tokens."""
        tokens = []
        for step in range(steps):
            narrator.see(self.contest.patches(step))
            tokens += narrator.say(WAIT_K).tokens
        return tokens

    def _begin(self, steps: int) -> Narrator:
        torch.set_num_threads(self.threads)
        return self.make(self.contest, steps)


@dataclass(frozen=True)
class EngineContender:
    """This package's engine, in one scheme and one way to share the cores."""

    contest: Contest
    position_encoding: str
    overlap: str = 'serial'
    threads: int = 1

    def seconds(self, steps: int) -> float:
        """Play a stream."""
        side = Side(self.overlap, self.position_encoding, self.threads)
        return run_once(self.contest.checkpoint, self.contest.frames[:2 * steps], side,
                        WAIT_K).seconds

    def hazard_seconds(self, steps: int, sentence: int) -> float:
        """Play, then time the first token about a step that comes during an answer."""
        frames = self.contest.frames
        config = SessionConfig(
            overlap=self.overlap, position_encoding=self.position_encoding, schedule='wait_k',
            wait_k=WAIT_K, threads=self.threads, max_steps=steps + 1, max_answer_tokens=sentence,
            max_pending_frames=2 * steps, memory=0)
        with Session(self.contest.checkpoint, config) as session:
            for frame in frames[:2 * steps]:
                session.feed(frame)
            session.wait_idle(PATIENCE_S)
            session.drain()
            session.ask('?')
            _await(session, lambda event: isinstance(event, QuestionState)
                   and event.state == 'answering')
            came_ns = time.monotonic_ns()
            for frame in frames[2 * steps:2 * steps + 2]:
                session.feed(frame)
            seen = _await(session, lambda event: isinstance(event, FirstSight)
                          and event.index == steps)
            return (seen.decoded_ns - came_ns) / 1e9


def _await(session: Session, wanted: Callable[[Event], bool]) -> Event:
    while (event := session.poll(PATIENCE_S)) is not None:
        if wanted(event):
            return event
    raise RuntimeError('the engine fell silent')


def make_contest(model: str, steps: int, side: int, seed: int = 0) -> Contest:
    """
    Return a model for all contenders, and random frames for so many steps.

    :param model: 'medium' (random weights), 'builtin', or the folder of a checkpoint
    :param side: width and height of a frame in pixels
    :raises CheckpointError: for a model that cannot be used
    """
    if model == 'medium':
        net, tokenizer = random_model(MEDIUM, seed)
        checkpoint = take_apart(copy.deepcopy(net), tokenizer, name=model)
    else:
        checkpoint = load(model)
        folder = builtin_path() if model == 'builtin' else model
        net = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=checkpoint.decoder.dtype, attn_implementation='sdpa',
            local_files_only=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    rng = np.random.default_rng(seed)
    frames = list(rng.integers(0, 256, (2 * steps, side, side, 3), np.uint8))
    return contest_of(net, replace(checkpoint, tokenizer=tokenizer), frames)


def contest_of(net: Qwen2_5_VLForConditionalGeneration, checkpoint: Checkpoint,
               frames: Sequence[np.ndarray]) -> Contest:
    """Return the contest of a stock model and a checkpoint of the same weights."""
    perception, defaults = checkpoint.perception, checkpoint.defaults
    size, turns = fit_size(*frames[0].shape[:2], perception.settings), checkpoint.turns
    stock = Stock(
        net, checkpoint.encode(*turns.prefix(defaults.system, defaults.prompt)),
        checkpoint.encode(turns.tail), checkpoint.encode(turns.assistant), perception.grid(*size),
        defaults.seconds_per_step)
    return Contest(stock, replace(checkpoint, vocabulary=Vocabulary(frozenset())), frames)


def contenders(contest: Contest, overlaps: Sequence[str], threads: Sequence[int],
               window_steps: int, newest_steps: int) -> dict[str, Contender]:
    """
    Return all contenders by name.

    :param overlaps: the engine's, each with group-decoupled positions
    :param threads: torch threads of those that do one thing at a time, each a contender
    """
    rows = len(contest.stock.prefix) + len(contest.stock.head) + 1
    a_step = contest.stock.grid[0] * contest.stock.grid[1] + WAIT_K
    stock: dict[str, Callable[[Contest, int], Narrator]] = {
        'generate_whole': lambda contest, steps: Generate(contest.stock),
        'generate_newest': lambda contest, steps: Generate(contest.stock, newest_steps),
        'carried': lambda contest, steps: Carried(contest.stock),
        'carried_static': lambda contest, steps: Carried(
            contest.stock, partial(static_cache, rows=rows + steps * a_step)),
        'windows': lambda contest, steps: Windows(contest.stock, window_steps)}
    found: dict[str, Contender] = {}
    for count in threads:
        found |= {named(name, count): StockContender(contest, make, count)
                  for name, make in stock.items()}
        found[named('interleaved', count)] = EngineContender(contest, 'interleaved',
                                                             threads=count)
        found |= {named(f'gdpe_{overlap}', count): EngineContender(
            contest, 'gdpe', overlap, count) for overlap in overlaps
            if overlap not in SIDE_BY_SIDE or count == min(threads)}
    return found


def named(name: str, threads: int) -> str:
    """Return the full name of a contender on so many torch threads a side."""
    return f'{name}@{threads}'
