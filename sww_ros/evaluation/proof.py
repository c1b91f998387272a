"""
Proof by many random cases: live runs against one masked full forward of the stock model.

`python -m sww_ros.evaluation.proof --cases N` plays N random streams (prefix lengths, steps,
grids, K, schedules, questions, executors), some after a reset, another prompt or another video,
with random delays between frames and, in one case of five, at every line of the engine. In one of
three that can, short streams relieve one another, with questions alive across hand-overs; with
`--hand-overs` only such cases are played. It then replays each trace through transformers' own
model, those of all streams of a video, and compares logits and tokens; after every hundred cases
the JSON is written. Whether the right things are computed in the right order is the simulation's
part (evaluation/simulate.py).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import count, islice
import json
from pathlib import Path
import random
import sys
import threading
import time

import numpy as np
import torch
from tqdm import tqdm

from sww_ros.evaluation.random_model import SMALL, SMALL_QWEN2, SMALL_QWEN3, random_checkpoint
import sww_ros.streaming
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import (
    NARRATION,
    Event,
    QuestionState,
    Restarted,
    TextDelta,
    Trouble,
)
from sww_ros.streaming.positions import SCHEMES
from sww_ros.streaming.rules import RULES
from sww_ros.streaming.schedule import SCHEDULES
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import Trace, replay

EXECUTORS = tuple(RULES)
_SCHEMES = tuple(SCHEMES)
KINDS = len(_SCHEMES) * len(SCHEDULES)
PATIENCE_S = 900.0
"""How long a case may take to come to rest, on a machine that does other things first."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
GPU_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Of logits. Norms are of fp32 in every type, and on a GPU sums are not in the oracle's order."""
FAMILIES = {'qwen2_5_vl': SMALL, 'qwen2_vl': SMALL_QWEN2, 'qwen3_vl': SMALL_QWEN3}


@dataclass(frozen=True)
class Outcome:
    """
    One case: tokens compared and differing, the largest difference of logits, what it had.

    `across` are answers that were under way while a stream relieved another.
    """

    tokens: int
    differing: int
    error: float
    lanes: int
    steps: int
    late_sights: int
    hand_overs: int
    across: int
    scheme: str
    schedule: str
    overlap: str


class Subject:
    """A random model in one precision on one device: the oracle and the checkpoint under test."""

    def __init__(self, seed: int, dtype: torch.dtype, shape: dict = SMALL,
                 device: str = 'cpu') -> None:
        self.dtype, self.is_on_gpu = dtype, device != 'cpu'
        self.tolerance = (GPU_TOLERANCE if self.is_on_gpu else TOLERANCE)[dtype]
        self.oracle, self.checkpoint = random_checkpoint(
            shape, seed, dtype, device, silence_token='<|silence|>', max_steps=100)


def subject_of(subjects: list[Subject], seed: int) -> Subject:
    """Return the subject of a case: every kind of case meets each of them in turn."""
    return subjects[(seed + seed // KINDS) % len(subjects)]


def kind_of(seed: int) -> tuple[str, str, str]:
    """Return the scheme, schedule and executor of a case, which take turns by the seed."""
    return (_SCHEMES[seed % len(_SCHEMES)], SCHEDULES[seed // len(_SCHEMES) % len(SCHEDULES)],
            EXECUTORS[seed // KINDS % len(EXECUTORS)])


def can_relay(seed: int) -> bool:
    """Whether a case is of a kind in which streams relieve one another."""
    scheme, schedule, _ = kind_of(seed)
    return not SCHEMES[scheme].serial and schedule != 'offline'


def relay_of(seed: int, always: bool = False) -> dict:
    """
    Return the settings of a case in which streams relieve one another, empty for the others.

    :param always: whether all are such that can
    """
    chance = random.Random(f'relay {seed}')
    if not can_relay(seed) or not always and chance.random() > 1 / 3:
        return {}
    memory = chance.randint(1, 4)
    capacity = memory + chance.randint(1, 3)
    return dict(memory=memory, capacity=capacity, max_steps=capacity + chance.randint(1, 3),
                previous_sentences=chance.randint(0, 3))


def run_case(subject: Subject, seed: int, hand_overs: bool = False) -> Outcome:
    """
    Play one random stream, replay it, compare.

    :param hand_overs: whether streams relieve one another wherever they can
    :raises AssertionError: when the live session reports trouble, does not come to rest, or cuts
        a text
    """
    chance = random.Random(seed)
    rng = np.random.default_rng(seed)
    unit = subject.checkpoint.perception.settings.unit
    scheme, schedule, overlap = kind_of(seed)
    if subject.is_on_gpu and overlap == 'processes':
        overlap = 'threads'  # No other process may have the GPU's memory.
    config = SessionConfig(
        prompt='?' * chance.randint(1, 40), wait_k=chance.randint(1, 5), record_trace=True,
        frame_width=unit * chance.randint(1, 4), frame_height=unit * chance.randint(1, 4),
        position_encoding=scheme, position_gap=chance.randint(0, 20_000), schedule=schedule,
        schedule_seed=seed, max_rest_tokens=chance.randint(1, 12), overlap=overlap, max_answers=3,
        max_answer_tokens=chance.randint(1, 12), max_pending_frames=64)
    steps, ends = chance.randint(1, 6), chance.random() < 0.5 or config.schedule == 'offline'
    if relay := relay_of(seed, hand_overs):
        config = replace(config, **relay)
        steps += 2 * relay['max_steps']
    before = chance.choice(('nothing', 'nothing', 'nothing', 'video', 'reset', 'prompt'))
    delays = disturbed(seed) if chance.random() < 0.2 else nullcontext()
    with delays, Session(subject.checkpoint, config) as session:
        def feed(last: bool = False, stamp_ns: int = 0) -> None:
            for half in range(2):
                # Some frames come at once, some in the middle of a text, some after all is said.
                if chance.random() < 0.3:
                    time.sleep(chance.random() * 0.02)
                session.feed(rng.integers(0, 256, (40, 48, 3), np.uint8), stamp_ns,
                             last=last and bool(half))

        if before != 'nothing':
            # A video before: if it ends, all has to be said first; its answers go on beside.
            feed(last=before == 'video')
            if chance.random() < 0.5:
                session.ask('y')
        if before == 'reset':
            session.reset()
        elif before == 'prompt':
            session.set_prompt('!' * chance.randint(1, 40))
        for step in range(steps):
            feed(ends and step == steps - 1, step)
            if chance.random() < 0.4:
                session.ask('x' * chance.randint(1, 20))
        assert session.wait_idle(PATIENCE_S), f'case {seed} did not come to rest'
        events = session.drain()
        trouble = [event for event in events if isinstance(event, Trouble)]
        assert not trouble, f'case {seed}: {trouble[0].message}'
        cut = {event.finish_reason for event in events if isinstance(event, TextDelta)}
        cut -= {'', 'stop', 'length', before}
        assert not cut, f'case {seed}: a text was cut: {cut}'
        traces = session.traces()
    assert len(traces) > 1 or not relay, f'case {seed}: no stream was relieved'
    for index in range(1, len(traces)):
        assert goes_on(traces[index - 1], traces[index], relay['memory'], subject.checkpoint), \
            f'case {seed}: stream {index} does not go on where the one before ended'
    found = [_compare(trace, subject) for trace in traces]
    return Outcome(
        tokens=sum(tokens for tokens, _, _ in found),
        differing=sum(differing for _, differing, _ in found),
        error=max(error for _, _, error in found),
        lanes=sum(len(trace.speakers) for trace in traces), steps=steps,
        late_sights=sum(int(((np.diff(trace.lane) == 0) & (np.diff(trace.sees) > 0)).sum())
                        for trace in traces),
        hand_overs=len(traces) - 1, across=_across(events), scheme=scheme, schedule=schedule,
        overlap=session.info['overlap'])


def _across(events: Sequence[Event]) -> int:
    """How many answers were under way while a stream relieved another."""
    answering: set[str] = set()
    across: set[str] = set()
    for event in events:
        if isinstance(event, QuestionState) and event.state == 'answering':
            answering.add(event.question_id)
        elif isinstance(event, TextDelta) and event.final:
            answering.discard(event.stream_id)
        elif isinstance(event, Restarted) and event.reason == 'relay':
            across |= answering
    return len(across)


def goes_on(before: Trace, after: Trace, memory: int, checkpoint: Checkpoint) -> bool:
    """Whether a stream begins with the last steps of the one before, and its last words."""
    rows = len(before.patches) // before.steps
    steps = any(torch.equal(before.patches[-rows * count:], after.patches[:rows * count])
                for count in range(memory, min(before.steps, after.steps) + 1))
    said, repeated = _said(before, checkpoint), _repeated(after, checkpoint)
    return steps and (not said or repeated == said[len(said) - len(repeated):])


def _said(trace: Trace, checkpoint: Checkpoint) -> list[int]:
    """All that the narration has said, as it is fed, after its head; empty if that is not known."""
    ids, predicted = (getattr(trace, name)[trace.lane == 0] for name in ('ids', 'predicted'))
    if NARRATION not in trace.speakers or predicted[-1] < 0:
        return []
    last = int(predicted[-1])
    stops = last in checkpoint.vocabulary.stop
    return [*ids.tolist(), *(checkpoint.encode(checkpoint.turns.next_turn) if stops else [last])]


def _repeated(trace: Trace, checkpoint: Checkpoint) -> list[int]:
    """What stands between the head of the narration and its first token of its own."""
    ids, predicted = (getattr(trace, name)[trace.lane == 0] for name in ('ids', 'predicted'))
    if NARRATION not in trace.speakers or not (predicted >= 0).any():
        return []
    # That is predicted from the last word.
    first = 1 + int(np.argmax(predicted >= 0))
    return ids[len(checkpoint.encode(checkpoint.turns.assistant)):first].tolist()


def _compare(trace: Trace, subject: Subject) -> tuple[int, int, float]:
    """Return how many tokens were compared, how many differ, and the largest error of a logit."""
    verdict = replay(trace, subject.oracle)
    if not verdict.compared:
        return 0, 0, 0.0
    top = verdict.logits.topk(2, dim=-1).values
    # Equal logits within the tolerance can differ in the token only where the best two tie.
    tied = top[:, 0] - top[:, 1] <= 2 * subject.tolerance
    return (verdict.compared, int((verdict.wrong & ~tied).sum()),
            float((trace.logits - verdict.logits).abs().max()))


@dataclass
class Tally:
    """What was found by all cases, by precision and by kind."""

    next_seed: int = 0
    by_dtype: dict[str, dict] = field(default_factory=dict)
    by_kind: dict[str, dict] = field(default_factory=dict)

    @staticmethod
    def read(file: Path) -> Tally:
        """Return what was found so far."""
        found = json.loads(file.read_text())
        return Tally(found.pop('next_seed'), by_kind=found.pop('by_kind'), by_dtype=found)

    def add(self, outcome: Outcome, subject: Subject) -> None:
        entry = self.by_dtype.setdefault(str(subject.dtype).removeprefix('torch.'), dict(
            cases=0, with_hand_overs=0, hand_overs=0, answers_across=0, tokens=0, differing=0,
            largest_error=0.0, tolerance=subject.tolerance, over=0))
        entry['with_hand_overs'] += outcome.hand_overs > 0
        entry['hand_overs'] += outcome.hand_overs
        entry['answers_across'] += outcome.across
        entry['over'] += not outcome.error <= subject.tolerance
        entry['largest_error'] = max(entry['largest_error'], outcome.error)
        kind = self.by_kind.setdefault(
            f'{outcome.scheme} × {outcome.schedule} × {outcome.overlap}',
            dict(cases=0, tokens=0, differing=0))
        for each in (entry, kind):
            each['cases'] += 1
            each['tokens'] += outcome.tokens
            each['differing'] += outcome.differing

    @property
    def failed(self) -> bool:
        return any(entry['differing'] or entry['over'] for entry in self.by_dtype.values())

    def __str__(self) -> str:
        return json.dumps(dict(self.by_dtype, by_kind=dict(sorted(self.by_kind.items())),
                               next_seed=self.next_seed), indent=1)


def main() -> None:
    """Run the cases, print and write what was found; exit 1 if any case failed."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--cases', type=int, default=1000)
    parser.add_argument('--first-seed', type=int, default=0)
    parser.add_argument('--hand-overs', action='store_true',
                        help='play only cases in which streams relieve one another')
    parser.add_argument('--family', default='qwen2_5_vl', choices=FAMILIES)
    parser.add_argument('--device', default='cpu', help="where both run: 'cpu', 'cuda', ...")
    parser.add_argument('--json', type=Path)
    parser.add_argument('--go-on', action='store_true',
                        help='add to the cases in the file of --json, which ran with this engine')
    arguments = parser.parse_args()
    if arguments.device != 'cpu':
        _compute_plainly()
    subjects = [Subject(seed, dtype, FAMILIES[arguments.family], arguments.device)
                for seed in range(2) for dtype in TOLERANCE]
    tally = Tally.read(arguments.json) if arguments.go_on else Tally(arguments.first_seed)
    seeds = (seed for seed in count(tally.next_seed)
             if can_relay(seed) or not arguments.hand_overs)
    for number, seed in enumerate(tqdm(islice(seeds, arguments.cases), total=arguments.cases,
                                       unit='case', disable=None), 1):
        subject = subject_of(subjects, seed)
        tally.add(run_case(subject, seed, arguments.hand_overs), subject)
        tally.next_seed = seed + 1
        if arguments.json and (number % 100 == 0 or number == arguments.cases):
            arguments.json.write_text(f'{tally}\n')
    print(tally)
    if tally.failed:
        raise SystemExit(1)


def _compute_plainly() -> None:
    """
    Have a GPU compute in full precision.

    Its convolutions would be of TF32, and with fp32 its kernels of attention round as differently,
    by the sizes that they are given.
    """
    torch.backends.cudnn.allow_tf32 = False
    for enable in (torch.backends.cuda.enable_flash_sdp, torch.backends.cuda.enable_cudnn_sdp,
                   torch.backends.cuda.enable_mem_efficient_sdp):
        enable(False)


_ENGINE = str(Path(sww_ros.streaming.__file__).parent)
_EAGERNESS = 0.03
_LONGEST_S = 0.002


@contextmanager
def disturbed(seed: int) -> Iterator[None]:
    """
    Let this thread, and all that start meanwhile, sleep at random between lines of the engine.

    A line is slept at less often the more often it runs: what happens once in a stream, where
    one thread hands over to another, is disturbed as much as the inner loops.
    """
    chance, runs = random.Random(seed), Counter()

    def at_line(frame, event: str, _: object) -> Callable:
        if event == 'line':
            line = frame.f_code, frame.f_lineno
            runs[line] += 1
            if chance.random() * runs[line] < _EAGERNESS:
                time.sleep(chance.random() * _LONGEST_S)
        return at_line

    def at_call(frame, *_: object) -> Callable | None:
        return at_line if frame.f_code.co_filename.startswith(_ENGINE) else None

    before = sys.gettrace(), threading.gettrace()
    sys.settrace(at_call)
    threading.settrace(at_call)
    try:
        yield
    finally:
        sys.settrace(before[0])
        threading.settrace(before[1])


if __name__ == '__main__':
    main()
