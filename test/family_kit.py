"""What a family is held to: its streams, and those that relieve one another, are its oracle's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel
from turn_kit import VideoPart

from sww_ros.models.loading import load, load_stock
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import StepPerceived, TextDelta
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import VIDEO, Trace, replay

STEPS = 4
GRID = (2, 3)
"""Rows and columns of visual tokens in a frame of `noise_for`."""


@pytest.fixture(scope='module')
def exact(folder: Path) -> tuple[Checkpoint, PreTrainedModel]:
    """The checkpoint in fp64, and its oracle."""
    return load(str(folder), dtype='float64'), load_stock(str(folder), torch.float64)


def changed(folder: Path, to: Path, change: Callable[[dict], object] = lambda config: None) -> str:
    """Copy a checkpoint, and change its config; return where it is."""
    to.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    config = json.loads((to / 'config.json').read_text())
    change(config)
    (to / 'config.json').write_text(json.dumps(config))
    return str(to)


def noise_for(checkpoint: Checkpoint, steps: int, seed: int = 0) -> np.ndarray:
    """Frames of `steps` steps, of GRID tokens each."""
    height, width = (checkpoint.perception.settings.unit * side for side in GRID)
    return np.random.default_rng(seed).integers(0, 256, (2 * steps, height, width, 3), np.uint8)


def watch(checkpoint: Checkpoint, frames: np.ndarray | None = None, **settings: object) -> Trace:
    """Return the trace of a short video that ends, with a question in the middle."""
    frames = noise_for(checkpoint, STEPS) if frames is None else frames
    config = SessionConfig(record_trace=True, max_rest_tokens=5, max_answer_tokens=4,
                           max_pending_frames=len(frames), **settings)
    with Session(checkpoint, config) as session:
        for index, frame in enumerate(frames):
            session.feed(frame, last=index == len(frames) - 1)
            if index == 3:
                assert session.wait_idle()
                session.ask('what?')
        assert session.wait_idle()
        return session.trace()


def relieved(checkpoint: Checkpoint, **settings: object) -> list[Trace]:
    """Return the traces of streams that relieve one another, with an answer across a hand-over."""
    frames = noise_for(checkpoint, 12, 1)
    config = SessionConfig(record_trace=True, wait_k=2, capacity=5, memory=2, max_steps=7,
                           max_pending_frames=len(frames), **settings)
    with Session(checkpoint, config) as session:
        for index, frame in enumerate(frames):
            session.feed(frame)
            if index == 13:
                session.ask('what?')
            assert session.wait_idle()
        return session.traces()


def check_replay(traces: Iterable[Trace], stock, least: int) -> None:
    """Hold traces of fp64 against their oracle, `least` tokens of them."""
    compared = 0
    for trace in traces:
        verdict = replay(trace, stock)
        assert not verdict.differing and (verdict.logits - trace.logits).abs().max() < 1e-9
        compared += verdict.compared
    assert compared >= least


def turn_of(checkpoint: Checkpoint, steps: int) -> tuple[list[int], list[int | VideoPart]]:
    """Token ids of prefix, steps and tail, and the same as the parts of a turn."""
    turns, encode = checkpoint.turns, checkpoint.encode
    ids = encode(*turns.prefix(checkpoint.defaults.system, checkpoint.defaults.prompt))
    parts: list[int | VideoPart] = [len(ids)]
    for index in range(steps):
        before, after = checkpoint.text_of_step(index)
        ids += [*before, *[VIDEO] * (GRID[0] * GRID[1]), *after]
        parts += [len(before), VideoPart(1, *GRID), len(after)]
    tail = encode(turns.tail)
    return ids + tail, [*parts, len(tail)]


def check_ids(traces: Iterable[Trace], checkpoint: Checkpoint) -> None:
    """Each stream counts its steps from 0, and so does the text in them."""
    tail = len(checkpoint.encode(checkpoint.turns.tail))
    for trace in traces:
        ids, _ = turn_of(checkpoint, trace.steps)
        assert trace.ids[trace.lane == -1].tolist() == ids[:-tail]


def check_real_shapes(folder: Path, oracle: PreTrainedModel, height: int, parameters: float):
    """Four frames of noise and a question go through a checkpoint as its stock model has it."""
    config = SessionConfig(record_trace=True, dtype='float32', threads=2, max_answer_tokens=3)
    rng = np.random.default_rng(0)
    with Session.open(str(folder), config) as session:
        assert session.info['parameters'] > parameters
        for _ in range(4):
            session.feed(rng.integers(0, 256, (height, 160, 3), np.uint8))
        assert session.wait_idle(120)
        session.ask('what?')
        assert session.wait_idle(120)
        events, trace = session.drain(), session.trace()
    assert sum(isinstance(event, StepPerceived) for event in events) == 2
    assert any(isinstance(event, TextDelta) for event in events)
    live, verdict = trace.logits, replay(trace, oracle)
    assert verdict.differing == 0
    # Logits are in the hundreds with these weights.
    assert float((live - verdict.logits).abs().max() / live.abs().max()) < 1e-4
