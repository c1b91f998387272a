"""
Proof by many random cases: live runs against one masked full forward of the stock model.

`python -m sww_ros.evaluation.proof --cases N` plays N random streams (prefix lengths, steps,
grids, K, schedules, questions, overlap) on real threads whose timing is disturbed by random
sleeps, then replays each trace through transformers' own model and compares logits and tokens.
"""

from __future__ import annotations

import argparse
from contextlib import contextmanager
from dataclasses import dataclass
import json
from pathlib import Path
import random
import time

import numpy as np
import torch
from tqdm import tqdm
from transformers import Qwen2_5_VLForConditionalGeneration

from sww_ros.evaluation.random_model import SMALL, random_checkpoint
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import Trouble
from sww_ros.streaming.oracle import replay
from sww_ros.streaming.schedule import SCHEDULES
from sww_ros.streaming.session import Session

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


@dataclass(frozen=True)
class Outcome:
    """One case: tokens compared and differing, the largest difference of logits, what it had."""

    tokens: int
    differing: int
    error: float
    lanes: int
    steps: int
    late_sights: int


class Subject:
    """A random model in one precision: the oracle and the checkpoint under test."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.oracle: Qwen2_5_VLForConditionalGeneration
        self.checkpoint: Checkpoint
        self.oracle, self.checkpoint = random_checkpoint(
            SMALL, seed, dtype, silence_token='<|silence|>', max_steps=100)


@contextmanager
def disturbed(checkpoint: Checkpoint, seed: int):
    """Let both sides sleep at random between layers, so that every interleaving comes up."""
    chance = random.Random(seed)
    decoder = checkpoint.decoder
    attend = decoder._attend

    def slow(*arguments):
        if chance.random() < 0.15:
            time.sleep(chance.random() * 0.002)
        return attend(*arguments)

    decoder._attend = slow
    try:
        yield
    finally:
        del decoder._attend


def run_case(subject: Subject, seed: int) -> Outcome:
    """
    Play one random stream, replay it, compare.

    :raises AssertionError: when the live session reports trouble or does not come to rest
    """
    chance = random.Random(seed)
    rng = np.random.default_rng(seed)
    unit = subject.checkpoint.perception.settings.unit
    config = SessionConfig(
        prompt='?' * chance.randint(1, 40), wait_k=chance.randint(1, 5), record_trace=True,
        frame_width=unit * chance.randint(1, 4), frame_height=unit * chance.randint(1, 4),
        schedule=chance.choice(SCHEDULES),
        overlap='serial' if chance.random() < 0.15 else 'threads', max_answers=3,
        max_answer_tokens=chance.randint(1, 12), max_pending_frames=64)
    steps = chance.randint(1, 6)
    with disturbed(subject.checkpoint, seed), Session(subject.checkpoint, config) as session:
        for step in range(steps):
            for _ in range(2):
                session.feed(rng.integers(0, 256, (40, 48, 3), np.uint8), stamp_ns=step)
            if chance.random() < 0.4:
                session.ask('x' * chance.randint(1, 20))
            if chance.random() < 0.3:
                time.sleep(chance.random() * 0.01)
        assert session.wait_idle(60), f'case {seed} did not come to rest'
        trouble = [event for event in session.drain() if isinstance(event, Trouble)]
        assert not trouble, f'case {seed}: {trouble[0].message}'
        trace = session.trace()
    verdict = replay(trace, subject.oracle)
    live = torch.stack([row for record in trace.lanes for row in record.logits])
    tolerance = TOLERANCE[subject.dtype]
    top = verdict.logits.topk(2, dim=-1).values
    # Equal logits within the tolerance can differ in the token only where the best two tie.
    tied = top[:, 0] - top[:, 1] <= 2 * tolerance
    return Outcome(
        tokens=verdict.compared, differing=int((verdict.wrong & ~tied).sum()),
        error=float((live - verdict.logits).abs().max()), lanes=len(trace.lanes), steps=steps,
        late_sights=sum(a < b for record in trace.lanes
                        for a, b in zip(record.sees, record.sees[1:])))


def main() -> None:
    """Run the cases, print and write what was found; exit 1 if any case failed."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--cases', type=int, default=1000)
    parser.add_argument('--first-seed', type=int, default=0)
    parser.add_argument('--json', type=Path)
    arguments = parser.parse_args()
    subjects = [Subject(seed, dtype) for seed in range(2) for dtype in TOLERANCE]
    result: dict[str, dict] = {}
    for index in tqdm(range(arguments.cases), unit='case', disable=None):
        subject = subjects[index % len(subjects)]
        outcome = run_case(subject, arguments.first_seed + index)
        name = str(subject.dtype).removeprefix('torch.')
        entry = result.setdefault(name, dict(cases=0, tokens=0, differing=0, largest_error=0.0,
                                             tolerance=TOLERANCE[subject.dtype], over=0))
        entry['cases'] += 1
        entry['tokens'] += outcome.tokens
        entry['differing'] += outcome.differing
        entry['over'] += not outcome.error <= TOLERANCE[subject.dtype]
        entry['largest_error'] = max(entry['largest_error'], outcome.error)
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + '\n')
    if any(entry['differing'] or entry['over'] for entry in result.values()):
        raise SystemExit(1)


if __name__ == '__main__':
    main()
