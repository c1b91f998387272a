"""
Folders with the config of each published kind of checkpoint stream through the narrator node.

Weights are random. Node, engine and probe are in this process, so that what the model says can be
scripted, and what the node published held against the stock model on the very conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
import itertools
import os
from pathlib import Path
import socket
import threading

from narrator_harness import picture, probing
import numpy as np
import pytest
import rclpy
from rclpy.executors import MultiThreadedExecutor
import torch
from waiting import wait_until

from sww_ros.engine import client
from sww_ros.engine.worker import Worker
from sww_ros.evaluation.random_model import SMALL, SMALL_QWEN2, SMALL_QWEN3, save_random
from sww_ros.models.loading import load_stock
from sww_ros.nodes.narrator import Narrator
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.config import SessionConfig
from sww_ros.streaming.events import NARRATION
from sww_ros.streaming.generation import TextLane
from sww_ros.streaming.session import Session
from sww_ros.streaming.trace import replay
from sww_ros.wire import Channel

END = '<|im_end|>'
TURNS = 4
KINDS = {
    # Shape, profile, a reply, what it says in place of nothing, seconds of a frame.
    'StreamingVLM': (SMALL, 'streaming_vlm', f' Yes. ...{END}', f' ...{END}', 0.5),
    'MMDuet2': (SMALL, 'mmduet2', f'Yes.{END}', f'NO REPLY{END}', 2.0),
    'LiveCC-7B-Instruct': (SMALL_QWEN2, 'livecc', f' Yes. ...{END}', f' ...{END}', 0.5),
    'Qwen3-VL-2B-Instruct': (SMALL_QWEN3, '', f'Yes.{END}', END, 0.5),
}
TOLERANCE = dict(float32=1e-4, float64=1e-9)

due: dict[str, Iterator[int]] = {}
"""What the narration is to say, once a session is open."""
opened: list[Session] = []


def open_session(model: str, config: SessionConfig) -> Session:
    """Open the session of an engine, and have it say what is due."""
    _, _, reply, silence, _ = KINDS[Path(model).name]
    session = Session.open(model, replace(config, record_trace=True))
    encode = session._checkpoint.encode
    due[NARRATION] = itertools.chain(encode(reply), itertools.cycle(encode(silence)))
    opened.append(session)
    return session


class EngineThread:
    """An engine in this process, in place of `engine.process.WorkerProcess`."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        ours, theirs = socket.socketpair()
        self.channel, self.pid = Channel(ours), os.getpid()
        self._thread = threading.Thread(target=self._serve, args=[Channel(theirs)], daemon=True)
        self._thread.start()

    def _serve(self, channel: Channel) -> None:
        try:
            Worker(channel, leave=lambda code: None).run()
        finally:
            channel.close()

    def end(self) -> None:
        self.channel.close()
        self._thread.join(60)

    def kill(self) -> None:
        """Nothing: whoever waits for it would be killed too."""

    def report(self) -> str:
        return 'the engine has ended'


@contextmanager
def narrating(folder: Path, dtype: str) -> Iterator[Narrator]:
    """Run a narrator of a checkpoint in this process."""
    parameters = dict(model=folder, dtype=dtype, overlap='fused', frame_width=84, frame_height=56,
                      silence_timeout=300.0, work_timeout=300.0, image_transport='raw')
    if 'Qwen3' in folder.name:
        parameters.update(frame_width=96, frame_height=64)
    rclpy.init(args=['--ros-args', *(word for name, value in parameters.items()
                                     for word in ('-p', f'{name}:={value}'))])
    node, executor = Narrator(f'{__name__}:open_session'), MultiThreadedExecutor(8)
    executor.add_node(node)
    spinning = threading.Thread(target=executor.spin, daemon=True)
    spinning.start()
    try:
        yield node
    finally:
        node.release()
        executor.shutdown()
        spinning.join(30)
        node.destroy_node()
        rclpy.shutdown()


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    honest = TextLane.choose

    def choose(self: TextLane, logits: torch.Tensor, *of: object) -> int:
        if self.stream_id in due:
            logits = logits.clone()
            logits[next(due[self.stream_id])] = 1e9
        return honest(self, logits, *of)

    monkeypatch.setattr(TextLane, 'choose', choose)
    monkeypatch.setattr(client, 'WorkerProcess', EngineThread)
    yield
    due.clear()
    opened.clear()


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('published')
    for name, (shape, *_) in KINDS.items():
        save_random(folder / name, shape, 1)
    return folder


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('name', KINDS)
def test_it_streams_through_the_node_as_its_oracle_has_it(
        folders: Path, ros_domain: int, scripted: None, name: str, dtype: str):
    _, profile, reply, _, frame_s = KINDS[name]
    seconds = itertools.count(1)
    noise = np.random.default_rng(0)

    def filmed():
        message, at = picture(), next(seconds) * frame_s
        message.data = noise.integers(0, 256, len(message.data), np.uint8).tobytes()
        message.header.frame_id = 'eye'
        message.header.stamp.sec = int(at)
        message.header.stamp.nanosec = round(at % 1 * 1e9)
        return message

    with narrating(folders / name, dtype) as node, probing() as probe:
        told, = [each for each in node.publishers if each.topic_name == '/narrator/caption']
        # Without services: who asks before both ends have found each other gets no response.
        wait_until(lambda: node.active and told.get_subscription_count())
        session, = opened
        checkpoint: Checkpoint = session._checkpoint
        assert session.info['profile'] == checkpoint.asked == profile
        steps = TURNS * max(1, checkpoint.turns.steps_per_turn) + checkpoint.turns.first_turn
        probe.film(filmed, lambda: len(session._core.video.steps) >= steps, period_s=0.03)
        assert session.wait_idle(60)
        trace = session.trace()
        probe.film(filmed, lambda: any(chunk.sentence for chunk in list(probe.captions)))
        said = ''.join(chunk.delta for chunk in list(probe.captions)).strip()
    assert said == 'Yes.'
    stock = load_stock(str(folders / name), getattr(torch, dtype))
    verdict = replay(trace, stock)
    assert trace.steps >= steps and verdict.compared >= TURNS
    spoken = torch.from_numpy(trace.predicted[trace.predicted >= 0])
    wanted = verdict.logits.clone()
    wanted[torch.arange(len(wanted)), spoken] = 1e9  # What was put into its mouth.
    assert (trace.logits - wanted).abs().max() < TOLERANCE[dtype]
